"""Fine-tuning in its four standard forms (Uchida et al. 2017; Adi et al. 2018, section 5.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

import models
from bench.attack import AttackClass, Data, RemovalAttack
from bench.effort import Effort, of_training
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer

HEAD = "head"


@dataclass(frozen=True)
class FineTune(RemovalAttack):
    """Train on with the attacker's labels.

    Attributes:
        variant: FTLL and FTAL tune the last layer or all layers; RTLL and RTAL initialise the last layer
            anew before.
        epochs: how long.
        learning_rate: the peak of the task's schedule.
        every: a surrogate is taken every so many epochs, and at the end.
    """

    name: ClassVar[str] = "fine-tune"
    family: ClassVar[str] = "fine-tuning"
    source: ClassVar[str] = "Adi et al. 2018, USENIX Security, section 5.4"
    data: ClassVar[Data] = "labels"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "epochs"

    variant: Literal["FTLL", "FTAL", "RTLL", "RTAL"] = "FTAL"
    epochs: int = 40
    learning_rate: float = 0.05
    every: int = 10

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.every < 1:
            raise ValueError(f"expected epochs >= 1 and every >= 1, got {self.epochs} and {self.every}")

    def effort(self, task: Task) -> Effort:
        """Training on the labelled inputs; where only the head is tuned, the body just answers."""
        whole = of_training(task, task.sizes.labelled, self.epochs)
        return Effort(answered=whole.trained) if self.variant.endswith("LL") else whole

    def surrogates(self) -> int:
        """One every so many epochs, and one at the end."""
        return math.ceil(self.epochs / self.every)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Tune, and yield the model along the way."""
        model = target.copy()
        if self.variant.startswith("RT"):
            _renew(models.layer(model, HEAD), trainer)
        trainable = [HEAD] if self.variant.endswith("LL") else None
        recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
        for epoch in trainer.training(model, trainer.labelled, recipe, trainable=trainable, every=self.every):
            yield float(epoch), model


def _renew(head: nn.Module, trainer: AttackerTrainer) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trainer.stream.child("head").seed)
        fresh = nn.Linear(head.in_features, head.out_features)  # type: ignore[arg-type]
    head.load_state_dict(fresh.state_dict())
