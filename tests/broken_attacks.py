"""Attacks that break the contract, each in its own way, and sound ones that hold to it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.attack import AmbiguityAttack, DecoyAttack, Forgery, InsiderAttack, InsiderForgery, RemovalAttack
from bench.bundle import Bundle
from bench.key import Key
from bench.stage import Stage


@dataclass(frozen=True)
class Quiet(RemovalAttack):
    """What the attacks below have in common."""

    name: ClassVar[str] = "quiet"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"

    def run(self, target, trainer):
        yield 1.0, target.copy()


@dataclass(frozen=True)
class SoundAttack(Quiet):
    """Leaves a copy as it is."""


@dataclass(frozen=True)
class NoUnit(Quiet):
    """No unit."""

    strength_unit: ClassVar[str] = ""


@dataclass(frozen=True)
class NoClass(Quiet):
    """No such class."""

    attack_class = "sideways"


@dataclass(frozen=True)
class SecretInsider(Quiet):
    """Calls itself an insider and is handed nothing."""

    knowledge = "insider"


@dataclass(frozen=True)
class BadLimit(Quiet):
    """A parameter that no file can hold."""

    limit: float = float("inf")


@dataclass(frozen=True)
class YieldsNothing(Quiet):
    """No surrogate."""

    def run(self, target, trainer):
        yield from ()


@dataclass(frozen=True)
class YieldsNaN(Quiet):
    """A surrogate that is none."""

    def run(self, target, trainer):
        model = target.copy()
        nn.init.constant_(model.conv1.weight, float("inf"))
        yield 1.0, model


@dataclass(frozen=True)
class TakesMore(Quiet):
    """Takes labels that it did not declare."""

    def run(self, target, trainer):
        yield float(len(trainer.labelled)), target.copy()


@dataclass(frozen=True)
class GlobalAttack(Quiet):
    """Draws from the global generator."""

    def run(self, target, trainer):
        model = target.copy()
        nn.init.normal_(next(model.parameters()))
        yield 1.0, model


@dataclass(frozen=True)
class InPlace(Quiet):
    """Works on the protected model itself."""

    def run(self, target, trainer):
        nn.init.zeros_(next(target.module.parameters()))
        yield 1.0, target.module


@dataclass(frozen=True)
class EditsTheRelease(Quiet):
    """Changes what was released."""

    knowledge = "scheme"

    def run(self, target, trainer):
        target.release.tensors["hint"].zero_()
        yield 1.0, target.copy()


@dataclass(frozen=True)
class ShufflesLabels(Quiet):
    """Changes the attacker's labels in place."""

    data = "labels"

    def run(self, target, trainer):
        trainer.labelled.y.fill_(0)
        yield 1.0, target.copy()


@dataclass(frozen=True)
class DeclaresMore(Quiet):
    """Declares labels and takes inputs."""

    data = "labels"

    def run(self, target, trainer):
        yield float(len(trainer.inputs)), target.copy()


@dataclass(frozen=True)
class Wandering(Quiet):
    """Goes to and fro."""

    def run(self, target, trainer):
        for strength in (1.0, 0.5, 0.7):
            yield strength, target.copy()


@dataclass(frozen=True)
class Unstorable(Quiet):
    """Puts in a layer that cannot be described."""

    def run(self, target, trainer):
        model = target.copy()
        first = next(name for name, _ in model.named_children())
        setattr(model, first, nn.Sequential(getattr(model, first), nn.Tanh()))
        yield 1.0, model


@dataclass(frozen=True)
class OnlyVgg(Quiet):
    """Knows one architecture by heart."""

    def run(self, target, trainer):
        model = target.copy()
        nn.init.zeros_(model.conv6.weight)
        yield 1.0, model


@dataclass(frozen=True)
class Peeks(Quiet):
    """Declares black-box access and copies the model behind the target's back."""

    access = "black-box"

    def run(self, target, trainer):
        model = trainer.new_model()
        model.load_state_dict(target._module.state_dict())
        yield 1.0, model


