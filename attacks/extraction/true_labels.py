"""The control beside each extraction: the same student, from true labels instead of answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from attacks.extraction.student import Student, Widths, shaped, shapes_reason, turned
from bench.attack import Data
from bench.plugin import Access
from bench.split import Split
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class TrueLabels(Student):
    """Train the student of an extraction on the labels of all its inputs, whether the attacker has them or not.

    It begins with the same weights and sees the inputs in the same order. Nothing that a scheme put into the protected
    model can be in it, so that a claim on it is a false one, and a mark survives an extraction only where its evidence
    is stronger there.

    Attributes:
        widths: as of the extraction.
        pretraining: epochs of telling how images are rotated, before.
    """

    name: ClassVar[str] = "true-labels"
    data: ClassVar[Data] = "labels"
    access: ClassVar[Access] = "none"

    widths: Widths = "plain"
    pretraining: int = 0

    def access_used(self) -> Access:
        """White-box, where the student is shaped like the published model."""
        return "white-box" if self.widths == "published" else self.access

    def applies_to(self, task: Task) -> str | None:
        """As for the extraction."""
        return super().applies_to(task) or shapes_reason(self.architecture, self.widths, task)

    def _student(self, target: Target, trainer: AttackerTrainer) -> nn.Module:
        student = shaped(self.architecture, self.widths, target, trainer)
        if self.pretraining:
            turned(student, trainer.first_inputs(self.share), self.pretraining, trainer)
        return student

    def _data(self, trainer: AttackerTrainer) -> Split:
        return trainer.first_labelled(self.share)
