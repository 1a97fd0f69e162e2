"""Training what pruning has left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bench.attack import Data, RemovalAttack
from bench.effort import Effort, of_training
from bench.parameters import require_training
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class Retraining(RemovalAttack):
    """What those share that may train each surrogate after pruning.

    Attributes:
        retrain_epochs: epochs of training afterwards, on the attacker's labels; 0 for none.
        learning_rate: of that training.
    """

    retrain_epochs: int = 0
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        require_training(self.retrain_epochs, self.learning_rate, least=0)

    def data_used(self) -> Data:
        """Labels, where it retrains."""
        return "labels" if self.retrain_epochs else "none"

    def effort(self, task: Task) -> Effort:
        """A training per surrogate, where it retrains."""
        return of_training(task, task.sizes.labelled, self.retrain_epochs * self.surrogates())

    def retrain(self, model: nn.Module, trainer: AttackerTrainer, masks: Mapping[str, Tensor] | None = None) -> None:
        """Train in place, with the zeros of the masks held; nothing where no epochs are asked for."""
        if self.retrain_epochs:
            recipe = trainer.recipe(epochs=self.retrain_epochs, learning_rate=self.learning_rate)
            trainer.fit(model, trainer.labelled, recipe, masks=masks)
