"""Edge-weight products: how strong the paths through each kernel of a net are.

The strength of a path is the product of the strengths A of its kernels. A kernel (o, c) of layer l is scored by the
sum over all paths through it, or by the strongest of them. In log space, with a and b what comes in at c and what is
still to come at o, that is log S[o, c] = log a[c] + log A[o, c] + log b[o] for both: a and b are vectors which one
recursion forward and one backward give, where a sum of tensors adds what comes in on its sides, or takes the larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from models.kernel_tracing import Kernels
from models.tracing import NOTHING

# exp(-708) is the least normal double, and strengths that are sums of singles are at least exp(-104).
_SAFE = 600.0
_DEAD = -np.inf

Through = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Ring:
    """How paths go together.

    Attributes:
        join: log strengths of two sets of paths that meet.
        through: A of shape (O, C), its logarithm and log strengths of shape (C,) to those behind the layer, (O,).
    """

    join: np.ufunc
    through: Through


def edge_weight_products(
    graph: Kernels, strengths: Mapping[str, np.ndarray], over: Literal["sum", "max"] = "sum"
) -> dict[str, np.ndarray]:
    """The natural logarithm of the edge-weight product (EWP) of each kernel.

    Args:
        graph: the kernels.
        strengths: of each, float64 of shape (O, C) by layer.
        over: `sum` over all paths from start to end through the kernel, or `max` for the strongest.

    Returns:
        For each layer on the way float64 of shape (O, C); -inf where no path goes through.
    """
    ring = _RINGS[over]
    with np.errstate(divide="ignore"):
        logs = {name: np.log(strength) for name, strength in strengths.items()}
    ahead = _forward(graph, strengths, logs, ring)
    behind = _backward(graph, strengths, logs, ring)
    found = {}
    for number, value in enumerate(graph.values):
        if value.kind == "weight":
            (read,) = value.reads
            score = logs[value.name]
            score += _taken(ahead[read.value], read.channels)
            score += behind[number][:, None]
            found[value.name] = score
    return found


def _forward(
    graph: Kernels, strengths: Mapping[str, np.ndarray], logs: Mapping[str, np.ndarray], ring: _Ring
) -> list[np.ndarray]:
    """For each value the paths from a start to each of its channels."""
    found: list[np.ndarray] = []
    for number, value in enumerate(graph.values):
        here = np.full(value.width, 0.0 if number in graph.starts else _DEAD)
        for read in value.reads:
            arriving = _taken(found[read.value], read.channels)
            if value.kind == "weight":
                arriving = ring.through(strengths[value.name], logs[value.name], arriving)
            here = ring.join(here, arriving)
        found.append(here)
    return found


def _backward(
    graph: Kernels, strengths: Mapping[str, np.ndarray], logs: Mapping[str, np.ndarray], ring: _Ring
) -> list[np.ndarray]:
    """For each value the paths from each of its channels to an end."""
    found = [np.full(v.width, 0.0 if n in graph.ends else _DEAD) for n, v in enumerate(graph.values)]
    for number, value in reversed(list(enumerate(graph.values))):
        for read in value.reads:
            leaving = found[number]
            if value.kind == "weight":
                leaving = ring.through(strengths[value.name].T, logs[value.name].T, leaving)
            known = read.channels != NOTHING
            ring.join.at(found[read.value], read.channels[known], leaving[known])
    return found


def _taken(vector: np.ndarray, channels: np.ndarray) -> np.ndarray:
    return np.where(channels == NOTHING, _DEAD, vector[channels])


def _summed(strength: np.ndarray, log: np.ndarray, vector: np.ndarray) -> np.ndarray:
    known = vector[vector > _DEAD]
    if not len(known):
        return np.full(len(strength), _DEAD)
    top = known.max()
    if top - known.min() > _SAFE:
        # What lies so far below the largest would become 0, and might be all that a channel reads.
        spread: np.ndarray = logsumexp(log + vector, axis=1)
        return spread
    with np.errstate(divide="ignore"):
        product: np.ndarray = np.log(strength @ np.exp(vector - top)) + top
    return product


def _largest(strength: np.ndarray, log: np.ndarray, vector: np.ndarray) -> np.ndarray:
    del strength
    best: np.ndarray = (log + vector).max(axis=1)
    return best


_RINGS = {"sum": _Ring(np.logaddexp, _summed), "max": _Ring(np.maximum, _largest)}
