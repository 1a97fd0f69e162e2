"""Random walks from kernel to kernel along the longest chain of layers, as the released code of Chen et al. draws them.

From channel c of a layer a walk goes on to o with a probability of A[o, c] over their sum. A channel from which
nothing leads on is drawn again, uniformly, until one leads on: the path jumps. Walks know neither what is still to
come nor shortcuts, so that they visit paths with other probabilities than the products of their strengths.

The released code differs in two places that are mistakes: it never starts at, nor jumps to, the last channel of a
layer, and it puts the convolutions of ResNet-18's shortcuts into the chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.stream import Stream
from models.kernel_tracing import Kernels
from models.tracing import NOTHING


@dataclass(frozen=True, eq=False)
class Step:
    """A layer of the chain.

    Attributes:
        layer: its name.
        entry: for each channel that the layer before gives, the input channel at which it comes in, int64; NOTHING
            where it comes in nowhere. None for the first layer.
    """

    layer: str
    entry: np.ndarray | None


def chain(graph: Kernels) -> tuple[Step, ...]:
    """The path with most of the scored layers; of several the one with most layers at all, then the first."""
    scored = set(graph.scored)
    best: list[tuple[int, int]] = []
    through: list[int] = []
    for value in graph.values:
        routes = [(best[read.value], place) for place, read in enumerate(value.reads)]
        (many, layers), place = max(routes, key=lambda route: route[0], default=((0, 0), NOTHING))
        weight = value.kind == "weight"
        best.append((many + (weight and value.name in scored), layers + weight))
        through.append(place)
    number = max(graph.ends, key=lambda end: best[end])
    steps: list[Step] = []
    # From the end on: where each channel of the value that is read comes in at the layer found last.
    layer, entry = "", np.empty(0, np.int64)
    while through[number] != NOTHING:
        value, read = graph.values[number], graph.values[number].reads[through[number]]
        if value.kind == "weight":
            if layer:
                steps.append(Step(layer, entry))
            layer, places = value.name, np.arange(value.inputs)
        else:
            places = entry if layer else np.arange(value.width)
        entry = np.full(graph.values[read.value].width, NOTHING)
        known = read.channels != NOTHING
        entry[read.channels[known]] = places[known]
        number = read.value
    return (Step(layer, None), *reversed(steps))


def walks(
    graph: Kernels, strengths: Mapping[str, np.ndarray], count: int, stream: Stream, uniform: bool = False
) -> np.ndarray:
    """The kernels that random walks visit.

    Args:
        graph: the kernels.
        strengths: of each, float64 of shape (O, C) by layer.
        count: how many walks.
        stream: what they are drawn from.
        uniform: all live kernels of a channel are as likely as each other ("random path").

    Returns:
        int64 of shape (layers of the chain, count): the kernel o * C + c of each layer; NOTHING in a layer without a
        live kernel, which a walk jumps over.
    """
    chance = stream.numpy()
    visited, last = [], np.full(count, NOTHING)
    for step in chain(graph):
        strength = strengths[step.layer]
        ladder, alive = _ladder((strength > 0).astype(np.float64) if uniform else strength)
        outputs, inputs = strength.shape
        if step.entry is None:
            here = chance.integers(inputs, size=count)
        else:
            here = np.where(last == NOTHING, NOTHING, step.entry[last])
        if not len(alive):
            visited.append(np.full(count, NOTHING))
            last = visited[-1]
            continue
        # Drawn again and again until it lives is uniform over those that live.
        stuck = (here == NOTHING) | ~np.isin(here, alive)
        here[stuck] = alive[chance.integers(len(alive), size=int(stuck.sum()))]
        aim = np.minimum(here + chance.random(count), np.nextafter(here + 1.0, 0.0))
        last = np.searchsorted(ladder, aim, side="right") - here * outputs
        visited.append(last * inputs + here)
    return np.stack(visited)


def _ladder(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulated shares of each column, that of column c from c to c + 1, one behind the other; and the live columns."""
    total = strength.sum(0)
    alive = np.flatnonzero(total > 0)
    shares = np.ones(strength.shape)
    shares[:, alive] = np.cumsum(strength[:, alive], 0)
    shares[:, alive] /= shares[-1, alive]
    shares += np.arange(len(total))
    return shares.T.reshape(-1), alive
