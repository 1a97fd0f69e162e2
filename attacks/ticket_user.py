"""What users of a locked ticket can train: without the withheld key, and with it (Chen et al. 2021, scheme 1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from attacks.tickets.pruned import REWOUND, Masks, Start, live, put, weights
from bench.attack import AttackClass, Data, InsiderAttack, RemovalAttack
from bench.defense import Defense
from bench.effort import Effort, of_training
from bench.parameters import require_training
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from defenses.tickets.lottery_ticket import prunable
from models import joined, parted

WITHHELD = "withheld"


@dataclass(frozen=True)
class _User(RemovalAttack):
    """Trains a ticket on the labelled inputs with its mask held, by the task's recipe.

    An honest user trains on data of their own, and so does this one: the accuracy that the key is worth on the
    owner's data is for the owner to measure.

    Attributes:
        start: from the released rewound weights, as an honest user does, or from the published trained ones.
        epochs: how long; many, since the labelled inputs are few.
        learning_rate: the peak of the task's schedule.
        every: a surrogate is taken every so many epochs, and at the end; before any training too where it starts
            from the published weights.
    """

    family: ClassVar[str] = "ticket-user"
    source: ClassVar[str] = "Chen et al. 2021, arXiv 2111.00162, section 4 (scheme 1)"
    data: ClassVar[Data] = "labels"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "epochs"

    start: Start = "rewound"
    epochs: int = 100
    learning_rate: float = 0.05
    every: int = 50

    def __post_init__(self) -> None:
        require_training(self.epochs, self.learning_rate)
        if self.every < 1:
            raise ValueError(f"expected every >= 1, got {self.every}")

    def effort(self, task: Task) -> Effort:
        """One training on the labelled inputs."""
        return of_training(task, task.sizes.labelled, self.epochs)

    def surrogates(self) -> int:
        """One every so many epochs, one at the end, and one before where that is worth something."""
        return math.ceil(self.epochs / self.every) + (self.start == "published")

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Train the ticket, and yield it along the way."""
        model = self._begun(target, trainer)
        masks = self._ticket(model, target)
        if self.start == "published":
            yield 0.0, model
        recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
        for epoch in trainer.training(model, trainer.labelled, recipe, masks=masks, every=self.every):
            yield float(epoch), model

    def _begun(self, target: Target, trainer: AttackerTrainer) -> nn.Module:
        if self.start == "published":
            return target.copy()
        if REWOUND not in target.release.models:
            released = ", ".join(target.release.models) or "none"
            raise ValueError(f"expected a model {REWOUND!r} in the release, got {released}")
        return copy.deepcopy(target.release.models[REWOUND]).to(trainer.device)

    def _ticket(self, model: nn.Module, target: Target) -> Masks:
        """What may live of the model, which is completed first where the user has the key."""
        del target
        return live(model)


@dataclass(frozen=True)
class LockedUser(_User):
    """Train the locked ticket without its key.

    The pendant of `ticket-unlock`: the difference of the two accuracies, at the same parameters, is what the key is
    worth to a user. What was released shows by its zeros what the mask is.
    """

    name: ClassVar[str] = "locked-user"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme that withholds a part of a ticket."""
        return None if WITHHELD in scheme.parts else f"{scheme.name} withholds no part of a ticket"


@dataclass(frozen=True)
class TicketUnlock(_User, InsiderAttack):
    """Put the withheld weights back, and train the whole ticket: the copy of a licensed user.

    With the released weights this is what the scheme intends; whoever does it has a copy in which nothing is withheld,
    and in which evidence that rests on withheld weights finds none. From the published weights the copy answers like
    the owner's before any training.
    """

    name: ClassVar[str] = "ticket-unlock"
    part: ClassVar[str] = WITHHELD

    def _ticket(self, model: nn.Module, target: Target) -> Masks:
        """The locked ticket with the key, whose rewound weights are put into the model."""
        assert target.part is not None
        places, values = target.part[0].long().cpu(), target.part[1].cpu()
        # In the order in which the key counts positions.
        before = weights(model, prunable(model, target.scheme.layers))
        whole = joined(before)
        alive = whole != 0
        whole[places], alive[places] = values.to(whole), True
        put(model, parted(whole, before))
        return parted(alive, before)
