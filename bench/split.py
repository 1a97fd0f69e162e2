"""Inputs and targets as training and verification take them: on the device, or in host memory and fetched by batch."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Of a GPU's free memory: the rest is for the model, its gradients and the other jobs on the card.
_SHARE = 0.25


@dataclass(frozen=True)
class Scale:
    """From stored numbers to what a model takes: `(stored / top - mean) / std`, channel by channel.

    Attributes:
        mean: per channel, in units of raw inputs in [0, 1].
        std: likewise.
        top: the stored number that stands for 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    top: float = 255.0

    def __call__(self, stored: Tensor) -> Tensor:
        """Float32 of the same shape (N, C, …)."""
        mean, std = _columns(self, stored.dim(), stored.device)
        return (stored.float() / self.top).sub_(mean).div_(std)


@functools.lru_cache(maxsize=64)
def _columns(scale: Scale, dimensions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, because making a tensor on a GPU for each batch would make the GPU wait each time.
    wide = (1, -1) + (1,) * (dimensions - 2)
    # Whatever mode and default type the first caller had, later ones get the same.
    with torch.inference_mode(False):
        mean, std = (torch.tensor(one, dtype=torch.float32, device=device) for one in (scale.mean, scale.std))
        return mean.view(wide), std.view(wide)


@dataclass(frozen=True)
class Inputs:
    """Inputs without targets.

    Attributes:
        stored: of shape (N, …): float32 as a model takes them, or small integers that `scale` turns into that.
        scale: None for float32.
        device: where batches go; None for where `stored` lies.
    """

    stored: Tensor
    scale: Scale | None = None
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def x(self) -> Tensor:
        """All of them as a model takes them, where they are stored: on the device, or on the host if too large."""
        return self.stored if self.scale is None else self.scale(self.stored)

    @property
    def place(self) -> torch.device:
        """Where batches are."""
        return self.device or self.stored.device

    def batch(self, chosen: Tensor) -> Tensor:
        """Those of the given indices as a model takes them, on the device.

        Args:
            chosen: int64 indices; fastest where `indices` made them.
        """
        part = self.stored[chosen.to(self.stored.device)]
        if part.device != self.place:
            # Page-locked, so that the copy runs while the GPU still computes the batch before.
            part = part.pin_memory().to(self.place, non_blocking=True)
        return part if self.scale is None else self.scale(part)

    def indices(self, order: Tensor) -> Tensor:
        """Indices where `batch` wants them: beside the inputs."""
        return order.to(self.stored.device)

    def at(self, rows: Tensor) -> Inputs:
        """Those of the given int64 indices, stored where they were."""
        return replace(self, stored=self.stored[rows.to(self.stored.device)])

    def take(self, count: int) -> Inputs:
        """The first `count` of them."""
        return replace(self, stored=self.stored[:count])

    def skip(self, count: int) -> Inputs:
        """All but the first `count` of them."""
        return replace(self, stored=self.stored[count:])

    def copy(self) -> Inputs:
        """The same in storage of its own."""
        return replace(self, stored=self.stored.clone())

    def placed(self, device: torch.device, room: float | None = None) -> Inputs:
        """The same on the device; where they do not fit there, on the host, from where each batch is fetched.

        Args:
            device: where batches go.
            room: bytes that they may take there; None: a quarter of the GPU's free memory, no limit on a CPU.
        """
        if self.device == device or (self.stored.device == device and room is None):
            return self
        limit = _room(device) if room is None else room
        if self.stored.numel() * self.stored.element_size() > limit:
            return replace(self, stored=self.stored.cpu(), device=device)
        return replace(self, stored=self.stored.to(device), device=None)


class Split:
    """Inputs with their targets.

    Attributes:
        inputs: the inputs.
        y: int64 labels of shape (N,), or float targets of shape (N, …) for an objective that takes them.
    """

    def __init__(self, x: Tensor | Inputs, y: Tensor) -> None:
        """Join them.

        Args:
            x: float inputs of shape (N, …) as a model takes them, or `Inputs`.
            y: targets.
        """
        self.inputs = x if isinstance(x, Inputs) else Inputs(x)
        self.y = y

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def x(self) -> Tensor:
        """All inputs as a model takes them, float of shape (N, …)."""
        return self.inputs.x

    def at(self, rows: Tensor) -> Split:
        """Those of the given int64 indices."""
        return Split(self.inputs.at(rows), self.y[rows.to(self.y.device)])

    def take(self, count: int) -> Split:
        """The first `count` of them."""
        return Split(self.inputs.take(count), self.y[:count])

    def skip(self, count: int) -> Split:
        """All but the first `count` of them."""
        return Split(self.inputs.skip(count), self.y[count:])

    def copy(self) -> Split:
        """The same in storage of its own."""
        return Split(self.inputs.copy(), self.y.clone())

    def to(self, device: torch.device, room: float | None = None) -> Split:
        """The same for a device; see `Inputs.placed`."""
        return Split(self.inputs.placed(device, room), self.y.to(device))


def portion(count: int, share: float) -> int:
    """How many the first `share` of `count` inputs are."""
    return round(share * count)


def _room(device: torch.device) -> float:
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return _SHARE * free
