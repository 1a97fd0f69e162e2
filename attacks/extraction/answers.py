"""What the attacks share that train a student on the protected model's answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks.extraction.student import Student
from attacks.extraction.true_labels import TrueLabels
from bench.attack import Data
from bench.plugin import Access
from bench.queries import Source, asked, reason_of
from bench.split import Split
from bench.stage import Stage, TargetAnswers
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class Extraction(Student):
    """Train a fresh net on the answers to inputs without labels; by default with the cross-entropy.

    Attributes:
        share: of the attacker's inputs, the first in its order, in (0, 1]; the others are not asked either. Of noise
            and of images as many are asked.
        inputs: which are asked: the attacker's `own`, uniform `noise`, or `images` from elsewhere.
        images: folder or Parquet of those images; looked for as it stands, then below the folder that OWNBENCH_DATA
            names.
    """

    access: ClassVar[Access] = "black-box"
    data: ClassVar[Data] = "inputs"

    inputs: Source = "own"
    images: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.images) != (self.inputs == "images"):
            raise ValueError(f"expected a path in images for inputs='images' alone, got {self.images!r}")

    def data_used(self) -> Data:
        """Nothing of the task's data, where its own inputs are not asked."""
        return self.data if self.inputs == "own" else "none"

    def applies_to(self, task: Task) -> str | None:
        """As for every student; images need a task on images."""
        return super().applies_to(task) or reason_of(self.inputs, task)

    def files(self) -> tuple[str, ...]:
        """The images."""
        return (self.images,) if self.images else ()

    def stages(self) -> tuple[Stage, ...]:
        """The protected model's answers of its kind, queried once for all that want them."""
        return (TargetAnswers(self.answers, self.share, self.inputs, self.images),)

    def control(self) -> TrueLabels:
        """The same student, from the true labels of the attacker's own inputs: of other inputs there are none."""
        return TrueLabels(self.architecture, self.share, self.epochs, self.every)

    def _data(self, trainer: AttackerTrainer) -> Split:
        return Split(asked(trainer, self.inputs, self.share, self.images), self._targets(trainer))

    def _targets(self, trainer: AttackerTrainer) -> Tensor:
        """What `_loss` compares with, by input."""
        (stage,) = self.stages()
        return trainer.stage(stage).tensors[self.answers].to(trainer.device)
