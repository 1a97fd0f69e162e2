"""Which channel of a suspect is which of the reference: cosines of what feeds them, and an assignment.

What a key counts is left out of every product and every norm, so that nothing of it decides what is then read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# Cosines closer than this are equal: a tie, and not a matter of rounding.
TIE = 1e-6
# What is left of a row below this share of it is no more than rounding.
ROUNDING = 1e-5
# Factors beyond this come from rows of next to nothing, and are left at 1.
LARGEST = 1e12


class Products(NamedTuple):
    """Inner products of the reference's rows with the suspect's, and the squared norms of both; they broadcast."""

    inner: Tensor
    ours: Tensor
    theirs: Tensor

    @property
    def cosines(self) -> Tensor:
        """In [-1, 1]; 0 where a row is zero."""
        return (self.inner / (self.ours * self.theirs).sqrt()).nan_to_num(0.0, 0.0, 0.0)


class Affine(NamedTuple):
    """What is behind some rows, folded into them: a row w gives `slope * (w, x) + offset`; float64 of shape (n,)."""

    slope: Tensor
    offset: Tensor


class Rows:
    """All rows of one layer: the reference's (n, D) and the suspect's (m, D), columns in the reference's order.

    Args:
        ours: the reference's.
        theirs: the suspect's.
        mask: positions of `ours` that are left out, bool of shape (n, D).
        directions: (T, D), all of whose combinations are taken out of every row.
        affine: of the reference and of the suspect, where what is behind the rows is compared with them.
    """

    def __init__(
        self,
        ours: Tensor,
        theirs: Tensor,
        mask: Tensor | None = None,
        directions: Tensor | None = None,
        affine: tuple[Affine, Affine] | None = None,
    ) -> None:
        if directions is not None:
            # An orthonormal basis of all combinations; where rows depend on each other it holds others beside them.
            basis = torch.linalg.qr(directions.to(ours).T).Q
            ours, theirs = _without(ours, basis), _without(theirs, basis)
        self._kept = None if mask is None else (~mask).to(ours)
        self._ours = ours if self._kept is None else ours * self._kept
        self._theirs = theirs
        self._affine = affine
        # The last products, by the rows that they are of.
        self._crossed: tuple[np.ndarray, np.ndarray, Products] | None = None
        self._paired: tuple[np.ndarray, np.ndarray, Products] | None = None

    def cross(self, here: np.ndarray, there: np.ndarray, *, plain: bool = False) -> Products:
        """Of each of the reference's rows `here` with each of the suspect's rows `there`, (n', m') in float64.

        Args:
            here: indices.
            there: indices.
            plain: whether to leave out what is behind the rows.
        """
        ours, theirs = _at(self._ours, here), _at(self._theirs, there)
        if self._kept is None:
            norms = torch.linalg.vector_norm(theirs, dim=1).double().square()[None]
        else:
            norms = (_at(self._kept, here) @ theirs.square().T).double()
        squared = torch.linalg.vector_norm(ours, dim=1).double().square()[:, None]
        found = Products((ours @ theirs.T).double(), squared, norms)
        self._crossed = (here, there, found)
        return found if plain or self._affine is None else self._with_affine(found, here, there, crossed=True)

    def pair(self, here: np.ndarray, there: np.ndarray, *, plain: bool = False) -> Products:
        """Of each of the reference's rows `here` with the suspect's row at the same place of `there`, (n',)."""
        found = self._known(here, there)
        if found is None:
            ours, theirs = _at(self._ours, here), _at(self._theirs, there)
            if self._kept is not None:
                theirs = theirs * _at(self._kept, here)
            # A sum of products, which rounds less than a matrix product: cosines of 1 must come out as such.
            inner = (ours * theirs).sum(1)
            squared = (torch.linalg.vector_norm(rows, dim=1).double().square() for rows in (ours, theirs))
            found = Products(inner.double(), *squared)
        self._paired = (here, there, found)
        return found if plain or self._affine is None else self._with_affine(found, here, there, crossed=False)

    def _known(self, here: np.ndarray, there: np.ndarray) -> Products | None:
        if (
            self._paired is not None
            and np.array_equal(self._paired[0], here)
            and np.array_equal(self._paired[1], there)
        ):
            return self._paired[2]
        if self._crossed is None or not np.array_equal(self._crossed[0], here):
            return None
        columns = {int(one): place for place, one in enumerate(self._crossed[1])}
        if not set(there.tolist()) <= columns.keys():
            return None
        chosen = torch.tensor([columns[int(one)] for one in there])
        return Products(*(one.expand_as(self._crossed[2].inner)[range(len(here)), chosen] for one in self._crossed[2]))

    def _with_affine(self, found: Products, here: np.ndarray, there: np.ndarray, *, crossed: bool) -> Products:
        assert self._affine is not None
        ours, theirs = (
            Affine(*(_at(one, rows) for one in side)) for side, rows in zip(self._affine, (here, there), strict=True)
        )
        if crossed:
            ours = Affine(ours.slope[:, None], ours.offset[:, None])
        return Products(
            found.inner * ours.slope * theirs.slope + ours.offset * theirs.offset,
            found.ours * ours.slope**2 + ours.offset**2,
            found.theirs * theirs.slope**2 + theirs.offset**2,
        )


@dataclass(frozen=True)
class Part:
    """The rows of one layer that describe n channels of the reference and m of a suspect."""

    rows: Rows
    here: np.ndarray
    there: np.ndarray


def assign(parts: Sequence[Part], sizes: tuple[int, int], *, signed: bool) -> np.ndarray:
    """For each of the reference's n channels the suspect's, int64 of shape (n,); -1 where there are too few.

    Maximises the summed cosines, over all parts together (linear assignment by scipy). Channels stay in their
    places where every cosine is 1 there, and the lower index wins a tie.

    Args:
        parts: what describes the channels.
        sizes: n and m.
        signed: whether a channel with the opposite sign is the same one.
    """
    count, others = sizes
    if not parts or not others:
        return np.where(np.arange(count) < others, np.arange(count), -1)
    if count == others:
        cosines = _sum(part.rows.pair(part.here, part.there) for part in parts).cosines
        if bool((cosines >= 1 - TIE).all()):
            return np.arange(count)
    cosines = _sum(part.rows.cross(part.here, part.there) for part in parts).cosines
    found: np.ndarray = np.round((cosines.abs() if signed else cosines).numpy() / TIE)
    best: np.ndarray = found.argmax(1)
    if len(np.unique(best)) == count:
        # Each has its best, so no other assignment is better.
        return best
    rows, columns = linear_sum_assignment(found, maximize=True)
    chosen = np.full(count, -1)
    chosen[rows] = columns
    return chosen


def ratios(products: Products, *, signed: bool) -> np.ndarray:
    """By what the suspect's rows must be multiplied to have the norms of the reference's, float64 of shape (n,).

    Args:
        products: of pairs.
        signed: whether the factors take the sign of the inner product.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(products.ours.numpy() / products.theirs.numpy())
    ratio = np.where((ratio > 1 / LARGEST) & (ratio < LARGEST), ratio, 1.0)
    return np.where(products.inner.numpy() < 0, -ratio, ratio) if signed else ratio


def paired(parts: Sequence[Part], chosen: np.ndarray) -> Products:
    """The products of each channel with the one chosen for it; with the first one where none is."""
    return _sum(part.rows.pair(part.here, part.there[chosen.clip(0)]) for part in parts)


def _sum(products: Iterable[Products]) -> Products:
    return Products(*(sum(ones[1:], ones[0]) for ones in zip(*products, strict=True)))


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    rest: Tensor = rows - (rows @ basis) @ basis.T
    # Of a row that is a combination of the directions only rounding is left.
    some = torch.linalg.vector_norm(rest, dim=1) > ROUNDING * torch.linalg.vector_norm(rows, dim=1)
    return rest.masked_fill(~some[:, None], 0.0)


def _at(rows: Tensor, places: np.ndarray) -> Tensor:
    if np.array_equal(places, np.arange(len(rows))):
        return rows
    return rows[torch.from_numpy(places)]
