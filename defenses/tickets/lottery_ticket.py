"""Lottery tickets: iterative magnitude pruning with rewinding, in stages that schemes share (Chen et al. 2021)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

import models
from bench.bundle import Bundle
from bench.effort import Effort, of_training
from bench.stage import CleanModel, Stage
from bench.suspect import predict
from bench.task import Task
from bench.trainer import OwnerTrainer

HEAD = "head"
Masks = dict[str, Tensor]


def prunable(model: nn.Module, layers: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The weights that a ticket may lack, by parameter name, in the order of the model's layers.

    Args:
        model: any; on the meta device for shapes alone.
        layers: names of convolutions and linear layers; empty for all but the first of them and the classifier.

    Raises:
        KeyError: no such layer, one of another type, or none left.
    """
    found = models.weights_of(model, layers)
    if not layers:
        first = next(iter(found))
        found = {name: weight for name, weight in found.items() if name not in (first, HEAD)}
    if not found:
        raise KeyError("the model has no layer beside the first and the classifier")
    return {f"{name}.weight": weight.detach() for name, weight in found.items()}


def remaining(weights: int, rates: tuple[float, ...], rounds: tuple[int, ...]) -> int:
    """How many of so many weights are left after `rounds[i]` rounds at each of `rates[i]`; see `prune`."""
    for rate, count in zip(rates, rounds, strict=True):
        for _ in range(count):
            weights -= round(rate * weights)
    return weights


def prune(weights: Mapping[str, Tensor], masks: Masks, rate: float) -> Masks:
    """Drop exactly round(rate * n) of the n weights that are left, the smallest of all layers; ties by position.

    Args:
        weights: by parameter name.
        masks: bool, of the same names and shapes, on the same device.
        rate: in [0, 1).
    """
    magnitudes = torch.cat([weights[name].abs().flatten() for name in masks])
    alive = torch.cat([mask.flatten() for mask in masks.values()])
    places = alive.nonzero().flatten()
    order = magnitudes[places].argsort(stable=True)
    left = alive.clone()
    left[places[order[: round(rate * len(places))]]] = False
    parts = left.split([mask.numel() for mask in masks.values()])
    return {name: part.view_as(mask) for (name, mask), part in zip(masks.items(), parts, strict=True)}


@dataclass(frozen=True)
class RewindPoint(Stage):
    """The model of the first epochs of the clean model's own training, as `model`.

    Attributes:
        epoch: after which weights and statistics are kept; 0 for the initialisation.
    """

    name: ClassVar[str] = "rewind-point"

    epoch: int = 1

    def effort(self, task: Task) -> Effort:
        """The first epochs of a training."""
        return of_training(task, task.sizes.train, self.epoch)

    def run(self, trainer: OwnerTrainer, target: None) -> Bundle:
        """Train as for the clean model, and stop."""
        model = trainer.new_model()
        if self.epoch:
            with contextlib.closing(trainer.training(model, trainer.train)) as epochs:
                next(epoch for epoch in epochs if epoch == self.epoch)
        return Bundle(models={"model": model})


