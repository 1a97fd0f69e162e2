"""Moving and scaling channels: the same function with other weights, by the channel graph of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.channels import Channels, Side
from models.tracing import NOTHING


class Normalization(NamedTuple):
    """A batch normalization in evaluation mode, as four vectors of float64 on the CPU, one entry per channel."""

    gain: Tensor
    shift: Tensor
    mean: Tensor
    var: Tensor
    eps: float

    @classmethod
    def of(cls, layer: nn.Module) -> Normalization:
        """That of an affine layer with running statistics."""
        gain, shift, mean, var = (
            getattr(layer, name).detach().cpu().double() for name in ("weight", "bias", "running_mean", "running_var")
        )
        return cls(gain, shift, mean, var, float(layer.eps))  # type: ignore[arg-type]

    @classmethod
    def standing_for(cls, offset: Tensor, mean: Tensor, var: Tensor, eps: float) -> Normalization:
        """One with given statistics that does nothing but add an offset."""
        return cls((var + eps).sqrt(), offset + mean, mean, var, eps)

    @property
    def slope(self) -> Tensor:
        """What one unit of the input gives."""
        return self.gain / (self.var + self.eps).sqrt()

    @property
    def offset(self) -> Tensor:
        """What an input of zero gives."""
        return self.shift - self.slope * self.mean

    def at(self, positions: np.ndarray) -> Normalization:
        """Its channels in another order; nothing comes out where the position is NOTHING."""
        gain, shift, mean = (gathered(vector, positions) for vector in (self.gain, self.shift, self.mean))
        absent = torch.from_numpy(positions == NOTHING)
        return Normalization(gain, shift, mean, gathered(self.var, positions).masked_fill(absent, 1.0), self.eps)

    def between(self, before: np.ndarray, behind: np.ndarray, eps: float | None = None) -> Normalization:
        """The same function of inputs that were multiplied by `before`, multiplied by `behind`.

        Exact: the gain makes up for eps, which does not scale with the variance.

        Args:
            before: factors of the inputs, of either sign.
            behind: factors of the outputs.
            eps: of the layer that is to hold it; None for its own.
        """
        s, t = torch.from_numpy(before), torch.from_numpy(behind)
        eps, var = self.eps if eps is None else eps, self.var * s**2
        return Normalization(self.slope * t / s * (var + eps).sqrt(), self.shift * t, self.mean * s, var, eps)

    def state(self) -> dict[str, Tensor]:
        """The vectors by the names that the layer gives them."""
        return {"weight": self.gain, "bias": self.shift, "running_mean": self.mean, "running_var": self.var}


def reframe(model: nn.Module, graph: Channels, order: np.ndarray, factors: np.ndarray) -> None:
    """Move and scale the channels of a model in place; its function stays.

    Args:
        model: whose `channels` are `graph`.
        graph: the channel graph.
        order: at each atom the one whose channel comes there, int64 of shape (A,): a permutation within classes.
        factors: what the values of each gauge are multiplied by, float64 of shape (G,): 1 where it is not
            `scalable`, positive where it is not `signable`.
    """
    with torch.no_grad():
        for layer in graph.layers:
            module: Any = model.get_submodule(layer.name)
            came_in, went_out = moved(layer.inputs, order), moved(layer.outputs, order)
            before = of_gauges(factors, layer.inputs)[came_in]
            behind = of_gauges(factors, layer.outputs)[went_out]
            if layer.kind == "norm":
                norm = Normalization.of(module).at(went_out).between(before, behind)
                _write(module, norm.state())
                continue
            weight = gathered(module.weight.detach(), came_in, 1.0 / before, dim=1)
            found = {"weight": gathered(weight, went_out, behind)}
            if module.bias is not None:
                found["bias"] = gathered(module.bias.detach(), went_out, behind)
            _write(module, found)


def moved(side: Side, order: np.ndarray) -> np.ndarray:
    """Where what is to stand at each index stands now; zeros stay."""
    stays = side.atoms == NOTHING
    return np.where(stays, np.arange(len(side)), placed(side, np.where(stays, NOTHING, order[side.atoms]), side.tags))


def placed(side: Side, atoms: np.ndarray, tags: np.ndarray) -> np.ndarray:
    """Where these atoms with these tags stand; each in its place where it stands several times, as a frozen one may.

    Returns:
        Indices, NOTHING for those that do not stand there.
    """
    places = side.find(atoms, tags)
    count = min(len(side), len(atoms))
    same = (side.atoms[:count] == atoms[:count]) & (side.tags[:count] == tags[:count]) & (atoms[:count] != NOTHING)
    places[:count] = np.where(same, np.arange(count), places[:count])
    return places


def of_gauges(factors: np.ndarray, side: Side) -> np.ndarray:
    """The factor at each index; 1 for zeros."""
    return np.where(side.gauges == NOTHING, 1.0, factors[side.gauges])


def gathered(tensor: Tensor, positions: np.ndarray, factors: np.ndarray | None = None, dim: int = 0) -> Tensor:
    """The slices at some positions of a dimension, each times its factor; zeros where the position is NOTHING."""
    if not np.array_equal(positions, np.arange(tensor.shape[dim])):
        tensor = tensor.index_select(dim, torch.from_numpy(positions.clip(0)).to(tensor.device))
    absent = positions == NOTHING
    if absent.any():
        factors = np.where(absent, 0.0, 1.0 if factors is None else factors)
    if factors is None or bool((factors == 1.0).all()):
        return tensor
    spread = [1] * tensor.dim()
    spread[dim] = -1
    return tensor * torch.from_numpy(factors).to(tensor.device, tensor.dtype).view(spread)


def _write(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        getattr(module, name).copy_(value)
