"""Perturbed weights, without data: Gaussian noise is added to them, or the largest are clipped."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

import models
from bench.attack import AttackClass, RemovalAttack
from bench.effort import Effort
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class _Perturbation(RemovalAttack):
    """Changes the weights of some layers at several levels, each from the protected model.

    Attributes:
        levels: of the change, rising; one surrogate for each.
        layers: names of convolutions or linear layers; empty for all of them. Biases and normalizations stay.
    """

    family: ClassVar[str] = "perturbation"
    attack_class: ClassVar[AttackClass] = "in-place"

    levels: tuple[float, ...] = ()
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rising = all(first < second for first, second in itertools.pairwise(self.levels))
        if not (self.levels and rising and self.levels[0] > 0 and math.isfinite(self.levels[-1])):
            raise ValueError(f"expected levels above 0 that rise, got {list(self.levels)}")

    def applies_to(self, task: Task) -> str | None:
        """Needs the layers that it names."""
        try:
            models.weights_of(task.skeleton, self.layers)
        except KeyError as error:
            return str(error.args[0])
        return None

    def effort(self, task: Task) -> Effort:
        """No training."""
        del task
        return Effort()

    def surrogates(self) -> int:
        """One per level."""
        return len(self.levels)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Change the protected model at each level."""
        protected = target.copy()
        for level in self.levels:
            model = copy.deepcopy(protected)
            with torch.no_grad():
                for name, weight in models.weights_of(model, self.layers).items():
                    weight.copy_(self._changed(name, weight, level, trainer))
            yield level, model

    def _changed(self, name: str, weight: Tensor, level: float, trainer: AttackerTrainer) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Noise(_Perturbation):
    """Add Gaussian noise to the weights, the same draw at every level.

    Attributes:
        levels: standard deviations of the noise, in units of the standard deviation of each layer's weights.
    """

    name: ClassVar[str] = "noise"
    strength_unit: ClassVar[str] = "standard deviations of the layer"

    levels: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0)

    def _changed(self, name: str, weight: Tensor, level: float, trainer: AttackerTrainer) -> Tensor:
        drawn = trainer.stream.child("noise", name).numpy().standard_normal(tuple(weight.shape), dtype="float32")
        return weight + level * weight.std(correction=0) * torch.from_numpy(drawn).to(weight)


@dataclass(frozen=True)
class Clip(_Perturbation):
    """Cut the largest magnitudes of each layer down to the largest of the rest; signs stay.

    Attributes:
        levels: fractions of each layer's weights that are cut down, below 1.
    """

    name: ClassVar[str] = "clip"
    strength_unit: ClassVar[str] = "fraction clipped"

    levels: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels[-1] >= 1:
            raise ValueError(f"expected levels below 1, got {list(self.levels)}")

    def _changed(self, name: str, weight: Tensor, level: float, trainer: AttackerTrainer) -> Tensor:
        del name, trainer
        magnitudes = weight.abs().flatten()
        kept = len(magnitudes) - round(level * len(magnitudes))
        # Without a rest the smallest weight of all is the bound.
        bound = magnitudes.kthvalue(max(1, kept)).values
        return torch.clamp(weight, -bound, bound)
