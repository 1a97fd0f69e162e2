"""Betweenness of kernels: how many shortest paths between any two channels lead through each of them.

A kernel of strength A is 1 / A long, so that strong kernels are near; so is a shortcut, whose strength is 1, the
factor by which it carries its channel. The graph is directed and holds live kernels only. (The released code of
Chen et al. leaves out weights and mask, and so gives the same scores for every ticket of an architecture.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from bench.stream import Stream
from models.kernel_tracing import Kernels
from models.tracing import NOTHING

# Sources that are gone through together; their distances to all nodes are in memory at once.
_TOGETHER = 64


@dataclass(frozen=True, eq=False)
class Betweenness:
    """Scores with what is known about their errors.

    Attributes:
        scores: number of shortest paths through each kernel, float64 of shape (O, C) by layer; -inf for dead ones.
        errors: their estimated standard errors, likewise; 0 where the scores are exact.
        sources: how many channels the counted paths begin at.
    """

    scores: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    sources: int


def betweenness(graph: Kernels, strengths: Mapping[str, np.ndarray], pivots: int, stream: Stream) -> Betweenness:
    """Edge betweenness (Brandes 2008) of each kernel, over all ordered pairs of nodes of `models.kernels.network`.

    Of several shortest paths of just the same length one counts.

    Args:
        graph: the kernels.
        strengths: of each, float64 of shape (O, C) by layer.
        pivots: number of sources, drawn without replacement from the channels that lead anywhere, and the counts
            scaled up; 0, or more than there are, for all of them.
        stream: what they are drawn from.

    Raises:
        ValueError: a negative number of pivots, or a single one, whose error nothing tells.
    """
    if pivots < 0 or pivots == 1:
        raise ValueError(f"expected no pivots (for all channels) or at least 2, got {pivots}")
    first = np.cumsum([0, *(value.width for value in graph.values)])
    distances = _distances(graph, strengths, first)
    sources = np.flatnonzero(np.diff(distances.indptr))
    total = len(sources)
    if 0 < pivots < total:
        sources = sources[stream.numpy().permutation(total)[:pivots]]
    count = len(sources)
    sums = {name: np.zeros((2, strength.size)) for name, strength in strengths.items()}
    for start in range(0, count, _TOGETHER):
        some = sources[start : start + _TOGETHER]
        _, before = dijkstra(distances, indices=some, return_predecessors=True)
        _count(graph, first, before, sums)
    scores, errors = {}, {}
    for name, (one, squared) in sums.items():
        shape = strengths[name].shape
        mean = one / max(count, 1)
        # Without replacement: the more of the sources are drawn, the less is left to chance.
        spread = np.maximum(squared - count * mean**2, 0.0) / max(count - 1, 1) * (1 - count / max(total, 1))
        scores[name] = np.where(strengths[name] > 0, (total * mean).reshape(shape), -np.inf)
        errors[name] = (total * np.sqrt(spread / max(count, 1))).reshape(shape)
    return Betweenness(scores, errors, count)


def _distances(graph: Kernels, strengths: Mapping[str, np.ndarray], first: np.ndarray) -> csr_array:
    """The length of each edge; node (value, channel) is number first[value] + channel."""
    starts, ends, lengths = [], [], []
    for number, value in enumerate(graph.values):
        for read in value.reads:
            known = read.channels != NOTHING
            if value.kind == "weight":
                strength = np.where(known, strengths[value.name], 0.0)
                here, inputs = strength.nonzero()
                length = 1.0 / strength[here, inputs]
            else:
                here = inputs = np.flatnonzero(known)
                length = np.ones(len(here))
            starts.append(first[read.value] + read.channels[inputs])
            ends.append(first[number] + here)
            lengths.append(length)
    edges = (np.concatenate(starts), np.concatenate(ends))
    return csr_array((np.concatenate(lengths), edges), shape=(first[-1], first[-1]))


def _count(graph: Kernels, first: np.ndarray, before: np.ndarray, sums: Mapping[str, np.ndarray]) -> None:
    """Add how many nodes each kernel leads to on the shortest paths from each source, and the square of that.

    Args:
        graph: the kernels.
        first: number of the first node of each value.
        before: of shape (sources, nodes), the node before each on the shortest path; negative where there is none.
        sums: of shape (2, kernels) by layer.
    """
    nodes = before.shape[1]
    # Each node that is reached counts itself and all behind it; they follow it, as values are in topological order.
    behind = (before >= 0).astype(np.int64)
    for number, value in reversed(list(enumerate(graph.values))):
        row, place = (before[:, first[number] : first[number + 1]] >= 0).nonzero()
        node = place + first[number]
        source, counted = before[row, node], behind[row, node]
        np.add.at(behind.reshape(-1), row * nodes + source, counted)
        if value.kind == "weight":
            (read,) = value.reads
            inputs = np.full(graph.values[read.value].width, NOTHING)
            inputs[read.channels[read.channels != NOTHING]] = np.flatnonzero(read.channels != NOTHING)
            kernel = place * value.inputs + inputs[source - first[read.value]]
            for total, power in zip(sums[value.name], (1, 2), strict=True):
                total += np.bincount(kernel, counted.astype(np.float64) ** power, minlength=len(total))
