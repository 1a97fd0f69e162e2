"""Random changes of whole batches on the device, each input its own: of images, and of clouds of points."""

from __future__ import annotations

from collections.abc import Sequence
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
        turns: float32 of shape (N, axes, axes), by which points are multiplied; None for neither rotation nor scale.
        offsets: float32 of shape (N, axes, 1); None for none.
        jitter: float32 of shape (N, axes, points); None for none.
        dropped: bool of shape (N, points); None for no dropout.
    """

    moves: Tensor | None
    flips: Tensor | None
    shift: int
    turns: Tensor | None = None
    offsets: Tensor | None = None
    jitter: Tensor | None = None
    dropped: Tensor | None = None

    @classmethod
    def draw(
        cls, recipe: Recipe, count: int, chance: torch.Generator, device: torch.device, shape: Sequence[int] = ()
    ) -> Augmentation:
        """Choices for `count` inputs by the recipe.

        Args:
            recipe: what is changed, and how far.
            count: number of inputs.
            chance: draws all choices.
            device: where they go.
            shape: of one input. Of two dimensions (axes, points) it takes the choices for points, else those for
                images.
        """
        if len(shape) == 2:
            return cls._draw_for_points(recipe, (count, *shape), chance, device)
        moves = flips = None
        if recipe.shift:
            moves = torch.randint(0, 2 * recipe.shift + 1, (2, count), generator=chance).to(device)
        if recipe.flip:
            flips = (torch.rand(count, generator=chance) < 0.5).to(device)
        return cls(moves, flips, recipe.shift)

    @classmethod
    def _draw_for_points(
        cls, recipe: Recipe, shape: tuple[int, ...], chance: torch.Generator, device: torch.device
    ) -> Augmentation:
        count, axes, points = shape
        turns, offsets, jitter, dropped = _turns(recipe, count, axes, chance), None, None, None
        if recipe.offset:
            offsets = recipe.offset * (2 * torch.rand(count, axes, 1, generator=chance) - 1)
        if recipe.jitter:
            jitter = recipe.jitter * torch.randn(count, axes, points, generator=chance)
        if recipe.drop:
            dropped = _dropped(recipe, count, points, chance)
        chosen = (None if one is None else one.to(device) for one in (turns, offsets, jitter, dropped))
        return cls(None, None, 0, *chosen)

    def __call__(self, x: Tensor, start: int = 0) -> Tensor:
        """The batch changed by the choices from number `start` on.

        Args:
            x: (N, C, H, W) or (N, axes, points); anything else is returned as it is.
            start: number of the batch's first input among those drawn for.
        """
        if x.dim() not in (3, 4):
            return x
        end = start + len(x)
        return self._of_points(x, start, end) if x.dim() == 3 else self._of_images(x, start, end)

    def _of_points(self, x: Tensor, start: int, end: int) -> Tensor:
        if self.dropped is not None:
            x = torch.where(self.dropped[start:end, None], x[:, :, :1], x)
        if self.turns is not None:
            x = self.turns[start:end] @ x
        if self.offsets is not None:
            x = x + self.offsets[start:end]
        if self.jitter is not None:
            x = x + self.jitter[start:end]
        return x

    def _of_images(self, x: Tensor, start: int, end: int) -> Tensor:
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


def _turns(recipe: Recipe, count: int, axes: int, chance: torch.Generator) -> Tensor | None:
    """Rotations, uniform over all of them, times scales."""
    if not (recipe.rotate or recipe.rescale):
        return None
    turns = torch.eye(axes).expand(count, axes, axes)
    if recipe.rotate:
        # The orthogonal factor of a normal matrix, its signs made unique, is uniform (Mezzadri 2007, section 5).
        turns, rest = torch.linalg.qr(torch.randn(count, axes, axes, generator=chance))
        turns = turns * rest.diagonal(dim1=1, dim2=2).sign()[:, None]
        turns = torch.cat([turns[:, :, :1] * torch.linalg.det(turns).sign()[:, None, None], turns[:, :, 1:]], 2)
    if recipe.rescale:
        low, high = 1 / (1 + recipe.rescale), 1 + recipe.rescale
        turns = turns * (low + (high - low) * torch.rand(count, 1, 1, generator=chance))
    return turns


def _dropped(recipe: Recipe, count: int, points: int, chance: torch.Generator) -> Tensor:
    share = recipe.drop * torch.rand(count, 1, generator=chance)
    return torch.rand(count, points, generator=chance) < share
