"""The kernel graph of a model: which kernels follow each other on the way from some layers to others.

A *kernel* (o, c) of a convolution or linear layer is what leads from its input channel c to its output channel o;
behind a flatten it holds all columns of that channel. A *value* is a tensor with channels of its own: what a layer
gives, or a sum. Pooling, normalization and activations keep the channels and count as the identity, so that a
shortcut leads straight from one value into a sum, channel by channel, or past it where zeros are padded.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from models.architecture import describe, layer, outline
from models.kernel_tracing import Kernels, follow
from models.tracing import NOTHING

_PIECE = 4096


def kernels(model: nn.Module, layers: Sequence[str]) -> Kernels:
    """The kernel graph of a model between the first and the last of the named layers.

    The weights do not matter; each structure is followed once.

    Raises:
        KeyError: no such layer.
        ValueError: no layers at all, one that is neither a convolution nor linear, one on the way that is grouped,
            used twice or not understood; or a model that does not descend from `models.build` or cannot be followed.
    """
    for name in layers:
        if not isinstance(layer(model, name), nn.Conv1d | nn.Conv2d | nn.Linear):
            raise ValueError(f"expected convolutions and linear layers, got {name!r}")
    if not layers:
        raise ValueError("expected at least one layer, got none")
    return _followed(json.dumps(describe(model), sort_keys=True), tuple(layers))


def strengths(graph: Kernels, model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The strength of each kernel, A[o, c] = the sum of |w * m| over it, float64 of shape (O, C) by layer.

    Args:
        graph: of the model.
        model: holds the weights w, of single precision or less.
        masks: parameter name ("layer.weight") to a bool mask m of its shape; a layer without one counts whole.

    Raises:
        ValueError: a mask that is not bool or of another shape.
    """
    found = {}
    for name, value in graph.by_name.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        total = _over_pixels(weight, masks.get(f"{name}.weight"))
        assert value.columns is not None
        if value.inputs != len(value.columns):
            columns, total = total.T, np.zeros((value.inputs, value.width))
            np.add.at(total, value.columns, columns)
            total = np.ascontiguousarray(total.T)
        found[name] = total
    return found


def _over_pixels(weight: Tensor, mask: Tensor | None) -> np.ndarray:
    """The sum of |w * m| over all but the first two dimensions."""
    if mask is not None and (mask.shape != weight.shape or mask.dtype != torch.bool):
        raise ValueError(f"expected a bool mask of shape {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    size = math.prod(weight.shape[2:])
    weights = weight.detach().cpu().reshape(-1, size).numpy()
    kept = None if mask is None else mask.cpu().reshape(-1, size).numpy()
    # In pieces that stay in the cache, and in double precision, where so few singles add up exactly or nearly so.
    total, ones = np.empty(len(weights)), np.ones(size)
    for start in range(0, len(weights), _PIECE):
        piece = slice(start, start + _PIECE)
        alive = weights[piece] if kept is None else weights[piece] * kept[piece]
        total[piece] = np.abs(alive).astype(np.float64) @ ones
    return total.reshape(tuple(weight.shape[:2]))


def network(graph: Kernels, found: Mapping[str, np.ndarray]) -> nx.DiGraph:
    """The graph as networkx has it; this is the definition that scores on it refer to.

    Args:
        graph: the structure.
        found: strengths by layer.

    Returns:
        Nodes (value, channel); an edge for each kernel of positive strength with attributes `layer`, `kernel` (o, c)
        and `strength`; an edge of strength 1 and no more for each channel that goes into a sum. Graph attributes
        `starts` and `ends` list the nodes at which paths begin and end.
    """
    net = nx.DiGraph()
    for number, value in enumerate(graph.values):
        net.add_nodes_from((number, channel) for channel in range(value.width))
        for read in value.reads:
            from_ = [(read.value, channel) for channel in read.channels.tolist()]
            if value.kind == "sum":
                here = enumerate(from_)
                net.add_edges_from((one, (number, o), {"strength": 1.0}) for o, one in here if one[1] != NOTHING)
                continue
            strength = np.where(read.channels == NOTHING, 0.0, found[value.name])
            alive = strength.nonzero()
            for o, c, a in zip(*(places.tolist() for places in alive), strength[alive].tolist(), strict=True):
                net.add_edge(from_[c], (number, o), layer=value.name, kernel=(o, c), strength=a)
    for name, numbers in (("starts", graph.starts), ("ends", graph.ends)):
        net.graph[name] = [(number, channel) for number in numbers for channel in range(graph.values[number].width)]
    return net


@functools.lru_cache(maxsize=256)
def _followed(description: str, layers: tuple[str, ...]) -> Kernels:
    structure: dict[str, Any] = json.loads(description)
    return follow(outline(structure).eval(), tuple(structure["shape"]), layers)
