"""Two defenses in one model: the second is embedded into what the first published, and either may claim."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from bench.attack import Attack, DecoyAttack
from bench.composed import first_reason, most, total_effort
from bench.defense import Defense
from bench.effort import Effort
from bench.hooks import Hooks
from bench.parameters import AND
from bench.plugin import ACCESSES, Access
from bench.task import Task


@dataclass(frozen=True)
class Pair(Defense):
    """What a suite writes as `pair = [{ name = "uchida" }, { name = "trigger-set" }]`.

    A plan protects by the first, and by the second from the model that came of it, so that each has a key of its own.
    Both judge every suspect; the p of the pair is the smaller one twice (Bonferroni), for a forger's key as well.

    Attributes:
        members: two defenses, in the order in which they are embedded.

    Raises:
        ValueError: not two, the same twice, one that protects nothing, or a pair in a pair.
    """

    name: ClassVar[str] = "pair"
    family: ClassVar[str] = "pair"

    members: tuple[Defense, ...] = ()

    def __post_init__(self) -> None:
        if len(self.members) != 2:
            raise ValueError(f"expected two defenses in a pair, got {len(self.members)}")
        for member in self.members:
            if member.undefended or isinstance(member, Pair):
                raise ValueError(f"expected defenses that embed one mark each in a pair, got {member.name!r}")
        if self.members[0] == self.members[1]:
            raise ValueError(f"expected two different defenses in a pair, got {self.members[0].label!r} twice")

    @property
    def params(self) -> dict[str, Any]:
        """Under `pair` the name and all parameters of each member."""
        return {"pair": [{"name": member.name, **member.params} for member in self.members]}

    @property
    def label(self) -> str:
        """The labels of the members in their order."""
        return AND.join(member.label for member in self.members)

    def access_used(self) -> Access:
        """The most that either takes."""
        return most(ACCESSES, (member.access_used() for member in self.members))

    def capacity(self, task: Task) -> float:
        """The better one's, less what choosing between two readings costs."""
        return min(0.0, min(member.capacity(task) for member in self.members) + math.log10(len(self.members)))

    def applies_to(self, task: Task) -> str | None:
        """Where both do."""
        return first_reason(self.members, (member.applies_to(task) for member in self.members))

    def effort(self, task: Task) -> Effort | None:
        """That of both, where both say it."""
        return total_effort(self.members, task)


def members_of(defense: Defense) -> tuple[Defense, ...]:
    """The members of a pair; any other defense is one."""
    return defense.members if isinstance(defense, Pair) else (defense,)


def faced(defense: Defense, attack: Attack) -> Defense:
    """The scheme that an attack deals with: of a pair the first that it can be tried on, where it can be on either."""
    if not isinstance(defense, Pair):
        return defense
    return next((member for member in defense.members if attack.against(member) is None), defense.members[0])


def refusal(defense: Defense, attack: Attack) -> str | None:
    """Why an attack cannot be tried on a defense, or None where it can."""
    if isinstance(defense, Pair) and isinstance(attack, DecoyAttack):
        return "fresh keys are tried on each of the two alone, in rows of their own"
    return attack.against(faced(defense, attack))


def keeping_zeros(model: nn.Module) -> Hooks:
    """Holds the weights at zero that are zero in a model: where these are is what a sparse mark consists of.

    Args:
        model: trained; of a dense one no weight is zero. Biases and gains, which start at zero, are left alone.
    """
    masks: dict[str, Tensor] = {
        name: (weight != 0).detach()
        for name, weight in model.named_parameters()
        if weight.dim() > 1 and not bool((weight != 0).all())
    }

    def hold(trained: nn.Module, step: int) -> None:
        del step
        for name, weight in trained.named_parameters():
            if name in masks and masks[name].shape == weight.shape:
                weight.data.mul_(masks[name])

    return Hooks(after_step=hold)
