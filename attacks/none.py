"""No attack: the protected model as it was published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.attack import AttackClass, Kind, RemovalAttack
from bench.effort import Effort
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class NoAttack(RemovalAttack):
    """Leaves the model as it is."""

    name: ClassVar[str] = "none"
    family: ClassVar[str] = "none"
    kind: ClassVar[Kind] = "none"
    attack_class: ClassVar[AttackClass] = "none"

    def effort(self, task: Task) -> Effort:
        """Nothing."""
        del task
        return Effort()

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """The model itself at strength 0."""
        del trainer
        yield 0.0, target.copy()
