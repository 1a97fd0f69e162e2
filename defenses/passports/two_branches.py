"""A public branch, which is published, and a private one with passports, trained beside each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bench.effort import Effort, of_training
from bench.key import Key
from bench.recipe import Recipe
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.passports.branches import Branches, Form, Statistics
from defenses.passports.scheme import PassportScheme
from defenses.passports.training import Objective, Schedule


@dataclass(frozen=True)
class TwoBranches(PassportScheme):
    """Public and private branch share all weights and are trained beside each other.

    Attributes:
        schedule: both branches at each step (`together`), or one of them at a time (`alternate`).
        epochs: of the training; 0 for those of the task. Two branches take longer than one where the net is small.
        ratio: share of the steps that train the private branch where they alternate, in (0, 1).
        statistics: of the private branch, from the first passport layer on; see `Form`.
        mlp: whether raw scales and shifts go through a bottleneck.
        unit_start: whether bottlenecks are scaled before training so that they give scales of root mean square 1, as a
            normalization's own are. By PyTorch's initialisation, the source's, scales begin so small that the private
            branch learns late, or not at all where it is seldom trained; so the branches are less in each other's way.
    """

    epochs: int = 0
    schedule: Schedule = "together"
    ratio: float = 0.5
    statistics: Statistics = "separate"
    mlp: bool = True
    unit_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1 or self.epochs < 0:
            raise ValueError(f"expected a ratio in (0, 1) and epochs >= 0, got {self.ratio} and {self.epochs}")

    def form(self, task: Task) -> Form:
        """As the parameters say."""
        return Form(self.carriers(task), self.statistics, self.mlp)

    def bottlenecked(self) -> bool:
        """As the parameters say."""
        return self.mlp

    def effort(self, task: Task) -> Effort:
        """Each input goes through both branches, or through one of them."""
        once = of_training(task, task.sizes.train, self.epochs or task.recipe.epochs)
        return once + once if self.schedule == "together" else once

    def begun(self, model: nn.Module, key: Key, trainer: OwnerTrainer) -> Branches:
        """Also with bottlenecks of the wanted size."""
        net = super().begun(model, key, trainer)
        if self.unit_start:
            for layer in net.passports.values():
                layer.to_unit_scales()
        return net

    def recipe(self, trainer: OwnerTrainer, epochs: int = 0) -> Recipe:
        """Also with epochs of its own."""
        return super().recipe(trainer, epochs or self.epochs)

    def objective(self, key: Key, trainer: OwnerTrainer) -> Objective:
        """Both branches' losses and the sign loss."""
        return Objective(
            self.signs(key, trainer),
            self.strength,
            self.margin,
            schedule=self.schedule,
            ratio=self.ratio,
            smoothing=trainer.recipe().label_smoothing,
            extra=self.extra()[0],
            weight=self.extra()[1],
        )

    def extra(self) -> tuple[int, float]:
        """How many inputs are appended to each batch, and the weight of their loss."""
        return 0, 1.0
