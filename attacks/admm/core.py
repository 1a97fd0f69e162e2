"""The alternating direction method of multipliers over the weights of a net (Zhang et al. 2018, arXiv 1804.03294)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.hooks import Hooks

Projection = Callable[[Tensor], Tensor]
# Trains a model in place with what the hooks add to the loss.
Minimise = Callable[[nn.Module, Hooks], object]


@dataclass(frozen=True)
class Schedule:
    """How often, and how strong the penalty is.

    Attributes:
        iterations: how often Z and U are updated, from 1 on.
        rho: of the first iteration, above 0; the penalty is rho / 2 times the squared Frobenius norm.
        growth: rho is multiplied by it after each iteration, from 1 on.
    """

    iterations: int
    rho: float
    growth: float = 1.0

    def __post_init__(self) -> None:
        if self.iterations < 1 or not (0 < self.rho < math.inf and 1 <= self.growth < math.inf):
            raise ValueError(
                f"expected iterations >= 1, rho > 0 and growth >= 1, got {self.iterations}, {self.rho} and "
                f"{self.growth}"
            )

    @property
    def rhos(self) -> tuple[float, ...]:
        """Rho of each iteration."""
        return tuple(self.rho * self.growth**number for number in range(self.iterations))


@dataclass(frozen=True)
class Course:
    """What the iterations came to.

    Attributes:
        rhos: of each iteration.
        residuals: after each iteration ||W - Z|| / ||W|| of each parameter, by name.
    """

    rhos: tuple[float, ...]
    residuals: tuple[Mapping[str, float], ...]


def admm(model: nn.Module, projections: Mapping[str, Projection], minimise: Minimise, schedule: Schedule) -> Course:
    """Bring weights into their sets while the loss stays small; they end projected.

    Scaled form: W <- argmin f(W) + rho / 2 ||W - Z + U||^2, Z <- projection of W + U, U <- U + W - Z; from Z the
    projection of W and U = 0. U is the multiplier over rho, so it shrinks where rho grows (Boyd et al. 2011, section
    3.4.1); the authors' code leaves it.

    Args:
        model: trained already; changed in place.
        projections: the set of each parameter that has one, by the parameter's name.
        minimise: called once per iteration, each a training of its own: a new optimiser, and the learning rate from
            the beginning of its schedule.
        schedule: how often, and rho.

    Returns:
        Rho and residuals, iteration by iteration.
    """
    weights = _weights(model, projections)
    # Cloned: a projection may hand back the very tensor that it was given, which training then changes.
    z = {name: projections[name](weight).clone() for name, weight in weights.items()}
    u = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    residuals = []
    for number, rho in enumerate(schedule.rhos):
        minimise(model, Hooks(loss_term=_Penalty(rho, {name: z[name] - u[name] for name in z})))
        measured = {}
        for name, weight in _weights(model, projections).items():
            z[name] = projections[name](weight + u[name])
            u[name] += weight - z[name]
            measured[name] = float((weight - z[name]).norm() / weight.norm().clamp(min=1e-30))
            if number + 1 < schedule.iterations:
                u[name] /= schedule.growth
        residuals.append(measured)
    project(model, projections)
    return Course(schedule.rhos, tuple(residuals))


@torch.no_grad()
def project(model: nn.Module, projections: Mapping[str, Projection]) -> None:
    """Replace weights by their projections."""
    for name, projection in projections.items():
        weight = model.get_parameter(name)
        weight.copy_(projection(weight.detach()))


@dataclass(frozen=True)
class _Penalty:
    """The squared distance of the weights from Z - U, times rho / 2."""

    rho: float
    targets: Mapping[str, Tensor]

    def __call__(self, model: nn.Module) -> Tensor:
        """A scalar."""
        distances = [(model.get_parameter(name) - target).square().sum() for name, target in self.targets.items()]
        return self.rho / 2 * torch.stack(distances).sum()


def _weights(model: nn.Module, names: Mapping[str, Projection]) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach() for name in names}
