"""Magnitude pruning: the smallest weights are set to zero (Han, Pool, Tran and Dally 2015)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import models
from attacks.pruning.retraining import Retraining
from bench.attack import AttackClass
from bench.suspect import Target
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class MagnitudePrune(Retraining):
    """Zero a fraction of the weights of all convolutions and linear layers.

    Attributes:
        fractions: pruned fractions, each in [0, 1); each starts from the protected model.
        scope: one threshold for all layers together, or the same fraction of each layer.
        retrain_epochs: epochs of training with the zeros held, on the attacker's labels; 0 for none.
        learning_rate: of that training.
    """

    name: ClassVar[str] = "magnitude-prune"
    family: ClassVar[str] = "pruning"
    source: ClassVar[str] = "Han et al. 2015, arXiv 1506.02626"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "fraction pruned"

    fractions: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    scope: Literal["global", "layer"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fractions or not all(0 <= fraction < 1 for fraction in self.fractions):
            raise ValueError(f"expected fractions in [0, 1), got {list(self.fractions)}")

    def surrogates(self) -> int:
        """One per fraction."""
        return len(self.fractions)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Prune the protected model to each fraction."""
        protected = target.copy()
        for fraction in self.fractions:
            model = copy.deepcopy(protected)
            masks = magnitude_masks(model, fraction, self.scope)
            with torch.no_grad():
                for name, mask in masks.items():
                    model.get_parameter(name).mul_(mask)
            self.retrain(model, trainer, masks)
            yield fraction, model


def magnitude_masks(model: nn.Module, fraction: float, scope: Literal["global", "layer"]) -> dict[str, Tensor]:
    """Masks that drop exactly round(fraction * n) of the smallest weights, ties by position.

    Args:
        model: its convolutions and linear layers are pruned, biases and normalizations are not.
        fraction: in [0, 1).
        scope: whether n counts the weights of all layers or of each.

    Returns:
        Parameter name to a float mask of its shape.
    """
    weights = {f"{name}.weight": weight.detach() for name, weight in models.weights_of(model).items()}
    if scope == "layer":
        return {name: _kept(weight.abs().flatten(), fraction).view_as(weight) for name, weight in weights.items()}
    together = _kept(torch.cat([weight.abs().flatten() for weight in weights.values()]), fraction)
    parts = together.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _kept(magnitudes: Tensor, fraction: float) -> Tensor:
    mask = torch.ones_like(magnitudes)
    # A stable sort, not a threshold: with equal magnitudes a threshold drops too many or too few.
    mask[magnitudes.argsort(stable=True)[: round(fraction * len(magnitudes))]] = 0.0
    return mask
