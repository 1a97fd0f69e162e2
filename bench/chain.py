"""Removal attacks one after another: each starts from the last surrogate of the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from bench.attack import Attack, AttackClass, Data, Knowledge, RemovalAttack
from bench.composed import first_reason, most, total_effort
from bench.defense import Defense
from bench.effort import Effort
from bench.parameters import THEN
from bench.plugin import ACCESSES, Access
from bench.task import Task

# From the least to the most; a new model is more than changed weights, and these are more than the same function.
_CLASSES: tuple[AttackClass, ...] = ("none", "reparametrisation", "in-place", "extraction")
_DATA: tuple[Data, ...] = get_args(Data)
_KNOWLEDGE: tuple[Knowledge, ...] = get_args(Knowledge)


@dataclass(frozen=True)
class Chain(Attack):
    """What a suite writes as `chain = [{ name = "distill" }, { name = "fine-tune" }]`; a plan has a job for each link.

    Its class, access, data and knowledge are the strongest among the links; its surrogates and their strengths are
    those of the last one. What the links before the last cost counts; queries are those of the first, since every
    later one asks a model that the attacker has.

    Attributes:
        links: at least two removal attacks, without their intermediate surrogates.

    Raises:
        ValueError: fewer, or a link after the first that never touches the model it starts from.
    """

    name: ClassVar[str] = "chain"
    family: ClassVar[str] = "chain"

    links: tuple[RemovalAttack, ...] = ()

    def __post_init__(self) -> None:
        if len(self.links) < 2:
            raise ValueError(f"expected at least two links in a chain, got {len(self.links)}")
        for link in self.links:
            if not isinstance(link, RemovalAttack) or link.kind != "removal":
                raise ValueError(f"expected removal attacks in a chain, got {link.name!r}")
        for link in self.links[1:]:
            if link.access_used() == "none":
                raise ValueError(f"expected links that start from the model before them, {link.name!r} starts anew")
        # Of an instance, where other attacks declare them for their class.
        declared = {
            "attack_class": most(_CLASSES, (link.attack_class for link in self.links)),
            "knowledge": most(_KNOWLEDGE, (link.knowledge for link in self.links)),
            "changes_task": any(link.changes_task for link in self.links),
            "strength_unit": self.links[-1].strength_unit,
        }
        for name, value in declared.items():
            object.__setattr__(self, name, value)

    @property
    def params(self) -> dict[str, Any]:
        """Under `chain` the name and all parameters of each link."""
        return {"chain": [{"name": link.name, **link.params} for link in self.links]}

    @property
    def label(self) -> str:
        """The labels of the links in their order."""
        return THEN.join(link.label for link in self.links)

    def access_used(self) -> Access:
        """The most that any link takes."""
        return most(ACCESSES, (link.access_used() for link in self.links))

    def data_used(self) -> Data:
        """The most that any link uses."""
        return most(_DATA, (link.data_used() for link in self.links))

    def surrogates(self) -> int:
        """Those of the last link."""
        return self.links[-1].surrogates()

    def applies_to(self, task: Task) -> str | None:
        """Where every link does."""
        return first_reason(self.links, (link.applies_to(task) for link in self.links))

    def against(self, scheme: Defense) -> str | None:
        """What every link can be tried on."""
        return first_reason(self.links, (link.against(scheme) for link in self.links))

    def effort(self, task: Task) -> Effort | None:
        """That of all links, where each says it."""
        return total_effort(self.links, task)

    def control(self) -> Attack | None:
        """The chain without what is before its last extraction, and that one's control in its place."""
        for place in reversed(range(len(self.links))):
            start, rest = self.links[place].control(), self.links[place + 1 :]
            if start is not None:
                return Chain((start, *rest)) if rest else start
        return None


def links_of(attack: Attack) -> tuple[Attack, ...]:
    """The links of a chain; any other attack is one."""
    return attack.links if isinstance(attack, Chain) else (attack,)
