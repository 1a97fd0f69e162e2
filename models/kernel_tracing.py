"""Following values through the graph of a model: what each layer reads, and which channel comes in where."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import fx, nn

from models.tracing import NORMALIZATIONS, NOTHING, Follower, Labels, run


@dataclass(frozen=True, eq=False)
class Read:
    """Where the channels of a value come in.

    Attributes:
        value: its number.
        channels: for each place the channel that stands there, int64 of shape (W,); NOTHING where none does. The
            places are the channels of a sum, or the input channels of a layer.
    """

    value: int
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor with channels of its own.

    Attributes:
        name: of the layer that gives it, else of the node in the graph.
        kind: `weight` where a layer gives it, `sum`, `input` where paths begin, or `unknown`.
        width: how many channels it has.
        reads: the values that it is made of; exactly one for `weight`, whose kernels are of shape
            (width, len(reads[0].channels)).
        columns: for `weight`, the input channel of each column of the layer's weight, int64.
    """

    name: str
    kind: Literal["weight", "sum", "input", "unknown"]
    width: int
    reads: tuple[Read, ...]
    columns: np.ndarray | None = None

    @property
    def inputs(self) -> int:
        """How many input channels the layer's kernels have; 0 where no layer gives this value."""
        return 0 if self.columns is None else len(self.reads[0].channels)

    def kernels_of(self, positions: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The kernels o * inputs + c of weights at flat positions in the layer's weight of that shape."""
        assert self.columns is not None
        pairs: np.ndarray = positions // math.prod(shape[2:])
        if not np.array_equal(self.columns, np.arange(shape[1])):
            pairs = pairs // shape[1] * self.inputs + self.columns[pairs % shape[1]]
        return pairs


@dataclass(frozen=True, eq=False)
class Kernels:
    """The kernel graph between the first and the last of some layers.

    Paths begin at each input channel of the layers with no other of them before, and end at each channel which the
    layers with no other behind give, or which that is added to (the released code: "start i", then all of the last).

    Attributes:
        values: those on the way, each behind those that it reads.
        starts: numbers of the values whose channels paths begin at.
        ends: likewise, where they end.
        scored: the layers that the graph was asked for, as asked. Others on the way belong to the graph as well.
    """

    values: tuple[Value, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    scored: tuple[str, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Value]:
        """Layer name to the value that it gives."""
        return {value.name: value for value in self.values if value.kind == "weight"}


def follow(model: nn.Module, shape: tuple[int, ...], layers: Sequence[str]) -> Kernels:
    """The kernel graph of any module on the meta device and in evaluation mode; `shape` is that of one input.

    Raises:
        ValueError: as `kernels`, or a layer that the forward pass does not use.
    """
    values = run(model, shape, _Follower).values
    given = {value.name: number for number, value in enumerate(values) if value.kind == "weight"}
    for name in layers:
        if name not in given:
            raise ValueError(f"expected layers that can be followed, got {name!r}")
    return _between(values, {given[name] for name in layers}, tuple(layers))


class _Follower(Follower):
    """Follows values: what Follower joins at a sum becomes a new value, with labels of its own.

    Attributes:
        values: in the order in which they are made.
        first: the first atom of each value; its atoms are consecutive.
        rests: the values that a node was made of.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: list[Value] = []
        self.first: list[int] = []
        self.rests: dict[fx.Node, frozenset[int]] = {}
        self.node = ""

    def run_node(self, n: fx.Node) -> Any:
        """As Follower; what no rule knows becomes a value that is unknown."""
        self.node = str(n.target) if n.op == "call_module" else n.name
        atoms, count = self.atoms, len(self.values)
        result = super().run_node(n)
        labels = self.labels.get(n)
        behind = frozenset().union(*(self.rests.get(one, frozenset()) for one in n.all_input_nodes))
        if labels is not None and len(labels) and len(self.values) == count and labels.atoms.min() >= atoms:
            reads = tuple(Read(one, np.empty(0, np.int64)) for one in sorted(behind))
            self._own(labels, "input" if n.op == "placeholder" else "unknown", reads)
        self.rests[n] = behind if labels is None else frozenset(self._owners(labels.atoms))
        return result

    def _join(self, first: Labels, second: Labels) -> Labels:
        # Entries of one channel on both sides are one channel: pixels, behind a flatten.
        places, entries = _numbered(np.stack([first.atoms, second.atoms]))
        made = self._fresh(len(places))
        reads = (self._read(first.atoms[places]), self._read(second.atoms[places]))
        # A channel added to itself would be two shortcuts between the same places.
        twice = reads[0].value == reads[1].value and (reads[0].channels == reads[1].channels).any()
        self._own(made, "unknown" if twice else "sum", tuple(read for read in reads if read.value != NOTHING))
        tags = np.where(first.atoms != NOTHING, first.tags, second.tags)
        return Labels(made.atoms[entries], made.gauges[entries], tags)

    def _meet(self, n: fx.Node, labels: Labels, outputs: Callable[[], Labels]) -> Labels:
        made = outputs()
        if not isinstance(self.fetch_attr(str(n.target)), NORMALIZATIONS):
            # Columns into which only zeros come stay apart from each other.
            empty = labels.atoms == NOTHING
            places, columns = _numbered(np.where(empty, -1 - np.arange(len(labels)), labels.atoms))
            # Used again, its kernels would stand in two places.
            again = any(value.name == self.node for value in self.values)
            self._own(made, "unknown" if again else "weight", (self._read(labels.atoms[places]),), columns)
        return made

    def _own(self, labels: Labels, kind: Any, reads: tuple[Read, ...], columns: np.ndarray | None = None) -> None:
        self.first.append(int(labels.atoms[0]))
        self.values.append(Value(self.node, kind, len(labels), reads, columns))

    def _owners(self, atoms: np.ndarray) -> Collection[int]:
        return set(self._located(atoms)[0].tolist()) - {NOTHING}

    def _read(self, atoms: np.ndarray) -> Read:
        values, channels = self._located(atoms)
        return Read(int(values.max(initial=NOTHING)), channels)

    def _located(self, atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The value and the channel of each atom, NOTHING for those of no value."""
        if not self.values:
            return np.full(len(atoms), NOTHING), np.full(len(atoms), NOTHING)
        values = np.searchsorted(self.first, atoms, side="right") - 1
        channels = atoms - np.array(self.first)[values]
        known = (values >= 0) & (channels < np.array([value.width for value in self.values])[values])
        return np.where(known, values, NOTHING), np.where(known, channels, NOTHING)


def _numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal entries (or columns) get one number, in the order of their first places; those, and each one's number."""
    _, places, entries = np.unique(keys, axis=keys.ndim - 1, return_index=True, return_inverse=True)
    order = np.argsort(places)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return places[order], rank[entries.reshape(-1)]


def _between(values: Sequence[Value], named: set[int], layers: tuple[str, ...]) -> Kernels:
    before = _reached(values, named)
    starts = {read.value for one in named for read in values[one].reads if read.value not in before} - {NOTHING}
    readers: list[list[int]] = [[] for _ in values]
    for number, value in enumerate(values):
        for read in value.reads:
            if read.value != NOTHING:
                readers[read.value].append(number)
    ends = set()
    for last in named:
        if not _reached(values, set(readers[last])) & named:
            while len(readers[last]) == 1 and values[readers[last][0]].kind == "sum":
                last = readers[last][0]
            ends.add(last)
    kept = sorted(one for one in _reached(values, starts) if _reached(values, {one}) & ends)
    new = {old: number for number, old in enumerate(kept)}
    made = tuple(_kept(values[one], new) for one in kept)
    for value in made:
        if value.kind == "unknown":
            raise ValueError(f"expected kernels that can be followed, got {value.name!r} between them")
    return Kernels(made, tuple(sorted(new[one] for one in starts)), tuple(sorted(new[one] for one in ends)), layers)


def _reached(values: Sequence[Value], start: set[int]) -> set[int]:
    """The values that are made of some, themselves among them."""
    found = set(start)
    for number, value in enumerate(values):
        if any(read.value in found for read in value.reads):
            found.add(number)
    return found


def _kept(value: Value, new: Mapping[int, int]) -> Value:
    reads = tuple(replace(read, value=new[read.value]) for read in value.reads if read.value in new)
    return replace(value, reads=reads) if reads else Value(value.name, "input", value.width, ())
