"""Distillation: a new model from the protected one's soft answers (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bench.attack import AttackClass, Data, RemovalAttack
from bench.effort import Effort, of_training
from bench.hooks import Hooks
from bench.plugin import Access
from bench.split import Split
from bench.stage import Stage, TargetAnswers
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class Distill(RemovalAttack):
    """Train a fresh net of the same architecture on the answers to the attacker's unlabelled inputs.

    Attributes:
        temperature: of both soft maxima, at least 1.
        epochs: how long.
        every: a surrogate is taken every so many epochs, and at the end.
    """

    name: ClassVar[str] = "distill"
    family: ClassVar[str] = "extraction"
    source: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531, section 2"
    access: ClassVar[Access] = "black-box"
    data: ClassVar[Data] = "inputs"
    attack_class: ClassVar[AttackClass] = "extraction"
    strength_unit: ClassVar[str] = "epochs"

    temperature: float = 3.0
    epochs: int = 60
    every: int = 20

    def __post_init__(self) -> None:
        if self.temperature < 1 or self.epochs < 1 or self.every < 1:
            raise ValueError("expected temperature, epochs and every to be at least 1")

    def stages(self) -> tuple[Stage, ...]:
        """The protected model's answers, queried once for all that want them."""
        return (TargetAnswers(),)

    def effort(self, task: Task) -> Effort:
        """Training on all inputs of the attacker; the answers are a stage."""
        return of_training(task, task.sizes.attacker, self.epochs)

    def surrogates(self) -> int:
        """One every so many epochs, and one at the end."""
        return math.ceil(self.epochs / self.every)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Train the student, and yield it along the way."""
        del target
        answers = trainer.stage(TargetAnswers()).tensors["logits"].to(trainer.device)
        student = trainer.new_model()
        hooks = Hooks(objective=self._loss)
        recipe = trainer.recipe(epochs=self.epochs)
        for epoch in trainer.training(student, Split(trainer.inputs, answers), recipe, hooks=hooks):
            if epoch % self.every == 0 or epoch == self.epochs:
                yield float(epoch), student

    def _loss(self, student: nn.Module, x: Tensor, answers: Tensor) -> Tensor:
        # Squared temperature, so that the gradient keeps its size (section 2); batchmean is the true KL.
        soft = F.log_softmax(student(x).float() / self.temperature, dim=1)
        target = F.softmax(answers / self.temperature, dim=1)
        return F.kl_div(soft, target, reduction="batchmean") * self.temperature**2
