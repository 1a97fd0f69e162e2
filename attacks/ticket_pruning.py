"""Pruning a ticket further: weights go that iterative pruning had left (Chen et al. 2021)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import models
from attacks.pruning.retraining import Retraining
from attacks.tickets.pruned import Masks, OnPruned, put
from bench.attack import AttackClass
from bench.parameters import require_shares
from bench.stream import Stream
from bench.suspect import Target
from bench.trainer import AttackerTrainer
from models import joined, parted

HEAD = "head"


@dataclass(frozen=True)
class TicketPrune(OnPruned, Retraining):
    """Zero a fraction of the weights that are not zero yet, in all layers but the classifier.

    The first convolution is pruned too, though tickets have all of it, as in the source. Exactly
    round(fraction * n) of the n live weights of all layers go; a larger fraction takes those of a smaller one too.

    Attributes:
        fractions: of the live weights, in (0, 1), rising; each starts from the protected model.
        order: the smallest first, ties by position, or in an order drawn uniformly.
        retrain_epochs: epochs of training with the zeros held, on the attacker's labels; 0, as in the source,
            for none.
        learning_rate: of that training.
    """

    name: ClassVar[str] = "ticket-prune"
    family: ClassVar[str] = "ticket-pruning"
    source: ClassVar[str] = "Chen et al. 2021, arXiv 2111.00162, tables 5 and 6"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "fraction of the live weights pruned"

    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    order: Literal["magnitude", "random"] = "magnitude"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares("fractions", self.fractions, 1.0)
        if self.fractions[-1] == 1:
            raise ValueError(f"expected fractions below 1, got {list(self.fractions)}")

    def surrogates(self) -> int:
        """One per fraction."""
        return len(self.fractions)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Prune the protected model to each fraction."""
        protected = target.copy()
        for fraction in self.fractions:
            model = copy.deepcopy(protected)
            pool = pool_of(model)
            masks = pruned_further(pool, fraction, trainer.stream.child("order") if self.order == "random" else None)
            put(model, {name: weight * masks[name] for name, weight in pool.items()})
            self.retrain(model, trainer, masks)
            yield fraction, model


def pool_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights of all convolutions and linear layers but the classifier, by parameter name."""
    found = models.weights_of(model).items()
    return {f"{name}.weight": weight.detach() for name, weight in found if name != HEAD}


def pruned_further(pool: dict[str, Tensor], fraction: float, stream: Stream | None = None) -> Masks:
    """Masks without round(fraction * n) of the n weights of a pool that are not zero.

    Args:
        pool: weights by parameter name.
        fraction: in [0, 1).
        stream: gives the order in which weights go; None for the smallest first, ties by position.

    Returns:
        Parameter name to a bool mask of its shape; True for what is left.
    """
    whole = joined(pool)
    mask = whole != 0
    places = mask.nonzero().flatten()
    if stream is None:
        order = whole[places].abs().argsort(stable=True)
    else:
        order = torch.randperm(len(places), generator=stream.torch())
    mask[places[order[: round(fraction * len(places))]]] = False
    return parted(mask, pool)
