"""Ingrain: the published net learns from one that is overfitted to the triggers (Yang, Dang and Chang 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.defense import Protected
from bench.effort import Effort, of_training
from bench.evidence import Evidence
from bench.hooks import Hooks
from bench.key import Key
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.triggers.answers import right_answers
from defenses.triggers.kinds import ChosenTriggers
from defenses.triggers.scheme import appended


@dataclass(frozen=True)
class Ingrain(ChosenTriggers):
    """A trigger set whose bearer, the ingrainer, teaches the published net by its soft answers on ordinary inputs.

    Attributes:
        temperature: T, by which the logits of both nets are divided.
        weight: of the loss between their answers.
        shown: whether the published net is shown the triggers as well, or meets them in the ingrainer's answers alone.
        clip: to which the gradient's norm is clipped where the published net is trained; 0 for the task's own bound.
    """

    name: ClassVar[str] = "ingrain"
    source: ClassVar[str] = "Yang, Dang and Chang 2019, arXiv 1906.06046"

    temperature: float = 4.0
    weight: float = 1.0
    shown: bool = True
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or self.weight <= 0 or self.clip < 0:
            raise ValueError(
                f"expected temperature > 0, weight > 0 and clip >= 0, got {self.temperature}, {self.weight} "
                f"and {self.clip}"
            )

    def effort(self, task: Task) -> Effort:
        """Two trainings, of which the ingrainer answers each batch of the second."""
        first, second = (
            of_training(task, task.sizes.train, task.recipe.epochs, extra=extra)
            for extra in (self.per_batch, self.per_batch if self.shown else 0)
        )
        return first + second + Effort(answered=second.trained)

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train the ingrainer with triggers in each batch, then the published net with its answers.

        Both start from the same initialisation. The ingrainer is thrown away: whoever has it has the triggers.
        """
        data, key = self.chosen(trainer, key)
        triggers = appended(self.with_targets(key, trainer.task), self.per_batch, trainer.device)
        ingrainer = trainer.fit(trainer.new_model(), data, hooks=triggers)
        recipe = trainer.recipe(clip_norm=self.clip) if self.clip else trainer.recipe()
        hooks = Hooks(objective=IngrainLoss(ingrainer, self.temperature, self.weight, recipe.label_smoothing))
        model = trainer.fit(trainer.new_model(), data, recipe, hooks=hooks & triggers if self.shown else hooks)
        return Protected(model, key)

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Triggers that get their label; binomial with rate 1/K, of training inputs 1/(K - 1)."""
        return right_answers(suspect, key, trainer)


class IngrainLoss:
    """CE(F(x), y) + weight * T^2 * KL(softmax(G(x) / T) || softmax(F(x) / T)), for `Hooks.objective`.

    Args:
        ingrainer: G; from here on it is frozen and in evaluation mode.
        temperature: T.
        weight: of the divergence, which is a mean over the batch.
        smoothing: of labels in the cross-entropy.
    """

    def __init__(self, ingrainer: nn.Module, temperature: float, weight: float, smoothing: float = 0.0) -> None:
        self._ingrainer = ingrainer.eval().requires_grad_(False)
        self._temperature, self._weight, self._smoothing = temperature, weight, smoothing

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The loss of F on a batch."""
        logits = model(x).float()
        with torch.no_grad():
            taught = F.softmax(self._ingrainer(x).float() / self._temperature, dim=1)
        given = F.log_softmax(logits / self._temperature, dim=1)
        divergence = F.kl_div(given, taught, reduction="batchmean")
        fit = F.cross_entropy(logits, y, label_smoothing=self._smoothing)
        return fit + self._weight * self._temperature**2 * divergence
