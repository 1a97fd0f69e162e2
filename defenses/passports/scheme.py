"""What all passport schemes share: the key, training with a signature in the signs of scales, and the evidence."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import models
from bench.bundle import Bundle
from bench.canonical import canonical_form, reference_of, stored_reference
from bench.canonical.old_head import with_old_head
from bench.defense import Defense, KeyKind, Protected
from bench.errors import Unreadable
from bench.evidence import Evidence, all_of, any_of
from bench.hooks import Hooks
from bench.key import Key
from bench.parameters import judged
from bench.plugin import Access
from bench.question import Question
from bench.recipe import Recipe
from bench.stage import CleanModel, Stage
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.passports import evidence
from defenses.passports import key as passport_key
from defenses.passports.branches import Branches, Form, branches, insert, mean_patch, with_groups
from defenses.passports.key import Origin
from defenses.passports.training import Objective
from models.blocks import Blocks, blocks

Normalization = Literal["batch", "group"]


@dataclass(frozen=True)
class PassportScheme(Defense):
    """A net whose private branch scales and shifts its channels by what the weights make of secret passports.

    Evidence takes both: the owner's uniform bits in the signs of the raw scales, over all layers, and the accuracy of
    the private branch inside the suspect, which no fresh passports reach.

    Attributes:
        layers: whose weights make scales of passports: names of layers, or of blocks that hold some; empty for the
            source's choice where it has made one, else all convolutions but the first.
        passports: `random` numbers in (-1, 1); or what the clean model's layers are given for a `single` image of the
            owner's, or for twenty with their channels `shuffled`.
        strength: weight of the sign loss, which is summed over all channels.
        margin: least raw scale that the sign loss asks for.
        clip: to which the gradient's norm is clipped; 0 for never.
        norm: `group` puts group normalizations in the place of all batch normalizations.
        canonical: verify a second time with the order and scale of the suspect's channels, and their sign where it is
            not the message itself, undone by the published model's. What the signature is read from is left out of
            comparing channels.
    """

    family: ClassVar[str] = "passport"
    access: ClassVar[Access] = "white-box"
    key_kind: ClassVar[KeyKind] = "passport"
    uniform: ClassVar[tuple[str, ...]] = ("signature",)
    parts: ClassVar[tuple[str, ...]] = ("signature", "passports", "branch")
    # The source's choice of layers, by architecture.
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Whether the canonical reading undoes signs.
    signs_undone: ClassVar[bool] = True
    # In how many ways the private branch is tried in a suspect: with its head, and with the owner's.
    ways: ClassVar[int] = 2

    layers: tuple[str, ...] = ()
    passports: Origin = "random"
    strength: float = 0.1
    margin: float = 0.1
    clip: float = 1.0
    norm: Normalization = "batch"
    canonical: bool = judged(False)

    def __post_init__(self) -> None:
        if self.strength <= 0 or self.margin < 0 or self.clip < 0:
            raise ValueError(
                f"expected strength > 0, margin >= 0 and clip >= 0, got {self.strength}, {self.margin} and {self.clip}"
            )
        if self.canonical and self.norm == "group":
            raise ValueError("expected norm 'batch' with canonical: groups fix the order of channels, got 'group'")

    # What it is on a task

    def form(self, task: Task) -> Form:
        """What the private branch is like; KeyError as for `carriers`."""
        raise NotImplementedError

    def bottlenecked(self) -> bool:
        """Whether raw scales and shifts go through a bottleneck; the same on all tasks."""
        return False

    def carriers(self, task: Task) -> tuple[str, ...]:
        """Names of the layers with passports, in the order in which they run.

        Raises:
            KeyError: a name of `layers` that holds none, or no convolution beside the first.
        """
        there = [block.layer for block in plan(task).blocks]
        wanted = self.layers or self.usual.get(task.model, ())
        for name in wanted:
            if not any(_inside(layer, name) for layer in there):
                models.layer(task.skeleton, name)
                raise KeyError(f"{name!r} holds no convolution and no linear layer")
        found = tuple(layer for layer in there if any(_inside(layer, name) for name in wanted))
        if not wanted:
            found = tuple(n for n in there if not isinstance(models.layer(task.skeleton, n), nn.Linear))[1:]
        if not found:
            raise KeyError("the model has no convolution beside the first")
        return found

    def widths(self, task: Task) -> dict[str, int]:
        """Bits of the signature by layer: one for each channel."""
        return {name: len(models.weights_of(task.skeleton, (name,))[name]) for name in self.carriers(task)}

    def shapes(self, task: Task) -> dict[str, tuple[int, ...]]:
        """Shapes of the passports by layer, (2, *the layer's input)."""
        return passport_key.shapes_of(plan(task), self.carriers(task))

    def applies_to(self, task: Task) -> str | None:
        """Needs the named layers."""
        try:
            self.carriers(task)
        except (KeyError, ValueError) as error:
            return str(error.args[0])
        return None

    def capacity(self, task: Task) -> float:
        """All bits right, and all answers right where chance has one in K; the larger p, times the readings."""
        signature = -sum(self.widths(task).values()) * math.log10(2)
        asked = min(evidence.ASKED, task.sizes.heldout)
        fidelity = math.log10(self.ways) - asked * math.log10(task.classes)
        return min(0.0, max(signature, fidelity) + math.log10(1 + self.canonical))

    def stages(self) -> tuple[Stage, ...]:
        """The clean model, where passports are made of images."""
        return () if self.passports == "random" else (CleanModel(),)

    # The key

    def draw(self, task: Task, stream: Stream) -> Key:
        """The signature (n,) in {0, 1}; and passports laid end to end, or which images they are made of."""
        shapes, chance = self.shapes(task), stream.child("passports")
        signature = stream.child("signature").bits(sum(self.widths(task).values()))
        if self.passports == "random":
            return Key({"signature": signature, "passports": passport_key.uniform(shapes, chance)})
        images = passport_key.images(self.passports, task.sizes.train, chance.child("images"))
        slots = passport_key.slots(shapes, self.passports, chance.child("slots"))
        return Key({"signature": signature, "images": images, "slots": slots})

    def passports_of(self, whole: Tensor, task: Task) -> dict[str, Tensor]:
        """Passports by layer out of all of them laid end to end."""
        return passport_key.parted(whole, self.shapes(task))

    def fresh(self, key: Key, trainer: OwnerTrainer, stream: Stream) -> dict[str, Tensor]:
        """Other passports, drawn as the owner's were; those of images with the published model for the clean one."""
        task = trainer.task
        drawn = self.draw(task, stream)
        if "passports" not in drawn.drawn:
            drawn = drawn.complete(passports=self._from_images(drawn, trainer, stored_reference(key)))
        return self.passports_of(drawn.tensor("passports"), task)

    def _from_images(self, key: Key, trainer: OwnerTrainer, net: nn.Module) -> Tensor:
        images, slots = key.tensor("images"), key.tensor("slots")
        chosen = trainer.train.inputs.batch(images.flatten())
        return passport_key.through(
            net, chosen.view(*images.shape, *chosen.shape[1:]), slots, self.shapes(trainer.task)
        )

    # Protecting

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train both branches; published is the public one, a plain model."""
        if self.passports != "random":
            key = key.complete(passports=self._from_images(key, trainer, trainer.clean()))
        model = trainer.new_model()
        net = self.begun(with_groups(model) if self.norm == "group" else model, key, trainer)
        hooks = self.objective(key, trainer).hooks() & self.hooks(key, trainer)
        trainer.fit(net, trainer.train, self.recipe(trainer), hooks=hooks)
        self.finish(net, trainer.task)
        return Protected(net.public.eval(), self.completed(key, net), self.released(key))

    def begun(self, model: nn.Module, key: Key, trainer: OwnerTrainer) -> Branches:
        """The net before training, around a plain model."""
        task = trainer.task
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trainer.stream.child("bottlenecks").seed)
            passports = self.passports_of(key.tensor("passports"), task)
            return branches(model, plan(task), self.form(task), passports).to(trainer.device)

    def recipe(self, trainer: OwnerTrainer, epochs: int = 0) -> Recipe:
        """How the net is trained; 0 epochs for those of the task."""
        changes: dict[str, float] = {"clip_norm": self.clip} if self.clip else {}
        return trainer.recipe(**changes, epochs=epochs) if epochs else trainer.recipe(**changes)

    def objective(self, key: Key, trainer: OwnerTrainer) -> Objective:
        """What a step of training makes smaller."""
        raise NotImplementedError

    def signs(self, key: Key, trainer: OwnerTrainer) -> Tensor:
        """The signature as signs, float32 of shape (n,) in {-1, 1}."""
        return 2.0 * key.tensor("signature").to(trainer.device) - 1.0

    def hooks(self, key: Key, trainer: OwnerTrainer) -> Hooks:
        """What else the scheme adds to training."""
        del key, trainer
        return Hooks()

    def finish(self, net: Branches, task: Task) -> None:
        """What is done to the net after training, in place."""

    def released(self, key: Key) -> Bundle:
        """What is released beside the model."""
        del key
        return Bundle()

    def completed(self, key: Key, net: Branches) -> Key:
        """The key with the private branch: all of it laid end to end, its own part alone, and the published model."""
        private = models.joined(net.secrets())
        branch = torch.cat([key.tensor("passports"), private])
        return key.complete(private=private, branch=branch, **reference_of(net.public))

    def forged(self, drawn: Key, net: Branches, signature: Tensor, passports: Tensor) -> Key:
        """A drawn key with a signature and passports of somebody's choice, completed with a private branch.

        Args:
            drawn: from `draw`.
            net: the private branch, around the model on which the key is to be claimed.
            signature: (n,) in {0, 1}.
            passports: laid end to end.
        """
        chosen = {**drawn.drawn, "signature": signature}
        if "passports" in drawn.drawn:
            return self.completed(Key({**chosen, "passports": passports}), net)
        return self.completed(Key(chosen).complete(passports=passports), net)

    # Verifying

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Bits right and the private branch's answers, both; the smallest p of all readings times their number."""
        taken = self.taken(suspect, key, trainer)
        return any_of(taken) if len(taken) > 1 else next(iter(taken.values()))

    def taken(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> dict[str, Evidence]:
        """The alternative readings by name."""
        module = suspect.module
        taken = {"raw": self._read(module, key, trainer, aligned=False)}
        if self.canonical:
            taken["canonical"] = self._read(module, key, trainer, aligned=True)
        return taken

    def counted(self, key: Key, task: Task) -> dict[str, Tensor]:
        """Parameter name to the one direction of its rows that the signature is read from, (1, D)."""
        passports = self.passports_of(key.tensor("passports"), task)
        return {
            f"{name}.weight": mean_patch(models.layer(task.skeleton, name), one[:1]) for name, one in passports.items()
        }

    def _read(self, module: nn.Module, key: Key, trainer: OwnerTrainer, *, aligned: bool) -> Evidence:
        """Both conditions in a model that may be anything."""
        task, asked = trainer.task, trainer.heldout.take(evidence.ASKED)
        # Everything but the bits: of a thousand keys many differ in these alone.
        facts = [one for name, one in sorted(key.facts.items()) if isinstance(one, Tensor) and name != "branch"]
        question = Question.about(
            (repr(self), task.name, str(aligned), *trainer.stream.path, *module.state_dict()),
            (*module.state_dict().values(), key.tensor("passports"), *facts, asked.inputs.stored, asked.y),
            lambda: self._see(module, key, trainer, aligned=aligned),
        )
        try:
            seen = question.answer()
        except Unreadable as error:
            return Evidence.unreadable(str(error))
        bits = evidence.signature(seen.signs, key.tensor("signature"), self.widths(task))
        found = all_of({"signature": bits, "fidelity": seen.held})
        return replace(found, statistic=bits.statistic, figures={**found.figures, **bits.figures, **seen.held.figures})

    def _see(self, module: nn.Module, key: Key, trainer: OwnerTrainer, *, aligned: bool) -> evidence.Seen:
        task = trainer.task
        if aligned:
            module = canonical_form(module, key, self.counted(key, task), signs=self.signs_undone)
        passports = self.passports_of(key.tensor("passports"), task)
        signs = evidence.signs_of(module, passports, self.widths(task))
        return evidence.Seen(signs, self.fidelity(module, key, trainer, passports))

    def fidelity(self, model: nn.Module, key: Key, trainer: OwnerTrainer, passports: Mapping[str, Tensor]) -> Evidence:
        """The private branch in the suspect, and with the owner's head where the suspect has another one."""
        own = self._answers(model, key, trainer, passports)
        try:
            restored = with_old_head(model, key)
        except Unreadable as error:
            return any_of({"own_head": own, "old_head": Evidence.unreadable(str(error))})
        same = evidence.same_state(model, restored)
        return any_of({"own_head": own, "old_head": own if same else self._answers(restored, key, trainer, passports)})

    def _answers(self, model: nn.Module, key: Key, trainer: OwnerTrainer, passports: Mapping[str, Tensor]) -> Evidence:
        task, asked = trainer.task, trainer.heldout.take(evidence.ASKED)
        try:
            net = insert(model, plan(task), self.form(task), passports, key.tensor("private"))
            chance = trainer.stream.child("fresh-passports")
            fresh = (self.fresh(key, trainer, chance.child(number)) for number in range(evidence.FRESH))
            return evidence.fidelity(net, asked, fresh, task.classes)
        except Unreadable as error:
            return Evidence.unreadable(str(error))


def plan(task: Task) -> Blocks:
    """The blocks of the task's model, by whose names keys speak."""
    return _plan(task.model, task.classes, task.shape)


@functools.lru_cache(maxsize=16)
def _plan(model: str, classes: int, shape: tuple[int, ...]) -> Blocks:
    # Each verification asks for it again and again, and describing a model takes longer than reading one.
    return blocks(models.skeleton(model, classes, shape))


def _inside(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")
