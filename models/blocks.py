"""A model as a sequence of blocks, a weighted layer and the normalization behind it; and models that share layers."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from models.architecture import describe, outline

NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
# What may stand between a layer and its normalization.
_BETWEEN = (nn.Identity, nn.Dropout, nn.Dropout2d)


class Block(NamedTuple):
    """A convolution or linear layer, and the normalization that alone reads it, by name; None where there is none."""

    layer: str
    norm: str | None


@dataclass(frozen=True)
class Blocks:
    """What a model consists of, in the order in which it runs.

    Attributes:
        blocks: each layer once.
        norms: names of all normalizations.
        order: names of all modules that do something.
        inputs: shape of the first input of each layer, without the batch dimension.
    """

    blocks: tuple[Block, ...]
    norms: tuple[str, ...]
    order: tuple[str, ...]
    inputs: Mapping[str, tuple[int, ...]]

    @functools.cached_property
    def norm_of(self) -> Mapping[str, str | None]:
        """Layer name to the normalization behind it."""
        return dict(self.blocks)

    def behind(self, layer: str) -> tuple[str, ...]:
        """The normalizations that run after a layer, on which it may bear."""
        return tuple(name for name in self.order[self.order.index(layer) :] if name in set(self.norms))


def blocks(model: nn.Module) -> Blocks:
    """The blocks of a model that descends from `models.build`; each structure is followed once.

    Raises:
        ValueError: it does not, or its forward pass cannot be followed symbolically.
    """
    return _followed(json.dumps(describe(model), sort_keys=True))


def sharing(model: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """A model that shares every layer and parameter with another one, apart from the modules replaced.

    Args:
        model: stays as it is.
        replaced: name of a module to what stands in its place.

    Raises:
        KeyError: the model has no module of such a name.
    """
    known = {name for name, _ in model.named_modules()}
    for name in replaced:
        if name not in known:
            raise KeyError(f"no layer {name!r}")
    return _sharing(model, "", replaced)


def _sharing(module: nn.Module, prefix: str, replaced: Mapping[str, nn.Module]) -> nn.Module:
    if not any(name.startswith(prefix) for name in replaced):
        return module
    made = module.__new__(type(module))
    made.__dict__ = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
    for name, child in module._modules.items():
        path = f"{prefix}{name}"
        if path in replaced:
            made._modules[name] = replaced[path]
        elif child is not None:
            made._modules[name] = _sharing(child, f"{path}.", replaced)
    return made


class _Recorder(fx.Interpreter):
    """Runs a graph and notes which layers are called in which order, and with what."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.called: dict[str, tuple[int, ...]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer, and note the first time."""
        if args and isinstance(args[0], torch.Tensor):
            self.called.setdefault(str(target), tuple(args[0].shape[1:]))
        return super().call_module(target, args, kwargs)


@functools.lru_cache(maxsize=64)
def _followed(description: str) -> Blocks:
    structure: dict[str, Any] = json.loads(description)
    model = outline(structure).eval()
    try:
        graph = fx.symbolic_trace(model)
        recorder = _Recorder(graph)
        recorder.run(torch.empty(2, *structure["shape"], device="meta"))
    except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"the layers of this model cannot be followed: {error}") from error
    layers = dict(model.named_modules())
    found = {
        str(node.target): Block(str(node.target), _norm_behind(node, layers))
        for node in reversed(graph.graph.nodes)
        if node.op == "call_module" and isinstance(layers[str(node.target)], _WEIGHTED)
    }
    in_order = tuple(found[name] for name in recorder.called if name in found)
    norms = tuple(name for name in recorder.called if isinstance(layers[name], NORMALIZATIONS))
    return Blocks(in_order, norms, tuple(recorder.called), {name: recorder.called[name] for name, _ in in_order})


def _norm_behind(node: fx.Node, layers: Mapping[str, nn.Module]) -> str | None:
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op != "call_module":
            return None
        reader = layers[str(node.target)]
        if isinstance(reader, NORMALIZATIONS):
            return str(node.target)
        if not isinstance(reader, _BETWEEN):
            return None
    return None
