"""Taking out of a suspect the channels that do nothing: dead ones, doubles, and pairs that cancel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.channels import Channels, Layer
from models.frames import Normalization
from models.tracing import NOTHING

# Rows count as one where 1 - cosine is below this: what rounding leaves of a double.
SAME = 1e-9
# What is left of summed columns counts as nothing below this share of them.
CANCELLED = 1e-5


class Stripping:
    """Marks the channels of a model that its function does not need, and hands what they gave to others.

    Args:
        model: stays as it is.
        graph: its channels.

    Attributes:
        weights: of its convolutions and linear layers; the columns of doubles are added to those of the first.
        alive: which atoms are left, bool of shape (A,).
    """

    def __init__(self, model: nn.Module, graph: Channels) -> None:
        self._model, self._graph = model, graph
        self._layers = [layer for layer in graph.layers if layer.kind == "weight"]
        modules: dict[str, Any] = {layer.name: model.get_submodule(layer.name) for layer in self._layers}
        self.weights = {name: module.weight.detach().cpu().double().clone() for name, module in modules.items()}
        self._summed: Mapping[str, Tensor] = {name: _columns(w).norm(dim=0) for name, w in self.weights.items()}
        self.alive = np.ones(len(graph.classes), bool)
        # Something else than rows and columns knows these channels: they are let be.
        behind = {layer.norm for layer in self._layers}
        alone = [layer.inputs.atoms for layer in graph.layers if layer.kind == "norm" and layer.name not in behind]
        fixed = np.isin(np.arange(len(graph.classes)), np.concatenate([*alone, np.empty(0, np.int64)]))
        self._free = (graph.classes != NOTHING) & ~fixed

    def run(self) -> None:
        """Strip until nothing more can be stripped."""
        before = -1
        while before != (before := int(self.alive.sum())):
            for members in self._graph.members:
                self._merge_doubles(members[self._free[members] & self.alive[members]])
            self._drop_dead()

    def _merge_doubles(self, atoms: np.ndarray) -> None:
        if len(atoms) < 2:
            return
        makers = self._graph.makers[self._graph.classes[atoms[0]]]
        rows = torch.cat([self._folded(layer, atoms) for layer in makers], 1)
        norms = rows.norm(dim=1)
        cosines = (rows @ rows.T) / (norms[:, None] * norms[None])
        last = self._graph.by_name[makers[0].norm] if makers[0].norm else makers[0]
        gauges = last.outputs.gauges[last.outputs.find(atoms, _zeros(len(atoms)))]
        for first in range(len(atoms)):
            if not self.alive[atoms[first]]:
                continue
            for second in np.flatnonzero((cosines[first, first + 1 :] > 1 - SAME).numpy()) + first + 1:
                ratio = float(norms[second] / norms[first])
                if not self._graph.scalable[gauges[second]] and abs(ratio - 1) > CANCELLED:
                    continue
                if self.alive[atoms[second]]:
                    self._hand_over(atoms[second], atoms[first], ratio)

    def _hand_over(self, double: int, first: int, ratio: float) -> None:
        """What reads a double reads the first instead, as strongly as both together."""
        for layer in self._layers:
            there = np.flatnonzero(layer.inputs.atoms == double)
            if len(there):
                here = layer.inputs.find(np.full(len(there), first), layer.inputs.tags[there])
                weight, summed = self.weights[layer.name], self._summed[layer.name]
                weight[:, here] += weight[:, there] * ratio
                summed[here] += summed[there] * ratio
        self._kill(np.array([double]))

    def _drop_dead(self) -> None:
        """Take out what gives nothing, and what nothing reads."""
        gives = np.zeros(len(self.alive), bool)
        read = np.zeros(len(self.alive), bool)
        for layer in self._layers:
            atoms = layer.outputs.atoms
            np.logical_or.at(gives, atoms, (self._folded(layer, atoms) != 0).any(1).numpy())
            needed = torch.from_numpy(self.alive[atoms])
            norms = _columns(self.weights[layer.name][needed]).norm(dim=0)
            real = layer.inputs.atoms != NOTHING
            lively = (norms > CANCELLED * self._summed[layer.name]).numpy()
            np.logical_or.at(read, layer.inputs.atoms[real], lively[real])
        self._kill(np.flatnonzero(self.alive & self._free & ~(gives & read)))

    def _kill(self, atoms: np.ndarray) -> None:
        self.alive[atoms] = False
        for layer in self._layers:
            self.weights[layer.name][:, np.isin(layer.inputs.atoms, atoms)] = 0.0

    def _folded(self, layer: Layer, atoms: np.ndarray) -> Tensor:
        """Rows of a layer with its bias, and with the normalization behind it, as one affine map."""
        places = torch.from_numpy(layer.outputs.find(atoms, _zeros(len(atoms))))
        module: Any = self._model.get_submodule(layer.name)
        weight, bias = self.weights[layer.name][places].flatten(1), torch.zeros(len(atoms)).double()
        if module.bias is not None:
            bias = module.bias.detach().cpu().double()[places]
        if layer.norm is not None:
            norm = Normalization.of(self._model.get_submodule(layer.norm)).at(places.numpy())
            weight, bias = weight * norm.slope[:, None], bias * norm.slope + norm.offset
        return torch.cat([weight, bias[:, None]], 1)


def _columns(weight: Tensor) -> Tensor:
    """(rows, columns, …) to (everything else, columns)."""
    return weight.transpose(0, 1).flatten(1).T


def _zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.int64)
