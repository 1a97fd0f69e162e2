"""The rules for ambiguity attacks: those that forge a key, and those that draw many."""

from __future__ import annotations

from bench.attack import AmbiguityAttack, DecoyAttack
from bench.bundle import Bundle, bundle_to_key
from bench.contract import attacks, general
from bench.contract.bout import attempt, cases, first, run
from bench.contract.rule import Rule, demand, rule
from bench.contract.workshop import Workshop, disturb
from bench.running.work import evidence_on
from bench.suspect import Suspect

# With fewer, the shares of small p-values say little.
LEAST_DECOYS = 1000


@rule("says-what-it-is", "Name, family and docstring are declared; it applies to the default task")
def _says_what_it_is(attack: AmbiguityAttack | DecoyAttack, workshop: Workshop) -> str:
    return attacks.introduce(attack, workshop)


@rule("attacks", "It forges a key on a protected model, without an error and without NaN")
def _attacks(attack: AmbiguityAttack, workshop: Workshop) -> str:
    found = cases(attack, workshop)
    for case in found:
        attempt(attack, workshop, case)
    return ", ".join(case.name for case in found)


@rule("same-forgery-from-the-same-stream", "Once more, in a process that has done other work, gives the same bits")
def _same(attack: AmbiguityAttack, workshop: Workshop) -> str:
    case = cases(attack, workshop)[0]
    one = first(attack, workshop, case)
    disturb(10)
    other = run(attack, workshop, case)
    same = one.made.to_bytes() == other.made.to_bytes()
    demand(same, "expected the same key and model twice, got others; draw from trainer.stream")
    return case.name


@rule("forges-what-verify-takes", "The scheme can read the forged key, as stored, on the model for which it is claimed")
def _taken(attack: AmbiguityAttack, workshop: Workshop) -> str:
    told = []
    for case in cases(attack, workshop):
        assert case.scheme is not None
        made = Bundle.from_bytes(first(attack, workshop, case).made.to_bytes())
        suspect = Suspect.of(made.models["0"], case.scheme.access_used())
        found = evidence_on(case.scheme, suspect, bundle_to_key(made), workshop.judging(case.task, case.owner))
        demand(found.reason is None, f"expected a key that {case.scheme.label} can look for, got: {found.reason}")
        told.append(f"log10_p {found.log10_p:.1f} by {case.scheme.label}")
    return ", ".join(told)


@rule("draws-enough", f"By default it draws at least {LEAST_DECOYS} keys")
def _draws_enough(attack: DecoyAttack, workshop: Workshop) -> str:
    del workshop
    default = type(attack)().decoys
    demand(default >= LEAST_DECOYS, f"expected at least {LEAST_DECOYS} decoys by default, got {default}")
    return f"{default} keys"


RULES: tuple[Rule, ...] = (_says_what_it_is, *general.RULES, _attacks, _same, *attacks.TAKING, _taken)
DECOY_RULES: tuple[Rule, ...] = (_says_what_it_is, *general.RULES, _draws_enough)
