"""Which width of a layer says which symbol: cells of pruning rates (Zhao et al. 2021, arXiv 2107.08688).

All arithmetic is exact, since cells may be as narrow as one channel.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Cells:
    """The cells of one layer: half-open intervals of the pruning rate 1 - K / C, from `low` on, each `step` wide.

    Neighbouring cells differ in one bit (Gray code), also where the symbols begin anew after 2 ** bits cells.

    Attributes:
        full: C, the width without pruning.
        low: least admissible rate, in [0, 1).
        high: the rate that is too much, in (low, 1].
        bits: of a symbol.
        step: width of a cell, as a rate.
    """

    full: int
    low: Fraction
    high: Fraction
    bits: int
    step: Fraction

    @classmethod
    def covering(cls, full: int, low: Fraction, high: Fraction, bits: int) -> Cells:
        """Each symbol has one cell, and all cells together fill the admissible range."""
        return cls(full, low, high, bits, (high - low) / 2**bits)

    @classmethod
    def repeating(cls, full: int, low: Fraction, high: Fraction, bits: int, channels: int) -> Cells:
        """Cells of so many channels, whose symbols begin anew (quantization-index modulation)."""
        return cls(full, low, high, bits, Fraction(channels, full))

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """The admissible widths, descending; at least one channel is left."""
        rates = ((width, 1 - Fraction(width, self.full)) for width in range(self.full, 0, -1))
        return tuple(width for width, rate in rates if self.low <= rate < self.high)

    def symbol(self, width: int) -> int:
        """What a layer of this width says, 0 to 2 ** bits - 1; inadmissible widths go on counting."""
        index: int = self._index(width) % 2**self.bits
        return index ^ (index >> 1)

    def choices(self, symbol: int) -> tuple[int, ...]:
        """The admissible widths that say the symbol, descending."""
        return tuple(width for width in self.widths if self.symbol(width) == symbol)

    def nearest(self, symbol: int, natural: Fraction) -> int:
        """The width that says the symbol and lies nearest to a natural one; the larger of two.

        Raises:
            ValueError: no admissible width says it.
        """
        choices = self.choices(symbol)
        if not choices:
            raise ValueError(f"no width of {self.full} channels says {symbol} with cells of {self.step}")
        return min(choices, key=lambda width: (abs(width - natural), -width))

    def central(self, symbol: int) -> int:
        """The middle one of the widths in the symbol's first cell; the larger of two.

        Raises:
            ValueError: no admissible width says it.
        """
        first = self.nearest(symbol, Fraction(self.full))
        cell = [width for width in self.widths if self._index(width) == self._index(first)]
        return cell[(len(cell) - 1) // 2]

    def margin(self, width: int) -> int:
        """The least number of channels, added or taken away, that makes a layer of this width say something else."""
        said, change = self.symbol(width), 1
        while self.symbol(width - change) == said == self.symbol(width + change):
            change += 1
        return change

    def fewer(self, width: int) -> int | None:
        """The largest width below this one that says something else; None where there is none."""
        below = (other for other in range(width - 1, 0, -1) if self.symbol(other) != self.symbol(width))
        return next(below, None)

    def _index(self, width: int) -> int:
        index: int = math.floor((1 - Fraction(width, self.full) - self.low) / self.step)
        return index


def most_bits(full: int, low: Fraction, high: Fraction, channels: int) -> int:
    """The largest symbol that a layer can carry with cells of at least so many channels, in bits; 0 for none."""
    cells = math.floor((high - low) * full / channels)
    return max(0, cells.bit_length() - 1)
