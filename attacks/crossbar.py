"""A net put onto memristor crossbars: pruned by lines of tiles, mapped to conductances, read with their variation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

import models
from attacks.pruning.retraining import Retraining
from bench.attack import AttackClass
from bench.effort import Effort, of_training
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.channels import channels
from models.surgery import Inner, inner, lacking, outgoing, reshaped

Lines = Literal["rows", "columns"]


@dataclass(frozen=True)
class Crossbar(Retraining):
    """Prune by tiles, take out what is not used, retrain, map to conductances, and read them several times.

    Each weight is a pair of conductances, w = s (g+ - g-). The first surrogate holds them as they were meant; each
    further one is read anew, g (1 + N(0, sigma^2)), from devices of their own. The price takes the best of all of them
    for the attacker, who may program chips until one has lost the mark: what it says is that one of `draws` readings
    did so. What a reading costs on average is the mean over the rows.

    Attributes:
        tile: rows and columns of a crossbar; a layer's matrix, filters x (channels x kernel), is cut into such tiles.
        fraction: of the lines of all tiles of a layer that are pruned, those of the smallest norm; in [0, 1).
        lines: rows or columns of tiles.
        purify: filters, and channels as they are read, with a norm below this share of the layer's mean go as well.
        bits: of a conductance: 2^bits levels from the lowest to the highest.
        on_off: the highest conductance over the lowest.
        sigma: of the variation, relative to each conductance.
        draws: how often they are read.
    """

    name: ClassVar[str] = "crossbar"
    family: ClassVar[str] = "quantization"
    source: ClassVar[str] = "Yuan et al. 2019, arXiv 1908.11691; purification and unused paths: arXiv 1908.10017"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "readings"

    retrain_epochs: int = 20
    tile: int = 64
    fraction: float = 0.5
    lines: Lines = "columns"
    purify: float = 0.05
    bits: int = 4
    on_off: float = 10.0
    sigma: float = 0.1
    draws: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fraction < 1:
            raise ValueError(f"expected a fraction in [0, 1), got {self.fraction}")
        if not 0 <= self.purify < 1:
            raise ValueError(f"expected purify in [0, 1), got {self.purify}")
        for name, least in (("tile", 1), ("bits", 1), ("draws", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)}")
        if not 1 < self.on_off < float("inf"):
            raise ValueError(f"expected on_off above 1 and finite, got {self.on_off}")
        if not 0 <= self.sigma < float("inf"):
            raise ValueError(f"expected a finite sigma of at least 0, got {self.sigma}")

    def applies_to(self, task: Task) -> str | None:
        """Needs a net with a layer whose channels can go."""
        return lacking(task.skeleton)

    def effort(self, task: Task) -> Effort:
        """One training, however often the result is read."""
        return of_training(task, task.sizes.labelled, self.retrain_epochs)

    def surrogates(self) -> int:
        """One as it was meant, and one per reading."""
        return 1 + self.draws

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """The mapped net, then each reading of it."""
        model = target.copy()
        masks = {name: self._kept(weight) for name, weight in models.weights_of(model).items()}
        model, masks = without_unused(model, masks, self.purify)
        self.retrain(model, trainer, {f"{name}.weight": mask for name, mask in masks.items()})
        pairs = {
            name: conductances(weight.detach(), self.bits, self.on_off)
            for name, weight in models.weights_of(model).items()
        }
        for number in range(1 + self.draws):
            with torch.no_grad():
                for name, weight in models.weights_of(model).items():
                    stream = trainer.stream.child("reading", number, name)
                    weight.copy_(self._read(pairs[name], stream if number else None) * masks[name])
            yield float(number), model

    def _kept(self, weight: Tensor) -> Tensor:
        return line_mask(weight.detach(), self.tile, self.fraction, self.lines)

    def _read(self, pair: Pair, stream: Stream | None) -> Tensor:
        """The weights that a pair of conductances gives, of varied ones where there is a stream."""
        high, low = pair.high, pair.low
        if stream is not None:
            chance = stream.numpy()
            high, low = (varied(one, self.sigma, chance) for one in (high, low))
        return pair.scale * (high - low)


@dataclass(frozen=True)
class Pair:
    """The conductances of a layer's weights, in units of the highest one.

    Attributes:
        high, low: g+ and g-, of the weights' shape, from 1 / on_off to 1.
        scale: s, so that the weights are s (g+ - g-).
    """

    high: Tensor
    low: Tensor
    scale: Tensor


def line_mask(weight: Tensor, tile: int, fraction: float, lines: Lines) -> Tensor:
    """Where a layer is left when the lines of its tiles with the smallest norms are pruned; ties by position.

    What it leaves is the nearest matrix (in Euclidean norm) with so few lines.

    Args:
        weight: of shape (filters, …); the tiles at the right and at the bottom may be smaller.
        tile: rows and columns of a tile.
        fraction: of the lines of all tiles together; round(fraction x lines) are pruned.
        lines: whether a line is a row within a tile or a column.

    Returns:
        Zeros and ones of the weight's shape.
    """
    matrix = weight.flatten(1) if lines == "rows" else weight.flatten(1).T
    # Each line, whole, is cut into pieces of the length of a tile: the last is filled up with zeros.
    missing = -matrix.shape[1] % tile
    pieces = nn.functional.pad(matrix, (0, missing)).unflatten(1, (-1, tile))
    energy = pieces.double().square().sum(2)
    kept = torch.ones(energy.numel(), dtype=weight.dtype, device=weight.device)
    kept[energy.flatten().argsort(stable=True)[: round(fraction * energy.numel())]] = 0
    mask = kept.view_as(energy).repeat_interleave(tile, 1)[:, : matrix.shape[1]]
    return (mask if lines == "rows" else mask.T).reshape(weight.shape)


def without_unused(model: nn.Module, masks: Mapping[str, Tensor], purify: float) -> tuple[nn.Module, dict[str, Tensor]]:
    """A net under masks without channels that nothing makes or nothing reads, and without those that hardly matter.

    A filter that is gone frees its channel in the layers that read it, and the other way round, so that it goes on
    until nothing more goes. What a filter of zeros still gave, the constant of its normalization or bias, goes with it.

    Args:
        model: descends from `models.build`; changed in place.
        masks: of the weights of all its convolutions and linear layers, by the layer's name.
        purify: a filter, or a channel as it is read, counts as gone below this share of the layer's mean norm.

    Returns:
        The masked net, narrower, and the masks of what is left.
    """
    with torch.no_grad():
        for name, weight in models.weights_of(model).items():
            weight.mul_(masks[name])
    # The same surgery for both: masks in the place of weights.
    shadow = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in models.weights_of(shadow).items():
            weight.copy_(masks[name])
    while True:
        layers = inner(channels(model))
        used = {one.layer: _used(model, one, purify) for one in layers}
        chosen = {one.layer: used[one.layer] for one in layers if len(used[one.layer]) < one.width}
        if not chosen:
            return model, {name: mask.detach() for name, mask in models.weights_of(shadow).items()}
        model, shadow = reshaped(model, chosen), reshaped(shadow, chosen)


def _used(model: nn.Module, one: Inner, purify: float) -> np.ndarray:
    """The channels of a layer that are used, ascending; the strongest one at the least."""
    made = models.weights_of(model, [one.layer])[one.layer].detach().flatten(1).norm(dim=1)
    read = torch.zeros_like(made)
    for reader in one.readers:
        read += outgoing(model, reader, one.layer).detach().flatten(1).square().sum(1)
    strength = torch.minimum(made / made.mean(), read.sqrt() / read.sqrt().mean()).nan_to_num(0.0)
    used = strength >= max(purify, torch.finfo(strength.dtype).tiny)
    used[strength.argmax()] = True
    found: np.ndarray = used.nonzero().flatten().cpu().numpy()
    return found


def conductances(weight: Tensor, bits: int, on_off: float) -> Pair:
    """The pairs of conductances whose differences come nearest to weights.

    A positive weight is in g+, a negative one in g-; the other one is at its lowest, and both are for zero. Levels are
    (1 - 1 / on_off) / (2^bits - 1) apart, and the weight of the largest magnitude is at the highest.

    Args:
        weight: of any shape.
        bits: of a conductance.
        on_off: the highest conductance over the lowest.
    """
    steps, lowest = 2**bits - 1, 1 / on_off
    largest = weight.abs().max()
    # A layer of zeros has all devices at their lowest, whatever the scale.
    level = (weight / largest * steps).round().nan_to_num(0.0)
    spacing = (1 - lowest) / steps
    return Pair(lowest + level.clamp(min=0) * spacing, lowest - level.clamp(max=0) * spacing, largest / (1 - lowest))


def varied(conductance: Tensor, sigma: float, chance: np.random.Generator) -> Tensor:
    """Conductances as devices have them, g (1 + N(0, sigma^2)); none is below zero."""
    drawn = torch.from_numpy(chance.standard_normal(tuple(conductance.shape), dtype="float32"))
    return (conductance * (1 + sigma * drawn.to(conductance))).clamp(min=0)
