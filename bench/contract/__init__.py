"""The contract of plugins as rules that can be checked on one plugin, from tests and from the command line."""

from __future__ import annotations

from bench.attack import AmbiguityAttack, DecoyAttack, RemovalAttack
from bench.contract import attacks, defenses, forgeries
from bench.contract.rule import Rule, Verdict, Violation, judge
from bench.contract.workshop import Skip, Workshop
from bench.defense import Defense
from bench.plugin import Plugin

__all__ = ["Rule", "Skip", "Verdict", "Violation", "Workshop", "judge", "rules_for"]

_RULES: tuple[tuple[type[Plugin], tuple[Rule, ...]], ...] = (
    (Defense, defenses.RULES),
    (RemovalAttack, attacks.RULES),
    (AmbiguityAttack, forgeries.RULES),
    (DecoyAttack, forgeries.DECOY_RULES),
)


def rules_for(plugin: Plugin) -> tuple[Rule, ...]:
    """The rules that a plugin is held to, in the order in which they are best read."""
    for base, rules in _RULES:
        if isinstance(plugin, base):
            return rules
    raise TypeError(f"expected a defense or an attack, got a {type(plugin).__name__}")
