"""Extraction from answers as an interface gives them: labels alone, or probabilities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from attacks.extraction.answers import Extraction
from attacks.extraction.student import OTHER, TURNS, turned
from attacks.extraction.true_labels import TrueLabels
from bench.effort import Effort, of_training
from bench.queries import asked
from bench.split import portion
from bench.suspect import Answer, Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class ExtractHard(Extraction):
    """Train a fresh net on the protected model's top-1 labels alone, as if they were the true ones."""

    name: ClassVar[str] = "extract-hard"
    source: ClassVar[str] = "Tramèr et al. 2016, arXiv 1609.02943, section 6"
    answers: ClassVar[Answer] = "labels"


@dataclass(frozen=True)
class Retrain(Extraction):
    """Train a fresh net on the protected model's probabilities as they are given, without a temperature."""

    name: ClassVar[str] = "retrain"
    source: ClassVar[str] = "Tramèr et al. 2016, arXiv 1609.02943, section 4"
    answers: ClassVar[Answer] = "probabilities"


@dataclass(frozen=True)
class CrossArchitecture(Retrain):
    """Retrain with a student of another architecture, on every task."""

    name: ClassVar[str] = "cross-architecture"
    source: ClassVar[str] = "Lukas et al. 2022, IEEE S&P (cross-architecture retraining)"

    architecture: str = OTHER


@dataclass(frozen=True)
class TransferLearn(Retrain):
    """Retrain a student that has learnt to see before, from the same inputs and without a label.

    The source begins with nets that were trained on large sets of other images. Here the student is taught by which
    quarter of a turn each of the inputs was rotated, which needs no other data.

    Attributes:
        pretraining: epochs of that, before its classifier begins anew.
    """

    name: ClassVar[str] = "transfer-learn"
    source: ClassVar[str] = "Lukas et al. 2022, IEEE S&P (transfer learning); Gidaris et al. 2018, arXiv 1803.07728"

    pretraining: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretraining < 1:
            raise ValueError(f"expected pretraining >= 1, got {self.pretraining}")

    def applies_to(self, task: Task) -> str | None:
        """Needs square images, and an output for each of four turns."""
        if task.kind != "image" or task.shape[1] != task.shape[2]:
            return f"turns by a quarter need square images, {task.info.name} has {task.kind} of shape {task.shape}"
        if task.classes < TURNS:
            return f"four turns need four outputs, {task.info.name} has {task.classes} classes"
        return super().applies_to(task)

    def effort(self, task: Task) -> Effort:
        """Each input in four turns, then as it is."""
        turns = TURNS * portion(task.sizes.attacker, self.share)
        return super().effort(task) + of_training(task, turns, self.pretraining)

    def control(self) -> TrueLabels:
        """The same student, taught to see likewise."""
        return dataclasses.replace(super().control(), pretraining=self.pretraining)

    def _student(self, target: Target, trainer: AttackerTrainer) -> nn.Module:
        inputs = asked(trainer, self.inputs, self.share, self.images)
        return turned(super()._student(target, trainer), inputs, self.pretraining, trainer)
