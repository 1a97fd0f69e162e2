"""Structured pruning: which channels matter, and layers of given widths (Li et al. 2017; Liu et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.architecture import layer as layer_of
from models.architecture import weights_of
from models.channels import channels
from models.surgery import Inner, inner, outgoing, reshaped

Importance = Literal["filter", "scale"]

# By how much the rows of a doubled channel differ, relative to their size: equal ones would train alike for ever.
APART = 0.05


def importances(model: nn.Module, one: Inner, importance: Importance) -> Tensor:
    """How much each channel of a layer matters, float64 of shape (C,), 1 on average.

    Args:
        model: that the layer is of.
        one: the layer.
        importance: `filter` is the sum of absolute weights (Li et al. 2017), `scale` the size of the gain of the
            normalization behind it (Liu et al. 2017); filters where there is none.
    """
    norm = layer_of(model, one.norm) if importance == "scale" and one.norm else None
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        found = norm.weight.detach().abs()
    else:
        found = weights_of(model, [one.layer])[one.layer].detach().abs().flatten(1).sum(1)
    found = found.cpu().double()
    return found / found.mean().clamp(min=1e-300)


def most_important(values: Tensor, count: int) -> np.ndarray:
    """The positions of the largest values, ascending; the first ones of equals. More than there are begin anew.

    Args:
        values: importance of each channel, (C,).
        count: how many; beyond C the most important ones stand there twice, and so on.
    """
    ranked = values.argsort(descending=True, stable=True).numpy()
    return np.sort(np.concatenate([ranked] * math.ceil(count / len(ranked)))[:count])


def natural_widths(
    model: nn.Module, layers: Sequence[Inner], importance: Importance, share: float
) -> Mapping[str, int]:
    """The width that is left of each layer where a share of all channels goes, the least important ones of all."""
    values = {one.layer: importances(model, one, importance) for one in layers}
    together = torch.cat(list(values.values()))
    gone = torch.zeros(len(together), dtype=torch.bool)
    gone[together.argsort(stable=True)[: round(share * len(together))]] = True
    parts = gone.split([one.width for one in layers])
    return {one.layer: max(1, one.width - int(part.sum())) for one, part in zip(layers, parts, strict=True)}


def with_widths(
    model: nn.Module, wanted: Mapping[str, int], importance: Importance, chance: np.random.Generator
) -> nn.Module:
    """A copy of a model with layers of other widths: the most important channels stay, in their order.

    Where a layer is narrower already its most important channels are doubled, nearly equal, and read by half.

    Args:
        model: stays as it is.
        wanted: name of a layer of `models.surgery.inner` to its width.
        importance: as for `importances`.
        chance: says how doubled channels differ.

    Returns:
        A model in evaluation mode.
    """
    known = {one.layer: one for one in inner(channels(model))}
    chosen = {
        layer: most_important(importances(model, known[layer], importance), width) for layer, width in wanted.items()
    }
    made = reshaped(model, chosen)
    with torch.no_grad():
        for layer, places in chosen.items():
            counts = torch.from_numpy(np.bincount(places, minlength=known[layer].width)[places])
            if bool((counts > 1).any()):
                _split(made, known[layer], counts, chance)
    return made


def _split(model: nn.Module, one: Inner, counts: Tensor, chance: np.random.Generator) -> None:
    """Divide what reads channels by how often they are there, and move doubled ones apart."""
    for reader in one.readers:
        read = outgoing(model, reader, one.layer)
        read /= counts.to(read.device).view(-1, *[1] * (read.dim() - 1))
    rows = weights_of(model, [one.layer])[one.layer]
    noise = torch.from_numpy(chance.standard_normal(tuple(rows.shape), dtype="float32")).to(rows)
    scale = APART * rows.flatten(1).std(1).view(-1, *[1] * (rows.dim() - 1))
    rows += noise * scale * (counts > 1).to(rows).view(-1, *[1] * (rows.dim() - 1))
