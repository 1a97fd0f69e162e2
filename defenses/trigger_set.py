"""Trigger set: a backdoor that only the owner can name (Adi, Baum, Cisse, Pinkas and Keshet 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.canonical import canonical_form, reference_of
from bench.canonical.old_head import with_old_head
from bench.defense import Protected
from bench.errors import Unreadable
from bench.evidence import Evidence, any_of
from bench.key import Key
from bench.parameters import judged
from bench.plugin import Access
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.triggers.answers import right_answers
from defenses.triggers.kinds import ChosenTriggers
from defenses.triggers.scheme import TrainedIn


@dataclass(frozen=True)
class TriggerSet(ChosenTriggers, TrainedIn):
    """Inputs far from the data, or some of it, with labels that are drawn uniformly, trained into the model.

    Attributes:
        old_head: verify a second time with the owner's own classifier on the suspect's body, for suspects
            whose last layer was replaced; this needs the model itself.
        canonical: with `old_head`, verify a third time with that classifier on the suspect's body in the order,
            scale and sign of channels of the published model, where the classifier finds its inputs.
    """

    name: ClassVar[str] = "trigger-set"
    source: ClassVar[str] = "Adi et al. 2018, USENIX Security, sections 4 and 5"

    old_head: bool = judged(False)
    canonical: bool = judged(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.canonical and not self.old_head:
            raise ValueError("expected old_head with canonical, got canonical alone: answers have no order of channels")

    def access_used(self) -> Access:
        """The owner's head can only be put on a model that is at hand."""
        return "white-box" if self.old_head else "black-box"

    def capacity(self, task: Task) -> float:
        """All labels right: K ** -T, of training inputs (K - 1) ** -T; times the number of readings."""
        return math.log10(1 + self.old_head + self.canonical) + super().capacity(task)

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train with triggers appended to each batch; the owner keeps the model for later, its head above all."""
        data, key = self.chosen(trainer, key)
        model = self.trained(trainer, data, self.with_targets(key, trainer.task))
        return Protected(model, key.complete(**reference_of(model)))

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """A key with its triggers, and the model, whose head is read with."""
        del task
        return key.complete(**reference_of(model))

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Triggers that get their label; binomial with rate 1/K, of training inputs 1/(K - 1)."""
        readings = {"answers": right_answers(suspect, key, trainer)}
        if self.old_head:
            readings["old_head"] = self._read_with_head(suspect, key, trainer, aligned=False)
        if self.canonical:
            readings["canonical"] = self._read_with_head(suspect, key, trainer, aligned=True)
        return any_of(readings) if len(readings) > 1 else readings["answers"]

    def _read_with_head(self, suspect: Suspect, key: Key, trainer: OwnerTrainer, *, aligned: bool) -> Evidence:
        try:
            # Labels are counted and no weight is.
            body = canonical_form(suspect.module, key, {}) if aligned else suspect.module
            rebuilt = Suspect.of(with_old_head(body, key))
        except Unreadable as error:
            return Evidence.unreadable(f"the owner's head does not fit: {error}")
        return right_answers(rebuilt, key, trainer)
