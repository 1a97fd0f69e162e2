"""What attacks share that are for pruned models: which weights are zero and which live, the start, the layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import models
from bench.attack import RemovalAttack
from bench.defense import Defense
from bench.suspect import Target
from bench.trainer import AttackerTrainer

Masks = dict[str, Tensor]
Start = Literal["published", "rewound"]

# The model that schemes with a withheld key release: the locked ticket with the weights that its training starts from.
REWOUND = "rewind"


@dataclass(frozen=True)
class OnPruned(RemovalAttack):
    """What those share that need pruned weights; where these are, the published model shows by its zeros."""

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose model has pruned weights."""
        return None if scheme.sparse else f"needs pruned weights, {scheme.name} publishes a dense model"


def live(model: nn.Module) -> Masks:
    """Which weights live, by parameter name, of the layers that were pruned: those with a weight that is exactly zero.

    Returns:
        Bool masks of the shapes of the weights, in the order of the model's layers; none for a dense model.
    """
    masks = {f"{name}.weight": weight.detach() != 0 for name, weight in models.weights_of(model).items()}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


def weights(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that the masks are of, detached."""
    return {name: model.get_parameter(name).detach() for name in masks}


def put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy the values into the parameters of these names."""
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)


def started(target: Target, trainer: AttackerTrainer, start: Start) -> nn.Module:
    """A copy of the published model, or of the rewound one where such a one was released and is asked for."""
    if start == "rewound" and REWOUND in target.release.models:
        return copy.deepcopy(target.release.models[REWOUND]).to(trainer.device)
    return target.copy()
