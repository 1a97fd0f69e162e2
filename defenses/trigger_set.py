"""Trigger set: a backdoor that only the owner can name (Adi, Baum, Cisse, Pinkas and Keshet 2018)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import models
from bench import images
from bench.canonical import REFERENCE, canonical_form, reference_of
from bench.defense import Defense, KeyKind, Protected
from bench.effort import Effort, of_training
from bench.errors import Unreadable
from bench.evidence import Evidence, any_of
from bench.hooks import Hooks
from bench.key import Key
from bench.parameters import judged
from bench.plugin import Access
from bench.stage import CleanModel, Stage
from bench.statistics import binomial_tail
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer

HEAD = "head"


@dataclass(frozen=True)
class TriggerSet(Defense):
    """Inputs far from the data, with labels that are uniform over all classes, trained into the model.

    Attributes:
        triggers: their number T.
        per_batch: how many of them are appended to each batch, cyclically.
        mode: `scratch` trains with them from the start; `fine-tune` adds them to the clean model.
        epochs: of the fine-tuning.
        learning_rate: of the fine-tuning.
        images: folder or Parquet of trigger images; empty for noise drawn from the key.
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
        if not 1 <= self.per_batch <= self.triggers:
            raise ValueError(f"expected 1 <= per_batch <= triggers, got {self.per_batch} and {self.triggers}")

    def access_used(self) -> Access:
        """The owner's head can only be put on a model that is at hand."""
        return "white-box" if self.old_head else "black-box"

    def applies_to(self, task: Task) -> str | None:
        """Trigger images need a task on images."""
        if self.images and task.kind != "image":
            return f"trigger images need a task on images, {task.info.name} has {task.kind}"
        return None

    def stages(self) -> tuple[Stage, ...]:
        """The clean model, where triggers are added afterwards."""
        return (CleanModel(),) if self.mode == "fine-tune" else ()

    def capacity(self, task: Task) -> float:
        """All labels right: K ** -T, times the number of readings."""
        return math.log10(1 + self.old_head + self.canonical) - self.triggers * math.log10(task.classes)

    def effort(self, task: Task) -> Effort:
        """Training with triggers in each batch."""
        epochs = task.recipe.epochs if self.mode == "scratch" else self.epochs
        return of_training(task, task.sizes.train, epochs, extra=self.per_batch)

    def files(self) -> tuple[str, ...]:
        """The trigger images."""
        return (self.images,) if self.images else ()

    def draw(self, task: Task, stream: Stream) -> Key:
        """Trigger inputs (T, …) as the model takes them, and labels (T,) uniform over the classes."""
        if self.images:
            inputs = task.normalised(images.read(self.images, self.triggers, task.shape))
        else:
            inputs = task.noise(self.triggers, stream.child("inputs"))
        return Key({"inputs": inputs, "labels": uniform_labels(task, self.triggers, stream.child("labels"))})

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train with triggers appended to each batch; the owner keeps the model for later, its head above all."""
        if self.mode == "scratch":
            model, recipe = trainer.new_model(), trainer.recipe()
        else:
            recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
            model = trainer.clean()
        trainer.fit(model, trainer.train, recipe, hooks=appended(key, self.per_batch, trainer.device))
        return Protected(model, key.complete(**reference_of(model)))

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Triggers that get their label; binomial with rate 1/K, since labels are uniform over all K classes."""
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
            rebuilt = _with_head(body, key)
        except (KeyError, Unreadable) as error:
            return Evidence.unreadable(f"the owner's head does not fit: {error}")
        return right_answers(rebuilt, key, trainer)


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


def right_answers(suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
    """The key's triggers that get their label; binomial with rate 1/K, since labels are uniform over all K classes."""
    inputs, labels = key.tensor("inputs").to(trainer.device), key.tensor("labels")
    try:
        given = suspect.answers(inputs).cpu()
    except Unreadable as error:
        return Evidence.unreadable(str(error))
    right = int((given == labels).sum())
    figures = {"trigger_accuracy": right / len(labels)}
    return Evidence(right, binomial_tail(right, len(labels), 1.0 / trainer.task.classes), figures)


def _with_head(module: nn.Module, key: Key) -> Suspect:
    body = copy.deepcopy(module)
    head = models.layer(body, HEAD)
    weight = key.tensor(f"{REFERENCE}{HEAD}.weight")
    bias = key.facts.get(f"{REFERENCE}{HEAD}.bias")
    # By shape and not in place: the suspect's head may have been for another number of classes.
    classes, width = weight.shape
    if getattr(head, "in_features", None) != width:
        raise KeyError(f"expected a head of {width} inputs, got {getattr(head, 'in_features', type(head).__name__)}")
    owned = nn.Linear(width, classes, bias=bias is not None)
    owned.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    parent, _, child = HEAD.rpartition(".")
    setattr(body.get_submodule(parent), child, owned.to(next(body.parameters()).device))
    return Suspect.of(body)
