"""A student of the protected model's answers: what it is, on what it is trained, and how it is made narrower."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

import models
from bench.attack import AttackClass, Data, RemovalAttack
from bench.effort import Effort, of_training
from bench.errors import nearest
from bench.hooks import Hooks
from bench.plugin import Access
from bench.split import Split, portion
from bench.stage import Stage, TargetAnswers
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.channels import channels
from models.surgery import inner, reshaped

# Of a layer's channels, the share that may be missing in a student of drawn widths.
MISSING = 0.5


@dataclass(frozen=True)
class Extraction(RemovalAttack):
    """Train a fresh net on the answers to the attacker's unlabelled inputs; by default with the cross-entropy.

    Attributes:
        architecture: of the student, one of `models.names()`; empty for the task's own.
        share: of the attacker's inputs, the first in its order, in (0, 1]; the others are not asked either.
        epochs: how long.
        every: a surrogate is taken every so many epochs, and at the end.
    """

    family: ClassVar[str] = "extraction"
    access: ClassVar[Access] = "black-box"
    data: ClassVar[Data] = "inputs"
    attack_class: ClassVar[AttackClass] = "extraction"
    strength_unit: ClassVar[str] = "epochs"

    architecture: str = ""
    share: float = 1.0
    epochs: int = 60
    every: int = 20

    def __post_init__(self) -> None:
        if self.architecture and self.architecture not in models.names():
            raise ValueError(f"unknown architecture {self.architecture!r}.{nearest(self.architecture, models.names())}")
        if not 0 < self.share <= 1:
            raise ValueError(f"expected share in (0, 1], got {self.share}")
        if self.epochs < 1 or self.every < 1:
            raise ValueError(f"expected epochs >= 1 and every >= 1, got {self.epochs} and {self.every}")

    def architectures(self) -> tuple[str, ...]:
        """The student's, where it is another."""
        return (self.architecture,) if self.architecture else ()

    def applies_to(self, task: Task) -> str | None:
        """Needs inputs that the student takes, and two of them."""
        used = portion(task.sizes.attacker, self.share)
        if used < 2:
            return f"a share of {self.share:g} of {task.sizes.attacker} inputs is {used}, training takes two"
        try:
            models.skeleton(self.architecture or task.model, task.classes, task.shape)
        except ValueError as error:
            return str(error)
        return None

    def stages(self) -> tuple[Stage, ...]:
        """The protected model's answers of its kind, queried once for all that want them."""
        return (TargetAnswers(self.answers, self.share),)

    def effort(self, task: Task) -> Effort:
        """Training on the inputs that it uses; the answers are a stage."""
        return of_training(task, portion(task.sizes.attacker, self.share), self.epochs)

    def surrogates(self) -> int:
        """One every so many epochs, and one at the end."""
        return math.ceil(self.epochs / self.every)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Train the student, and yield it along the way."""
        student = self._student(target, trainer)
        data = Split(trainer.first_inputs(self.share), self._targets(trainer))
        hooks = Hooks(objective=self._loss)
        for epoch in trainer.training(student, data, trainer.recipe(epochs=self.epochs), hooks=hooks):
            if epoch % self.every == 0 or epoch == self.epochs:
                yield float(epoch), student

    def _student(self, target: Target, trainer: AttackerTrainer) -> nn.Module:
        del target
        return trainer.model_of(described(self.architecture, trainer.task))

    def _targets(self, trainer: AttackerTrainer) -> Tensor:
        """What `_loss` compares with, by input."""
        (stage,) = self.stages()
        return trainer.stage(stage).tensors[self.answers].to(trainer.device)

    def _loss(self, student: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        # Labels or probabilities alike; without label smoothing, since the answers are taken as they are.
        return F.cross_entropy(student(x).float(), targets)


def described(architecture: str, task: Task) -> dict[str, Any]:
    """The description of an architecture for a task, empty for the task's own."""
    return {"name": architecture or task.model, "classes": task.classes, "shape": list(task.shape)}


def narrowed(model: nn.Module, stream: Stream) -> dict[str, Any]:
    """The description of a model each of whose layers of `models.surgery.inner` lacks some channels.

    Args:
        model: descends from `models.build`; stays as it is.
        stream: from which each layer's share is drawn, uniform in [0, `MISSING`); rounded down to whole channels.

    Raises:
        ValueError: the model cannot be followed.
    """
    layers = inner(channels(model))
    shares = stream.numpy().uniform(0.0, MISSING, len(layers))
    kept = {one.layer: np.arange(one.width - int(share * one.width)) for one, share in zip(layers, shares, strict=True)}
    return models.describe(reshaped(model, kept))
