"""Stages: what several cells share, computed once by the plan and handed to those that declared it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bench.bundle import Bundle
from bench.effort import Effort, of_training
from bench.parameters import canonical
from bench.plugin import Access, Plugin


@dataclass(frozen=True)
class Stage(Plugin):
    """A shared intermediate product. Its parameters are its fields, as for any plugin.

    Attributes:
        side: `owner` stages see the owner's data and stay with the owner; `attacker` stages see the target
            and the attacker's data, and there is one for each protected model.
        access: of attacker stages, to the protected model; no more than that of the attacks which want it.
        data: of attacker stages, the most that it uses of the attacker's data.
    """

    side: ClassVar[Literal["owner", "attacker"]] = "owner"
    access: ClassVar[Access] = "black-box"
    data: ClassVar[str] = "inputs"

    @property
    def key(self) -> str:
        """By which products are found: the name with all parameters."""
        return canonical([self.name, self.params])

    def run(self, trainer: Any, target: Any) -> Bundle:
        """The product.

        Args:
            trainer: an `OwnerTrainer` or an `AttackerTrainer`; stages named by `stages()` are found there.
            target: the protected model (`bench.suspect.Target`); None for stages of the owner.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CleanModel(Stage):
    """The undefended model of a task and seed, model `model`."""

    name: ClassVar[str] = "clean-model"

    def effort(self, task: Any) -> Effort:
        """One training by the task's recipe."""
        return of_training(task, task.sizes.train, task.recipe.epochs)

    def run(self, trainer: Any, target: Any) -> Bundle:
        """Train the task's architecture by the task's recipe."""
        del target
        return Bundle(models={"model": trainer.fit(trainer.new_model(), trainer.train)})


@dataclass(frozen=True)
class TargetAnswers(Stage):
    """The protected model's logits on the attacker's inputs, tensor `logits` of shape (N, K)."""

    name: ClassVar[str] = "target-answers"
    side: ClassVar[Literal["owner", "attacker"]] = "attacker"

    def effort(self, task: Any) -> Effort:
        """One answer per input of the attacker."""
        return Effort(answered=task.sizes.attacker)

    def run(self, trainer: Any, target: Any) -> Bundle:
        """Query the target once for each input."""
        answers = target.answers(trainer.inputs, "logits")
        return Bundle(tensors={"logits": answers})
