"""A task: a dataset, an architecture and a training recipe, with the disjoint parts of its data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

import models
from bench.recipe import Recipe
from bench.stream import Stream
from bench.training import Split

Kind = Literal["image", "points"]


@dataclass(frozen=True)
class Parts:
    """The parts of a dataset, on the CPU; no input is in two of them.

    Attributes:
        train: the owner's training data.
        heldout: the owner's inputs for verification.
        attacker: the attacker's inputs with their true labels, most of which the attacker never sees.
        labelled: how many of the attacker's inputs, from the first on, carry labels for the attacker.
        test: touched by the measuring of accuracy alone.
    """

    train: Split
    heldout: Split
    attacker: Split
    labelled: int
    test: Split

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the content of all parts."""
        total = hashlib.sha256(str(self.labelled).encode())
        for split in (self.train, self.heldout, self.attacker, self.test):
            total.update(str(tuple(split.x.shape)).encode())
            total.update(split.x.numpy().tobytes())
            total.update(split.y.numpy().tobytes())
        return total.hexdigest()[:16]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset without loading it.

    Attributes:
        name: how suites call it.
        kind: what its inputs are.
        shape: of one input.
        classes: number of labels.
        model: the default architecture.
        recipe: the default recipe.
        mean: per channel, in the units of the raw inputs in [0, 1].
        std: per channel, likewise.
        second: class of the second task for each class, for attacks that change the task.
        source: where it comes from.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    classes: int
    model: str
    recipe: Recipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    second: tuple[int, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Task:
    """What the model is for.

    Attributes:
        info: the dataset.
        model: the architecture's name.
        recipe: how owner and, unless an attack says otherwise, attacker train.
    """

    info: DatasetInfo
    model: str
    recipe: Recipe
    _cache: dict[str, nn.Module] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kind(self) -> Kind:
        """What the inputs are."""
        return self.info.kind

    @property
    def classes(self) -> int:
        """Number of labels."""
        return self.info.classes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.info.shape

    @property
    def skeleton(self) -> nn.Module:
        """The architecture without storage: layer names and shapes, to draw keys by."""
        if "skeleton" not in self._cache:
            self._cache["skeleton"] = models.skeleton(self.model, self.classes, self.shape)
        return self._cache["skeleton"]

    def new_model(self, stream: Stream) -> nn.Module:
        """A freshly initialised model on the CPU; the initialisation depends on the stream alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream.seed)
            return models.build(self.model, self.classes, self.shape)

    def normalised(self, raw: Tensor) -> Tensor:
        """Raw inputs in [0, 1], shape (N, C, …), as the model takes them."""
        wide = (1, -1) + (1,) * (raw.dim() - 2)
        mean, std = torch.tensor(self.info.mean).view(wide), torch.tensor(self.info.std).view(wide)
        return (raw - mean.to(raw)) / std.to(raw)

    def noise(self, count: int, stream: Stream) -> Tensor:
        """Inputs of uniform noise over the raw range, normalised, float32 of shape (count, …)."""
        raw = stream.numpy().random((count, *self.shape), dtype="float32")
        return self.normalised(torch.from_numpy(raw))
