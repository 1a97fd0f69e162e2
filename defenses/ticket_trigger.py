"""A ticket with a QR code that is trained with a trigger set as well (Chen et al. 2021, scheme 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from bench.defense import Protected
from bench.effort import Effort, of_training
from bench.errors import Unreadable
from bench.evidence import Evidence, any_of
from bench.key import Key
from bench.split import Split
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.ticket_qr import TicketQr
from defenses.triggers.answers import right_answers, uniform_labels
from defenses.triggers.scheme import appended


@dataclass(frozen=True)
class TicketTrigger(TicketQr):
    """A ticket marked by a QR code, trained with noise inputs whose labels are uniform; either of them is read.

    Attributes:
        triggers: their number T.
        per_batch: how many of them are appended to each batch, cyclically; the source appends one.
    """

    name: ClassVar[str] = "ticket-trigger"
    source: ClassVar[str] = "Chen et al. 2021, NeurIPS, arXiv 2111.00162, scheme 3, and its released code"
    uniform: ClassVar[tuple[str, ...]] = ("text", "pad", "labels")
    parts: ClassVar[tuple[str, ...]] = ("window", "inputs", "labels")

    triggers: int = 64
    per_batch: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.per_batch <= self.triggers:
            raise ValueError(f"expected 1 <= per_batch <= triggers, got {self.per_batch} and {self.triggers}")

    def capacity(self, task: Task) -> float:
        """The better of the code's and of all labels right, K ** -T; times the number of readings."""
        labels = -self.triggers * math.log10(task.classes) + self.alternatives()
        return min(0.0, super().capacity(task), labels)

    def alternatives(self) -> float:
        """log10 of the number of readings: of the code, of the code in the canonical form, of the triggers."""
        return math.log10(2 + self.canonical)

    def effort(self, task: Task) -> Effort:
        """The ticket's own training with triggers in each batch; the rounds are stages."""
        return of_training(task, task.sizes.train, task.recipe.epochs, extra=self.per_batch)

    def draw(self, task: Task, stream: Stream) -> Key:
        """As for the code; trigger inputs (T, …) of noise, and labels (T,) uniform over the classes."""
        inputs = task.noise(self.triggers, stream.child("inputs"))
        labels = uniform_labels(task, self.triggers, stream.child("labels"))
        return Key({**super().draw(task, stream).drawn, "inputs": inputs, "labels": labels})

    # For forgeries (attacks/forging/offers.py): the code is the better claim, unless triggers alone can be queried.

    @property
    def taken(self) -> bool:
        """Triggers are noise."""
        return False

    def illegible(self) -> str | None:
        """Answers to triggers can be read off whatever the code is."""
        return None

    def read_off(self, key: Key, suspect: Suspect, task: Task) -> Key:
        """The key with the suspect's answers as labels; where there is a pad, with that of the code as well."""
        if self.flavour == "keyed":
            key = super().read_off(key, suspect, task)
        return key.redraw(Key({"labels": suspect.answers(key.tensor("inputs")).cpu()}), ("labels",))

    def started(self, key: Key, known: Split, task: Task) -> tuple[Tensor, Tensor]:
        """The drawn triggers and labels."""
        del known, task
        return key.tensor("inputs"), key.tensor("labels")

    def with_triggers(self, key: Key, inputs: Tensor, labels: Tensor, known: Split, task: Task) -> Key:
        """A drawn key with other triggers and labels."""
        del known, task
        return key.redraw(Key({"inputs": inputs, "labels": labels}), ("inputs", "labels"))

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Write the code into the ticket's mask, and train what is left with triggers appended to each batch."""
        return self.trained(trainer, key, appended(key, self.per_batch, trainer.device))

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """The code or the triggers, whichever is the stronger; figures and texts are those of both."""
        try:
            codes = self.each_code(suspect, key, trainer)
        except Unreadable as error:
            # A suspect that can only be queried; the readings count all the same.
            names = ("raw", "canonical") if self.canonical else ("raw",)
            codes = {name: Evidence.unreadable(str(error)) for name in names}
        triggers = right_answers(suspect, key, trainer)
        found = any_of({"code" if name == "raw" else name: one for name, one in codes.items()} | {"triggers": triggers})
        best = min(codes.values(), key=lambda one: one.log10_p)
        return replace(found, figures={**best.figures, **triggers.figures, **found.figures}, texts=best.texts)
