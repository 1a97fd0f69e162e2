"""What triggers are: noise, images of the owner's, solids of no class, or inputs taken out of the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench import images, solids
from bench.key import Key
from bench.split import Split
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.triggers.answers import TRUE, targets, uniform_labels
from defenses.triggers.scheme import TriggerScheme


@dataclass(frozen=True)
class ChosenTriggers(TriggerScheme):
    """Triggers of one of the published kinds.

    Attributes:
        inputs: what the triggers are. `noise` is drawn from the key; `unrelated` are solids that no class of a task on
            points is like, on a task on images those of `images`; both have labels uniform over all K classes.
            `relabelled` are training inputs of the owner's, which leave the training data, with labels uniform over
            the K - 1 wrong ones. `patch` are such inputs with a square of uniform noise on each, drawn from the key
            with its place (content patches: Zhang et al. 2018, AsiaCCS, have one patch and one label for all).
        images: folder or Parquet of trigger images, in the place of noise; looked for as it stands, then below the
            folder that OWNBENCH_DATA names.
        patch: side of the squares as a share of the shorter side of the image, in (0, 1).
    """

    uniform: ClassVar[tuple[str, ...]] = ("labels",)
    parts: ClassVar[tuple[str, ...]] = ("inputs", "labels")

    inputs: Literal["noise", "unrelated", "relabelled", "patch"] = "noise"
    images: str = ""
    patch: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and self.taken:
            raise ValueError(f"expected no images with {self.inputs} training inputs, got both")
        if not 0 < self.patch < 1:
            raise ValueError(f"expected patch in (0, 1), got {self.patch}")

    @property
    def taken(self) -> bool:
        """Whether triggers are taken out of the training data."""
        return self.inputs in ("relabelled", "patch")

    def applies_to(self, task: Task) -> str | None:
        """Trigger images and patches need a task on images, solids one on points; a wrong label needs three classes."""
        if self.images and task.kind != "image":
            return f"trigger images need a task on images, {task.info.name} has {task.kind}"
        if self.inputs == "patch" and task.kind != "image":
            return f"a patch needs an image to be on, {task.info.name} has {task.kind}"
        if self.inputs == "unrelated" and task.kind == "image" and not self.images:
            return "unrelated triggers on a task on images are those of the parameter images, which names none"
        if self.taken and task.classes < 3:
            return f"which label is wrong can only be drawn among three classes or more, there are {task.classes}"
        if self.taken and 2 * self.triggers > task.sizes.train:
            return f"{self.inputs} triggers would take more than half of {task.sizes.train} training inputs"
        return None

    def choices(self, task: Task) -> int:
        """All classes, or the wrong ones."""
        return task.classes - self.taken

    def files(self) -> tuple[str, ...]:
        """The trigger images."""
        return (self.images,) if self.images else ()

    def draw(self, task: Task, stream: Stream) -> Key:
        """Trigger inputs (T, …) as the model takes them, and labels (T,) uniform over the classes.

        For training inputs an order of them, and labels in [1, K - 1], counted on from the true ones; patches
        (T, C, S, S) as the model takes them and the row and column of their first pixel (T, 2).
        """
        if self.taken:
            order = torch.from_numpy(stream.child("order").numpy().permutation(task.sizes.train))
            steps = stream.child("labels").numpy().integers(1, task.classes, self.triggers)
            drawn = {"order": order, "labels": torch.from_numpy(steps)}
            return Key(drawn | (self._patches(task, stream) if self.inputs == "patch" else {}))
        if self.images:
            inputs = task.normalised(images.read(self.images, self.triggers, task.shape))
        elif self.inputs == "unrelated":
            inputs = task.normalised(_solids(self.triggers, task.shape[1], stream.child("inputs")))
        else:
            inputs = task.noise(self.triggers, stream.child("inputs"))
        return Key({"inputs": inputs, "labels": uniform_labels(task, self.triggers, stream.child("labels"))})

    def _patches(self, task: Task, stream: Stream) -> dict[str, Tensor]:
        channels, height, width = task.shape
        side = max(1, round(self.patch * min(height, width)))
        raw = stream.child("patches").numpy().random((self.triggers, channels, side, side), dtype="float32")
        # Each place at which all of the patch is inside.
        ends = (height - side + 1, width - side + 1)
        places = stream.child("places").numpy().integers(0, ends, (self.triggers, 2))
        return {"patches": task.normalised(torch.from_numpy(raw)), "places": torch.from_numpy(places)}

    def chosen(self, trainer: OwnerTrainer, key: Key) -> tuple[Split, Key]:
        """The training data without those that became triggers, and the key with these and their true labels."""
        if not self.taken:
            return trainer.train, key
        order = key.tensor("order")
        # Who has less data than the task's owner takes those of the order that are there, and never more than half.
        there = order[order < len(trainer.train)]
        count = max(1, min(self.triggers, len(there) // 2))
        taken = trainer.train.at(there[:count])
        # In their own order, so that the stream of the data means what it means without triggers.
        rest = trainer.train.at(there[count:].sort().values)
        inputs = taken.x.cpu()
        if self.inputs == "patch":
            inputs = pasted(inputs, key.tensor("patches"), key.tensor("places"))
        return rest, key.complete(inputs=inputs, **{TRUE: taken.y.cpu()})

    # For forgeries (attacks/forging/offers.py)

    def withheld(self) -> str | None:
        """Images of a parameter are a secret of their own."""
        if self.files():
            return f"the triggers of {self.label} are made of the owner's files, of which an attacker has none"
        return None

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """A key with its triggers as it is: nothing is learnt from a model."""
        del model, task
        return key

    def illegible(self) -> str | None:
        """Triggers that are taken from data have true labels, which a model says."""
        return f"the triggers of {self.label} are taken from somebody's data: see own-triggers" if self.taken else None

    def read_off(self, key: Key, suspect: Suspect, task: Task) -> Key:
        """The key with the suspect's answers to its triggers as their labels."""
        del task
        return key.redraw(Key({"labels": suspect.answers(key.tensor("inputs")).cpu()}), ("labels",))

    def started(self, key: Key, known: Split, task: Task) -> tuple[Tensor, Tensor]:
        """Triggers of a drawn key: its own; or the first of the data, with its patches and its wrong labels."""
        if not self.taken:
            return key.tensor("inputs"), key.tensor("labels")
        used = known.take(min(self.triggers, len(known)))
        inputs, true = used.x.cpu(), used.y.cpu()
        if self.inputs == "patch":
            inputs = pasted(inputs, key.tensor("patches"), key.tensor("places"))
        return inputs, (true + key.tensor("labels")[: len(true)]) % task.classes

    def with_triggers(self, key: Key, inputs: Tensor, labels: Tensor, known: Split, task: Task) -> Key:
        """A drawn key with other triggers and labels; wrong labels where they are taken from data, patches cut out."""
        if not self.taken:
            return key.redraw(Key({"inputs": inputs, "labels": labels}), ("inputs", "labels"))
        true, steps = known.take(len(inputs)).y.cpu(), key.tensor("labels").clone()
        steps[: len(true)] = (labels - true) % task.classes
        fresh: dict[str, Tensor] = {"labels": steps}
        if self.inputs == "patch":
            fresh["patches"] = cut(inputs, key.tensor("patches"), key.tensor("places"))
        return key.redraw(Key(fresh), tuple(fresh)).complete(inputs=inputs, **{TRUE: true})

    def with_targets(self, key: Key, task: Task) -> Key:
        """The triggers of a completed key as training is shown them: `inputs` and the labels that they are to get."""
        return Key({"inputs": key.tensor("inputs"), "labels": targets(key, task)})


