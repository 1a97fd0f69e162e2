"""Plugins that misbehave, each in its own way; tests put this folder into OWNBENCH_PLUGINS."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.attack import AmbiguityAttack, Forgery, InsiderAttack, Knowledge, RemovalAttack
from bench.defense import Defense, Protected
from bench.evidence import Evidence
from bench.key import Key


@dataclass(frozen=True)
class Raises(RemovalAttack):
    """Raises while it attacks."""

    name: ClassVar[str] = "raises"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"

    def run(self, target, trainer):
        """Yield once, then raise."""
        yield 0.0, target.copy()
        raise RuntimeError("the attack gave up")


@dataclass(frozen=True)
class NaN(RemovalAttack):
    """Returns weights that are not numbers."""

    name: ClassVar[str] = "nan"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"

    def run(self, target, trainer):
        """Spoil the head."""
        model = target.copy()
        with torch.no_grad():
            model.head.weight[0, 0] = float("nan")
        yield 1.0, model


@dataclass(frozen=True)
class NeverEnds(RemovalAttack):
    """Never ends."""

    # It is tried on what a scheme protects alone: each job of it costs a process.
    knowledge: ClassVar[Knowledge] = "scheme"
    name: ClassVar[str] = "never-ends"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"

    def run(self, target, trainer):
        """Wait for ever."""
        while True:
            time.sleep(0.1)
        yield 1.0, target.copy()


@dataclass(frozen=True)
class Exits(RemovalAttack):
    """Takes its process down."""

    # As above.
    knowledge: ClassVar[Knowledge] = "scheme"
    name: ClassVar[str] = "exits"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"

    def run(self, target, trainer):
        """Leave without a word."""
        os._exit(3)
        yield 1.0, target.copy()


@dataclass(frozen=True)
class SysExits(RemovalAttack):
    """Calls sys.exit."""

    name: ClassVar[str] = "sys-exits"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"

    def run(self, target, trainer):
        """Leave politely."""
        raise SystemExit(4)
        yield 1.0, target.copy()


@dataclass(frozen=True)
class SpoiltProtect(Defense):
    """A defense whose training fails."""

    name: ClassVar[str] = "spoilt"
    family: ClassVar[str] = "test"
    uniform: ClassVar[tuple[str, ...]] = ("bits",)

    def draw(self, task, stream):
        """Bits."""
        return Key({"bits": stream.bits(8)})

    def protect(self, trainer, key):
        """Fail."""
        raise ValueError("no such luck")


@dataclass(frozen=True)
class Picky(Defense):
    """A defense that does not apply to images; harmless otherwise."""

    name: ClassVar[str] = "picky"
    family: ClassVar[str] = "test"
    uniform: ClassVar[tuple[str, ...]] = ("bits",)

    def applies_to(self, task):
        """Only points."""
        return f"needs points, {task.info.name} has {task.kind}"


@dataclass(frozen=True)
class FreeMessage(AmbiguityAttack):
    """Reads the message off the protected model: the classic forgery of a linear mark."""

    name: ClassVar[str] = "free-message"
    family: ClassVar[str] = "test"

    def against(self, scheme):
        """Only linear marks can be read like this."""
        return None if scheme.key_kind == "linear" else f"needs a linear key, {scheme.name} has {scheme.key_kind}"

    def forge(self, target, trainer):
        """Draw any key of the scheme and claim what the model happens to say under it."""
        import models

        key = target.scheme.draw(trainer.task, trainer.stream.child("forger"))
        weights = models.layer(target.module, key.text("layer")).weight.mean(0).flatten()
        message = (key.tensor("projection") @ weights >= 0).long()
        return Forgery(Key({**key.drawn, "message": message}), target.copy())


@dataclass(frozen=True)
class Insider(InsiderAttack):
    """Holds the projection, and changes just what it reads."""

    name: ClassVar[str] = "insider"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"
    part: ClassVar[str] = "projection"

    def run(self, target, trainer):
        """Put the mean filter to random signs under the projection."""
        model = target.copy()
        projection = target.part
        wanted = trainer.stream.child("signs").bits(len(projection)).float() * 2 - 1
        change = torch.linalg.lstsq(projection, wanted).solution
        with torch.no_grad():
            weight = model.conv6.weight
            weight += (change - weight.mean(0).flatten()).view(1, *weight.shape[1:])
        yield 1.0, model


@dataclass(frozen=True)
class OtherTask(RemovalAttack):
    """Tunes to the dataset's second task with labels of its own making."""

    name: ClassVar[str] = "other-task"
    family: ClassVar[str] = "test"
    data = "labels"
    strength_unit: ClassVar[str] = "epochs"
    changes_task: ClassVar[bool] = True

    def run(self, target, trainer):
        """Halve the labels."""
        from bench.training import Split

        labelled = trainer.labelled
        model = target.copy()
        trainer.fit(model, Split(labelled.x, labelled.y // 2), trainer.recipe(epochs=20))
        yield 20.0, model


@dataclass(frozen=True)
class Spying(RemovalAttack):
    """Looks for the key in all that it is handed and in its whole process, and reports what it finds."""

    name: ClassVar[str] = "spying"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"

    def run(self, target, trainer):
        """Raise with the number of keys and evidence found."""
        import gc

        found = [type(one).__name__ for one in gc.get_objects() if type(one) in (Key, Evidence, Protected)]
        yield float(len(found)), target.copy()
