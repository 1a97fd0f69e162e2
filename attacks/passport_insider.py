"""Forged private branches by those who know the owner's bits (Fan et al. 2019), and what all such forgeries share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import models
from attacks.passports.algebra import last_weights, projected
from attacks.passports.forging import around
from bench.attack import Data, Forgery, InsiderForgery
from bench.defense import Defense
from bench.effort import Effort, of_training
from bench.parameters import require_training
from bench.recipe import Recipe
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from defenses.passports import key as passport_key
from defenses.passports.branches import Branches
from defenses.passports.scheme import PassportScheme
from models.blocks import sharing


@dataclass(frozen=True)
class PassportForgery(InsiderForgery):
    """What those share that train a private branch of their own on the attacker's labels, the weights frozen.

    The signature that they claim is what the signs of the raw scales are in the end, so that it agrees with the forged
    passports in each bit.

    Attributes:
        statistics: of the passport layers' normalizations: `kept` as they are, or `moving` with the training, as in the
            sources, where the private branch has its own. Those that it shares with the model stay.
        epochs: of that training.
        learning_rate: the peak of the task's schedule.
    """

    family: ClassVar[str] = "passport-forging"
    data: ClassVar[Data] = "labels"

    statistics: Literal["kept", "moving"] = "kept"
    epochs: int = 100
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        require_training(self.epochs, self.learning_rate, least=0)

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with passports."""
        if reason := super().against(scheme):
            return reason
        return None if isinstance(scheme, PassportScheme) else f"{scheme.name} has no private branch"

    def effort(self, task: Task) -> Effort:
        """One training on the labelled inputs."""
        return of_training(task, task.sizes.labelled, self.epochs)

    def free(self, *parts: str) -> list[str]:
        """What is trained of a `FreeScales` or `FreePassports`: the values, these parts, and statistics that move."""
        return ["values", *parts, *(["norms"] if self.statistics == "moving" else [])]

    def recipe(self, trainer: AttackerTrainer, **changes: float) -> Recipe:
        """The task's, without weight decay: what is trained here are no weights, and takes large steps."""
        return trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate, weight_decay=0.0, **changes)


class Scaled(nn.Module):
    """Multiplies by a scale and adds a shift, one of each for a channel.

    Args:
        norm: what comes before, without scale and shift of its own; None for nothing.
        values: (2, C): the scale, then the shift.
    """

    def __init__(self, norm: nn.Module | None, values: nn.Parameter) -> None:
        super().__init__()
        self.norm, self.values = norm, values

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same shape."""
        y = x if self.norm is None else self.norm(x)
        scale, shift = self.values.view(2, *((1, -1) + (1,) * (x.dim() - 2)))
        moved: Tensor = y * scale + shift
        return moved


class FreeScales(nn.Module):
    """A private branch whose scales and shifts are parameters.

    Args:
        net: both branches; not changed.
        values: by passport layer, (2, C).
    """

    def __init__(self, net: Branches, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Registered first, so that the parameters have their names here.
        self.values = nn.ParameterList([nn.Parameter(value.clone()) for value in values.values()])
        self.norms = own_norms(net)
        places = {id(module): place for place, module in net.private.named_modules()}
        scaled: dict[str, nn.Module] = {
            places[id(layer)]: Scaled(layer.norm, value)
            for value, layer in zip(self.values, net.passports.values(), strict=True)
        }
        self.net = sharing(net.private, scaled)

    def forward(self, x: Tensor) -> Tensor:
        """What the branch answers."""
        return self.net(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PassportReverse(PassportForgery):
    """Scales of 1 or -1 by the owner's bits, some of them turned, and shifts of 0; then both are trained.

    In the end passports are found whose raw values these are, by projection of random ones; and where the scheme has
    a bottleneck, one that leaves them as they are.

    Attributes:
        flipped: share of the signs that are turned, in [0, 1].
    """

    name: ClassVar[str] = "passport-reverse"
    source: ClassVar[str] = "Fan et al. 2019, NeurIPS, fake2 of the released code"
    part: ClassVar[str] = "signature"

    flipped: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self.flipped)

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Train scales and shifts, and make passports of them."""
        assert target.part is not None
        scheme, task, stream = target.scheme, trainer.task, trainer.stream
        passports = passport_key.uniform(scheme.shapes(task), stream.child("passports")).to(trainer.device)
        net = around(target.copy(), scheme.passports_of(passports, task), scheme, task, stream)
        turned = turned_over(target.part, self.flipped, stream)
        parts = turned.float().to(trainer.device).mul(2).sub(1).split(list(scheme.widths(task).values()))
        start = {name: torch.stack([sign, sign * 0]) for name, sign in zip(net.passports, parts, strict=True)}
        free = FreeScales(net, start)
        trainer.fit(free, trainer.labelled, self.recipe(trainer), trainable=self.free())
        wanted = {name: value.detach() for name, value in zip(net.passports, free.values, strict=True)}
        made = realised(net, scheme.passports_of(passports, task), wanted)
        return claimed(net, made, scheme, trainer, target.part)


