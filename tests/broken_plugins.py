"""A sound defense, and for each rule of the contract some defenses that break it, each in one way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

import models
from bench.bundle import Bundle
from bench.defense import Defense, Protected
from bench.evidence import Evidence
from bench.hooks import Hooks
from bench.key import Key
from bench.statistics import binomial_tail
from bench.stream import Stream

HIDDEN = Stream(("broken", "global")).bits(64)


@dataclass(frozen=True)
class Sound(Defense):
    """Message bits in the signs of the first weights of the hidden layer."""

    name: ClassVar[str] = "sound"
    family: ClassVar[str] = "test"
    uniform: ClassVar[tuple[str, ...]] = ("message",)
    parts: ClassVar[tuple[str, ...]] = ("message",)
    key_kind = "linear"

    bits: int = 64

    def draw(self, task, stream):
        return Key({"message": stream.child("message").bits(self.bits)})

    def protect(self, trainer, key):
        def embed(model, step):
            flat = models.layer(model, "hidden").weight.data.view(-1)
            flat[: self.bits] = (2.0 * key.tensor("message") - 1) * flat[: self.bits].abs().clamp_min(0.01)

        return Protected(
            trainer.fit(trainer.new_model(), trainer.train, hooks=Hooks(after_step=embed)),
            key,
        )

    def read(self, suspect, key):
        weights = models.layer(suspect.module, "hidden").weight.detach().flatten()
        return int(((weights[: self.bits] > 0).long() == key.tensor("message")).sum())

    def verify(self, suspect, key, trainer):
        try:
            right = self.read(suspect, key)
        except KeyError as error:
            return Evidence.unreadable(str(error))
        return Evidence(right, binomial_tail(right, self.bits, 0.5))


@dataclass(frozen=True)
class NoFamily(Sound):
    """No family."""

    family: ClassVar[str] = ""


@dataclass(frozen=True)
class NoDocstring(Sound):
    pass


@dataclass(frozen=True)
class Elsewhere(Sound):
    """Not for digits."""

    def applies_to(self, task):
        return "needs points"


@dataclass(frozen=True)
class NothingUniform(Sound):
    """Counts nothing that it names."""

    uniform: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class BadParameter(Sound):
    """A parameter that no file can hold."""

    limit: float = float("nan")


@dataclass(frozen=True)
class ObjectParameter(Sound):
    """A parameter of a type that no suite can set."""

    table: dict = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class GlobalDraw(Sound):
    """Draws its key from the global generator."""

    def draw(self, task, stream):
        return Key({"message": torch.randint(0, 2, (self.bits,))})


@dataclass(frozen=True)
class FixedKey(Sound):
    """Every owner has the same key."""

    def draw(self, task, stream):
        return Key({"message": HIDDEN})


@dataclass(frozen=True)
class FailsToProtect(Sound):
    """Raises."""

    def protect(self, trainer, key):
        raise RuntimeError("no such luck")


@dataclass(frozen=True)
class NotANumber(Sound):
    """Publishes NaN."""

    def protect(self, trainer, key):
        model = trainer.new_model()
        with torch.no_grad():
            model.head.bias[0] = float("nan")
        return Protected(model, key)


@dataclass(frozen=True)
class NoSuchPart(Sound):
    """Promises insiders a part that its key has not."""

    parts: ClassVar[tuple[str, ...]] = ("projection",)


@dataclass(frozen=True)
class UndeclaredStage(Sound):
    """Wants the clean model, and does not say so."""

    def protect(self, trainer, key):
        return Protected(trainer.clean(), key)


@dataclass(frozen=True)
class PicksItsKey(Sound):
    """Reads its message off the trained model."""

    def protect(self, trainer, key):
        model = trainer.fit(trainer.new_model(), trainer.train)
        signs = (models.layer(model, "hidden").weight.detach().flatten()[: self.bits] > 0).long()
        return Protected(model, Key({"message": signs}))


@dataclass(frozen=True)
class EditsItsKey(Sound):
    """The same, in place."""

    def protect(self, trainer, key):
        key.tensor("message").fill_(1)
        return super().protect(trainer, key)


@dataclass(frozen=True)
class GlobalNoise(Sound):
    """Trains with noise from the global generator."""

    def protect(self, trainer, key):
        model, key, release = super().protect(trainer, key)
        with torch.no_grad():
            model.head.bias += 0.01 * torch.randn(10)
        return Protected(model, key, release)


@dataclass(frozen=True)
class SpoilsTraining(Sound):
    """Changes the owner's data while protecting."""

    def protect(self, trainer, key):
        trainer.train.x.add_(0.1)
        return super().protect(trainer, key)


@dataclass(frozen=True)
class SpoilsHeldout(Sound):
    """Changes the held-out data while verifying."""

    def verify(self, suspect, key, trainer):
        trainer.heldout.y.zero_()
        return super().verify(suspect, key, trainer)


@dataclass(frozen=True)
class OnTheObject(Sound):
    """Leaves its mark where no file keeps it."""

    def protect(self, trainer, key):
        model, key, release = super().protect(trainer, key)
        model.marked = True
        return Protected(model, key, release)

    def verify(self, suspect, key, trainer):
        if not getattr(suspect.module, "marked", False):
            return Evidence.unreadable("not marked")
        return super().verify(suspect, key, trainer)


