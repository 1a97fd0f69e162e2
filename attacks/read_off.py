"""Claiming what a model happens to say: the uniform part of a key, read off after the fact (Craver et al. 1998)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks.forging.offers import ReadsOff, refusal
from bench.attack import AmbiguityAttack, Forgery
from bench.defense import Defense
from bench.effort import Effort
from bench.key import Key
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class ReadOff(AmbiguityAttack):
    """Draw a key as an owner would, and call its uniform part whatever the protected model says under the rest of it.

    A message under a drawn projection, dither, window or order of layers; the answers to drawn inputs. Everything
    agrees, since it was read off, on any model whatsoever: the claim is on the protected model itself.
    """

    name: ClassVar[str] = "read-off"
    family: ClassVar[str] = "read-off"
    source: ClassVar[str] = "Craver, Memon, Yeo and Yeung 1998, IEEE JSAC 16(4) (invertible marks)"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose uniform part can be read off."""
        if reason := refusal(scheme, ReadsOff, "a uniform part that a finished model says"):
            return reason
        assert isinstance(scheme, ReadsOff)
        return scheme.illegible()

    def effort(self, task: Task) -> Effort:
        """A few answers at most."""
        del task
        return Effort()

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """The key, on a copy of the protected model; `redrawn` is the share of symbols that are not as drawn."""
        scheme, task, model = target.scheme, trainer.task, target.copy()
        drawn = scheme.draw(task, trainer.stream.child("key", scheme.name))
        key = scheme.read_off(scheme.completed(drawn, model, task), target, task)
        return Forgery(key, model, {"redrawn": _changed(drawn, key, scheme.uniform)})


def _changed(drawn: Key, key: Key, uniform: tuple[str, ...]) -> float:
    pairs = [(drawn.drawn[name], key.drawn[name]) for name in uniform]
    told = [(one != other).flatten() for one, other in pairs if isinstance(one, Tensor) and isinstance(other, Tensor)]
    return sum(float(one.sum()) for one in told) / sum(len(one) for one in told)
