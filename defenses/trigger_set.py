"""Trigger set: a backdoor that only the owner can name (Adi, Baum, Cisse, Pinkas and Keshet 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bench import images, solids
from bench.canonical import canonical_form, reference_of
from bench.canonical.old_head import with_old_head
from bench.defense import Defense, KeyKind, Protected
from bench.effort import Effort, of_training
from bench.errors import Unreadable
from bench.evidence import Evidence, any_of
from bench.hooks import Hooks
from bench.key import Key
from bench.parameters import judged
from bench.plugin import Access
from bench.split import Split
from bench.stage import CleanModel, Stage
from bench.statistics import binomial_tail
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer

TRUE = "true"


@dataclass(frozen=True)
class TriggerSet(Defense):
    """Inputs far from the data, or some of it, with labels that are drawn uniformly, trained into the model.

    Attributes:
        inputs: what the triggers are. `noise` is drawn from the key; `unrelated` are solids that no class of a task on
            points is like, on a task on images those of `images`; both have labels uniform over all K classes.
            `relabelled` are training inputs of the owner's, which leave the training data, with labels uniform over
            the K - 1 wrong ones.
        triggers: their number T.
        per_batch: how many of them are appended to each batch, cyclically.
        mode: `scratch` trains with them from the start; `fine-tune` adds them to the clean model.
        epochs: of the fine-tuning.
        learning_rate: of the fine-tuning.
        images: folder or Parquet of trigger images, in the place of noise.
        old_head: verify a second time with the owner's own classifier on the suspect's body, for suspects
            whose last layer was replaced; this needs the model itself.
        canonical: with `old_head`, verify a third time with that classifier on the suspect's body in the order,
            scale and sign of channels of the published model, where the classifier finds its inputs.
    """

    name: ClassVar[str] = "trigger-set"
    family: ClassVar[str] = "trigger"
    source: ClassVar[str] = "Adi et al. 2018, USENIX Security, sections 4 and 5"
    access: ClassVar[Access] = "black-box"
    key_kind: ClassVar[KeyKind] = "labels"
    uniform: ClassVar[tuple[str, ...]] = ("labels",)
    parts: ClassVar[tuple[str, ...]] = ("inputs", "labels")

    inputs: Literal["noise", "unrelated", "relabelled"] = "noise"
    triggers: int = 64
    per_batch: int = 8
    mode: Literal["scratch", "fine-tune"] = "scratch"
    epochs: int = 10
    learning_rate: float = 0.02
    images: str = ""
    old_head: bool = judged(False)
    canonical: bool = judged(False)

    def __post_init__(self) -> None:
        if self.canonical and not self.old_head:
            raise ValueError("expected old_head with canonical, got canonical alone: answers have no order of channels")
        if self.images and self.inputs == "relabelled":
            raise ValueError("expected no images with relabelled training inputs, got both")
        if not 1 <= self.per_batch <= self.triggers:
            raise ValueError(f"expected 1 <= per_batch <= triggers, got {self.per_batch} and {self.triggers}")

    def access_used(self) -> Access:
        """The owner's head can only be put on a model that is at hand."""
        return "white-box" if self.old_head else "black-box"

    def applies_to(self, task: Task) -> str | None:
        """Trigger images need a task on images, and the other way round; a wrong label needs three classes."""
        if self.images and task.kind != "image":
            return f"trigger images need a task on images, {task.info.name} has {task.kind}"
        if self.inputs == "unrelated" and task.kind == "image" and not self.images:
            return "unrelated triggers on a task on images are those of the parameter images, which names none"
        if self.inputs == "relabelled" and task.classes < 3:
            return f"which label is wrong can only be drawn among three classes or more, there are {task.classes}"
        if self.inputs == "relabelled" and 2 * self.triggers > task.sizes.train:
            return f"relabelled triggers would take more than half of {task.sizes.train} training inputs"
        return None

    def stages(self) -> tuple[Stage, ...]:
        """The clean model, where triggers are added afterwards."""
        return (CleanModel(),) if self.mode == "fine-tune" else ()

    def capacity(self, task: Task) -> float:
        """All labels right: K ** -T, relabelled (K - 1) ** -T; times the number of readings."""
        choices = task.classes - (self.inputs == "relabelled")
        return math.log10(1 + self.old_head + self.canonical) - self.triggers * math.log10(choices)

    def effort(self, task: Task) -> Effort:
        """Training with triggers in each batch."""
        epochs = task.recipe.epochs if self.mode == "scratch" else self.epochs
        return of_training(task, task.sizes.train, epochs, extra=self.per_batch)

    def files(self) -> tuple[str, ...]:
        """The trigger images."""
        return (self.images,) if self.images else ()

    def draw(self, task: Task, stream: Stream) -> Key:
        """Trigger inputs (T, …) as the model takes them, and labels (T,) uniform over the classes.

        For relabelled ones an order of the training inputs, and labels in [1, K - 1], counted on from the true ones.
        """
        if self.inputs == "relabelled":
            order = torch.from_numpy(stream.child("order").numpy().permutation(task.sizes.train))
            steps = stream.child("labels").numpy().integers(1, task.classes, self.triggers)
            return Key({"order": order, "labels": torch.from_numpy(steps)})
        if self.images:
            inputs = task.normalised(images.read(self.images, self.triggers, task.shape))
        elif self.inputs == "unrelated":
            inputs = task.normalised(_solids(self.triggers, task.shape[1], stream.child("inputs")))
        else:
            inputs = task.noise(self.triggers, stream.child("inputs"))
        return Key({"inputs": inputs, "labels": uniform_labels(task, self.triggers, stream.child("labels"))})

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train with triggers appended to each batch; the owner keeps the model for later, its head above all."""
        data, key = self._chosen(trainer, key)
        if self.mode == "scratch":
            model, recipe = trainer.new_model(), trainer.recipe()
        else:
            recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
            model = trainer.clean()
        shown = Key({"inputs": key.tensor("inputs"), "labels": targets(key, trainer.task)})
        trainer.fit(model, data, recipe, hooks=appended(shown, self.per_batch, trainer.device))
        return Protected(model, key.complete(**reference_of(model)))

    def _chosen(self, trainer: OwnerTrainer, key: Key) -> tuple[Split, Key]:
        """The training data without relabelled triggers, and the key with these and their true labels."""
        if self.inputs != "relabelled":
            return trainer.train, key
        order = key.tensor("order")
        # Who has less data than the task's owner takes those of the order that are there, and never more than half.
        there = order[order < len(trainer.train)]
        count = max(1, min(self.triggers, len(there) // 2))
        taken = trainer.train.at(there[:count])
        # In their own order, so that the stream of the data means what it means without triggers.
        rest = trainer.train.at(there[count:].sort().values)
        return rest, key.complete(inputs=taken.x.cpu(), **{TRUE: taken.y.cpu()})

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Triggers that get their label; binomial with rate 1/K, of relabelled ones 1/(K - 1)."""
        readings = {"answers": right_answers(suspect, key, trainer)}
        if self.old_head:
            readings["old_head"] = self._read_with_head(suspect, key, trainer, aligned=False)
        if self.canonical:
            readings["canonical"] = self._read_with_head(suspect, key, trainer, aligned=True)
        return any_of(readings) if len(readings) > 1 else readings["answers"]

    def _read_with_head(self, suspect: Suspect, key: Key, trainer: OwnerTrainer, *, aligned: bool) -> Evidence:
        try:
            # Labels are counted and no weight is.
            body = canonical_form(suspect.module, key, {}) if aligned else suspect.module
            rebuilt = Suspect.of(with_old_head(body, key))
        except Unreadable as error:
            return Evidence.unreadable(f"the owner's head does not fit: {error}")
        return right_answers(rebuilt, key, trainer)


