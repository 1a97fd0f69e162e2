"""Folding: batch normalization becomes a part of the layer before it, for the same function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bench.attack import AttackClass, RemovalAttack
from bench.effort import Effort
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.blocks import NORMALIZATIONS
from models.channels import channels


@dataclass(frozen=True)
class FoldNormalization(RemovalAttack):
    """Merge each batch normalization into the convolution or linear layer that it alone stands behind."""

    name: ClassVar[str] = "fold-normalization"
    family: ClassVar[str] = "folding"
    source: ClassVar[str] = "Jacob et al. 2018, arXiv 1712.05877, section 3.2"
    attack_class: ClassVar[AttackClass] = "reparametrisation"
    strength_unit: ClassVar[str] = "share of normalizations folded"

    def applies_to(self, task: Task) -> str | None:
        """Needs a net whose channels can be followed, and a batch normalization directly behind a layer."""
        try:
            graph = channels(task.skeleton)
        except ValueError as error:
            return str(error)
        if any(layer.norm for layer in graph.layers):
            return None
        return f"{task.model} has no batch normalization directly behind a convolution or linear layer"

    def effort(self, task: Task) -> Effort:
        """No input is ever passed through a model."""
        return Effort()

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """One surrogate with the same function; strength 0 where nothing can be folded."""
        model = target.copy()
        normalizations = sum(isinstance(module, NORMALIZATIONS) for module in model.modules())
        yield folded(model) / max(1, normalizations), model


def folded(model: nn.Module) -> int:
    """Fold the batch normalizations of a model in place; its function in evaluation mode stays.

    Args:
        model: descends from `models.build`; is in evaluation mode afterwards.

    Returns:
        How many were folded.

    Raises:
        ValueError: the model cannot be followed.
    """
    model.eval()
    found = [layer for layer in channels(model).layers if layer.norm is not None]
    for layer in found:
        before: Any = model.get_submodule(layer.name)
        norm: Any = model.get_submodule(str(layer.norm))
        fuse = fuse_linear_bn_eval if isinstance(before, nn.Linear) else fuse_conv_bn_eval
        # A bias that was not there is made without a gradient.
        model.set_submodule(layer.name, fuse(before, norm).requires_grad_())
        model.set_submodule(str(layer.norm), nn.Identity().eval())
    return len(found)
