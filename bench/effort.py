"""How much a plugin computes, as it declares: inputs that pass through a net of the task's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Effort:
    """A declared amount of work; it serves forecasts alone, no result depends on it.

    Attributes:
        trained: inputs that go forward and backward, over all steps.
        answered: inputs that go forward only.
    """

    trained: float = 0.0
    answered: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.trained + other.trained, self.answered + other.answered)


def of_training(task: Any, inputs: int, epochs: int, extra: int = 0) -> Effort:
    """The effort of `Trainer.fit` with the task's batch size.

    Args:
        task: a `bench.task.Task`.
        inputs: size of the training set; what is left over by whole batches is not trained on.
        epochs: passes over it.
        extra: inputs appended to each batch.
    """
    size = min(task.recipe.batch_size, inputs)
    return Effort(trained=float(epochs * (inputs // size) * (size + extra)))
