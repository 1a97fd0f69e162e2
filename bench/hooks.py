"""What a method adds to training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Hooks:
    """What a method adds to training; two sets of hooks join with `&`.

    Attributes:
        objective: replaces the cross-entropy: (model, inputs, targets) to a loss.
        loss_term: added to the loss, in full precision: model to a scalar.
        extra_inputs: appended to each batch after augmentation: step to (inputs, targets).
        after_step: called after each step with the model and the step's number from 0.
        after_epoch: called after each epoch with the model and the epoch's number from 1.
    """

    objective: Objective | None = None
    loss_term: Callable[[nn.Module], Tensor] | None = None
    extra_inputs: Callable[[int], tuple[Tensor, Tensor]] | None = None
    after_step: Callable[[nn.Module, int], None] | None = None
    after_epoch: Callable[[nn.Module, int], None] | None = None

    def __and__(self, other: Hooks) -> Hooks:
        if self.objective and other.objective:
            raise ValueError("expected at most one objective, got two")
        return Hooks(
            self.objective or other.objective,
            _sum(self.loss_term, other.loss_term),
            _joined(self.extra_inputs, other.extra_inputs),
            _both(self.after_step, other.after_step),
            _both(self.after_epoch, other.after_epoch),
        )


def _sum(
    first: Callable[[nn.Module], Tensor] | None, second: Callable[[nn.Module], Tensor] | None
) -> Callable[[nn.Module], Tensor] | None:
    if first is None or second is None:
        return first or second
    return lambda model: first(model) + second(model)


def _joined(
    first: Callable[[int], tuple[Tensor, Tensor]] | None, second: Callable[[int], tuple[Tensor, Tensor]] | None
) -> Callable[[int], tuple[Tensor, Tensor]] | None:
    if first is None or second is None:
        return first or second

    def join(step: int) -> tuple[Tensor, Tensor]:
        (x1, y1), (x2, y2) = first(step), second(step)
        return torch.cat([x1, x2]), torch.cat([y1, y2])

    return join


def _both(
    first: Callable[[nn.Module, int], None] | None, second: Callable[[nn.Module, int], None] | None
) -> Callable[[nn.Module, int], None] | None:
    if first is None or second is None:
        return first or second

    def both(model: nn.Module, number: int) -> None:
        first(model, number)
        second(model, number)

    return both