def pasted(inputs: Tensor, patches: Tensor, places: Tensor) -> Tensor:
    """Copies of the images with a patch on each.

    Args:
        inputs: of shape (n, C, H, W).
        patches: of shape (T, C, S, S), T >= n; the first n are used.
        places: row and column of their first pixel, int64 of shape (T, 2).
    """
    made, side = inputs.clone(), patches.shape[-1]
    for image, patch, (row, column) in zip(made, patches, places.tolist(), strict=False):
        image[:, row : row + side, column : column + side] = patch
    return made


def cut(inputs: Tensor, patches: Tensor, places: Tensor) -> Tensor:
    """The inverse of `pasted`: patches (T, C, S, S), of which the first n are what stands in n images at the places."""
    found, side = patches.clone(), patches.shape[-1]
    for patch, image, (row, column) in zip(found, inputs, places.tolist(), strict=False):
        patch.copy_(image[:, row : row + side, column : column + side])
    return found


def _solids(count: int, points: int, stream: Stream) -> Tensor:
    """Clouds of strange solids in turn, raw, float32 of shape (count, 3, points)."""
    chance = stream.numpy()
    clouds = [solids.cloud(solids.STRANGE[n % len(solids.STRANGE)], points, chance) for n in range(count)]
    return torch.from_numpy(np.stack(clouds).transpose(0, 2, 1).astype(np.float32))
