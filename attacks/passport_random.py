"""Passports drawn at random, with the bits that they happen to show (Fan et al. 2019, section 4.2, fake_1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attacks.passports import forging as passport_forging
from attacks.passports.forging import ForgedBranch
from bench.attack import AmbiguityAttack, Forgery
from bench.defense import Defense
from bench.effort import Effort
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class PassportRandom(AmbiguityAttack):
    """Draw passports as an owner would, and call the signs of their raw scales the signature.

    The claim is on the protected model itself, with its statistics in the private branch, and a freshly initialised
    bottleneck where the scheme has one. All bits are right, since they were read off; nothing else is.
    """

    name: ClassVar[str] = "passport-random"
    family: ClassVar[str] = "passport-forging"
    source: ClassVar[str] = "Fan et al. 2019, NeurIPS, fake_1"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with passports."""
        return passport_forging.against(scheme)

    def effort(self, task: Task) -> Effort:
        """No input is ever passed through a model."""
        del task
        return Effort()

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Random passports, with their signs."""
        forged = ForgedBranch(target, trainer.task, trainer.stream)
        bits = forged.signs()
        return Forgery(forged.key(bits), forged.model, forged.figures(bits))
