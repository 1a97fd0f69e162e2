"""A net put onto memristor crossbars: pruned by lines of tiles, mapped to conductances, read with their variation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import models
from attacks.admm.core import project
from attacks.admm.projections import Conductances, Lines, block_groups_of, mask_of
from attacks.pruning.retraining import Retraining
from bench.attack import AttackClass
from bench.effort import Effort, of_training
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.channels import channels
from models.surgery import Inner, inner, lacking, outgoing, reshaped


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
        devices = {f"{name}.weight": self._devices(weight) for name, weight in models.weights_of(model).items()}
        project(model, devices)
        # Taken now: what is read overwrites the weights.
        pairs = {name: device.pair(model.get_parameter(name)) for name, device in devices.items()}
        yield 0.0, model
        for number in range(1, 1 + self.draws):
            with torch.no_grad():
                for name, mask in masks.items():
                    weight, chance = f"{name}.weight", trainer.stream.child("reading", number, name).numpy()
                    high, low = (varied(one, self.sigma, chance) for one in pairs[weight])
                    model.get_parameter(weight).copy_(devices[weight].scale * (high - low) * mask)
            yield float(number), model

    def _kept(self, weight: Tensor) -> Tensor:
        lines = block_groups_of(weight.shape, (self.tile, self.tile), self.lines)
        count = int(lines.max()) + 1
        return mask_of(weight, lines, count - round(self.fraction * count))

    def _devices(self, weight: Tensor) -> Conductances:
        return Conductances.fitted(weight, 1 / self.on_off, 1.0, self.bits)


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


def varied(conductance: Tensor, sigma: float, chance: np.random.Generator) -> Tensor:
    """Conductances as devices have them, g (1 + N(0, sigma^2)); none is below zero."""
    drawn = torch.from_numpy(chance.standard_normal(tuple(conductance.shape), dtype="float32"))
    return (conductance * (1 + sigma * drawn.to(conductance))).clamp(min=0)
