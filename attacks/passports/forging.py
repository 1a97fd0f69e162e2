"""What forgers of passports share: a private branch made after the fact, and passports for wanted scales and shifts.

For given weights the raw scale is linear in the passport, so that the passport for any wanted scale is a matter of
least squares: nothing is trained, and no data is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import models
from attacks.passports.algebra import projected
from bench.key import Key
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from defenses.passports import key as passport_key
from defenses.passports.branches import Branches, Form, PassportNorm, branches
from defenses.passports.scheme import PassportScheme, plan

# Position of the scale's and of the shift's passport.
SCALE, SHIFT = 0, 1
RELEASED = "passports"
# How much larger than the solution, in the root mean square, is what a forged bottleneck makes of other passports.
NOISE = 10.0


class Affine(NamedTuple):
    """What a branch multiplies normalized channels by and adds to them, each of shape (C,)."""

    scale: Tensor
    shift: Tensor


class ForgedBranch:
    """A private branch beside a copy of the published model, with a key that the forger draws as an owner would.

    Passports start as uniform numbers, bottlenecks freshly initialised, statistics as the published ones.

    Args:
        target: the protected model, its release and the scheme.
        task: of the model.
        stream: of the forger.
    """

    def __init__(self, target: Target, task: Task, stream: Stream) -> None:
        self.scheme: PassportScheme = target.scheme
        self.task = task
        self.model = target.copy().eval()
        self.form: Form = self.scheme.form(task)
        self.plan = plan(task)
        self.released = target.release.tensors.get(RELEASED)
        self._drawn = self.scheme.draw(task, stream.child("key", self.scheme.name))
        laid = self._drawn.drawn.get("passports")
        if not isinstance(laid, Tensor):
            # An owner's are made of images, which a forger without data has not.
            laid = passport_key.uniform(self.scheme.shapes(task), stream.child("passports"))
        self.passports = self.scheme.passports_of(laid.clone(), task)
        self.net = around(self.model, self.passports, self.scheme, task, stream)
        self.flipped = 0

    # What is there

    def drawn_bits(self) -> Tensor:
        """The signature of the drawn key, of shape (n,) in {0, 1}."""
        bits: Tensor = self._drawn.tensor("signature")
        return bits

    def by_layer(self, bits: Tensor) -> dict[str, Tensor]:
        """Bits of all layers, laid end to end, by layer."""
        widths = self.scheme.widths(self.task)
        return dict(zip(widths, bits.split(list(widths.values())), strict=True))

    def layer(self, name: str) -> PassportNorm:
        """The passport layer behind a layer."""
        return self.net.passports[name]

    def raw(self, name: str) -> Tensor:
        """The raw scale and shift, float64 of shape (2, C), on the CPU."""
        raw: Tensor = self.layer(name).raw().detach().cpu().double()
        return raw

    def signs(self) -> Tensor:
        """The bits in the signs of the raw scales, of shape (n,) in {0, 1}."""
        return (self.net.raw_scales().detach().cpu() > 0).long()

    def hashed_bits(self) -> Tensor:
        """SHAKE-256 over the bytes of all passports of scales, of shape (n,) in {0, 1}."""
        return hashed(torch.cat([one[SCALE].flatten() for one in self.passports.values()]), len(self.signs()))

    def published(self, name: str) -> Affine:
        """The public branch's scale and shift behind a layer, float64 on the CPU; 1 and 0 without normalization."""
        norm = self._norm(name)
        if norm is None:
            ones = torch.ones(self.raw(name).shape[1], dtype=torch.float64)
            return Affine(ones, torch.zeros_like(ones))
        return Affine(norm.weight.detach().cpu().double(), norm.bias.detach().cpu().double())

    # What is forged

    def project(self, name: str, which: int, wanted: Tensor) -> None:
        """Move a passport as little as it takes for its raw values to be the wanted ones.

        `p + L^+ (wanted - L p - b)`: exact where the layer reads at least as many numbers as it has channels, else as
        near as least squares brings it.

        Args:
            name: of the layer.
            which: SCALE or SHIFT.
            wanted: float64 of shape (C,).
        """
        chosen = slice(which, which + 1)
        layer = models.layer(self.model, name)
        self.passports[name][chosen] = projected(layer, self.passports[name][chosen], wanted[None])
        self.layer(name).renew(self.passports[name])

    def bring(self, name: str, wanted: Affine) -> None:
        """Make the private branch multiply by the wanted scale and add the wanted shift.

        Without a bottleneck the passports are solved for. With one its second layer is, exactly where two channels or
        more are between its layers; with more of them it maps all else that comes of the first layer to noise, so that
        other passports in the forger's bottleneck answer hardly better than chance.
        """
        mlp: Any = self.layer(name).mlp
        if mlp is None:
            self.project(name, SCALE, wanted.scale)
            self.project(name, SHIFT, wanted.shift)
            return
        with torch.no_grad():
            hidden = mlp[1](mlp[0](self.layer(name).raw())).cpu().double()
            back = torch.linalg.pinv(hidden)
            solved, noise = torch.stack(wanted).T @ back.T, mlp[2].weight.cpu().double()
            noise *= NOISE * solved.square().mean().sqrt() / noise.square().mean().sqrt()
            mlp[2].weight.copy_(solved + noise - noise @ hidden.T @ back.T)

    def flip(self, name: str, channels: Tensor) -> None:
        """Change the sign of some of the model's own channels before their normalization, which makes up for it.

        The function stays, bit for bit. Only a batch normalization makes up for it: groups share their statistics.
        Nothing is done elsewhere.

        Args:
            name: of the layer.
            channels: bool of shape (C,).
        """
        norm, layer = self._norm(name), models.layer(self.model, name)
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            return
        with torch.no_grad():
            for turned in (layer.weight, layer.bias, norm.weight, norm.running_mean):
                if isinstance(turned, Tensor):
                    turned[channels.to(turned.device)] *= -1
        self.flipped += int(channels.sum())
        take_statistics(self.net, self.task, name)

    # What is claimed

    def key(self, bits: Tensor) -> Key:
        """The forged key, which claims these bits."""
        return self.scheme.forged(self._drawn, self.net, bits, models.joined(self.passports))

    def figures(self, bits: Tensor) -> dict[str, float]:
        """How well the forgery does by itself.

        `own_match` is the share of its bits that its passports show, `flipped` that of its channels that were flipped,
        and `cosine` is between its passports and released ones.
        """
        found = {"own_match": float((self.signs() == bits).double().mean()), "flipped": self.flipped / len(bits)}
        if self.released is not None:
            mine, theirs = models.joined(self.passports), self.released.cpu().flatten()
            found["cosine"] = float(torch.nn.functional.cosine_similarity(mine, theirs, dim=0))
        return found

    def _norm(self, name: str) -> Any:
        place = self.plan.norm_of[name]
        return None if place is None else models.layer(self.model, place)


