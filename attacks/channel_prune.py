"""Structured pruning: whole channels are taken out, and the net is narrower (Li et al. 2017, arXiv 1608.08710)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from attacks.pruning.retraining import Retraining
from bench.attack import AttackClass, Knowledge
from bench.defense import Defense
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from defenses.channel_rate import ChannelRate
from models.channels import channels
from models.pruning import Importance, importances, most_important
from models.surgery import Inner, inner, lacking, reshaped


@dataclass(frozen=True)
class _ChannelPruning(Retraining):
    """What those share that take channels out and train on.

    Attributes:
        importance: of a channel: the sum of its absolute weights (`filter`), or the size of the gain of its
            normalization (`scale`), where there is one.
    """

    family: ClassVar[str] = "pruning"
    attack_class: ClassVar[AttackClass] = "in-place"

    importance: Importance = "filter"
    retrain_epochs: int = 20

    def applies_to(self, task: Task) -> str | None:
        """Needs a net with a layer whose channels can come and go."""
        return lacking(task.skeleton)

    def _pruned(self, model: nn.Module, kept: Mapping[str, np.ndarray], trainer: AttackerTrainer) -> nn.Module:
        made = reshaped(model, kept)
        self.retrain(made, trainer)
        return made


@dataclass(frozen=True)
class ChannelPrune(_ChannelPruning):
    """Take the same share of channels out of each layer that allows it.

    Attributes:
        fractions: of each layer's channels, each in (0, 1); each starts from the protected model.
        choice: the least important channels of a layer, or random ones.
    """

    name: ClassVar[str] = "channel-prune"
    source: ClassVar[str] = "Li et al. 2017, arXiv 1608.08710"
    strength_unit: ClassVar[str] = "fraction of channels pruned"

    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    choice: Literal["least", "random"] = "least"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise ValueError(f"expected fractions in (0, 1), got {list(self.fractions)}")

    def surrogates(self) -> int:
        """One per fraction."""
        return len(self.fractions)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Prune the protected model to each fraction."""
        protected = target.copy()
        layers = inner(channels(protected))
        for fraction in self.fractions:
            kept = {one.layer: self._kept(protected, one, fraction, trainer.stream) for one in layers}
            yield fraction, self._pruned(protected, kept, trainer)

    def _kept(self, model: nn.Module, one: Inner, fraction: float, stream: Stream) -> np.ndarray:
        count = max(1, one.width - round(fraction * one.width))
        if self.choice == "least":
            return most_important(importances(model, one, self.importance), count)
        chosen: np.ndarray = stream.child("channels", one.layer).numpy().permutation(one.width)[:count]
        return np.sort(chosen)


@dataclass(frozen=True)
class ChannelShift(_ChannelPruning):
    """Take as few channels out of each layer as make it say something else, from one layer more each time.

    It knows the cells, which are public, and not which layers count. Those whose loss is smallest come first.

    Attributes:
        most: at most so many layers.
    """

    name: ClassVar[str] = "channel-shift"
    source: ClassVar[str] = "an adaptive attacker on Zhao et al. 2021, arXiv 2107.08688"
    knowledge: ClassVar[Knowledge] = "scheme"
    strength_unit: ClassVar[str] = "layers changed"

    retrain_epochs: int = 0
    most: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most < 1:
            raise ValueError(f"expected most >= 1, got {self.most}")

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme that writes into widths."""
        return None if isinstance(scheme, ChannelRate) else f"needs a message in widths, {scheme.name} has none there"

    def surrogates(self) -> int:
        """One for each number of layers."""
        return self.most

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Change one layer, two, three and so on."""
        protected, scheme = target.copy(), target.scheme
        shifts = self._shifts(protected, scheme, trainer.task)
        for count in range(1, min(self.most, len(shifts)) + 1):
            yield float(count), self._pruned(protected, dict(shifts[:count]), trainer)

    def _shifts(self, model: nn.Module, scheme: Any, task: Task) -> list[tuple[str, np.ndarray]]:
        """By layer the channels that stay, cheapest layers first."""
        cells, found = scheme.cells(task), []
        for one in inner(channels(model)):
            fewer = cells[one.layer].fewer(one.width) if one.layer in cells else None
            if fewer is not None:
                values = importances(model, one, self.importance)
                kept = most_important(values, fewer)
                found.append((1 - float(values[kept].sum() / values.sum()), one.layer, kept))
        return [(layer, kept) for _, layer, kept in sorted(found, key=lambda one: one[:2])]
