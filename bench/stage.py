"""Stages: what several cells share, computed once by the plan and handed to those that declared it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from bench.bundle import Bundle
from bench.effort import Effort, of_training
from bench.parameters import canonical
from bench.plugin import Access, Plugin
from bench.queries import Source, asked
from bench.split import portion
from bench.suspect import Answer, reduced


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

    def answers_given(self) -> Answer:
        """Of attacker stages, the most telling kind of the protected model's answers that the product tells of."""
        return "logits"

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
    """The protected model's answers on the attacker's inputs: one tensor, called as their kind.

    Labels and probabilities are made of the logits where these are, so that all kinds share one set of queries, and
    who declares one kind is handed no other.

    Attributes:
        kind: int64 labels of shape (N,), or float probabilities or logits of shape (N, K).
        share: of the attacker's inputs, the first in its order, in (0, 1].
        inputs: whose these are, see `bench.queries`; of others as many are asked.
        images: path of images from elsewhere.
    """

    name: ClassVar[str] = "target-answers"
    side: ClassVar[Literal["owner", "attacker"]] = "attacker"

    kind: Answer = "logits"
    share: float = 1.0
    inputs: Source = "own"
    images: str = ""

    def answers_given(self) -> Answer:
        """Its kind."""
        return self.kind

    def stages(self) -> tuple[Stage, ...]:
        """The logits, of which other kinds are made."""
        return () if self.kind == "logits" else (replace(self, kind="logits"),)

    def files(self) -> tuple[str, ...]:
        """The images."""
        return (self.images,) if self.images else ()

    def effort(self, task: Any) -> Effort:
        """One answer per input, where they are logits."""
        return Effort(answered=portion(task.sizes.attacker, self.share) if self.kind == "logits" else 0)

    def run(self, trainer: Any, target: Any) -> Bundle:
        """Query the target once for each input, or take what it was asked already."""
        if self.kind == "logits":
            inputs = asked(trainer, self.inputs, self.share, self.images)
            return Bundle(tensors={"logits": target.answers(inputs, "logits")})
        (whole,) = self.stages()
        return Bundle(tensors={self.kind: reduced(trainer.stage(whole).tensors["logits"], self.kind)})
