"""The channel graph of a model: which channels move and scale as one, and what may be done to them for nothing.

An *atom* is one channel with all the places where it stands: rows of the layers that make it, entries of the
normalizations, columns of the layers that read it. Atoms of one class stand in the same places, so that exchanging
them leaves the function as it is. A *gauge* is what the values of a channel scale with between two layers; before
and behind a normalization it is another one. What is not understood is frozen: it never moves and never scales.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx, nn

from models.architecture import describe, outline
from models.tracing import NORMALIZATIONS, NOTHING, Follower, Labels, run

Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Side:
    """What stands at the columns, or at the rows, of a layer's parameters.

    Attributes:
        atoms: int64 of shape (C,); NOTHING where only zeros come in.
        gauges: int64 of shape (C,); NOTHING likewise.
        tags: int64 of shape (C,): the pixel, behind a flatten; else 0. An atom and a tag name one place.
    """

    atoms: np.ndarray
    gauges: np.ndarray
    tags: np.ndarray

    def __len__(self) -> int:
        return len(self.atoms)

    def at(self, places: np.ndarray) -> Side:
        """What stands at some of the indices."""
        return Side(self.atoms[places], self.gauges[places], self.tags[places])

    def find(self, atoms: np.ndarray, tags: np.ndarray) -> np.ndarray:
        """Where these atoms with these tags stand, NOTHING for those that do not."""
        here, order, span = self._sorted
        if not len(here):
            return np.full(len(atoms), NOTHING)
        wanted = atoms * span + tags
        place = np.minimum(np.searchsorted(here, wanted), len(here) - 1)
        known = (here[place] == wanted) & (atoms != NOTHING) & (tags < span)
        return np.where(known, order[place], NOTHING)

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray, int]:
        span = 1 + int(self.tags.max(initial=0))
        places = self.atoms * span + self.tags
        order = np.argsort(places, kind="stable")
        return places[order], order, span


@dataclass(frozen=True)
class Layer:
    """A convolution, linear layer or batch normalization.

    Attributes:
        name: of the module.
        kind: `weight` has rows and columns, `norm` one entry per channel.
        inputs: what stands at its columns (channels; features for a linear layer).
        outputs: what stands at its rows; for a normalization the atoms are those of `inputs`, the gauges others.
        norm: the normalization directly behind, where that is all that reads the output; else None.
    """

    name: str
    kind: Literal["weight", "norm"]
    inputs: Side
    outputs: Side
    norm: str | None = None


@dataclass(frozen=True)
class Channels:
    """The channel graph of a model.

    Attributes:
        layers: in topological order.
        classes: class of each atom, int64 of shape (A,); NOTHING where it is frozen.
        signatures: of each class, the places of its atoms; equal in two models of one graph.
        scalable: whether a gauge takes positive factors, bool of shape (G,).
        signable: whether it takes a sign as well.
        graph: each node with what it does, widths left out.
    """

    layers: tuple[Layer, ...]
    classes: np.ndarray
    signatures: tuple[Signature, ...]
    scalable: np.ndarray
    signable: np.ndarray
    graph: tuple[tuple[str, str], ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.layers}

    @functools.cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """The atoms of each class, in the order in which they first stand somewhere."""
        return tuple(np.flatnonzero(self.classes == one) for one in range(len(self.signatures)))

    @functools.cached_property
    def makers(self) -> tuple[tuple[Layer, ...], ...]:
        """For each class the convolutions and linear layers whose rows give its channels, in topological order."""
        made: list[list[Layer]] = [[] for _ in self.signatures]
        for layer in self.layers:
            if layer.kind == "weight":
                for one in np.unique(self.classes[layer.outputs.atoms]):
                    if one != NOTHING:
                        made[one].append(layer)
        return tuple(tuple(layers) for layers in made)

    @functools.cached_property
    def class_of(self) -> Mapping[Signature, int]:
        """The class of a signature."""
        return {signature: number for number, signature in enumerate(self.signatures)}


def channels(model: nn.Module) -> Channels:
    """The channel graph of a model; the weights do not matter, and each structure is followed once.

    Raises:
        ValueError: the model does not descend from `models.build`, cannot be followed symbolically, or two of its
            layers share a parameter.
    """
    if len(list(model.parameters())) != len(list(model.named_parameters(remove_duplicate=False))):
        raise ValueError("two layers of the model share a parameter")
    return _followed(json.dumps(describe(model), sort_keys=True))


@functools.lru_cache(maxsize=256)
def _followed(description: str) -> Channels:
    structure: dict[str, Any] = json.loads(description)
    return follow(outline(structure).eval(), tuple(structure["shape"]))


def follow(model: nn.Module, shape: tuple[int, ...]) -> Channels:
    """The channel graph of any module.

    Args:
        model: on the meta device and in evaluation mode; takes one batch of inputs.
        shape: of one input, without the batch dimension.

    Raises:
        ValueError: its forward pass cannot be followed symbolically.
    """
    return _assembled(run(model, shape, Follower), shape)


def _assembled(follower: Follower, shape: tuple[int, ...]) -> Channels:
    graph: fx.GraphModule = follower.module  # type: ignore[assignment]
    atom, atoms = _joined(follower.atoms, follower.atom_edges)
    gauge, gauges = _joined(follower.gauges, follower.gauge_edges)

    def side(labels: Labels) -> Side:
        return Side(_renamed(atom, labels.atoms), _renamed(gauge, labels.gauges), labels.tags)

    norms = {name for name in follower.met if isinstance(graph.get_submodule(name), NORMALIZATIONS)}
    layers = []
    for name, met in follower.met.items():
        norm = name in norms
        behind = follower.behind.get(name)
        alone = not norm and behind in norms and follower.calls[name] == follower.calls[behind] == 1
        kind: Literal["weight", "norm"] = "norm" if norm else "weight"
        layers.append(Layer(name, kind, side(met.inputs), side(met.outputs), behind if alone else None))
    frozen = _marked(atoms, atom, follower.frozen_atoms)
    classes, signatures = _classified(follower, atom, frozen)
    fixed = _marked(gauges, gauge, follower.frozen_gauges)
    signed = _marked(gauges, gauge, follower.positive)
    described = tuple((node.name, _what(node, graph, shape)) for node in graph.graph.nodes)
    return Channels(tuple(layers), classes, signatures, ~fixed, ~fixed & ~signed, described)


def _classified(follower: Follower, atom: np.ndarray, frozen: np.ndarray) -> tuple[np.ndarray, tuple[Signature, ...]]:
    places: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for (name, position), labels in follower.touched:
        for one, tag in zip(_renamed(atom, labels.atoms).tolist(), labels.tags.tolist(), strict=True):
            places[one].append((name, position, tag))
    classes = np.full(len(frozen), NOTHING)
    known: dict[Signature, int] = {}
    for one, found in sorted(places.items()):
        # Twice in one place, nothing says which of them answers to which of another atom.
        if one != NOTHING and not frozen[one] and len(set(found)) == len(found):
            classes[one] = known.setdefault(tuple(sorted(found)), len(known))
    return classes, tuple(known)


def _joined(count: int, edges: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, int]:
    """The number of each one's component, in the order of their first members, and how many there are."""
    pairs = [np.empty((2, 0), np.int64), *(np.stack(edge) for edge in edges)]
    first, second = np.concatenate(pairs, axis=1)
    adjacency = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    total, component = connected_components(adjacency, directed=False)
    _, start = np.unique(component, return_index=True)
    rank = np.empty(total, np.int64)
    rank[np.argsort(start)] = np.arange(total)
    return rank[component], total


def _renamed(names: np.ndarray, old: np.ndarray) -> np.ndarray:
    return np.where(old == NOTHING, NOTHING, names[old])


def _marked(count: int, names: np.ndarray, groups: Iterable[np.ndarray]) -> np.ndarray:
    marked = np.zeros(count, bool)
    for group in groups:
        marked[names[group]] = True
    return marked


def _what(node: fx.Node, graph: fx.GraphModule, shape: tuple[int, ...]) -> str:
    if node.op == "placeholder":
        return f"input {shape}"
    read = f"{node.args}" + (f" {node.kwargs}" if node.kwargs else "")
    if node.op == "call_module":
        return f"{_layer(graph.get_submodule(str(node.target)))} of {read}"
    return f"{getattr(node.target, '__name__', node.target)} of {read}"


def _layer(layer: nn.Module) -> str:
    kind = type(layer).__name__
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return f"{kind}{layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups}"
    # Widths do not matter, nor whether it works in place.
    return kind if isinstance(layer, (nn.Linear, nn.ReLU, *NORMALIZATIONS)) else repr(layer)