@dataclass(frozen=True)
class PeeksQuietly(Peeks):
    """Opens what it should only ask, where it can, and says nothing of it."""

    def run(self, target, trainer):
        model = trainer.new_model()
        with contextlib.suppress(RuntimeError):
            model.load_state_dict(target._module.state_dict())
        yield 1.0, model


@dataclass(frozen=True)
class NoAnswers(Quiet):
    """No such kind of answers."""

    answers = "hints"


@dataclass(frozen=True)
class AsksForMore(Quiet):
    """Asks for probabilities where it declared labels."""

    access = "black-box"
    data = "inputs"
    answers = "labels"

    def run(self, target, trainer):
        target.answers(trainer.inputs, "probabilities")
        yield 1.0, trainer.new_model()


@dataclass(frozen=True)
class Opened(Stage):
    """Opens the protected model."""

    name: ClassVar[str] = "opened"
    side: ClassVar[str] = "attacker"
    access: ClassVar[str] = "white-box"

    def run(self, trainer, target):
        return Bundle({"model": target.copy()})


@dataclass(frozen=True)
class OpensByStage(Quiet):
    """Declares black-box access and has a stage open the model."""

    access = "black-box"

    def stages(self):
        return (Opened(),)

    def run(self, target, trainer):
        yield 1.0, trainer.stage(Opened()).models["model"]


@dataclass(frozen=True)
class Holds(InsiderAttack):
    """Holds the message, and yields a copy."""

    name: ClassVar[str] = "holds"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "bits"
    part: ClassVar[str] = "message"

    def run(self, target, trainer):
        yield float(len(target.part)), target.copy()


@dataclass(frozen=True)
class SoundForgery(AmbiguityAttack):
    """Draws a key of the scheme."""

    name: ClassVar[str] = "sound-forgery"
    family: ClassVar[str] = "test"

    def key(self, target, trainer):
        return target.scheme.draw(trainer.task, trainer.stream.child("forger"))

    def forge(self, target, trainer):
        return Forgery(self.key(target, trainer), target.copy())


@dataclass(frozen=True)
class ForgesInside(InsiderForgery):
    """Claims the message that it holds."""

    name: ClassVar[str] = "forges-inside"
    family: ClassVar[str] = "test"
    part: ClassVar[str] = "message"

    def forge(self, target, trainer):
        return Forgery(Key({"message": target.part}), target.copy())


@dataclass(frozen=True)
class SecretForger(SoundForgery):
    """Calls itself an insider and is handed nothing."""

    knowledge = "insider"


@dataclass(frozen=True)
class Partless(ForgesInside):
    """Does not say which part it holds."""

    part: ClassVar[str] = ""


@dataclass(frozen=True)
class Nameless(SoundForgery):
    """No name."""

    name: ClassVar[str] = "Sound Forgery"


@dataclass(frozen=True)
class BadForgeryLimit(SoundForgery):
    """A parameter that no file can hold."""

    limit: float = float("nan")


@dataclass(frozen=True)
class ForgesNaN(SoundForgery):
    """Claims a model that is none."""

    def forge(self, target, trainer):
        model = target.copy()
        nn.init.constant_(model.head.bias, float("nan"))
        return Forgery(self.key(target, trainer), model)


@dataclass(frozen=True)
class GlobalForgery(SoundForgery):
    """Draws from the global generator."""

    def key(self, target, trainer):
        return Key({"message": torch.randint(0, 2, (64,))})


@dataclass(frozen=True)
class ForgesInPlace(SoundForgery):
    """Puts its mark into the protected model."""

    def forge(self, target, trainer):
        nn.init.ones_(target.module.hidden.weight)
        return Forgery(self.key(target, trainer), target.module)


@dataclass(frozen=True)
class ForgesWithLess(SoundForgery):
    """Declares data that it does not use."""

    data = "inputs"


@dataclass(frozen=True)
class HalfAKey(SoundForgery):
    """Forgets the message."""

    def key(self, target, trainer):
        return Key({"something": "else"})


@dataclass(frozen=True)
class FewDecoys(DecoyAttack):
    """Draws a few."""

    name: ClassVar[str] = "few-decoys"
    family: ClassVar[str] = "test"
    decoys: int = 100
