"""Positions chosen after the fact: weights that happen to be large and small, in the order that a message asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.forging.offers import RanksPositions, refusal
from bench.attack import AmbiguityAttack, Forgery
from bench.defense import Defense
from bench.effort import Effort
from bench.key import Key
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class ChosenPositions(AmbiguityAttack):
    """Put the ones of a drawn message on some of the largest weights, its zeros on weights below the median.

    The claim is on the protected model itself, or on any other. Nothing is trained.

    Attributes:
        spread: from how many of the largest weights those of the ones are drawn, as a multiple of their number, at
            least 1; less where so many do not lie above the median.
    """

    name: ClassVar[str] = "chosen-positions"
    family: ClassVar[str] = "position-forging"

    spread: float = 2.0

    def __post_init__(self) -> None:
        if not self.spread >= 1:
            raise ValueError(f"expected spread >= 1, got {self.spread}")

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with large weights at drawn positions."""
        return refusal(scheme, RanksPositions, "a message in which of the weights at drawn positions are large")

    def effort(self, task: Task) -> Effort:
        """A sort of weights."""
        del task
        return Effort()

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """The key; figures are `gap`, least one over largest zero, and `top_share`, the lowest rank of a one.

        Raises:
            ValueError: too few weights lie above or below the median.
        """
        scheme, task, model = target.scheme, trainer.task, target.copy()
        chance = trainer.stream.child("positions").numpy()
        drawn = scheme.draw(task, trainer.stream.child("key", scheme.name))
        ones, magnitudes = scheme.ones(drawn), scheme.carried(drawn, model).abs()
        order = magnitudes.argsort(descending=True, stable=True)
        half, wanted = len(order) // 2, int(ones.sum())
        if max(wanted, len(ones) - wanted) > half:
            raise ValueError(f"expected at most {half} ones and zeros in {len(order)} weights, got {len(ones)} in all")
        top = min(half, round(self.spread * wanted))
        positions = torch.empty(len(ones), dtype=torch.int64)
        positions[ones] = order[torch.from_numpy(chance.permutation(top)[:wanted])]
        below = torch.from_numpy(chance.permutation(len(order) - half)[: len(ones) - wanted]) + half
        positions[~ones] = order[below]
        key = scheme.completed(drawn.redraw(Key({"positions": positions}), ("positions",)), model, task)
        chosen = magnitudes[positions]
        least, largest = float(chosen[ones].min()), float(chosen[~ones].max())
        figures = {"top_share": top / len(order)}
        if largest > 0:
            figures["gap"] = least / largest
        return Forgery(key, model, figures)
