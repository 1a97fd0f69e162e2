"""Schemes whose mark is the answers to triggers: their number, and how they are trained in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bench.defense import Defense, KeyKind
from bench.effort import Effort, of_training
from bench.hooks import Hooks
from bench.key import Key
from bench.plugin import Access
from bench.split import Split
from bench.stage import CleanModel, Stage
from bench.task import Task
from bench.trainer import OwnerTrainer


def appended(key: Key, per_batch: int, device: torch.device) -> Hooks:
    """A training whose batches have so many of the key's triggers appended, `inputs` and `labels`, in turn."""
    inputs, labels = (key.tensor(name).to(device) for name in ("inputs", "labels"))

    def triggers(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.arange(step * per_batch, (step + 1) * per_batch) % len(labels)
        return inputs[chosen], labels[chosen]

    return Hooks(extra_inputs=triggers)


@dataclass(frozen=True)
class TriggerScheme(Defense):
    """Secret inputs with labels that are drawn uniformly, trained into the model; a suspect is asked for them.

    Attributes:
        triggers: their number T.
        per_batch: how many of them are appended to each batch, cyclically.
    """

    family: ClassVar[str] = "trigger"
    access: ClassVar[Access] = "black-box"
    key_kind: ClassVar[KeyKind] = "labels"

    triggers: int = 64
    per_batch: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.per_batch <= self.triggers:
            raise ValueError(f"expected 1 <= per_batch <= triggers, got {self.per_batch} and {self.triggers}")

    def choices(self, task: Task) -> int:
        """Over how many labels that of a trigger is uniform."""
        return task.classes

    def capacity(self, task: Task) -> float:
        """All labels right: one over the number of choices, to the power of T."""
        return -self.triggers * math.log10(self.choices(task))


@dataclass(frozen=True)
class TrainedIn(TriggerScheme):
    """Triggers that stand in each batch, from the start or after it (Adi et al. 2018, section 5).

    Attributes:
        mode: `scratch` trains with them from the start; `fine-tune` adds them to the clean model.
        epochs: of the fine-tuning.
        learning_rate: of the fine-tuning.
    """

    mode: Literal["scratch", "fine-tune"] = "scratch"
    epochs: int = 10
    learning_rate: float = 0.02

    def stages(self) -> tuple[Stage, ...]:
        """The clean model, where triggers are added afterwards."""
        return (CleanModel(),) if self.mode == "fine-tune" else ()

    def effort(self, task: Task) -> Effort:
        """Training with triggers in each batch."""
        epochs = task.recipe.epochs if self.mode == "scratch" else self.epochs
        return of_training(task, task.sizes.train, epochs, extra=self.per_batch)

    def trained(self, trainer: OwnerTrainer, data: Split, shown: Key) -> nn.Module:
        """The model, trained on the data with the triggers `inputs` and `labels` appended to each batch."""
        if self.mode == "scratch":
            model, recipe = trainer.new_model(), trainer.recipe()
        else:
            recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
            model = trainer.clean()
        return trainer.fit(model, data, recipe, hooks=appended(shown, self.per_batch, trainer.device))
