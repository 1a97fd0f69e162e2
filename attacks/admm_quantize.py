"""Quantization by ADMM, of a dense net or after pruning (Ren et al. 2019, arXiv 1812.11677)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

import models
from attacks.admm.compression import Phase, Pruning, Quantizing
from attacks.admm.core import Projection
from bench.effort import Effort, of_training
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class AdmmQuantize(Quantizing):
    """Bring the weights of all convolutions and linear layers to few levels by ADMM; none of them is zero.

    Attributes:
        bits: bits of a weight, each from 1 on, that is 2^bits levels; each starts from the protected model.
    """

    name: ClassVar[str] = "admm-quantize"
    source: ClassVar[str] = "Ren et al. 2019, ASPLOS, arXiv 1812.11677"
    strength_unit: ClassVar[str] = "bits per weight"

    bits: tuple[int, ...] = (4, 3, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(bits >= 1 for bits in self.bits):
            raise ValueError(f"expected bits >= 1, got {list(self.bits)}")
        if not (self.bits or self.levels):
            raise ValueError("expected bits or levels, got none")

    def applies_to(self, task: Task) -> str | None:
        """Needs as many layers as numbers of levels are given."""
        return self.fits(task)

    def surrogates(self) -> int:
        """One per number of bits, or one for the levels."""
        return 1 if self.levels else len(self.bits)

    def effort(self, task: Task) -> Effort:
        """The iterations and the rounds of snapping at most, for each surrogate."""
        return of_training(task, task.sizes.labelled, self.quantizing_epochs(task, 1.0) * self.surrogates())

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Quantize the protected model to each number of bits; of levels the strength is their bits on average."""
        for bits in [None] if self.levels else self.bits:
            model = target.copy()
            counts = self.counts(model, bits)
            self.done(self.quantized(model, counts, trainer), trainer)
            yield self._mean_bits(model) if bits is None else float(bits), model

    def _mean_bits(self, model: nn.Module) -> float:
        sizes = [weight.numel() for weight in models.weights_of(model).values()]
        told = sum(size * math.log2(2 * count) for size, count in zip(sizes, self.levels, strict=True))
        return told / sum(sizes)


@dataclass(frozen=True)
class AdmmPruneQuantize(Pruning, Quantizing):
    """Prune by ADMM, train with the zeros held, quantize what is left by ADMM, snap it to the levels.

    Attributes:
        bits: bits of a weight that is left, from 1 on, that is 2^bits levels.
    """

    name: ClassVar[str] = "admm-prune-quantize"
    source: ClassVar[str] = "Ren et al. 2019, ASPLOS, arXiv 1812.11677"

    fractions: tuple[float, ...] = (0.9, 0.95)
    bits: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits < 1:
            raise ValueError(f"expected bits >= 1, got {self.bits}")

    def applies_to(self, task: Task) -> str | None:
        """Needs as many layers as rates and numbers of levels are given."""
        return super().applies_to(task) or self.fits(task)

    def effort(self, task: Task) -> Effort:
        """Both trainings by ADMM, the one between and the rounds of snapping at most, for each surrogate."""
        left = 1 - min(self.rates or self.fractions)
        snapping = of_training(task, task.sizes.labelled, self.quantizing_epochs(task, left) * self.surrogates())
        return super().effort(task) + snapping

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Prune the protected model to each fraction, and quantize what is left."""
        for strength, projections in self.plans(target.copy(), trainer.task):
            model = target.copy()
            self.done(self.compressed(model, projections, trainer), trainer)
            yield strength, model

    def compressed(
        self, model: nn.Module, projections: Mapping[str, Projection], trainer: AttackerTrainer
    ) -> Iterator[Phase]:
        """All phases in place, as they are done."""
        yield from self.pruned(model, projections, trainer)
        yield from self.quantized(model, self.counts(model, None if self.levels else self.bits), trainer)