def realised(net: Branches, passports: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[Tensor]:
    """Give a private branch wanted scales and shifts, in place: by its passports, which are projected.

    Where there is a bottleneck its first layer stays, and its last one is chosen so that it leaves what the passports
    come to as it is, or rather takes it to what was wanted.

    Args:
        net: both branches.
        passports: by layer, (2, *the layer's input); from which the new ones differ least.
        wanted: by layer, (2, C).

    Returns:
        The new passports, in the order of the layers.
    """
    made = []
    for name, layer in net.passports.items():
        made.append(projected(models.layer(net.public, name), passports[name], wanted[name]))
        layer.renew(made[-1])
        if isinstance(layer.mlp, nn.Sequential):
            with torch.no_grad():
                *_, last = layer.mlp
                last.weight.copy_(last_weights(layer.mlp[:-1](layer.raw()), wanted[name]))  # type: ignore[operator]
    return made


def claimed(
    net: Branches, passports: list[Tensor], scheme: PassportScheme, trainer: AttackerTrainer, bits: Tensor
) -> Forgery:
    """The forgery on a net's public branch, with the signature that its raw scales have.

    Args:
        net: both branches, with those passports; in evaluation mode afterwards.
        passports: in the order of the layers.
        scheme: whose key is forged.
        trainer: the attacker's.
        bits: the owner's, (n,) in {0, 1}; a figure says how many differ.
    """
    signature = (net.eval().raw_scales() > 0).long().cpu()
    drawn = scheme.draw(trainer.task, trainer.stream.child("key", scheme.name))
    flat = torch.cat([one.detach().flatten() for one in passports]).cpu()
    changed = float((signature != bits).float().mean())
    return Forgery(scheme.forged(drawn, net, signature, flat), net.public, {"bits_changed": changed})


def own_norms(net: Branches) -> nn.ModuleList:
    """The normalizations of the passport layers that the private branch shares with nobody."""
    there = (layer.norm for layer in net.passports.values())
    return nn.ModuleList([norm for norm in there if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)])


def turned_over(bits: Tensor, share: float, stream: Stream) -> Tensor:
    """The bits (n,) with a share of them turned, rounded to whole bits; which ones says the stream's child `flips`."""
    chosen = stream.child("flips").numpy().permutation(len(bits))[: round(share * len(bits))]
    turned = bits.clone()
    turned[torch.from_numpy(chosen)] = 1 - turned[torch.from_numpy(chosen)]
    return turned


def require_share(flipped: float) -> None:
    """Refuse what is no share of the bits.

    Raises:
        ValueError: with what was given.
    """
    if not 0 <= flipped <= 1:
        raise ValueError(f"expected flipped in [0, 1], got {flipped}")