@dataclass(frozen=True)
class _Pruning(Stage):
    """What both ways to a ticket share.

    Attributes:
        rates: shares of the weights left that a round drops.
        rewind_epoch: of the clean model's training, whose state each round starts from.
        round_epochs: of the training between rounds; 0 for the recipe's.
        layers: what is pruned; see `prunable`.
    """

    rates: tuple[float, ...] = (0.2, 0.1, 0.05, 0.01)
    rewind_epoch: int = 1
    round_epochs: int = 0
    layers: tuple[str, ...] = ()

    def previous(self) -> Stage:
        """The round before; the clean model before the first."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """What each round starts from, and the round before."""
        return (RewindPoint(self.rewind_epoch), self.previous())

    def _trained(self, trainer: OwnerTrainer, masks: Masks) -> nn.Module:
        """The ticket of these masks, trained from the rewind point."""
        model = copy.deepcopy(trainer.stage(RewindPoint(self.rewind_epoch)).models["model"]).to(trainer.device)
        recipe = trainer.recipe(epochs=self.round_epochs) if self.round_epochs else trainer.recipe()
        return trainer.fit(model, trainer.train, recipe, masks=masks)


@dataclass(frozen=True)
class PruningRound(_Pruning):
    """A round of iterative magnitude pruning: a training from the rewind point, then the smallest weights go.

    The first one prunes the clean model. Tensors `mask.<parameter>`, bool.

    Attributes:
        rounds: how many there were at each rate, this one among them.
    """

    name: ClassVar[str] = "pruning-round"

    rounds: tuple[int, ...] = (1, 0, 0, 0)

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.rounds) or sum(self.rounds) < 1 or min(self.rounds) < 0:
            raise ValueError(f"expected a number of rounds for each of the rates {self.rates}, got {self.rounds}")

    def previous(self) -> Stage:
        """The round before; the clean model before the first."""
        before = tuple(count - (place == self._last) for place, count in enumerate(self.rounds))
        return replace(self, rounds=before) if sum(before) else CleanModel()

    def effort(self, task: Task) -> Effort:
        """One training, none in the first round."""
        first = sum(self.rounds) == 1
        return of_training(task, task.sizes.train, 0 if first else self.round_epochs or task.recipe.epochs)

    def run(self, trainer: OwnerTrainer, target: None) -> Bundle:
        """Train the ticket of the round before, and prune it by the rate of this one."""
        before = self.previous()
        if isinstance(before, CleanModel):
            model = trainer.clean()
            masks = _whole(prunable(model, self.layers))
        else:
            masks = masks_of(trainer.stage(before), trainer.device)
            model = self._trained(trainer, masks)
        return _stored(prune(prunable(model, self.layers), masks, self.rates[self._last]))

    @property
    def _last(self) -> int:
        return max(place for place, count in enumerate(self.rounds) if count)


@dataclass(frozen=True)
class TicketSearch(_Pruning):
    """A step towards the extreme ticket, which trains as well as the dense net and bears no further pruning.

    Each step prunes the best ticket so far by the current rate and trains what is left from the rewind point. If it
    is as good as the dense net on the owner's held-out inputs, it is the best; if not, the rate steps down and the
    next step goes on from the best one. After the last rate has failed nothing changes any more. Tensors
    `mask.<parameter>` of the best; values `ended`, `rounds` (kept at each rate), `dense`, `accuracy` (held out).

    Attributes:
        step: its number, from 1.
        tolerance: how much accuracy a ticket may lack.
    """

    name: ClassVar[str] = "ticket-search"

    step: int = 1
    tolerance: float = 0.01

    def previous(self) -> Stage:
        """The step before; the clean model before the first."""
        return replace(self, step=self.step - 1) if self.step > 1 else CleanModel()

    def stages(self) -> tuple[Stage, ...]:
        """The clean model to compare with, too."""
        return tuple(dict.fromkeys((*super().stages(), CleanModel())))

    def effort(self, task: Task) -> Effort:
        """One training."""
        return of_training(task, task.sizes.train, self.round_epochs or task.recipe.epochs)

    def run(self, trainer: OwnerTrainer, target: None) -> Bundle:
        """Try one round more."""
        best = self._start(trainer) if self.step == 1 else trainer.stage(self.previous())
        if best.values["ended"]:
            return best
        found, level = best.values, best.values["level"]
        masks = masks_of(best, trainer.device)
        weights = {name: best.tensors[f"trained.{name}"].to(trainer.device) for name in masks}
        candidate = prune(weights, masks, self.rates[level])
        model = self._trained(trainer, candidate)
        accuracy = heldout_accuracy(model, trainer)
        if accuracy < found["dense"] - self.tolerance:
            ended = level + 1 == len(self.rates)
            return Bundle(tensors=best.tensors, values={**found, "level": level + 1, "ended": ended})
        rounds = [count + (place == level) for place, count in enumerate(found["rounds"])]
        values = {**found, "rounds": rounds, "accuracy": accuracy}
        return _stored(candidate, prunable(model, self.layers), values)

    def _start(self, trainer: OwnerTrainer) -> Bundle:
        model = trainer.clean()
        weights, dense = prunable(model, self.layers), heldout_accuracy(model, trainer)
        values = {"ended": False, "level": 0, "rounds": [0] * len(self.rates), "dense": dense, "accuracy": dense}
        return _stored(_whole(weights), weights, values)


def masks_of(product: Bundle, device: torch.device | str = "cpu") -> Masks:
    """The masks in what a stage of pruning gave, bool by parameter name, in the order of the model's layers."""
    return {name: product.tensors[f"mask.{name}"].to(device) for name in product.values["layers"]}


def heldout_accuracy(model: nn.Module, trainer: OwnerTrainer) -> float:
    """The share of the owner's held-out inputs that a model gets right."""
    right = predict(model, trainer.heldout.inputs).argmax(1) == trainer.heldout.y
    return float(right.double().mean())


def _whole(weights: Mapping[str, Tensor]) -> Masks:
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def _stored(
    masks: Masks, trained: Mapping[str, Tensor] | None = None, values: Mapping[str, object] | None = None
) -> Bundle:
    tensors = {f"mask.{name}": mask for name, mask in masks.items()}
    tensors |= {f"trained.{name}": weight for name, weight in (trained or {}).items()}
    # A stored bundle has its tensors in the order of their names.
    return Bundle(tensors=tensors, values={**(values or {}), "layers": list(masks)})
