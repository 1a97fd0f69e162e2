"""Inputs fitted to given answers of given nets, by steps down the gradient's sign (Madry et al. 2018, ICLR)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.stream import Stream
from bench.task import Task


def fitted(
    nets: Sequence[nn.Module], inputs: Tensor, labels: Tensor, task: Task, *, budget: float, steps: int, stream: Stream
) -> Tensor:
    """Inputs near given ones to which all nets give given labels, as far as the steps bring it.

    Each step goes down the sign of the gradient of the mean cross-entropy, a quarter of the budget first and less and
    less later; the first starts anywhere within the budget.

    Args:
        nets: asked in evaluation mode; copies are, so that they stay as they are.
        inputs: as a model takes them, (n, …), on the nets' device.
        labels: int64 (n,).
        task: whose range of raw inputs is kept to.
        budget: most that a raw number may change, as a share of the range.
        steps: how many.
        stream: of where it starts.

    Returns:
        Inputs as a model takes them, (n, …).
    """
    frozen = [copy.deepcopy(net).eval().requires_grad_(False) for net in nets]
    low, high = (bound.to(inputs) for bound in bounds(task))
    room = budget * (high - low)
    chance = torch.from_numpy(stream.numpy().uniform(-1.0, 1.0, tuple(inputs.shape))).to(inputs)
    least, most = torch.maximum(inputs - room, low), torch.minimum(inputs + room, high)
    found = (inputs + chance * room).clamp(least, most)
    for step in range(steps):
        found.requires_grad_(True)
        loss = sum(F.cross_entropy(net(found).float(), labels, reduction="sum") for net in frozen)
        (gradient,) = torch.autograd.grad(loss, found)  # type: ignore[arg-type]
        stride = room / 4 * (1.0 - step / steps)
        found = (found.detach() - stride * gradient.sign()).clamp(least, most)
    return found.detach()


def bounds(task: Task) -> tuple[Tensor, Tensor]:
    """The least and the largest numbers of an input as a model takes it, each of the shape (1, …) of one."""
    lowest = -1.0 if task.kind == "points" else 0.0
    return (task.normalised(torch.full((1, *task.shape), lowest)), task.normalised(torch.ones(1, *task.shape)))
