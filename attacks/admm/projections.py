"""Euclidean projections of one weight tensor onto the sets of pruned and of quantized weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["weight", "filter", "column", "channel"]
Lines = Literal["rows", "columns"]

# The search of the step: 201 points a thousandth of the centre apart, from 0.9 to 1.1 of it.
_SEARCHED = torch.arange(-100, 101, dtype=torch.float64) / 1000


def groups_of(shape: torch.Size, kind: Kind) -> Tensor:
    """Which weights go together, int64 of the given shape, numbered from 0.

    The matrix view of a weight of shape (F, C, …) is (F, C * …), one row a filter, as in matrix multiplication.

    Args:
        shape: of the weight.
        kind: each `weight` by itself; `filter`: a row of the matrix; `column`: the same place in all filters;
            `channel`: all that reads one input channel.
    """
    rows, columns = _matrix(shape)
    if kind == "weight":
        found = torch.arange(rows * columns)
    elif kind == "filter":
        found = torch.arange(rows).repeat_interleave(columns)
    elif kind == "column":
        found = torch.arange(columns).repeat(rows)
    else:
        found = torch.arange(shape[1]).repeat_interleave(columns // shape[1]).repeat(rows)
    return found.view(shape)


def block_groups_of(shape: torch.Size, block: tuple[int, int], lines: Lines) -> Tensor:
    """Rows, or columns, of each crossbar that the matrix view is cut into; int64 of the given shape, from 0.

    Args:
        shape: of the weight.
        block: rows and columns of a crossbar, from 1 on; the last ones may be smaller.
        lines: which lines of a crossbar go as one (Yuan et al. 2019, arXiv 1908.11691).

    Raises:
        ValueError: a block without rows or columns.
    """
    if min(block) < 1:
        raise ValueError(f"expected at least one row and one column in a block, got {block}")
    rows, columns = _matrix(shape)
    row, column = torch.arange(rows).view(-1, 1), torch.arange(columns).view(1, -1)
    if lines == "rows":
        found = row * -(-columns // block[1]) + column // block[1]
    else:
        found = row // block[0] * columns + column
    return found.reshape(shape)


def energies(weight: Tensor, groups: Tensor) -> Tensor:
    """The sum of squares of each group, float64 of shape (G,)."""
    squares = weight.detach().double().square().reshape(-1)
    found = squares.new_zeros(int(groups.max()) + 1)
    return found.index_add_(0, groups.reshape(-1).to(weight.device), squares)


def mask_of(weight: Tensor, groups: Tensor, count: int) -> Tensor:
    """1 for the groups of largest energy and 0 for the others, of the weight's shape and type; ties by number.

    Args:
        weight: that is pruned.
        groups: of `groups_of` or `block_groups_of`.
        count: how many groups stay.
    """
    energy = energies(weight, groups)
    # Selected, not sorted: this is asked for every layer in every iteration.
    last = energy.kthvalue(len(energy) - max(1, count) + 1).values
    kept = energy > last
    kept[(energy == last).nonzero()[: count - int(kept.sum()), 0]] = True
    return kept[groups.to(weight.device)].to(weight.dtype)


def largest(weight: Tensor, groups: Tensor, count: int) -> Tensor:
    """Project onto the weights of which at most `count` groups are not zero; arguments as for `mask_of`."""
    return weight * mask_of(weight, groups, count)


@dataclass(frozen=True)
class Grid:
    """The levels of one layer: step * i for i of -count to -1 and of 1 to count; zero is none of them.

    Weights that are exactly zero are pruned and stay so. Calling it projects (Ren et al. 2019, arXiv 1812.11677, and
    the authors' quantizer).

    Attributes:
        step: between levels, at least 0.
        count: levels on either side of zero, from 1 on.
    """

    step: float
    count: int

    @classmethod
    def fitted(cls, weight: Tensor, count: int) -> Grid:
        """The grid of least squared error among 201 steps, from 0.9 to 1.1 times max|w| / count.

        Args:
            weight: whose values other than zero are to be quantized.
            count: levels on either side.

        Raises:
            ValueError: no level.
        """
        if count < 1:
            raise ValueError(f"expected at least one level on either side of zero, got {count}")
        sizes = weight.detach().abs().double().reshape(-1).cpu()
        sizes = sizes[sizes > 0]
        if not len(sizes):
            return cls(0.0, count)
        centre = float(sizes.max()) / count
        steps = [float(step) for step in centre * (1 + _SEARCHED)]
        errors = [float((sizes - (sizes / step).round().clamp(1, count) * step).square().sum()) for step in steps]
        return cls(steps[errors.index(min(errors))], count)

    @property
    def levels(self) -> Tensor:
        """All levels in ascending order, float32 of shape (2 * count,)."""
        above = torch.arange(1, self.count + 1)
        return self._values(torch.cat([-above.flip(0), above]))

    def indices(self, weight: Tensor) -> Tensor:
        """The number i of the nearest level of each weight, int64 of its shape; never 0, of zero it is 1."""
        size = (weight.detach().abs().double() / max(self.step, 1e-300)).round().clamp(1, self.count).long()
        return torch.where(weight < 0, -size, size)

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest level of each weight, float32 of its shape, also for what is zero."""
        return self._values(self.indices(weight))

    def __call__(self, weight: Tensor) -> Tensor:
        """The nearest level of each weight that is not zero; zeros stay."""
        return torch.where(weight == 0, torch.zeros_like(weight), self.nearest(weight).to(weight.dtype))

    def _values(self, indices: Tensor) -> Tensor:
        # In one place and rounded once, so that equal indices are equal weights bit for bit.
        return (indices.double() * self.step).float()


@dataclass(frozen=True)
class Conductances:
    """Weights that a pair of devices can take: scale * (g+ - g-), each conductance one of 2^bits equidistant ones.

    Of the pairs of one difference the one with a device at `low` is meant, so that zero is both at `low`. Calling it
    projects (Yuan et al. 2019, arXiv 1908.11691).

    Attributes:
        scale: weight per unit of conductance, above 0.
        low: the least conductance, at least 0.
        high: the largest, above `low`.
        bits: of a device, from 1 on.
    """

    scale: float
    low: float
    high: float
    bits: int

    def __post_init__(self) -> None:
        if not (self.scale > 0 and 0 <= self.low < self.high and self.bits >= 1):
            raise ValueError(f"expected scale > 0, 0 <= low < high and bits >= 1, got {self}")

    @classmethod
    def fitted(cls, weight: Tensor, low: float, high: float, bits: int) -> Conductances:
        """The scale at which the largest weight is the largest difference; 1 for a weight that is zero throughout."""
        size = float(weight.detach().abs().max())
        return cls(size / (high - low) if size > 0 else 1.0, low, high, bits)

    @property
    def spacing(self) -> float:
        """Between conductances, and between differences."""
        return float((self.high - self.low) / (2**self.bits - 1))

    def __call__(self, weight: Tensor) -> Tensor:
        """The nearest weight that a pair can take."""
        return (self._steps(weight) * (self.scale * self.spacing)).to(weight.dtype)

    def pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The conductances of both devices for the nearest such weight, float64 of its shape."""
        steps = self._steps(weight)
        return (self.low + steps.clamp(min=0) * self.spacing, self.low - steps.clamp(max=0) * self.spacing)

    def _steps(self, weight: Tensor) -> Tensor:
        top = 2**self.bits - 1
        return (weight.detach().double() / (self.scale * self.spacing)).round().clamp(-top, top)


def _matrix(shape: torch.Size) -> tuple[int, int]:
    return shape[0], shape[1:].numel()
