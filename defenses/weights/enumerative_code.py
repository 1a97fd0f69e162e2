"""Enumerative coding of words of constant weight (Cover 1973): a number is the rank of a word, and the other way.

A word of length L and weight w has w ones at positions t_1 < … < t_w in 0 … L - 1. Its rank among all C(L, w) of
them, read as binary numbers whose bit t stands at position t, is C(t_1, 1) + … + C(t_w, w). A message of k bits
is the word of its value, where 2**k <= C(L, w). All numbers are exact integers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Steps are taken together until their fractions have so many bits; about where small and large products balance.
_BITS = 512
# And so many bits more of the large numbers decide nearly every step.
_GUARD = 64
# A binomial coefficient C(n, w) takes about w products, and a search some ten of them.
_FAR = 16


def capacity(length: int, weight: int) -> int:
    """The most bits k that words of this length and weight can hold: floor(log2 C(L, w)).

    Raises:
        ValueError: the weight is outside 1 to length.
    """
    _require(length, weight)
    return math.comb(length, weight).bit_length() - 1


@functools.cache
def smallest_length(bits: int, weight: int) -> int:
    """The least L with 2**bits <= C(L, weight).

    Raises:
        ValueError: bits or weight below 1.
    """
    if bits < 1 or weight < 1:
        raise ValueError(f"expected bits >= 1 and weight >= 1, got {bits} and {weight}")
    high = 2 * weight
    while capacity(high, weight) < bits:
        high *= 2
    return _least(weight, high, lambda length: capacity(length, weight) >= bits)


def encode(message: int, length: int, weight: int) -> tuple[int, ...]:
    """The positions of the ones, ascending, of the word whose rank is the message.

    Args:
        message: in 0 to C(length, weight) - 1.
        length: L.
        weight: w, in 1 to length.

    Raises:
        ValueError: a weight or a message outside its range.
    """
    _require(length, weight)
    count, rest = math.comb(length, weight), message
    if not 0 <= message < count:
        bound = f"{count - 1}" if count.bit_length() < 200 else f"C({length}, {weight}) - 1"
        raise ValueError(f"expected a message in 0 to {bound}, got {_told(message)}")
    places, missing, idle = length, weight, 0
    found: list[int] = []
    while 0 < missing < places:
        steps = _decided(rest, count, places, missing)
        rest -= count * steps.passed // steps.over
        count = count * steps.kept // steps.over
        places, missing = steps.places, steps.missing
        idle = 0 if steps.ones else idle + steps.taken
        found += steps.ones
        if missing and idle > _FAR * missing:
            # The next one is far away: the least number of places that still has room for the rest.
            places = _least(missing, places, lambda n: math.comb(n, missing) > rest)  # noqa: B023
            count, idle = math.comb(places, missing), 0
    return (*range(missing), *reversed(found))


def decode(ones: Sequence[int], length: int) -> int:
    """The rank of the word that has its ones at these positions.

    Args:
        ones: different positions in 0 to length - 1, in any order.
        length: L.

    Raises:
        ValueError: no position, one twice, or one outside the word.
    """
    ordered = sorted(ones)
    if not ordered or len(set(ordered)) < len(ordered) or ordered[0] < 0 or ordered[-1] >= length:
        raise ValueError(f"expected different positions in 0 to {length - 1}, got {_told(list(ones))}")
    steps = _Steps(ordered[-1] + 1, len(ordered))
    count, rank = math.comb(steps.places, steps.missing), 0
    while steps.missing:
        target = ordered[steps.missing - 1]
        far = steps.places - 1 - target > _FAR * steps.missing
        if not far:
            steps.take(steps.places - 1 == target)
        if far or not steps.missing or steps.over.bit_length() > _BITS:
            rank += count * steps.passed // steps.over
            count = count * steps.kept // steps.over
            steps = _Steps(steps.places, steps.missing)
        if far:
            steps.places = target + 1
            count = math.comb(steps.places, steps.missing)
    return rank


@dataclass
class _Steps:
    """Steps from position `places - 1` downwards, as fractions of C(n, m), the count of words where they began.

    Attributes:
        places: how many positions are left.
        missing: how many ones are left.
        kept: numerator of C(places, missing).
        passed: numerator of the sum of what the ones add to the rank.
        over: the denominator of both.
        taken: how many steps.
    """

    places: int
    missing: int
    kept: int = 1
    passed: int = 0
    over: int = 1
    taken: int = 0

    def __post_init__(self) -> None:
        self.ones: list[int] = []

    def bound(self) -> int:
        """Over `over * places`: the rank from which on the next position holds a one."""
        return self.passed * self.places + self.kept * (self.places - self.missing)

    def take(self, one: bool) -> None:
        """C(n - 1, m) = C(n, m) (n - m) / n, and C(n - 1, m - 1) = C(n, m) m / n."""
        if one:
            self.passed = self.bound()
            self.kept *= self.missing
            self.missing -= 1
            self.ones.append(self.places - 1)
        else:
            self.passed *= self.places
            self.kept *= self.places - self.missing
        self.over *= self.places
        self.places -= 1
        self.taken += 1


def _decided(rest: int, count: int, places: int, missing: int) -> _Steps:
    """The next steps to the word of rank `rest`, as far as the leading bits of rest and count decide them."""
    steps = _Steps(places, missing)
    shift = max(0, count.bit_length() - _BITS - _GUARD)
    low_rest, low_count = rest >> shift, count >> shift
    high_rest, high_count = (low_rest + 1, low_count + 1) if shift else (low_rest, low_count)
    while 0 < steps.missing < steps.places and steps.over.bit_length() <= _BITS:
        weight, bound = steps.over * steps.places, steps.bound()
        one = low_rest * weight >= high_count * bound
        if not one and shift and high_rest * weight > low_count * bound:
            break
        steps.take(one)
    if not steps.taken:
        steps.take(rest * places >= count * (places - missing))
    return steps


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least number in low to high for which it holds; it holds for the last, and from some number on."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _require(length: int, weight: int) -> None:
    if not 1 <= weight <= length:
        raise ValueError(f"expected a weight in 1 to {length}, got {weight}")


def _told(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 200 else f"{value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:77]}…"
