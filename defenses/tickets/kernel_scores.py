"""The scores by which the weights of a lottery ticket are ranked (Chen et al. 2021, arXiv 2111.00162, Algorithm 1).

A ticket is a model with its rewound weights and a mask for each prunable layer. `omp` ranks weights; the others rank
whole kernels of the kernel graph, by the paths through them or by what the released code does in their place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench.stream import Stream
from defenses.tickets.kernel_betweenness import betweenness
from defenses.tickets.kernel_paths import edge_weight_products
from defenses.tickets.kernel_walks import chain, walks
from models.kernel_tracing import Kernels
from models.kernels import kernels, strengths
from models.tracing import NOTHING

Score = Literal["omp", "ewp-walk", "ewp-sum", "ewp-max", "betweenness", "random-path"]

_SUFFIX = ".weight"
# Walks are drawn in batches, each as large as all before it.
_FIRST_WALKS = 1_000
_MOST_WALKS = 1_024_000
# Logarithms closer than this are equal: they differ by the order in which a machine adds.
_DECIMALS = 9


@dataclass(frozen=True, eq=False)
class Ranking:
    """Weights of a ticket, best first.

    Attributes:
        positions: int64 of shape (count,), distinct: flat positions in the weights of the masked layers, laid end to
            end in the order of the masks, each in row-major order. All are live.
        figures: what the score tells beside. `walks`: how many it took to visit these weights, or were drawn before
            no more kernels were found. `betweenness_sources`: channels that paths were counted from;
            `betweenness_error`: median relative standard error of the scores of the ranked kernels, 0 if exact.
    """

    positions: Tensor
    figures: dict[str, float] = field(default_factory=dict)


def ranked(
    score: Score, model: nn.Module, masks: Mapping[str, Tensor], count: int, stream: Stream, pivots: int = 0
) -> Ranking:
    """The best `count` live weights of a ticket.

    Kernels go by their score, then by strength, then by position; inside a kernel its weights by magnitude, then by
    position. Kernels that no path goes through, or that no walk visits, come last.

    Args:
        score: `omp`: magnitude of the weight. `ewp-sum`, `ewp-max`: product of strengths along all paths through
            the kernel, or the strongest. `ewp-walk`: the first random walk that visits it, where a step is as likely
            as the kernel is strong; `random-path`: likewise, where all live kernels of a channel are as likely.
            `betweenness`: number of shortest paths through it.
        model: holds the rewound weights; descends from `models.build`.
        masks: parameter name ("layer.weight") to a bool mask of its shape, True where the weight is live.
        count: how many weights.
        stream: for walks and pivots.
        pivots: for `betweenness`, the number of channels that paths are counted from; 0 for all.

    Raises:
        ValueError: an unknown score, fewer live weights than count, masks that do not fit, or a model that
            cannot be followed.
        KeyError: a mask for a layer that the model lacks.
    """
    if score not in SCORES:
        raise ValueError(f"expected a score of {', '.join(SCORES)}, got {score!r}")
    ticket = _Ticket.of(model, masks)
    if not 0 <= count <= len(ticket.places):
        raise ValueError(f"expected at most the ticket's {len(ticket.places)} live weights, got {count}")
    order, figures = SCORES[score](ticket, count, stream, pivots)
    return Ranking(torch.from_numpy(ticket.places[order]), figures)


@dataclass(frozen=True, eq=False)
class _Ticket:
    """A ticket as arrays.

    Attributes:
        graph: between its masked layers.
        strengths: of the kernels, float64 of shape (O, C) by layer.
        names: of the masked layers, in order; their kernels are numbered in this order, row by row.
        places: flat positions of the live weights, int64 of shape (L,), ascending.
        magnitudes: of the live weights, shape (L,).
        kernels: the number of each live weight's kernel, int64 of shape (L,).
    """

    graph: Kernels
    strengths: dict[str, np.ndarray]
    names: tuple[str, ...]
    places: np.ndarray
    magnitudes: np.ndarray
    kernels: np.ndarray

    @classmethod
    def of(cls, model: nn.Module, masks: Mapping[str, Tensor]) -> _Ticket:
        if not all(name.endswith(_SUFFIX) for name in masks):
            raise ValueError(f"expected masks of weights of layers, got {list(masks)}")
        names = tuple(name.removesuffix(_SUFFIX) for name in masks)
        graph = kernels(model, names)
        found = strengths(graph, model, masks)
        places, magnitudes, numbers = [], [], []
        place = number = 0
        for name in names:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            alive = np.flatnonzero(masks[name + _SUFFIX].cpu().reshape(-1).numpy())
            places.append(place + alive)
            magnitudes.append(np.abs(weight.detach().cpu().reshape(-1).numpy()[alive]))
            numbers.append(number + graph.by_name[name].kernels_of(alive, weight.shape))
            place, number = place + weight.numel(), number + found[name].size
        return cls(graph, found, names, *(np.concatenate(parts) for parts in (places, magnitudes, numbers)))

    def joined(self, by_layer: Mapping[str, np.ndarray]) -> np.ndarray:
        """What stands for each kernel, shape (K,)."""
        return np.concatenate([by_layer[name].reshape(-1) for name in self.names])

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """How many live weights each kernel has, int64 of shape (K,)."""
        return np.bincount(self.kernels, minlength=sum(self.strengths[name].size for name in self.names))

    def chosen(self, scores: np.ndarray, count: int) -> np.ndarray:
        """The best kernels that hold `count` live weights together, best first, by scores of shape (K,)."""
        filled = np.flatnonzero(self.sizes)
        order = filled[np.lexsort((-self.joined(self.strengths)[filled], -scores[filled]))]
        return order[: int(np.searchsorted(np.cumsum(self.sizes[order]), count)) + 1] if count else order[:0]

    def best(self, scores: np.ndarray, count: int) -> np.ndarray:
        """Which live weights are the best, int64 of shape (count,)."""
        chosen = self.chosen(scores, count)
        rank = np.full(len(scores), NOTHING)
        rank[chosen] = np.arange(len(chosen))
        held = np.flatnonzero(rank[self.kernels] != NOTHING)
        return held[np.lexsort((-self.magnitudes[held], rank[self.kernels[held]]))][:count]


# Which live weights are the best, and what the score tells beside.
_Ranked = tuple[np.ndarray, dict[str, float]]
_Rule = Callable[[_Ticket, int, Stream, int], _Ranked]


def _magnitude(ticket: _Ticket, count: int, stream: Stream, pivots: int) -> _Ranked:
    del stream, pivots
    return np.argsort(-ticket.magnitudes, kind="stable")[:count], {}


def _paths(ticket: _Ticket, count: int, stream: Stream, pivots: int, over: Literal["sum", "max"]) -> _Ranked:
    del stream, pivots
    products = edge_weight_products(ticket.graph, ticket.strengths, over)
    return ticket.best(ticket.joined(products).round(_DECIMALS), count), {}


def _walks(ticket: _Ticket, count: int, stream: Stream, pivots: int, uniform: bool) -> _Ranked:
    del pivots
    first = np.full(len(ticket.sizes), np.inf)
    sizes = [ticket.strengths[name].size for name in ticket.names]
    offsets = dict(zip(ticket.names, np.cumsum([0, *sizes[:-1]]), strict=True))
    total, batch = 0, _FIRST_WALKS
    while True:
        before = np.isfinite(first).sum()
        visited = walks(ticket.graph, ticket.strengths, batch, stream.child(total), uniform)
        for step, row in zip(chain(ticket.graph), visited, strict=True):
            known = np.flatnonzero(row != NOTHING)
            if step.layer in offsets:
                np.minimum.at(first, offsets[step.layer] + row[known], total + known)
        total += batch
        found = np.isfinite(first)
        if ticket.sizes[found].sum() >= count or found.sum() == before or total >= _MOST_WALKS:
            break
        batch = total
    last = first[ticket.chosen(-first, count)].max(initial=0.0)
    return ticket.best(-first, count), {"walks": float(last) + 1 if np.isfinite(last) else float(total)}


def _between(ticket: _Ticket, count: int, stream: Stream, pivots: int) -> _Ranked:
    found = betweenness(ticket.graph, ticket.strengths, pivots, stream.child("pivots"))
    scores, errors = ticket.joined(found.scores), ticket.joined(found.errors)
    chosen = ticket.chosen(scores, count)
    chosen = chosen[scores[chosen] > 0]
    error = float(np.median(errors[chosen] / scores[chosen])) if len(chosen) else 0.0
    return ticket.best(scores, count), {"betweenness_sources": float(found.sources), "betweenness_error": error}


SCORES: dict[Score, _Rule] = {
    "omp": _magnitude,
    "ewp-walk": functools.partial(_walks, uniform=False),
    "ewp-sum": functools.partial(_paths, over="sum"),
    "ewp-max": functools.partial(_paths, over="max"),
    "betweenness": _between,
    "random-path": functools.partial(_walks, uniform=True),
}
