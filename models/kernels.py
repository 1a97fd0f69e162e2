"""The kernel graph of a model: which kernels follow each other on the way from some layers to others.

A *kernel* (o, c) of a convolution or linear layer is what leads from its input channel c to its output channel o;
behind a flatten it holds all columns of that channel. A *value* is a tensor with channels of its own: what a layer
gives, or a sum. Pooling, normalization and activations keep the channels and count as the identity, so that a
shortcut leads straight from one value into a sum, channel by channel, or past it where zeros are padded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
from torch import Tensor, nn

from models.architecture import describe, layer, outline
from models.kernel_tracing import Kernels, follow
from models.tracing import NOTHING


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
        size = value.width * value.inputs
        places, magnitudes = live(weight, masks.get(f"{name}.weight"))
        # Added up one by one in double precision, which is exact or nearly so and the same everywhere.
        total = np.bincount(value.kernels_of(places, weight.shape), magnitudes, minlength=size)
        found[name] = total.reshape(value.width, value.inputs)
    return found


def live(weight: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions of the weights under a mask in row-major order, int64, and their magnitudes.

    Raises:
        ValueError: a mask that is not bool or of another shape.
    """
    flat = weight.detach().cpu().reshape(-1).numpy()
    if mask is None:
        return np.arange(len(flat)), np.abs(flat)
    if mask.shape != weight.shape or str(mask.dtype) != "torch.bool":
        raise ValueError(f"expected a bool mask of shape {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    places = np.flatnonzero(mask.cpu().reshape(-1).numpy())
    return places, np.abs(flat[places])


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
