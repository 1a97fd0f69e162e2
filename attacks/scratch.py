"""Training from scratch: what the task costs an attacker who never touches the protected model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.attack import AttackClass, Data, RemovalAttack
from bench.effort import Effort, of_training
from bench.plugin import Access
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class Scratch(RemovalAttack):
    """The same architecture on the attacker's labelled inputs alone; its price is the ceiling of the task.

    Attributes:
        epochs: many, since the labelled inputs are few.
    """

    name: ClassVar[str] = "scratch"
    family: ClassVar[str] = "scratch"
    access: ClassVar[Access] = "none"
    data: ClassVar[Data] = "labels"
    attack_class: ClassVar[AttackClass] = "extraction"
    strength_unit: ClassVar[str] = "epochs"
    ceiling: ClassVar[bool] = True

    epochs: int = 100

    def effort(self, task: Task) -> Effort:
        """One training on the labelled inputs."""
        return of_training(task, task.sizes.labelled, self.epochs)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Train to the end."""
        del target
        model = trainer.fit(trainer.new_model(), trainer.labelled, trainer.recipe(epochs=self.epochs))
        yield float(self.epochs), model
