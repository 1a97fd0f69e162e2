"""What a model takes to store and to run, read from its weights: those that are left, bits, multiply-adds.

Counted are the weights of convolutions and linear layers, as the literature on compression does; biases and
normalizations are not. Stored bits follow one rule, layer by layer, whatever made the weights:

- A value costs, whichever is least for the layer as a whole: 32 bits; or its place in a codebook of the layer's
  distinct values, which holds 32 bits for each; or, where all values are integers of at most 255 times a scale, of
  their row or of the layer, the bits of the widest range of integers of any row, or of the layer, and 40 bits for each
  scale with its offset.
- *Without indices* only values that are not zero are stored.
- *With indices* either all values are, zero being one of them; or those that are not zero, each with its distance from
  the one before in as many bits as are cheapest for the layer, 1 to 16. Where a distance does not fit, zeros that are
  stored like values fill it up (Han, Mao and Dally 2016, arXiv 1510.00149, section 2).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.architecture import holding

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)

FLOAT_BITS = 32
# Of a row, or a layer, on a grid: its scale, and the smallest of its integers.
GRID_BITS = FLOAT_BITS + 8
LARGEST_INTEGER = 255
LONGEST_DISTANCE = 16
# A product of a float32 scale and an integer, and what it is divided by, are each off by this much at most.
_ROUNDING = 2.0**-22
# So many values of a row decide which grids are looked at closer.
_GLANCE = 16


class Coding(NamedTuple):
    """One way to store a layer's values.

    Attributes:
        living: bits of a value where zero is none of them.
        any: bits of a value where zero is one of them.
        table: bits of what belongs to the whole layer.
    """

    living: int
    any: int
    table: int


def compression(model: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """What a model takes to store and to run.

    Args:
        model: any whose forward pass takes one batch of inputs; stays as it is.
        shape: of one input, without the batch dimension.

    Returns:
        `weights` in convolutions and linear layers; `weights_kept`, those that are not zero; `stored_bits` of them
        without indices, `stored_bits_indexed` with; `multiply_adds` of one input, all layers being dense, and
        `multiply_adds_kept`, those with weights that are not zero.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _WEIGHTED)}
    kept = {name: int(torch.count_nonzero(layer.weight)) for name, layer in layers.items()}
    stored = [stored_bits(layer.weight) for layer in layers.values()]
    uses = positions(model, shape)
    return {
        "weights": float(sum(layer.weight.numel() for layer in layers.values())),
        "weights_kept": float(sum(kept.values())),
        "stored_bits": float(sum(plain for plain, _ in stored)),
        "stored_bits_indexed": float(sum(indexed for _, indexed in stored)),
        "multiply_adds": float(sum(uses[name] * layer.weight.numel() for name, layer in layers.items())),
        "multiply_adds_kept": float(sum(uses[name] * kept[name] for name in layers)),
    }


def positions(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """How often each weight of each convolution and linear layer is used for one input; 0 where it never runs."""
    # Another model around the same tensors, so that no hook is left on this one.
    watched, found = holding(model, model.state_dict()), dict[str, int]()
    for name, layer in watched.named_modules():
        if isinstance(layer, _WEIGHTED):
            found[name] = 0
            layer.register_forward_hook(functools.partial(_count, found, name))
    like = next(model.parameters())
    # One input of nothing and not the meta device, for which PyTorch takes seconds to make itself ready.
    with torch.no_grad():
        watched(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    return found


def _count(found: dict[str, int], name: str, layer: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
    del given
    found[name] += made.numel() // len(layer.weight)


def stored_bits(weight: Tensor) -> tuple[int, int]:
    """Bits of one layer's weights without indices, and with; the rule is that of this module.

    Args:
        weight: float32 of shape (rows, …).
    """
    rows = weight.detach().cpu().flatten(1)
    count, places = rows.numel(), np.flatnonzero(rows.numpy())
    kept = len(places)
    if not kept:
        return 0, 0
    codings = _codings(rows, rows.flatten().numpy()[places])
    plain = min(kept * one.living + one.table for one in codings)
    if kept == count:
        return plain, plain
    whole = min(count * one.any + one.table for one in codings)
    apart = np.bincount(np.diff(places, prepend=-1) - 1)
    for bits in range(1, LONGEST_DISTANCE + 1):
        fillers = int(apart @ (np.arange(len(apart)) >> bits))
        for one in codings:
            value = one.any if fillers else one.living
            whole = min(whole, (kept + fillers) * (value + bits) + one.table)
    return plain, whole


def _codings(rows: Tensor, living: np.ndarray) -> list[Coding]:
    distinct = np.unique(living)
    count = len(distinct)
    found = [Coding(FLOAT_BITS, FLOAT_BITS, 0), Coding(_bits(count), _bits(count + 1), FLOAT_BITS * count)]
    # A grid of the whole layer is one of the few values that it has.
    grids = [rows, torch.from_numpy(distinct).view(1, -1)] if count <= 2 * LARGEST_INTEGER else [rows]
    for values in grids:
        integers = on_grids(values)
        if integers is None:
            continue
        # The smallest integer that is stored is that of a value which is not zero.
        least = torch.where(integers == 0, LARGEST_INTEGER, integers).amin(1)
        most = torch.where(integers == 0, -LARGEST_INTEGER, integers).amax(1)
        narrow = int((most - least).amax()) + 1
        wide = int((most.clamp(min=0) - least.clamp(max=0)).amax()) + 1
        found.append(Coding(_bits(narrow), _bits(wide), GRID_BITS * len(values)))
    return found


def _bits(count: int) -> int:
    return (count - 1).bit_length()


def on_grids(rows: Tensor) -> Tensor | None:
    """Each row as the smallest integers whose multiples by one scale it is, up to the rounding of float32.

    Args:
        rows: float32 of shape (rows, columns).

    Returns:
        int64 of the same shape, at most `LARGEST_INTEGER` in size; None where some row is no such multiple.
    """
    values = rows.double()
    # The largest ones tell grids apart, zeros do not.
    glance = values.gather(1, values.abs().topk(min(_GLANCE, values.shape[1]), 1).indices)
    largest = glance[:, :1].abs()
    searched = largest[:, 0] > 0
    near = _multiples(glance, largest, torch.arange(1, LARGEST_INTEGER + 1, device=rows.device).view(-1, 1, 1))
    near &= searched
    if not bool(near.any(0)[searched].all()):
        return None
    found = torch.zeros_like(rows, dtype=torch.int64)
    for most in (near.any(1).nonzero().flatten() + 1).tolist():
        hit = (near[most - 1] & searched).nonzero().flatten()
        hit = hit[_multiples(values[hit], largest[hit], most)]
        found[hit] = (values[hit] / largest[hit] * most).round().long()
        searched[hit] = False
        if not bool(searched.any()):
            break
    return None if bool(searched.any()) else found


def _multiples(values: Tensor, largest: Tensor, most: Tensor | int) -> Tensor:
    """Which rows consist of integers when the largest value of each is called `most`."""
    scaled = values / largest * most
    return ((scaled - scaled.round()).abs() <= most * _ROUNDING).all(-1)
