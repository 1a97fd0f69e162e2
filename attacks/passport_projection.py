"""Passports in closed form, without data or training: whatever scales the model has, others' passports make them too.

Raw scales are linear in the passports (`attacks.passports.forging`), and a channel before a batch normalization has no
sign of its own: so neither the fidelity of a private branch nor its signature is hard to come by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.passports import forging as passport_forging
from attacks.passports.forging import SCALE, SHIFT, ForgedBranch
from bench.attack import AmbiguityAttack, Forgery
from bench.defense import Defense
from bench.effort import Effort
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from defenses.passports.scheme import PassportScheme

Bits = Literal["read-off", "chosen", "hash"]


@dataclass(frozen=True)
class PassportProjection(AmbiguityAttack):
    """Solve for a private branch that is the public one.

    Without a bottleneck random passports are moved, by least squares, until their raw scales and shifts are those of
    the published normalizations. With one the raw values may be anything: its second layer is solved for instead. The
    claim is on the protected model itself where no channel was flipped, else on the forger's copy, which is the same
    function bit for bit.

    Attributes:
        bits: the signature. `read-off` takes the signs that the raw scales have: without a bottleneck those of the
            published scales. `chosen` takes those of the key that the forger drew, `hash` what SHAKE-256 makes of the
            passports of scales, for schemes that ask for such a bond: where a sign is another one, the forger flips
            the channel, and with `chosen` and a bottleneck it need not even do that.
    """

    name: ClassVar[str] = "passport-projection"
    family: ClassVar[str] = "passport-forging"

    bits: Bits = "chosen"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with passports, and batch normalization where channels have to be flipped."""
        reason = passport_forging.against(scheme)
        if reason or self.bits == "read-off" or (isinstance(scheme, PassportScheme) and scheme.norm == "batch"):
            return reason
        if self.bits == "chosen" and isinstance(scheme, PassportScheme) and scheme.bottlenecked():
            return None
        return (
            f"bits {self.bits!r} need single channels flipped, which a group normalization does not make up for: its "
            "channels share their statistics"
        )

    def effort(self, task: Task) -> Effort:
        """No input is ever passed through a model."""
        del task
        return Effort()

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """A branch that does as the public one does, with the wanted bits."""
        forged = ForgedBranch(target, trainer.task, trainer.stream)
        for name, bits in forged.by_layer(forged.drawn_bits()).items():
            if not forged.form.mlp:
                forged.project(name, SCALE, forged.published(name).scale)
            elif self.bits == "chosen":
                raw = forged.raw(name)[SCALE]
                forged.project(name, SCALE, (2.0 * bits - 1.0) * raw.abs().clamp(min=forged.scheme.margin))
        wanted = self._bits(forged)
        signs = forged.by_layer(forged.signs())
        for name, bits in forged.by_layer(wanted).items():
            forged.flip(name, bits != signs[name])
            if forged.form.mlp:
                forged.bring(name, forged.published(name))
            else:
                forged.project(name, SHIFT, forged.published(name).shift)
        return Forgery(forged.key(wanted), forged.model, {**forged.figures(wanted), "residual": residual(forged)})

    def _bits(self, forged: ForgedBranch) -> Tensor:
        if self.bits == "chosen":
            return forged.drawn_bits()
        return forged.hashed_bits() if self.bits == "hash" else forged.signs()


def residual(forged: ForgedBranch) -> float:
    """The largest difference between the two branches' scales or shifts; 0 but for rounding where the forgery is exact.

    More where a layer reads fewer numbers than it has channels, and no bottleneck makes up for that.
    """
    found = 0.0
    for name in forged.form.layers:
        layer = forged.layer(name)
        made = layer.raw() if layer.mlp is None else layer.mlp(layer.raw())
        found = max(found, float((made.detach().cpu().double() - torch.stack(forged.published(name))).abs().max()))
    return found
