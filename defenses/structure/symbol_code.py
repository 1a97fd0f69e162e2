"""Reed-Solomon code over the layers of a model: a layer that was changed is one wrong symbol (by reedsolo)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reedsolo import ReedSolomonError, RSCodec


@dataclass(frozen=True)
class SymbolCode:
    """A systematic code over GF(2 ** bits); it corrects `spare // 2` wrong symbols.

    Attributes:
        bits: of a symbol, at least 3 (the field's primitive polynomials begin there).
        length: symbols in a code word, less than 2 ** bits.
        spare: how many of them are added to the message, below `length`.
    """

    bits: int
    length: int
    spare: int

    def __post_init__(self) -> None:
        if not 0 < self.spare < self.length < 2**self.bits or self.bits < 3:
            raise ValueError(
                "expected 0 < spare < length < 2 ** bits and bits >= 3, "
                f"got {self.spare}, {self.length} and {self.bits}"
            )

    def encode(self, message: Sequence[int]) -> list[int]:
        """The code word of `length - spare` symbols, which it begins with."""
        return list(self._codec().encode(list(message)))

    def decode(self, word: Sequence[int]) -> list[int]:
        """The message; as it stands there where more is seen to be wrong than can be corrected."""
        try:
            return list(self._codec().decode(list(word))[0])
        except ReedSolomonError:
            return list(word[: self.length - self.spare])

    def _codec(self) -> RSCodec:
        return RSCodec(self.spare, nsize=2**self.bits - 1, c_exp=self.bits)
