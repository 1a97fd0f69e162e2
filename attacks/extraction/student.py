"""A student: what it is, where it begins, and how it is made narrower."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from bench.attack import AttackClass, RemovalAttack
from bench.effort import Effort, of_training
from bench.errors import nearest
from bench.hooks import Hooks
from bench.split import Split, portion
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.channels import channels
from models.surgery import inner, lacking, reshaped

# Of a layer's channels, the share that may be missing in a student of drawn widths.
MISSING = 0.5
HEAD = "head"
# In the place of an architecture's name: another than the task's own.
OTHER = "other"
# By which an image can be rotated and still fill its square.
TURNS = 4

Widths = Literal["plain", "published", "drawn"]


@dataclass(frozen=True)
class Student(RemovalAttack):
    """Train a fresh net on inputs with targets; by default with the cross-entropy.

    Attributes:
        architecture: of the student, one of `models.names()`; empty for the task's own; `other` for the first of
            those names that takes the task's inputs and is not its own.
        share: of the attacker's inputs, the first in its order, in (0, 1]; the others are not used.
        epochs: how long.
        every: a surrogate is taken every so many epochs, and at the end.
    """

    family: ClassVar[str] = "extraction"
    attack_class: ClassVar[AttackClass] = "extraction"
    strength_unit: ClassVar[str] = "epochs"

    architecture: str = ""
    share: float = 1.0
    epochs: int = 60
    every: int = 20

    def __post_init__(self) -> None:
        known = (*models.names(), OTHER)
        if self.architecture and self.architecture not in known:
            raise ValueError(f"unknown architecture {self.architecture!r}.{nearest(self.architecture, known)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"expected share in (0, 1], got {self.share}")
        if self.epochs < 1 or self.every < 1:
            raise ValueError(f"expected epochs >= 1 and every >= 1, got {self.epochs} and {self.every}")

    def architectures(self) -> tuple[str, ...]:
        """The student's, where it is another; all that it may be, where the task decides."""
        if self.architecture == OTHER:
            return models.names()
        return (self.architecture,) if self.architecture else ()

    def applies_to(self, task: Task) -> str | None:
        """Needs inputs that the student takes, and two of them."""
        used = portion(task.sizes.attacker, self.share)
        if used < 2:
            return f"a share of {self.share:g} of {task.sizes.attacker} inputs is {used}, training takes two"
        try:
            return models.refusal(chosen(self.architecture, task), task.classes, task.shape)
        except ValueError as error:
            return str(error)

    def effort(self, task: Task) -> Effort:
        """Training on the inputs that it uses."""
        return of_training(task, portion(task.sizes.attacker, self.share), self.epochs)

    def surrogates(self) -> int:
        """One every so many epochs, and one at the end."""
        return math.ceil(self.epochs / self.every)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Train the student, and yield it along the way."""
        student = self._student(target, trainer)
        data, hooks = self._data(trainer), Hooks(objective=self._loss)
        recipe = trainer.recipe(epochs=self.epochs)
        for epoch in trainer.training(student, data, recipe, hooks=hooks, every=self.every):
            yield float(epoch), student

    def _student(self, target: Target, trainer: AttackerTrainer) -> nn.Module:
        del target
        return shaped(self.architecture, "plain", None, trainer)

    def _data(self, trainer: AttackerTrainer) -> Split:
        """Inputs, and what `_loss` compares with."""
        raise NotImplementedError

    def _loss(self, student: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        # Labels or probabilities alike; without label smoothing, since the answers are taken as they are.
        return F.cross_entropy(student(x).float(), targets)


def shaped(architecture: str, widths: Widths, target: Target | None, trainer: AttackerTrainer) -> nn.Module:
    """A fresh net of an architecture, empty for the task's own.

    Args:
        architecture: as a student declares it.
        widths: of its layers: those of the plain architecture; those of the target, which has to be opened for that;
            or fewer, each inner layer's number drawn.
        target: the protected model, where its widths are taken.
        trainer: the attacker's.
    """
    if widths == "published":
        assert target is not None
        return trainer.model_of(models.describe(target.module))
    plain = trainer.model_of(described(architecture, trainer.task))
    if widths == "plain":
        return plain
    return trainer.model_of(narrowed(plain, trainer.stream.child("widths")))


def shapes_reason(architecture: str, widths: Widths, task: Task) -> str | None:
    """Why a net of such widths cannot be made, or None."""
    if widths != "drawn":
        return None
    return lacking(models.skeleton(chosen(architecture, task), task.classes, task.shape))


def described(architecture: str, task: Task) -> dict[str, Any]:
    """The description of an architecture, as a student declares it, for a task."""
    return {"name": chosen(architecture, task), "classes": task.classes, "shape": list(task.shape)}


def chosen(architecture: str, task: Task) -> str:
    """The name of an architecture as a student declares it.

    Raises:
        ValueError: another than the task's own is wanted, and there is none for its inputs.
    """
    if architecture != OTHER:
        return architecture or task.model
    for name in models.names():
        if name != task.model and models.refusal(name, task.classes, task.shape) is None:
            return name
    raise ValueError(f"no architecture but {task.model} takes inputs of shape {task.shape}")


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


def turned(student: nn.Module, inputs: Tensor, epochs: int, trainer: AttackerTrainer) -> nn.Module:
    """Train a student in place to tell by which quarter of a turn an image was rotated; its head begins anew then.

    Features without a label (Gidaris et al. 2018, arXiv 1803.07728, section 3.1); images are not mirrored meanwhile,
    since a mirrored quarter to the left looks like one to the right.

    Args:
        student: freshly initialised, of at least four classes.
        inputs: images of shape (N, C, S, S).
        epochs: passes over all images in all four turns.
        trainer: the attacker's.
    """
    head: Mapping[str, Tensor] = {name: one.clone() for name, one in models.layer(student, HEAD).state_dict().items()}
    four = torch.cat([torch.rot90(inputs, turn, (2, 3)) for turn in range(TURNS)])
    turns = torch.arange(TURNS, device=inputs.device).repeat_interleave(len(inputs))
    trainer.fit(student, Split(four, turns), trainer.recipe(epochs=epochs, flip=False))
    models.layer(student, HEAD).load_state_dict(head)
    return student
