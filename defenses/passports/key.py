"""Passports: tensors of the shape of a layer's input, drawn at random or taken from images (Fan et al. 2019, 3.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import models
from bench.stream import Stream
from bench.suspect import predict
from models.blocks import Blocks

Origin = Literal["random", "single", "shuffled"]
# Images that a shuffled passport takes its channels from.
SHUFFLED = 20
Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(plan: Blocks, layers: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's passports, (2, *its input): that of the scale, then that of the shift."""
    return {name: (2, *plan.inputs[name]) for name in layers}


def size(shapes: Shapes) -> int:
    """Numbers in all passports together."""
    return sum(math.prod(shape) for shape in shapes.values())


def parted(whole: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Passports by layer out of all of them laid end to end."""
    return models.parted(whole, {name: whole.new_empty(shape) for name, shape in shapes.items()})


def uniform(shapes: Shapes, stream: Stream) -> Tensor:
    """Passports uniform in (-1, 1), laid end to end; float32."""
    chance = stream.numpy()
    return torch.from_numpy(2.0 * chance.random(size(shapes), dtype="float32") - 1.0)


def images(origin: Origin, count: int, stream: Stream) -> Tensor:
    """Which of `count` training inputs passports are made of, int64 of shape (2, M): for scales, for shifts."""
    wanted = 1 if origin == "single" else SHUFFLED
    order = stream.numpy().permutation(count)
    return torch.from_numpy(np.resize(order, 2 * wanted).astype(np.int64)).view(2, wanted)


def slots(shapes: Shapes, origin: Origin, stream: Stream) -> Tensor:
    """For each channel of each passport which image it comes from and which channel of it, int64 of shape (S, 2).

    A shuffled passport takes its channel j from image j mod 20, no channel of an image twice; the layer that reads
    the images themselves takes one of them whole, and so does a single passport.
    """
    chance = stream.numpy()
    found: list[np.ndarray] = []
    for shape in shapes.values():
        channels = shape[1]
        for _ in range(2):
            if origin == "single" or channels <= 3:
                image = np.full(channels, 0 if origin == "single" else chance.integers(SHUFFLED))
                found.append(np.stack([image, np.arange(channels)], 1))
                continue
            image = np.arange(channels) % SHUFFLED
            channel = np.empty(channels, np.int64)
            for one in range(min(SHUFFLED, channels)):
                channel[image == one] = chance.permutation(channels)[: int((image == one).sum())]
            found.append(np.stack([image, channel], 1))
    return torch.from_numpy(np.concatenate(found).astype(np.int64))


def through(net: nn.Module, images: Tensor, chosen: Tensor, shapes: Shapes) -> Tensor:
    """Passports out of what the layers of a net are given for some images, laid end to end.

    Args:
        net: in whose layers; used in evaluation mode.
        images: inputs of shape (2, M, …): of the scales, of the shifts.
        chosen: from `slots`.
        shapes: of the passports.

    Returns:
        float32 on the CPU.
    """
    given = [_inputs(net, tuple(shapes), one) for one in images]
    found, start = [], 0
    for name, shape in shapes.items():
        for which in range(2):
            picked = chosen[start : start + shape[1]]
            start += shape[1]
            found.append(given[which][name][picked[:, 0], picked[:, 1]].flatten())
    return torch.cat(found).float()


def _inputs(net: nn.Module, layers: tuple[str, ...], images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.setdefault(name, args[0].detach().cpu())

        return models.layer(net, name).register_forward_pre_hook(hook)

    handles = [note(name) for name in layers]
    try:
        predict(net, images)
    finally:
        for handle in handles:
            handle.remove()
    return found