@dataclass(frozen=True)
class OddLayer(Sound):
    """Publishes a layer that cannot be described."""

    def protect(self, trainer, key):
        model, key, release = super().protect(trainer, key)
        model.act7 = nn.Tanh()
        return Protected(model, key, release)


@dataclass(frozen=True)
class NeverFinds(Sound):
    """Does not recognise its own model."""

    def verify(self, suspect, key, trainer):
        return Evidence(0.0, 0.0)


@dataclass(frozen=True)
class ModestCapacity(Sound):
    """Declares less than it reaches."""

    def capacity(self, task):
        return -1.0


@dataclass(frozen=True)
class IgnoresItsKey(Sound):
    """Recognises its models by something else than the key."""

    def read(self, suspect, key):
        super().read(suspect, key)
        return self.bits


@dataclass(frozen=True)
class RaisesOnForeign(Sound):
    """Expects every suspect to have its layer."""

    def verify(self, suspect, key, trainer):
        right = self.read(suspect, key)
        return Evidence(right, binomial_tail(right, self.bits, 0.5))


@dataclass(frozen=True)
class ClaimsForeign(Sound):
    """Takes what it cannot read for a copy in disguise."""

    def verify(self, suspect, key, trainer):
        try:
            return super().verify(suspect, key, trainer)
        except RuntimeError:
            return Evidence(self.bits, -19.0)

    def read(self, suspect, key):
        if not hasattr(suspect.module, "conv6"):
            raise RuntimeError
        return super().read(suspect, key)


@dataclass(frozen=True)
class EmptyReason(Sound):
    """Gives no reason that can be read."""

    def verify(self, suspect, key, trainer):
        found = super().verify(suspect, key, trainer)
        return found if found.reason is None else Evidence.unreadable("")


@dataclass(frozen=True)
class ChangesTheSuspect(Sound):
    """Writes its mark while it verifies."""

    def verify(self, suspect, key, trainer):
        found = super().verify(suspect, key, trainer)
        with torch.no_grad():
            suspect.module.head.bias.add_(0.01)
        return found


@dataclass(frozen=True)
class TossesACoin(Sound):
    """Verifies with the global generator."""

    def verify(self, suspect, key, trainer):
        found = super().verify(suspect, key, trainer)
        return Evidence(found.statistic, found.log10_p, {"coin": float(torch.rand(()))})


@dataclass(frozen=True)
class OpensUnasked(Sound):
    """Declares black-box access and opens the model."""

    access = "black-box"


@dataclass(frozen=True)
class OpensInSecret(Sound):
    """Declares black-box access and opens the model behind the suspect's back."""

    access = "black-box"

    def read(self, suspect, key):
        weights = suspect._module.hidden.weight.detach().flatten()
        return int(((weights[: self.bits] > 0).long() == key.tensor("message")).sum())


@dataclass(frozen=True)
class SmallPValues(Sound):
    """Counts each bit twice."""

    def verify(self, suspect, key, trainer):
        found = super().verify(suspect, key, trainer)
        return Evidence(found.statistic, 2 * found.log10_p, reason=found.reason)


@dataclass(frozen=True)
class LoadedCoins(Sound):
    """Draws more ones than zeros and counts as if it did not."""

    def draw(self, task, stream):
        return Key({"message": torch.from_numpy((stream.numpy().random(self.bits) < 0.65).astype("int64"))})


@dataclass(frozen=True)
class CountsFacts(Sound):
    """Counts agreement with what it took from its model, which every net has: norms with positive weights."""

    def protect(self, trainer, key):
        model, key, release = super().protect(trainer, key)
        return Protected(model, key.complete(signs=(model.norm6.weight.detach() > 0).long()), release)

    def read(self, suspect, key):
        norm = models.layer(suspect.module, "norm6")
        return int(((norm.weight.detach() > 0).long() == key.tensor("signs")).sum())


@dataclass(frozen=True)
class Releases(Sound):
    """Hands its message out with the model."""

    # A key of its own: what it leaks stays in the memory of the spying process.
    name: ClassVar[str] = "releases"

    def protect(self, trainer, key):
        model, key, _ = super().protect(trainer, key)
        return Protected(
            model, key, Bundle(tensors={"hint": torch.cat([torch.ones(5), key.tensor("message").float()])})
        )


@dataclass(frozen=True)
class ReleasesText(Sound):
    """Hands its message out in a note."""

    # A key of its own: what it leaks stays in the memory of the spying process.
    name: ClassVar[str] = "releases-text"

    def protect(self, trainer, key):
        model, key, _ = super().protect(trainer, key)
        note = "".join(str(int(bit)) for bit in key.tensor("message"))
        return Protected(model, key, Bundle(values={"note": {"and": ["more", note]}}))


@dataclass(frozen=True)
class TellsTheSpec(Sound):
    """Writes its message among its parameters, which every job is told."""

    # A key of its own: what it leaks stays in the memory of the spying process.
    name: ClassVar[str] = "tells-the-spec"

    note: tuple[int, ...] = ()

    def protect(self, trainer, key):
        object.__setattr__(self, "note", tuple(key.tensor("message").tolist()))
        return super().protect(trainer, key)
