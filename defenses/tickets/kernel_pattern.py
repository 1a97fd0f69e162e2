"""Patterns in a layer's kernels: which of them live, where a pattern fits best, and writing one (Chen et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defenses.tickets.qr_pattern import Modules, restored_by_released_code

# The module of the released code's window whose kernel it grows back whole.
_REGROWN = (21, 21)


class Window(NamedTuple):
    """A square of kernels.

    Attributes:
        layer: the parameter's name.
        row: first output channel.
        column: first input channel.
    """

    layer: str
    row: int
    column: int

    def of(self, values: Tensor, side: int) -> Tensor:
        """The part of something of shape (out, in, …) that lies in it."""
        return values[self.row : self.row + side, self.column : self.column + side]


def kernel_pattern(mask: Tensor) -> Tensor:
    """Which kernels have a live weight, bool of shape (out, in), of a mask of shape (out, in, height, width)."""
    return mask.bool().flatten(2).any(2)


def sites(shapes: Mapping[str, tuple[int, ...]], side: int) -> dict[str, tuple[int, int]]:
    """How many rows and columns a window can begin at, by name, of the convolutions in which there is room for it.

    Kernels must have two dimensions: those of one weight could not give any away and live on, as `written` asks.
    """
    return {
        name: (shape[0] - side + 1, shape[1] - side + 1)
        for name, shape in shapes.items()
        if len(shape) == 4 and min(shape[:2]) >= side
    }


def window_at(number: int, found: Mapping[str, tuple[int, int]]) -> Window:
    """The window of that number, layer by layer and row by row."""
    for name, (rows, columns) in found.items():
        if number < rows * columns:
            return Window(name, *divmod(number, columns))
        number -= rows * columns
    raise IndexError(f"expected a number below that of the windows, got {number} more")


def most_similar(patterns: Mapping[str, Tensor], wanted: Tensor, counted: Tensor) -> list[Window]:
    """For each of N patterns the window that agrees with it in most places; the first one of equals.

    Args:
        patterns: `kernel_pattern` of each layer that may be chosen, by parameter name, in order.
        wanted: bool of shape (N, side, side).
        counted: which places are compared, bool of shape (side, side).
    """
    side = counted.shape[0]
    found = sites({name: (*pattern.shape, 1, 1) for name, pattern in patterns.items()}, side)
    signs = wanted[:, counted].float().mul_(2).sub_(1)
    # Products of signs: agreements less disagreements, which are small integers and exact in float32.
    scores = []
    for name in found:
        windows = patterns[name].unfold(0, side, 1).unfold(1, side, 1).flatten(0, 1)
        scores.append(windows[:, counted].float().mul_(2).sub_(1) @ signs.T)
    return [window_at(int(best), found) for best in torch.cat(scores).argmax(0)]


def written(mask: Tensor, window: Window, wanted: Modules, counted: Modules, chance: np.random.Generator) -> Tensor:
    """A layer's mask with the wanted pattern in a window's counted places, and as many live weights as before.

    A kernel that must live and does not gets exactly one weight, one that must not and does loses all (the
    released code's steps). What this takes too many is then switched on again in kernels that must live, what it
    adds too many is switched off in those of them that have several weights; where these are too few, likewise in
    the other live kernels of the layer. None is emptied, so that no other kernel dies or comes to life.

    Args:
        mask: bool of shape (out, in, height, width); stays as it is.
        window: where in it.
        wanted: True where a kernel must live, shape (side, side).
        counted: outside of these the pattern stays.
        chance: for each choice among weights, uniform.

    Raises:
        ValueError: the kernels cannot hold so few or so many weights.
    """
    layer, side = _flat(mask), len(wanted)
    part = layer[window.row : window.row + side, window.column : window.column + side]
    before = int(part.sum())
    part[:] = _switched(part, wanted, counted, chance)
    surplus = int(part.sum()) - before
    may = layer & ~_one_of_each(layer, chance) if surplus > 0 else ~layer & layer.any(2, keepdims=True)
    inside = np.zeros(layer.shape[:2], dtype=bool)
    inside[window.row : window.row + side, window.column : window.column + side] = wanted & counted
    near = may & inside[..., None]
    within = min(abs(surplus), int(near.sum()))
    _choose(layer, near, within, chance, live=surplus < 0)
    _choose(layer, may & ~inside[..., None], abs(surplus) - within, chance, live=surplus < 0)
    return torch.from_numpy(layer).view(mask.shape).to(mask.device)


def written_as_released(mask: Tensor, code: Modules, chance: np.random.Generator) -> Tensor:
    """A window of 29 x 29 as the released code writes it; where it adds more than it takes, the density grows.

    290 modules stay as they are, the kernel at (21, 21) apart, which lives whole afterwards. What is missing is
    switched on in kernels that the code wants alive and that were so before, these 290 among them.

    Args:
        mask: bool of shape (29, 29, height, width); stays as it is.
        code: True for a light module.
        chance: as for `written`.

    Raises:
        ValueError: more weights are missing than can be switched on there.
    """
    old = _flat(mask)
    new = _switched(old, code, ~restored_by_released_code(), chance)
    new[_REGROWN] = True
    missing = int(old.sum()) - int(new.sum())
    if missing > 0:
        _choose(new, (code & old.any(2))[..., None] & ~new, missing, chance, live=True)
    return torch.from_numpy(new).view(mask.shape).to(mask.device)


def _flat(mask: Tensor) -> NDArray[np.bool_]:
    return mask.bool().cpu().flatten(2).numpy().copy()


def _switched(
    old: NDArray[np.bool_], wanted: Modules, counted: Modules, chance: np.random.Generator
) -> NDArray[np.bool_]:
    live, new = old.any(2), old.copy()
    place = chance.integers(0, old.shape[2], live.shape)
    rows, columns = np.nonzero(counted & wanted & ~live)
    new[rows, columns, place[rows, columns]] = True
    new[counted & ~wanted & live] = False
    return new


def _one_of_each(live: NDArray[np.bool_], chance: np.random.Generator) -> NDArray[np.bool_]:
    """One live weight of each kernel that has any."""
    order = np.where(live, chance.random(live.shape), -math.inf)
    one: NDArray[np.bool_] = live & (order == order.max(2, keepdims=True))
    return one


def _choose(
    new: NDArray[np.bool_], among: NDArray[np.bool_], count: int, chance: np.random.Generator, *, live: bool
) -> None:
    """Switch so many of the weights `among`, in place in `new`, which may be a view."""
    places = np.flatnonzero(among)
    if count > len(places):
        raise ValueError(
            f"expected at least {count} weights to switch {'on' if live else 'off'} "
            f"without changing which kernels live, got {len(places)}"
        )
    new[np.unravel_index(chance.permutation(places)[:count], new.shape)] = live
