"""Passports and bottlenecks that come to wanted scales and shifts: closed forms, as weights are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from defenses.passports.branches import raw_of

# Channels whose rows are made at once.
CHUNK = 64
# Singular values below this share of the largest count as zero: rows are computed in single precision.
RELATIVE = 1e-6
# Each takes away what single precision has left of the residual.
CORRECTIONS = 3


def projected(layer: nn.Module, passports: Tensor, wanted: Tensor) -> Tensor:
    """The passports nearest to given ones of which the layer makes wanted raw values: p + L^+ (t - L p).

    L takes a passport to its raw values. Where it has not full rank, what comes nearest to the wanted values.

    Args:
        layer: convolution or linear; stays as it is.
        passports: (P, *the layer's input), on any device.
        wanted: (P, C), likewise.

    Returns:
        float32 of the shape of `passports`, on their device.
    """
    shape, channels, place = passports.shape[1:], wanted.shape[1], next(layer.parameters()).device
    zero = raw_of(layer, torch.zeros(1, *shape, device=place)).detach()
    ones = torch.eye(channels, device=place)
    gram = torch.cat([(raw_of(layer, _adjoint(layer, part, shape)) - zero).detach() for part in ones.split(CHUNK)])
    inverse = torch.linalg.pinv((gram + gram.T).double() / 2, rtol=RELATIVE, hermitian=True)
    found, wanted = passports.float().to(place), wanted.to(place)
    for _ in range(CORRECTIONS):
        missing = (wanted - raw_of(layer, found).detach()).double()
        found = found + _adjoint(layer, (missing @ inverse).float(), shape)
    return found.to(passports.device)


def last_weights(hidden: Tensor, wanted: Tensor) -> Tensor:
    """Weights of a linear layer that gives wanted answers; of the least norm, or the nearest where none does.

    Args:
        hidden: what the layer is given, (P, N).
        wanted: (P, C).

    Returns:
        (C, N), of the dtype of `wanted`.
    """
    found: Tensor = torch.linalg.pinv(hidden.double(), rtol=RELATIVE) @ wanted.double()
    return found.T.to(wanted)


def _adjoint(layer: nn.Module, values: Tensor, shape: torch.Size) -> Tensor:
    """L^T of each row of values, (P, C) to (P, *shape)."""
    with torch.enable_grad():
        at = values.new_zeros(len(values), *shape).requires_grad_()
        (found,) = torch.autograd.grad((raw_of(layer, at) * values).sum(), at)
    return found
