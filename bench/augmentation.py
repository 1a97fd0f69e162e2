"""Random shifts and flips of whole batches on the device, each input its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.recipe import Recipe


@dataclass(frozen=True)
class Augmentation:
    """The random choices for so many inputs, drawn at once.

    They are drawn on the CPU, so that every device sees the same ones, and moved once: a copy for each batch
    would make a GPU wait.

    Attributes:
        moves: int64 of shape (2, N), rows and columns in [0, 2 * shift]; None for no shifts.
        flips: bool of shape (N,); None for no flips.
        shift: the largest shift.
    """

    moves: Tensor | None
    flips: Tensor | None
    shift: int

    @classmethod
    def draw(cls, recipe: Recipe, count: int, chance: torch.Generator, device: torch.device) -> Augmentation:
        """Choices for `count` inputs by the recipe's `shift` and `flip`."""
        moves = flips = None
        if recipe.shift:
            moves = torch.randint(0, 2 * recipe.shift + 1, (2, count), generator=chance).to(device)
        if recipe.flip:
            flips = (torch.rand(count, generator=chance) < 0.5).to(device)
        return cls(moves, flips, recipe.shift)

    def __call__(self, x: Tensor, start: int = 0) -> Tensor:
        """The batch changed by the choices from number `start` on.

        Args:
            x: (N, C, H, W); anything else is returned as it is.
            start: number of the batch's first input among those drawn for.
        """
        if x.dim() != 4:
            return x
        end = start + len(x)
        if self.moves is not None:
            x = _shifted(x, self.moves[:, start:end], self.shift)
        if self.flips is not None:
            x = torch.where(self.flips[start:end, None, None, None], x.flip(3), x)
        return x.contiguous()


def _shifted(x: Tensor, moved: Tensor, reach: int) -> Tensor:
    count, _, height, width = x.shape
    rows = moved[0, :, None] + torch.arange(height, device=x.device)
    columns = moved[1, :, None] + torch.arange(width, device=x.device)
    padded = F.pad(x, (reach,) * 4, mode="replicate").permute(0, 2, 3, 1)
    which = torch.arange(count, device=x.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
