"""How much each layer keeps: rates as given, or one share of all weights divided among the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

import models
from attacks.admm.projections import Kind, energies, groups_of

Scope = Literal["global", "layer"]
# The layer that answers, in every architecture.
_HEAD = "head"


def prunable(model: nn.Module, kind: Kind, inputs: int) -> dict[str, Tensor]:
    """The weights that are pruned by the parameter's name, in the order of layers.

    All convolutions and linear layers; but no filters of the last layer, since each is an answer, and no channels of
    a layer that reads as many as an input has.

    Args:
        model: may lie on the meta device.
        kind: what goes as one.
        inputs: channels of an input.
    """
    found = {}
    for name, weight in models.weights_of(model).items():
        answers = kind == "filter" and name == _HEAD
        reads = kind == "channel" and weight.shape[1] == inputs
        if not (answers or reads):
            found[f"{name}.weight"] = weight
    return found


def kept_by_rates(groups: Mapping[str, Tensor], rates: Sequence[float]) -> dict[str, int]:
    """How many groups stay of each layer: all but round(rate * G), at least one.

    Args:
        groups: of each layer, by name.
        rates: the share that goes of each layer, in that order.
    """
    kept = {}
    for (name, one), rate in zip(groups.items(), rates, strict=True):
        count = int(one.max()) + 1
        kept[name] = max(1, count - round(rate * count))
    return kept


def kept_by_share(
    weights: Mapping[str, Tensor], groups: Mapping[str, Tensor], share: float, scope: Scope
) -> dict[str, int]:
    """How many groups stay of each layer where a share of all weights goes, at least one.

    With scope `global` one threshold divides all groups by their layer-adaptive score: the energy of a group over that
    of all groups of its layer that are not smaller (Lee et al. 2021, arXiv 2010.07611). Plain magnitudes would leave
    nothing of a layer that happens to be scaled down, which behind a normalization says nothing; magnitudes over their
    layer's mean would take about the same share of small layers and of large ones.

    Args:
        weights: by name.
        groups: likewise, as of `groups_of`.
        share: in [0, 1); of scope `layer` the share of the groups of each layer.
        scope: `global`, or the same share of each layer.
    """
    if scope == "layer":
        return kept_by_rates(groups, [share] * len(groups))
    scores = torch.cat([_scores(energies(weight, groups[name])) for name, weight in weights.items()])
    sizes = torch.cat([groups[name].reshape(-1).bincount() for name in weights])
    order = scores.argsort(stable=True)
    gone = torch.zeros(len(scores), dtype=torch.bool)
    gone[order[sizes[order].cumsum(0) <= round(share * int(sizes.sum()))]] = True
    parts = gone.split([int(groups[name].max()) + 1 for name in weights])
    return {name: max(1, len(part) - int(part.sum())) for name, part in zip(weights, parts, strict=True)}


def grouped(weights: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """The groups of each weight, on the CPU."""
    return {name: groups_of(weight.shape, kind) for name, weight in weights.items()}


def _scores(energy: Tensor) -> Tensor:
    order = energy.cpu().argsort(descending=True, stable=True)
    ranked = energy.cpu()[order]
    scores = torch.empty_like(ranked)
    scores[order] = ranked / ranked.cumsum(0).clamp(min=1e-300)
    return scores
