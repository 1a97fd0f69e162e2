"""DeepIPR: passports that a net needs, or that a second branch needs (Fan, Ng and Chan 2019, NeurIPS)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import models
from bench.bundle import Bundle
from bench.canonical import stored_reference
from bench.effort import Effort, of_training
from bench.evidence import Evidence, any_of
from bench.hooks import Hooks
from bench.key import Key
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.passports.branches import Branches, Form, Statistics
from defenses.passports.evidence import same_state
from defenses.passports.scheme import Normalization, PassportScheme, plan
from defenses.passports.training import Objective
from defenses.passports.two_branches import TwoBranches
from defenses.triggers.answers import right_answers, uniform_labels
from defenses.triggers.scheme import appended
from models.blocks import sharing

_USUAL = {**dict.fromkeys(("alexnet", "alexnet-small"), ("conv3", "conv4", "conv5")), "resnet18": ("layer4",)}


@dataclass(frozen=True)
class PassportV1(PassportScheme):
    """One branch, and passports that are released with the model, without which it could not be run.

    Published is the model with the scales and shifts that its passports come to, a plain one. As all of its layers
    could be turned round with their scales, the signature is no more than an orientation of channels: a canonical
    reading puts them in order and leaves their signs.
    """

    name: ClassVar[str] = "passport-v1"
    source: ClassVar[str] = "Fan et al. 2019, NeurIPS, section 3.3, scheme V1"
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = _USUAL
    signs_undone: ClassVar[bool] = False
    # Either head, with either statistics.
    ways: ClassVar[int] = 4

    def form(self, task: Task) -> Form:
        """The only branch: with the model's statistics, and no bottleneck."""
        return Form(self.carriers(task), "shared", mlp=False)

    def applies_to(self, task: Task) -> str | None:
        """Also needs a normalization behind each layer, to hold what the passports come to."""
        reason = super().applies_to(task)
        if reason:
            return reason
        bare = [name for name in self.carriers(task) if plan(task).norm_of[name] is None]
        return f"layer {bare[0]!r} has no normalization behind it" if bare else None

    def effort(self, task: Task) -> Effort:
        """One training."""
        return of_training(task, task.sizes.train, task.recipe.epochs)

    def objective(self, key: Key, trainer: OwnerTrainer) -> Objective:
        """The only branch's loss and the sign loss."""
        smoothing = trainer.recipe().label_smoothing
        return Objective(self.signs(key, trainer), self.strength, self.margin, public=False, smoothing=smoothing)

    def finish(self, net: Branches, task: Task) -> None:
        """Write what the passports come to into the normalizations."""
        for name, layer in net.passports.items():
            norm: Any = net.public.get_submodule(str(plan(task).norm_of[name]))
            with torch.no_grad():
                for parameter, value in zip((norm.weight, norm.bias), layer.raw(), strict=True):
                    parameter.copy_(value)

    def fidelity(self, model: nn.Module, key: Key, trainer: OwnerTrainer, passports: Mapping[str, Tensor]) -> Evidence:
        """Also with the owner's normalizations: who estimates statistics anew has not changed a weight."""
        own = super().fidelity(model, key, trainer, passports)
        reference, norms = stored_reference(key), plan(trainer.task).norms
        try:
            restored = sharing(model, {name: models.layer(reference, name) for name in norms})
        except KeyError as error:
            return any_of({"own_statistics": own, "owner_statistics": Evidence.unreadable(str(error.args[0]))})
        same = same_state(model, restored)
        old = own if same else super().fidelity(restored, key, trainer, passports)
        return any_of({"own_statistics": own, "owner_statistics": old})

    def released(self, key: Key) -> Bundle:
        """The passports."""
        return Bundle(tensors={"passports": key.tensor("passports")})


@dataclass(frozen=True)
class PassportV2(TwoBranches):
    """A private branch beside the public one, without a bottleneck; all normalizations are by groups."""

    name: ClassVar[str] = "passport-v2"
    source: ClassVar[str] = "Fan et al. 2019, NeurIPS, section 3.3, scheme V2"
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = _USUAL

    norm: Normalization = "group"
    statistics: Statistics = "shared"
    mlp: bool = False


@dataclass(frozen=True)
class PassportV3(PassportV2):
    """V2 with triggers in both branches, by which a suspect can be asked before it is opened.

    Attributes:
        triggers: their number: noise, with labels uniform over all classes.
        per_batch: how many are appended to each batch, cyclically.
        trigger_weight: of their loss.
    """

    name: ClassVar[str] = "passport-v3"
    source: ClassVar[str] = "Fan et al. 2019, NeurIPS, section 3.3, scheme V3"
    uniform: ClassVar[tuple[str, ...]] = ("signature", "labels")
    parts: ClassVar[tuple[str, ...]] = ("signature", "passports", "branch", "inputs", "labels")

    triggers: int = 64
    per_batch: int = 8
    trigger_weight: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.per_batch <= self.triggers or self.trigger_weight <= 0:
            raise ValueError(
                "expected 1 <= per_batch <= triggers and trigger_weight > 0, "
                f"got {self.per_batch}, {self.triggers} and {self.trigger_weight}"
            )

    def capacity(self, task: Task) -> float:
        """Triggers are one more reading, with 1 / K each."""
        triggers = math.log10(2 + self.canonical) - self.triggers * math.log10(task.classes)
        passports = super().capacity(task) + math.log10((2 + self.canonical) / (1 + self.canonical))
        return min(0.0, passports, triggers)

    def effort(self, task: Task) -> Effort:
        """Triggers in each batch."""
        once = of_training(task, task.sizes.train, self.epochs or task.recipe.epochs, extra=self.per_batch)
        return once + once if self.schedule == "together" else once

    def draw(self, task: Task, stream: Stream) -> Key:
        """Also trigger inputs (T, …) and labels (T,)."""
        drawn = dict(super().draw(task, stream).drawn)
        drawn["inputs"] = task.noise(self.triggers, stream.child("inputs"))
        drawn["labels"] = uniform_labels(task, self.triggers, stream.child("labels"))
        return Key(drawn)

    def hooks(self, key: Key, trainer: OwnerTrainer) -> Hooks:
        """Triggers at the end of each batch."""
        return appended(key, self.per_batch, trainer.device)

    def extra(self) -> tuple[int, float]:
        """The triggers."""
        return self.per_batch, self.trigger_weight

    def taken(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> dict[str, Evidence]:
        """Also the answers to triggers."""
        return {**super().taken(suspect, key, trainer), "triggers": right_answers(suspect, key, trainer)}
