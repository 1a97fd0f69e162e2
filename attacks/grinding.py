"""Grinding: trying keys until one is seen in a model by luck, which is all that a derived key leaves to a forger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.forging.offers import Chained, Completes, refusal
from attacks.trigger_forgery import nothing
from bench.attack import AmbiguityAttack, Forgery
from bench.defense import Defense
from bench.derivation import FORGER, SEED_BYTES, derived_stream
from bench.effort import Effort
from bench.key import Key
from bench.suspect import BATCH, Target
from bench.task import Task
from bench.trainer import AttackerTrainer, OwnerTrainer


@dataclass(frozen=True)
class _Grinding(AmbiguityAttack):
    """What those share that try keys.

    Attributes:
        trials: how many.
    """

    family: ClassVar[str] = "grinding"

    trials: int = 1000

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"expected trials >= 1, got {self.trials}")


@dataclass(frozen=True)
class Grind(_Grinding):
    """Draw whole keys by the scheme's own `draw`, complete each for the protected model, and keep the best.

    Nothing in a key is chosen: each is derived from a seed, as an owner's may be, and the trials are of seeds. Unlike
    `random-key` it knows no fact of the owner's; what a key needs beside the draw is made for the model anew.
    """

    name: ClassVar[str] = "grind"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose drawn keys anybody can complete."""
        needed = "a key that a draw and a finished model complete"
        if reason := refusal(scheme, Completes, needed):
            return reason
        # What is taken from data is not there when a key is drawn.
        return f"needs {needed}, {scheme.label} takes triggers from data" if getattr(scheme, "taken", False) else None

    def effort(self, task: Task) -> Effort:
        """As many answers as triggers by default, where it is answers that are judged."""
        del task
        return Effort(answered=64.0 * self.trials)

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """The best key by the scheme's own `verify`, on a copy of the protected model; `log10_p` is what that says."""
        scheme, task, model = target.scheme, trainer.task, target.copy()
        stream = trainer.stream.child("key", scheme.name)
        # No scheme that can be completed looks at data to verify; whoever grinds has none.
        none = nothing(task)
        judge = OwnerTrainer(task, none, none, trainer.stream.child("judge"), trainer.device, stages={})
        best, least, chosen = None, 1.0, None
        for number in range(self.trials):
            seed = stream.child(number).bytes(SEED_BYTES)
            key = scheme.completed(scheme.draw(task, derived_stream(seed, FORGER, scheme)), model, task)
            found = scheme.verify(target, key, judge)
            if found.log10_p < least:
                best, least, chosen = key, found.log10_p, seed
        assert best is not None
        return Forgery(best, model, {"trials": float(self.trials), "log10_p": least}, chosen)


@dataclass(frozen=True)
class ChainGrind(_Grinding):
    """Follow one long chain of triggers, and claim the link from which on the model agrees best.

    Each link is itself a seed, so that a trial more costs one query more and not as many as there are triggers. Such a
    seed is a link and no draw: the key is not derived from the forger's name.
    """

    name: ClassVar[str] = "chain-grind"

    trials: int = 20_000

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose triggers follow from one another."""
        return refusal(scheme, Chained, "triggers each of which follows from a link of a chain")

    def effort(self, task: Task) -> Effort:
        """One answer a trial."""
        del task
        return Effort(answered=float(self.trials))

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """The best window of the chain, on a copy of the protected model; `answered` is its share of right labels."""
        scheme, task, model = target.scheme, trainer.task, target.copy()
        first = scheme.draw(task, trainer.stream.child("key", scheme.name))
        right = _right(scheme, first, self.trials + scheme.triggers - 1, target, task)
        sums = torch.cat([right.new_zeros(1), right.cumsum(0)])
        agreed = sums[scheme.triggers :] - sums[: -scheme.triggers]
        best = int(agreed.argmax())
        key = scheme.completed(scheme.advanced(first, best), model, task)
        figures = {"trials": float(self.trials), "answered": float(agreed[best]) / scheme.triggers}
        return Forgery(key, model, figures)


def _right(scheme: Any, key: Key, count: int, target: Target, task: Task) -> Tensor:
    """Which of the first triggers of a chain get their label, int64 (count,); a batch of inputs at a time is made."""
    found = []
    for start in range(0, count, BATCH):
        part = replace(scheme, triggers=min(BATCH, count - start), per_batch=1).derived(key, task)
        found.append(target.answers(part.tensor("inputs")).cpu() == part.tensor("labels"))
        key = scheme.advanced(key, BATCH)
    return torch.cat(found).long()
