"""Weights put on their levels bit by bit, the rest trained on (Ren et al. 2019, arXiv 1812.11677)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.admm.core import Minimise
from attacks.admm.projections import Grid
from bench.hooks import Hooks


def snap(model: nn.Module, grids: Mapping[str, Grid], minimise: Minimise, share: float = 0.3) -> int:
    """Of each level fix the nearest weights that are still free, train the rest, and so on until none is free.

    Args:
        model: changed in place; weights that are exactly zero stay so throughout.
        grids: the levels of each parameter, by the parameter's name.
        minimise: called after each round but the last one.
        share: of the free weights of each level that are fixed in a round, rounded up, in (0, 1].

    Returns:
        How often it trained.
    """
    held = _Held({}, {})
    for name in grids:
        weight = model.get_parameter(name).detach()
        held.fixed[name], held.values[name] = weight == 0, torch.zeros_like(weight)
    trained = 0
    while True:
        for name, grid in grids.items():
            weight, fixed = model.get_parameter(name).detach(), held.fixed[name]
            chosen = closest(weight, grid, ~fixed, share)
            held.values[name] = torch.where(chosen, grid.nearest(weight).to(weight.dtype), held.values[name])
            held.fixed[name] = fixed | chosen
        held(model)
        if all(bool(fixed.all()) for fixed in held.fixed.values()):
            return trained
        minimise(model, Hooks(after_step=held))
        trained += 1


def closest(weight: Tensor, grid: Grid, free: Tensor, share: float) -> Tensor:
    """Of each level the free weights nearest to it, ceil(share * n) of n; bool of the weight's shape, ties by place.

    Args:
        weight: of any shape.
        grid: its levels; a weight belongs to the nearest one.
        free: bool of that shape.
        share: in (0, 1].
    """
    places = free.flatten().nonzero().flatten()
    values = weight.detach().flatten()[places]
    levels = grid.indices(values) + grid.count
    order = (values - grid.nearest(values)).abs().argsort(stable=True)
    order = order[levels[order].argsort(stable=True)]
    counts = levels.bincount(minlength=2 * grid.count + 1)
    ranks = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[levels[order]]
    # 0.3 * 10 and its like must not be rounded up to the next number for the last bit.
    most = (share * counts.double() - 1e-9).ceil()
    chosen = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    chosen[places[order[ranks < most[levels[order]]]]] = True
    return chosen.view(weight.shape)


def trainings(count: int, share: float) -> int:
    """How often `snap` trains at most with so many weights in its largest layer."""
    rounds = 0
    while count > 0:
        count -= math.ceil(share * count - 1e-9)
        rounds += 1
    return max(0, rounds - 1)


@dataclass
class _Held:
    """Writes fixed weights back after each step."""

    fixed: dict[str, Tensor]
    values: dict[str, Tensor]

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int = 0) -> None:
        """As `Hooks.after_step`."""
        for name, fixed in self.fixed.items():
            weight = model.get_parameter(name)
            weight.copy_(torch.where(fixed, self.values[name], weight))