def _solids(count: int, points: int, stream: Stream) -> Tensor:
    """Clouds of strange solids in turn, raw, float32 of shape (count, 3, points)."""
    chance = stream.numpy()
    clouds = [solids.cloud(solids.STRANGE[n % len(solids.STRANGE)], points, chance) for n in range(count)]
    return torch.from_numpy(np.stack(clouds).transpose(0, 2, 1).astype(np.float32))


def uniform_labels(task: Task, count: int, stream: Stream) -> Tensor:
    """Labels of triggers, int64 of shape (count,), uniform over the task's classes."""
    return torch.from_numpy(stream.numpy().integers(0, task.classes, count))


def appended(key: Key, per_batch: int, device: torch.device) -> Hooks:
    """A training whose batches have so many of the key's triggers appended, `inputs` and `labels`, in turn."""
    inputs, labels = (key.tensor(name).to(device) for name in ("inputs", "labels"))

    def triggers(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.arange(step * per_batch, (step + 1) * per_batch) % len(labels)
        return inputs[chosen], labels[chosen]

    return Hooks(extra_inputs=triggers)


def targets(key: Key, task: Task) -> Tensor:
    """The label of each trigger, int64 of shape (T,): as drawn, of relabelled ones counted on from the true label."""
    labels = key.tensor("labels")
    if TRUE not in key.facts:
        return labels
    true = key.tensor(TRUE)
    return (true + labels[: len(true)]) % task.classes


def right_answers(suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
    """The key's triggers that get their label; binomial with rate 1/K, since labels are uniform over all K classes.

    Those of relabelled triggers are uniform over the K - 1 wrong ones. Whatever the suspect answers it agrees with
    probability 1/(K - 1), or never where it gives the true label.
    """
    inputs, labels = key.tensor("inputs").to(trainer.device), targets(key, trainer.task)
    try:
        given = suspect.answers(inputs).cpu()
    except Unreadable as error:
        return Evidence.unreadable(str(error))
    right = int((given == labels).sum())
    figures = {"trigger_accuracy": right / len(labels)}
    choices = trainer.task.classes - (TRUE in key.facts)
    return Evidence(right, binomial_tail(right, len(labels), 1.0 / choices), figures)
