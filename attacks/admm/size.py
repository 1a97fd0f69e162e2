"""How many bits pruned and quantized weights take when they are stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Size(NamedTuple):
    """Bits of one layer.

    Attributes:
        values: of the weights that are left, without saying where they stand.
        indexed: with that, in the cheapest relative code.
    """

    values: int
    indexed: int


def stored(weight: Tensor, bits: int) -> Size:
    """What a layer takes as a sparse one, in the order of its elements.

    Where a weight stands is told by the distance from the one before, in b bits; a distance of more than 2^b is
    bridged by entries of value zero, which take as many bits as others (Han et al. 2016, arXiv 1510.00149, section 2).
    Of b from 1 to 16 the cheapest is taken. Scale, biases and the width of the code are not counted.

    Args:
        weight: zeros are not stored.
        bits: of each value, from 1 on.
    """
    places = (weight.detach().flatten() != 0).nonzero().flatten().cpu()
    distances = torch.diff(places, prepend=torch.tensor([-1]))
    found = []
    for width in range(1, 17):
        entries = len(places) + int(((distances - 1) // 2**width).sum())
        found.append(entries * (bits + width))
    return Size(bits * len(places), min(found))
