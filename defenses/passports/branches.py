"""Passport layers, and a net of two branches that share its weights (Fan et al. 2019; Zhang et al. 2020).

A passport layer takes the place of a normalization: its scale and shift are what the weights before it make of the
owner's passports. The public branch is the plain model itself; the private branch shares all of its weights, has
passport layers at some places, and statistics of its own from the first of them on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from bench.errors import Unreadable
from models.blocks import NORMALIZATIONS, Blocks, sharing

Statistics = Literal["separate", "shared"]
# Of a bottleneck's hidden layer; both from the source's code (the paper's figure shows two linear layers).
REDUCTION, SLOPE = 4, 0.01
# Channels in one group of a group normalization.
GROUP = 16
# PyTorch's default, where a suspect has no normalization to ask.
EPS = 1e-5
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Form:
    """What the private branch is like.

    Attributes:
        layers: names of the layers whose weights make scale and shift of the passports, in the order in which they run.
        statistics: `separate` gives the private branch normalizations of its own from the first passport layer on;
            `shared` lets it use those of the public branch.
        mlp: whether scale and shift go through a bottleneck of two linear layers, one for both.
    """

    layers: tuple[str, ...]
    statistics: Statistics = "separate"
    mlp: bool = True


class PassportNorm(nn.Module):
    """Normalizes and then multiplies by `f(gamma)` and adds `f(beta)`, both made of the passports by a layer's weights.

    Args:
        layer: the convolution or linear layer before it, whose weights they are; it stays where it is.
        norm: without scale and shift of its own; None for no normalization at all.
        patches: see `mean_patch`; of shape (2, D), that of gamma first. No parameter: passports are never trained
            here.
        mlp: f; None for the identity.
    """

    patches: Tensor

    def __init__(self, layer: nn.Module, norm: nn.Module | None, patches: Tensor, mlp: nn.Module | None) -> None:
        super().__init__()
        # In a tuple, because the layer is a part of the model already.
        self._layer = (layer,)
        self.norm, self.mlp = norm, mlp
        self.register_buffer("patches", patches, persistent=False)

    def raw(self) -> Tensor:
        """What the weights make of the passports, float32 of shape (2, C): the raw scale, then the raw shift."""
        return _answered(self._layer[0], self.patches)

    def to_unit_scales(self) -> None:
        """Make the bottleneck larger or smaller, so that the root mean square of what it makes of raw scales is 1."""
        if isinstance(self.mlp, nn.Sequential):
            last: Any = self.mlp[-1]
            with torch.no_grad():
                last.weight.div_(self.mlp(self.raw())[0].square().mean().sqrt())

    def renew(self, passports: Tensor) -> None:
        """Take other passports, of shape (2, *the layer's input)."""
        self.patches.copy_(mean_patch(self._layer[0], passports))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same shape."""
        scale, shift = self.raw() if self.mlp is None else self.mlp(self.raw())
        wide = (1, -1) + (1,) * (x.dim() - 2)
        y = x if self.norm is None else self.norm(x)
        moved: Tensor = y * scale.view(wide) + shift.view(wide)
        return moved


class BorrowedNorm(nn.Module):
    """Another layer's normalization, without its scale and shift; its running statistics are used and moved on."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self._norm = (norm,)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same shape."""
        norm: Any = self._norm[0]
        if isinstance(norm, nn.GroupNorm):
            return F.group_norm(x, norm.num_groups, eps=norm.eps)
        mean, var, momentum = norm.running_mean, norm.running_var, norm.momentum
        return F.batch_norm(x, mean, var, training=norm.training, momentum=momentum, eps=norm.eps)


class Branches(nn.Module):
    """Both branches of one net.

    Args:
        public: the plain model.
        private: the one with passport layers; shares the public one's weights.
        own: name to module of all that the private branch does not share.
    """

    def __init__(self, public: nn.Module, private: nn.Module, own: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.public, self.private = public, private
        self._own = dict(own)

    def forward(self, x: Tensor) -> Tensor:
        """What the public branch answers."""
        return self.public(x)  # type: ignore[no-any-return]

    @property
    def passports(self) -> dict[str, PassportNorm]:
        """Passport layers by the name of the layer whose weights they use, in the form's order."""
        return {name: module for name, module in self._own.items() if isinstance(module, PassportNorm)}

    def raw_scales(self) -> Tensor:
        """The raw scales of all passport layers, laid end to end; their signs are the signature."""
        return torch.cat([layer.raw()[0] for layer in self.passports.values()])

    def secrets(self) -> dict[str, Tensor]:
        """What the private branch has of its own, passports apart: bottlenecks, scales, shifts and statistics."""
        return {
            f"{name}.{part}": value
            for name, module in self._own.items()
            for part, value in module.state_dict().items()
            if not part.endswith("num_batches_tracked")
        }

    def bottlenecks(self) -> Iterator[nn.Module]:
        """The bottlenecks of all passport layers."""
        return (layer.mlp for layer in self.passports.values() if layer.mlp is not None)


def branches(model: nn.Module, plan: Blocks, form: Form, passports: Mapping[str, Tensor]) -> Branches:
    """A model with a private branch beside it; bottlenecks are initialised by torch's global generator.

    Args:
        model: becomes the public branch; its layers are shared, not copied.
        plan: the blocks of the task's architecture, by whose names everything is found.
        form: what the private branch is like.
        passports: layer name to the passports of scale and shift, float32 of shape (2, *the layer's input).

    Raises:
        Unreadable: the model has no such layers, or of other shapes.
    """
    own: dict[str, nn.Module] = {}
    replaced: dict[str, nn.Module] = {}
    for name in form.layers:
        layer, place = _weighted(model, name, passports[name]), plan.norm_of[name]
        norm = None if place is None else _bare(_at(model, place), layer, form)
        mlp = bottleneck(layer.weight.shape[0]) if form.mlp else None
        made = PassportNorm(layer, norm, mean_patch(layer, passports[name]), mlp).to(layer.weight.device)
        own[name] = made
        # A layer without a normalization is followed by its passport layer.
        replaced[name if place is None else place] = nn.Sequential(layer, made) if place is None else made
    if form.statistics == "separate":
        for place in plan.behind(form.layers[0]):
            if place not in replaced:
                replaced[place] = own[place] = copy.deepcopy(_at(model, place))
    return Branches(model, sharing(model, replaced), own)


def insert(suspect: nn.Module, plan: Blocks, form: Form, passports: Mapping[str, Tensor], private: Tensor) -> Branches:
    """The owner's private branch inside a suspect, in evaluation mode; arguments and errors as for `branches`.

    Args:
        private: the tensors of `Branches.secrets`, laid end to end.
    """
    made = branches(suspect, plan, form, passports).eval()
    there = made.secrets()
    if sum(value.numel() for value in there.values()) != private.numel():
        raise Unreadable("the suspect's layers are not those that the private branch was made for")
    with torch.no_grad():
        for name, value in models.parted(private, there).items():
            there[name].copy_(value)
    return made


def bottleneck(channels: int) -> nn.Sequential:
    """Two linear layers without bias, C to C / 4 to C; C * C / 2 parameters where 4 divides C."""
    narrow = max(1, channels // REDUCTION)
    return nn.Sequential(
        nn.Linear(channels, narrow, bias=False), nn.LeakyReLU(SLOPE), nn.Linear(narrow, channels, bias=False)
    )


def raw_scale(model: nn.Module, layer: str, passports: Tensor) -> Tensor:
    """The raw scale that a layer of any model makes of passports (2, …), float32 of shape (C,).

    Raises:
        Unreadable: the model has no such layer, or one that does not take such passports.
    """
    return raw_of(_weighted(model, layer, passports), passports)[0].detach()


def raw_of(layer: nn.Module, passports: Tensor) -> Tensor:
    """What a layer's weights make of passports: the mean of its answers over positions.

    Args:
        layer: convolution or linear.
        passports: (P, *the layer's input).

    Returns:
        float32 of shape (P, C), on the layer's device; differentiable in the passports.
    """
    module: Any = layer
    return _answered(layer, mean_patch(layer, passports).to(module.weight.device))


def mean_patch(layer: nn.Module, passports: Tensor) -> Tensor:
    """By what a layer's flattened weights are multiplied to give the mean of its answers to the passports.

    The mean over positions of a convolution is linear in its input: one patch of the weights' size holds all that
    matters of a passport, so that no convolution is computed.

    Args:
        layer: convolution or linear.
        passports: (P, *the layer's input).

    Returns:
        float32 of shape (P, D), D the layer's fan-in.
    """
    module: Any = layer
    if isinstance(layer, nn.Linear):
        # A copy, because what is made of it may be written into.
        return passports.float().clone()
    x, flat = passports.float(), isinstance(layer, nn.Conv1d)
    arguments = [module.kernel_size, module.dilation, module.padding, module.stride]
    if flat:
        x = x.unsqueeze(2)
        arguments = [(one, *own) for one, own in zip((1, 1, 0, 1), arguments, strict=True)]
    return F.unfold(x, *arguments).mean(2)


def with_groups(model: nn.Module) -> nn.Module:
    """The model with group normalizations in the place of all batch normalizations, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            groups = nn.GroupNorm(max(1, module.num_features // GROUP), module.num_features)
            setattr(model.get_submodule(parent), child, groups.to(module.weight.device))
    return model


def _answered(layer: nn.Module, patches: Tensor) -> Tensor:
    module: Any = layer
    with torch.autocast(module.weight.device.type, enabled=False):
        bias = None if module.bias is None else module.bias.float()
        raw: Tensor = F.linear(patches, module.weight.flatten(1).float(), bias)
        return raw


def _bare(norm: nn.Module, layer: Any, form: Form) -> nn.Module:
    if form.statistics == "shared":
        return BorrowedNorm(norm) if isinstance(norm, NORMALIZATIONS) else nn.Identity()
    if isinstance(norm, nn.GroupNorm):
        return nn.GroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps, affine=False)
    kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    # What a suspect has there may be anything, a merged normalization too: the owner's statistics are what counts.
    eps = norm.eps if isinstance(norm, NORMALIZATIONS) else EPS
    return kind(layer.weight.shape[0], eps=eps, affine=False)


def _weighted(model: nn.Module, name: str, passports: Tensor) -> Any:
    found: Any = _at(model, name)
    if not isinstance(found, _WEIGHTED):
        raise Unreadable(f"layer {name!r} is a {type(found).__name__}, neither a convolution nor linear")
    read = found.weight.shape[1] * getattr(found, "groups", 1)
    if found.weight.dim() != passports.dim() or read != passports.shape[1] or read != found.weight.shape[1]:
        raise Unreadable(f"layer {name!r} reads {read} channels, the passports have {tuple(passports.shape[1:])}")
    return found


def _at(model: nn.Module, name: str) -> nn.Module:
    try:
        return models.layer(model, name)
    except KeyError as error:
        raise Unreadable(str(error.args[0])) from error