def around(
    model: nn.Module, passports: Mapping[str, Tensor], scheme: PassportScheme, task: Task, stream: Stream
) -> Branches:
    """Both branches around a model, in evaluation mode; statistics that the private one has of its own are the model's.

    Args:
        model: becomes the public branch.
        passports: by layer.
        scheme: whose form the private branch has.
        task: of the model.
        stream: of the forger; a bottleneck's weights come from its child `bottlenecks`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream.child("bottlenecks").seed)
        net = branches(model, plan(task), scheme.form(task), passports)
    net.to(next(model.parameters()).device)
    for name in net.passports:
        take_statistics(net, task, name)
    return net.eval()


def take_statistics(net: Branches, task: Task, name: str) -> None:
    """Give the private branch's normalization behind a layer the public one's statistics, where it has its own."""
    own, place = net.passports[name].norm, plan(task).norm_of[name]
    if isinstance(own, nn.BatchNorm1d | nn.BatchNorm2d) and place is not None:
        # The public scale and shift are left out: the passport gives them.
        own.load_state_dict(models.layer(net.public, place).state_dict(), strict=False)


def hashed(passports: Tensor, count: int) -> Tensor:
    """The first bits of SHAKE-256 over the bytes of float32 numbers, int64 in {0, 1}."""
    digest = hashlib.shake_256(passports.float().numpy().tobytes()).digest((count + 7) // 8)
    return torch.from_numpy(np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:count].astype(np.int64))


def against(scheme: Any) -> str | None:
    """Why passports cannot be forged for a scheme: it has none."""
    if isinstance(scheme, PassportScheme):
        return None
    return f"needs a key of passports, {scheme.name} has {scheme.key_kind or 'none'}"
