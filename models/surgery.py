"""Taking channels out of a model, or putting some in: layers of other widths, by the channel graph of the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.architecture import resized
from models.channels import Channels, Layer, Side, channels
from models.frames import Normalization, gathered
from models.tracing import NOTHING


class Inner(NamedTuple):
    """Channels that one layer alone makes, and that whatever reads them reads in the same order.

    Attributes:
        layer: the convolution or linear layer whose rows they are.
        norm: the normalization directly behind it; None where there is none.
        readers: the convolutions and linear layers that read them.
        width: how many there are.
    """

    layer: str
    norm: str | None
    readers: tuple[str, ...]
    width: int


def inner(graph: Channels) -> tuple[Inner, ...]:
    """The channels of a model whose number is nobody else's business, layer by layer in topological order.

    Left out are the inputs and outputs of the model, what shortcuts add to each other, and what is not understood.
    """
    found = []
    for number, makers in enumerate(graph.makers):
        if len(makers) != 1:
            continue
        (maker,) = makers
        atoms = maker.outputs.atoms
        reading = [one for one in graph.layers if np.isin(one.inputs.atoms, atoms).any()]
        if (graph.classes[atoms] == number).all() and all(_pixels(one.inputs, atoms) for one in reading):
            readers = tuple(one.name for one in reading if one.kind == "weight")
            found.append(Inner(maker.name, maker.norm, readers, len(atoms)))
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    return tuple(sorted(found, key=lambda one: order[one.layer]))


def lacking(model: nn.Module) -> str | None:
    """Why no channels of a model that descends from `models.build` can come and go; None where some can."""
    try:
        found = inner(channels(model))
    except ValueError as error:
        return str(error)
    name = model.architecture["name"]  # type: ignore[index]
    return None if found else f"{name} has no layer whose channels can come and go"


def reshaped(model: nn.Module, chosen: Mapping[str, np.ndarray]) -> nn.Module:
    """A copy of a model whose layers make other channels: some of their own, in any order, and new ones.

    Where channels are merely left out this is structured pruning. A channel that is chosen twice is read twice, so
    that the function changes unless its readers' columns (see `columns`) are divided.

    Args:
        model: descends from `models.build`; stays as it is.
        chosen: name of a layer of `inner` to the positions of the channels that it has afterwards, int64 of shape
            (K,), K at least 1; NOTHING for a new one of zeros, which nothing reads.

    Returns:
        A model in evaluation mode, on the model's device.

    Raises:
        ValueError: the model cannot be followed, a layer is not one of `inner`, or nothing is left of one.
    """
    graph = channels(model)
    known = {one.layer for one in inner(graph)}
    if odd := sorted(set(chosen) - known):
        raise ValueError(f"expected layers whose channels may come and go ({', '.join(sorted(known))}), got {odd}")
    if empty := [name for name, places in chosen.items() if not len(places)]:
        raise ValueError(f"expected at least one channel of each layer, got none of {empty}")
    made = copy.deepcopy(model).eval()
    makers = {name: graph.by_name[name] for name in chosen}
    for layer in graph.layers:
        came_in, went_out = _all(layer.inputs), _all(layer.outputs)
        for name, maker in makers.items():
            if layer.name == name:
                went_out = np.asarray(chosen[name])
            elif pixels := _pixels(layer.inputs, maker.outputs.atoms):
                came_in = _spread(np.asarray(chosen[name]), pixels)
        if layer.kind == "norm":
            went_out = came_in
        if len(came_in) != len(layer.inputs) or len(went_out) != len(layer.outputs) or _moved(came_in, went_out):
            _put(made, layer, came_in, went_out)
    return made


def columns(model: nn.Module, reader: str, layer: str) -> np.ndarray:
    """Where a layer reads the channels of another one.

    Args:
        model: as for `reshaped`.
        reader: one of the readers of `layer` in `inner`.
        layer: whose channels they are.

    Returns:
        int64 of shape (channels, pixels): the columns of each channel; one pixel unless they were flattened.

    Raises:
        ValueError: the one does not read the other.
    """
    graph = channels(model)
    atoms = graph.by_name[layer].outputs.atoms
    pixels = _pixels(graph.by_name[reader].inputs, atoms)
    if not pixels:
        raise ValueError(f"expected a layer that reads all channels of {layer!r}, got {reader!r}")
    return np.arange(len(atoms) * pixels).reshape(len(atoms), pixels)


def outgoing(model: nn.Module, reader: str, layer: str) -> Tensor:
    """What a layer makes of each channel of another one: a view of its weights, to be read or written.

    Args:
        model: as for `reshaped`.
        reader: one of the readers of `layer` in `inner`.
        layer: whose channels they are.

    Returns:
        Shape (channels, rows, pixels, …), the last dimensions those of a kernel.

    Raises:
        ValueError: the one does not read the other.
    """
    read: Any = model.get_submodule(reader)
    apart: Tensor = read.weight.unflatten(1, columns(model, reader, layer).shape)
    return apart.movedim(1, 0)


def _pixels(side: Side, atoms: np.ndarray) -> int:
    """How many entries each of these channels has on a side that consists of them in their order; else 0."""
    pixels, rest = divmod(len(side), max(len(atoms), 1))
    same = not rest and np.array_equal(side.atoms, np.repeat(atoms, pixels))
    return pixels if same and np.array_equal(side.tags, np.tile(side.tags[:pixels], len(atoms))) else 0


def _all(side: Side) -> np.ndarray:
    return np.arange(len(side))


def _moved(*positions: np.ndarray) -> bool:
    return any(not np.array_equal(one, np.arange(len(one))) for one in positions)


def _spread(chosen: np.ndarray, pixels: int) -> np.ndarray:
    """Positions of channels as positions of all their entries."""
    spread = chosen[:, None] * pixels + np.arange(pixels)
    spread[chosen == NOTHING] = NOTHING
    return spread.ravel()


def _put(model: nn.Module, layer: Layer, came_in: np.ndarray, went_out: np.ndarray) -> None:
    """Replace a layer by one with some of its columns and rows."""
    old: Any = model.get_submodule(layer.name)
    new: Any = resized(old, len(came_in), len(went_out))
    with torch.no_grad():
        if layer.kind == "norm":
            for name, value in Normalization.of(old).at(went_out).state().items():
                getattr(new, name).copy_(value)
            new.num_batches_tracked.copy_(old.num_batches_tracked)
        else:
            new.weight.copy_(gathered(gathered(old.weight, came_in, dim=1), went_out))
            if old.bias is not None:
                new.bias.copy_(gathered(old.bias, went_out))
    parent, _, child = layer.name.rpartition(".")
    setattr(model.get_submodule(parent), child, new.eval())
