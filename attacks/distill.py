"""Distillation: a new model from the protected one's soft answers (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.extraction.answers import Extraction
from attacks.extraction.student import Widths, shaped, shapes_reason
from attacks.extraction.true_labels import TrueLabels
from bench.attack import Data
from bench.plugin import Access
from bench.suspect import Answer, Target
from bench.task import Task
from bench.trainer import AttackerTrainer

# In the place of a label that the attacker lacks.
UNKNOWN = -100


@dataclass(frozen=True)
class Distill(Extraction):
    """Train a fresh net, of the same architecture or another, on softened answers to the attacker's inputs.

    Attributes:
        temperature: of both soft maxima, at least 1.
        alpha: weight of the divergence, in [0, 1]; the rest is that of the cross-entropy with true labels, over the
            labelled ones among the inputs.
        widths: the student's channels: those of the plain architecture; those of the published model, which has to
            be opened for that; or fewer, each inner layer's number drawn.
    """

    name: ClassVar[str] = "distill"
    source: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531, section 2"
    answers: ClassVar[Answer] = "logits"

    temperature: float = 3.0
    alpha: float = 1.0
    widths: Widths = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < 1:
            raise ValueError(f"expected temperature >= 1, got {self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"expected alpha in [0, 1], got {self.alpha}")
        if self.alpha < 1 and self.inputs != "own":
            raise ValueError(f"expected alpha 1 where no input has a true label, got {self.alpha} on {self.inputs}")
        if self.widths == "published" and self.architecture:
            raise ValueError(f"expected no architecture with the published widths, got {self.architecture!r}")

    def access_used(self) -> Access:
        """White-box, where the student is shaped like the published model."""
        return "white-box" if self.widths == "published" else self.access

    def data_used(self) -> Data:
        """Labels, where the cross-entropy has a weight."""
        return "labels" if self.alpha < 1 else super().data_used()

    def applies_to(self, task: Task) -> str | None:
        """As for every extraction; for drawn widths also layers whose channels may be missing."""
        return super().applies_to(task) or shapes_reason(self.architecture, self.widths, task)

    def control(self) -> TrueLabels:
        """The same student, of the same widths."""
        return dataclasses.replace(super().control(), widths=self.widths)

    def _student(self, target: Target, trainer: AttackerTrainer) -> nn.Module:
        return shaped(self.architecture, self.widths, target, trainer)

    def _targets(self, trainer: AttackerTrainer) -> Tensor:
        """Logits; where the cross-entropy has a weight, with the label in one more column."""
        logits = super()._targets(trainer)
        if self.alpha == 1:
            return logits
        known = trainer.first_labelled(self.share).y
        labels = torch.full((len(logits), 1), UNKNOWN, dtype=logits.dtype, device=logits.device)
        labels[: len(known), 0] = known.to(logits.dtype)
        return torch.cat([logits, labels], dim=1)

    def _loss(self, student: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        logits = student(x).float()
        answers = targets if self.alpha == 1 else targets[:, :-1]
        # Squared temperature, so that the gradient keeps its size (section 2); batchmean is the true KL.
        soft = F.log_softmax(logits / self.temperature, dim=1)
        wanted = F.softmax(answers / self.temperature, dim=1)
        divergence = F.kl_div(soft, wanted, reduction="batchmean") * self.temperature**2
        if self.alpha == 1:
            return divergence
        labels = targets[:, -1].long()
        # A mean over the labelled inputs of the batch, and nothing in a batch without any.
        summed = F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum")
        return self.alpha * divergence + (1 - self.alpha) * summed / (labels != UNKNOWN).sum().clamp_min(1)
