"""Overwriting: the attacker marks the protected model a second time, by the same scheme with a key of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attack import AmbiguityAttack, Data, Forgery
from bench.defense import Defense
from bench.effort import Effort, of_training
from bench.suspect import Target
from bench.task import Task
from bench.trainer import LEAST_LABELLED, AttackerTrainer, held_out


@dataclass(frozen=True)
class Overwrite(AmbiguityAttack):
    """Draw a key by the scheme's own `draw`, embed it by its own `protect`, and claim it on what comes out.

    The scheme starts from a copy of the protected model, wherever an owner would start from a fresh or a clean
    one. Both keys are judged on that copy: whether the forger claims, and whether the owner still does.

    Attributes:
        epochs: of each training of the scheme, on the attacker's labels; many, since those are few. The owner's
            own numbers of epochs were chosen for the owner's data.
        learning_rate: the peak of the task's schedule.
    """

    name: ClassVar[str] = "overwrite"
    family: ClassVar[str] = "overwriting"
    data: ClassVar[Data] = "labels"

    epochs: int = 100
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.learning_rate <= 0:
            raise ValueError(f"expected epochs >= 1 and learning_rate > 0, got {self.epochs} and {self.learning_rate}")

    def applies_to(self, task: Task) -> str | None:
        """An owner needs inputs to train on and some to hold out."""
        labelled = task.sizes.labelled
        if labelled < LEAST_LABELLED:
            return f"needs at least {LEAST_LABELLED} labelled inputs, the attacker has {labelled}"
        return None

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose key an attacker can draw: one from files would be made of the owner's secrets."""
        if scheme.undefended:
            return f"{scheme.name} protects nothing, so that there is nothing to overwrite"
        if scheme.files():
            return f"the key of {scheme.label} is made of the owner's files, of which an attacker has none"
        return None

    def effort(self, task: Task) -> Effort:
        """One training on the labelled inputs that are not held out."""
        trained = task.sizes.labelled - held_out(task, task.sizes.labelled)
        return of_training(task, trained, self.epochs)

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Protect a copy of the protected model as its owner would."""
        scheme: Defense = target.scheme
        owner = trainer.as_owner(self.epochs, self.learning_rate)
        drawn = scheme.draw(owner.task, owner.stream.child("key", scheme.name))
        model, key, _ = scheme.protect(owner, drawn)
        return Forgery(key, model)
