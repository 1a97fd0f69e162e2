"""Pruning by ADMM: weights, filters, columns or channels (Zhang et al. 2018; Yuan et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from attacks.admm.compression import Pruning
from attacks.admm.projections import Kind
from bench.suspect import Target
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class _Prune(Pruning):
    """What both do."""

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Prune the protected model to each fraction."""
        for strength, projections in self.plans(target.copy(), trainer.task):
            model = target.copy()
            self.done(self.pruned(model, projections, trainer), trainer)
            yield strength, model


@dataclass(frozen=True)
class AdmmPrune(_Prune):
    """Bring single weights to zero by ADMM, then train with the zeros held."""

    name: ClassVar[str] = "admm-prune"
    source: ClassVar[str] = "Zhang et al. 2018, arXiv 1804.03294"


@dataclass(frozen=True)
class AdmmStructured(_Prune):
    """Bring whole filters, columns or channels to zero by ADMM, then train with the zeros held; all keeps its shape.

    Attributes:
        group: what goes as one: a `filter`, a `column` (the same place in all filters of a layer) or a `channel` (all
            that reads one of a layer's inputs).
    """

    name: ClassVar[str] = "admm-structured"
    source: ClassVar[str] = "Yuan et al. 2019, ISLPED, arXiv 1908.11691"

    fractions: tuple[float, ...] = (0.3, 0.5, 0.7)
    group: Literal["filter", "column", "channel"] = "filter"

    @property
    def whole(self) -> Kind:
        """What goes as one."""
        return self.group
