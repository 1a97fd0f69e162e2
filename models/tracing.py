"""Following channels through the graph of a model, node by node, on shapes alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

NOTHING = -1
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Labels:
    """What stands at each index of a tensor's second dimension.

    Attributes:
        atoms: the channel, int64 of shape (C,); NOTHING where zeros were padded.
        gauges: what its values scale with, int64 of shape (C,); NOTHING likewise.
        tags: which of a channel's several entries it is, where pixels were flattened; else 0.
    """

    atoms: np.ndarray
    gauges: np.ndarray
    tags: np.ndarray

    def __len__(self) -> int:
        return len(self.atoms)

    def at(self, index: Any) -> Labels:
        """The labels at some of the indices."""
        return Labels(self.atoms[index], self.gauges[index], self.tags[index])


@dataclass(frozen=True)
class Met:
    """A layer with parameters as it was met: what comes in and what goes out, per column and per row."""

    inputs: Labels
    outputs: Labels


class Follower(fx.Interpreter):
    """Runs a graph on the meta device and labels every tensor; what it does not know, it freezes.

    Atoms and gauges are numbered as they appear; those that turn out to be one are joined by edges.

    Attributes:
        met: layer name to labels, in the order of the first call.
        calls: how often each layer was called.
        behind: layer name to the only module that reads its output.
        touched: (node, position), and the labels that the node has there.
        atom_edges: pairs of arrays of atoms that are the same; `gauge_edges` likewise.
        frozen_atoms: arrays of atoms that must stay; `frozen_gauges` likewise.
        positive: arrays of gauges whose sign must stay.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.labels: dict[fx.Node, Labels] = {}
        self.met: dict[str, Met] = {}
        self.calls: dict[str, int] = {}
        self.behind: dict[str, str] = {}
        self.touched: list[tuple[tuple[str, int], Labels]] = []
        self.atom_edges: list[tuple[np.ndarray, np.ndarray]] = []
        self.gauge_edges: list[tuple[np.ndarray, np.ndarray]] = []
        self.frozen_atoms: list[np.ndarray] = []
        self.frozen_gauges: list[np.ndarray] = []
        self.positive: list[np.ndarray] = []
        self.atoms = self.gauges = 0

    def run_node(self, n: fx.Node) -> Any:
        """Run a node on the meta device and label what it gives."""
        result = super().run_node(n)
        known = [(position, one, self.labels[one]) for position, one in enumerate(_nodes(n)) if one in self.labels]
        for position, _, labels in known:
            self.touched.append(((n.name, position), labels))
        found = None
        rule = self._rule(n)
        if rule is not None and isinstance(result, Tensor):
            found = rule(self, n, result)
            if found is not None and (result.dim() < 2 or result.shape[1] != len(found)):
                found = None
        if found is None and not isinstance(result, int | float | bool | torch.Size | torch.dtype | torch.device):
            for _, _, labels in known:
                self._freeze(labels)
            found = self._frozen(result) if isinstance(result, Tensor) and n.op != "output" else None
        if found is not None:
            self.labels[n] = found
            self.touched.append(((n.name, NOTHING), found))
        return result

    def _rule(self, n: fx.Node) -> Rule | None:
        if n.op == "call_module":
            return _MODULES.get(type(self.fetch_attr(str(n.target))))
        if n.op == "call_function":
            return _FUNCTIONS.get(n.target)
        return _METHODS.get(str(n.target)) if n.op == "call_method" else None

    # Labels

    def _fresh(self, count: int) -> Labels:
        start, gauge = self.atoms, self.gauges
        self.atoms += count
        self.gauges += count
        return Labels(np.arange(start, start + count), np.arange(gauge, gauge + count), np.zeros(count, np.int64))

    def _freeze(self, labels: Labels) -> None:
        self.frozen_atoms.append(labels.atoms[labels.atoms != NOTHING])
        self.frozen_gauges.append(labels.gauges[labels.gauges != NOTHING])

    def _frozen(self, result: Tensor) -> Labels:
        labels = self._fresh(result.shape[1] if result.dim() > 1 else 0)
        self._freeze(labels)
        return labels

    def _filled(self, labels: Labels) -> Labels:
        """The same where nothing is left: an operation makes something of zeros."""
        empty = labels.atoms == NOTHING
        made = self._fresh(int(empty.sum()))
        self._freeze(made)
        atoms, gauges = labels.atoms.copy(), labels.gauges.copy()
        atoms[empty], gauges[empty] = made.atoms, made.gauges
        return Labels(atoms, gauges, labels.tags)

    def _join(self, first: Labels, second: Labels) -> Labels:
        """Labels of a sum: what meets there is one; nothing takes the label of the other side."""
        both = (first.atoms != NOTHING) & (second.atoms != NOTHING)
        self.atom_edges.append((first.atoms[both], second.atoms[both]))
        self.gauge_edges.append((first.gauges[both], second.gauges[both]))
        odd = both & (first.tags != second.tags)
        self._freeze(first.at(odd))
        self._freeze(second.at(odd))
        left = first.atoms != NOTHING
        return Labels(
            np.where(left, first.atoms, second.atoms),
            np.where(left, first.gauges, second.gauges),
            np.where(left, first.tags, second.tags),
        )

    # Rules; each gives labels, or None where it does not know this use.

    def keep(self, n: fx.Node, result: Tensor) -> Labels | None:
        """Linear or by channel alone, and blind to order, scale and sign."""
        return self._of_first(n)

    def homogeneous(self, n: fx.Node, result: Tensor) -> Labels | None:
        """Commutes with positive scales, not with a sign."""
        labels = self._of_first(n)
        if labels is not None:
            self.positive.append(labels.gauges[labels.gauges != NOTHING])
        return labels

    def bounded(self, n: fx.Node, result: Tensor) -> Labels | None:
        """Commutes with the order alone, and keeps zeros."""
        labels = self._of_first(n)
        if labels is not None:
            self.frozen_gauges.append(labels.gauges[labels.gauges != NOTHING])
        return labels

    def shifted(self, n: fx.Node, result: Tensor) -> Labels | None:
        """As bounded, but makes something of zeros."""
        labels = self.bounded(n, result)
        return None if labels is None else self._filled(labels)

    def weigh(self, n: fx.Node, result: Tensor) -> Labels | None:
        """A convolution or a linear layer: its outputs are new channels."""
        layer, labels = self.fetch_attr(str(n.target)), self._of_first(n)
        if labels is None or getattr(layer, "groups", 1) != 1 or (isinstance(layer, nn.Linear) and result.dim() != 2):
            return None
        return self._meet(n, labels, lambda: self._fresh(result.shape[1]))

    def normalize(self, n: fx.Node, result: Tensor) -> Labels | None:
        """Batch normalization: the same channels; the scale behind it is another one than that before."""
        layer, labels = self.fetch_attr(str(n.target)), self._of_first(n)
        if labels is None:
            return None
        labels = self._filled(labels)
        if layer.running_var is None or not layer.affine:
            # Statistics of the batch, or no gain of its own: eps cannot be made up for.
            self.frozen_gauges.append(labels.gauges)
            return labels
        return self._meet(n, labels, lambda: Labels(labels.atoms, self._fresh(len(labels)).gauges, labels.tags))

    def flatten(self, n: fx.Node, result: Tensor) -> Labels | None:
        """(N, C, …) to (N, C * pixels): each channel has as many entries as there are pixels."""
        labels, before = self._of_first(n), self._value(n)
        if labels is None or result.dim() != 2 or before is None or result.shape[0] != before.shape[0]:
            return None
        pixels = result.shape[1] // max(len(labels), 1)
        repeated = labels.at(np.repeat(np.arange(len(labels)), pixels))
        tags = repeated.tags * pixels + np.tile(np.arange(pixels), len(labels))
        return Labels(repeated.atoms, repeated.gauges, tags)

    def slice(self, n: fx.Node, result: Tensor) -> Labels | None:
        """Ranges of the batch, the channels and the pixels."""
        labels, index = self._of_first(n), self.fetch_args_kwargs_from_env(n)[0][1]
        index = index if isinstance(index, tuple) else (index,)
        if labels is None or not all(isinstance(one, slice) for one in index):
            return None
        return labels.at(index[1]) if len(index) > 1 else labels

    def pad(self, n: fx.Node, result: Tensor) -> Labels | None:
        """Zeros around channels or pixels."""
        labels, before = self._of_first(n), self._value(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        named = {**dict(zip(("input", "pad", "mode", "value"), args, strict=False)), **kwargs}
        if labels is None or before is None or named.get("mode", "constant") != "constant" or named.get("value"):
            return None
        sides, place = named["pad"], 2 * (before.dim() - 2)
        if len(sides) > place + 2:
            return None
        low, high = sides[place : place + 2] if len(sides) > place else (0, 0)
        if low < 0 or high < 0:
            return None
        none, zero = (lambda side: np.full(side, NOTHING)), (lambda side: np.zeros(side, np.int64))
        return Labels(
            np.concatenate([none(low), labels.atoms, none(high)]),
            np.concatenate([none(low), labels.gauges, none(high)]),
            np.concatenate([zero(low), labels.tags, zero(high)]),
        )

    def add(self, n: fx.Node, result: Tensor) -> Labels | None:
        """The sum of two tensors of one shape."""
        nodes = [one for one in n.args if isinstance(one, fx.Node) and one in self.labels]
        if len(nodes) != 2 or any(self.env[one].shape != result.shape for one in nodes):
            return None
        return self._join(*(self.labels[one] for one in nodes))

    def average(self, n: fx.Node, result: Tensor) -> Labels | None:
        """The mean over pixels."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        before = self._value(n)
        if before is None or not isinstance(dims, list | tuple) or {d % before.dim() for d in dims} & {0, 1}:
            return None
        return self._of_first(n)

    # Help for rules

    def _of_first(self, n: fx.Node) -> Labels | None:
        first = n.args[0] if n.args else n.kwargs.get("input")
        return self.labels.get(first) if isinstance(first, fx.Node) else None

    def _value(self, n: fx.Node) -> Tensor | None:
        value = self.env.get(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else None
        return value if isinstance(value, Tensor) else None

    def _meet(self, n: fx.Node, labels: Labels, outputs: Callable[[], Labels]) -> Labels:
        name = str(n.target)
        self.calls[name] = self.calls.get(name, 0) + 1
        if name not in self.met:
            self.met[name] = Met(labels, outputs())
            readers = list(n.users)
            if len(readers) == 1 and readers[0].op == "call_module":
                self.behind[name] = str(readers[0].target)
            return self.met[name].outputs
        # Met again: one set of weights, so what comes in and what goes out is one as well.
        first = self.met[name].inputs
        self._join(first, labels)
        lone = (first.atoms == NOTHING) != (labels.atoms == NOTHING)
        for one in (first.at(lone), labels.at(lone)):
            self._freeze(one)
        return self.met[name].outputs


Some = TypeVar("Some", bound=Follower)


def run(model: nn.Module, shape: tuple[int, ...], follower: type[Some]) -> Some:
    """A follower that has gone through a model.

    Args:
        model: on the meta device and in evaluation mode; takes one batch of inputs.
        shape: of one input, without the batch dimension.
        follower: its type.

    Raises:
        ValueError: the forward pass cannot be followed symbolically.
    """
    try:
        made = follower(fx.symbolic_trace(model))
        made.run(torch.empty(2, *shape, device="meta"))
    except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"the channels of this model cannot be followed: {error}") from error
    return made


Rule = Callable[[Follower, fx.Node, Tensor], Labels | None]

_MODULES: dict[type, Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Linear), Follower.weigh),
    **dict.fromkeys(NORMALIZATIONS, Follower.normalize),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), Follower.keep),
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU), Follower.homogeneous),
    **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), Follower.homogeneous),
    **dict.fromkeys((nn.Tanh, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.Hardtanh, nn.Hardswish), Follower.bounded),
    **dict.fromkeys((nn.Sigmoid, nn.Softplus, nn.Hardsigmoid), Follower.shifted),
    nn.Flatten: Follower.flatten,
}
_FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((F.relu, torch.relu, F.leaky_relu, F.max_pool2d), Follower.homogeneous),
    **dict.fromkeys((torch.tanh, F.relu6, F.gelu, F.silu, F.elu), Follower.bounded),
    **dict.fromkeys((torch.sigmoid, F.softplus), Follower.shifted),
    **dict.fromkeys((F.dropout, F.avg_pool2d, F.adaptive_avg_pool2d), Follower.keep),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), Follower.add),
    torch.flatten: Follower.flatten,
    torch.mean: Follower.average,
    operator.getitem: Follower.slice,
    F.pad: Follower.pad,
}
_METHODS: dict[str, Rule] = {
    "relu": Follower.homogeneous,
    "tanh": Follower.bounded,
    "sigmoid": Follower.shifted,
    "contiguous": Follower.keep,
    "add": Follower.add,
    "mean": Follower.average,
    **dict.fromkeys(("flatten", "view", "reshape"), Follower.flatten),
}


def _nodes(n: fx.Node) -> Iterator[fx.Node]:
    """The nodes that one reads, each as often as it reads them."""
    found: list[fx.Node] = []
    fx.map_arg((n.args, n.kwargs), found.append)
    return iter(found)
