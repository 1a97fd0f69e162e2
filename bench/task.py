"""A task: a dataset, an architecture and a training recipe, with the disjoint parts of its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

import models
from bench.recipe import Recipe
from bench.split import Scale, Split
from bench.stream import Stream

Kind = Literal["image", "points"]
PartName = Literal["train", "heldout", "attacker", "test"]


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


@dataclass(frozen=True)
class Sizes:
    """How many inputs each part of a dataset has; see `Parts`."""

    train: int
    heldout: int
    attacker: int
    labelled: int
    test: int

    def __post_init__(self) -> None:
        if min(self.train, self.heldout, self.attacker, self.labelled, self.test) < 1:
            raise ValueError(f"expected at least one input in each part, got {self}")
        if self.labelled > self.attacker:
            raise ValueError(f"expected labelled <= attacker, got {self.labelled} and {self.attacker}")


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
        sizes: the default sizes of the parts.
        mean: per channel, in the units of the raw inputs, which are in [0, 1], of points in [-1, 1].
        std: per channel, likewise.
        top: the stored number that stands for a raw input of 1.
        second: class of the second task for each class, for attacks that change the task.
        at: path of somebody's own set; empty for one that comes by name.
        source: where it comes from.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    classes: int
    model: str
    recipe: Recipe
    sizes: Sizes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    top: float = 255.0
    second: tuple[int, ...] = ()
    at: str = ""
    source: str = ""

    @property
    def order(self) -> str:
        """What stands for the dataset in streams and identities; no path does, so that a set can be moved."""
        return ("images" if self.kind == "image" else self.kind) if self.at else self.name


@dataclass(frozen=True)
class Task:
    """What the model is for.

    Attributes:
        info: the dataset.
        model: the architecture's name.
        recipe: how owner and, unless an attack says otherwise, attacker train.
        parts: how many inputs each side has; None for the dataset's default.
    """

    info: DatasetInfo
    model: str
    recipe: Recipe
    parts: Sizes | None = None
    _cache: dict[str, nn.Module] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        """How records call it."""
        return f"{self.info.name}/{self.model}"

    @property
    def sizes(self) -> Sizes:
        """How many inputs each part of the data has."""
        return self.parts or self.info.sizes

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

    def new_model(self, stream: Stream, description: Mapping[str, Any] | None = None) -> nn.Module:
        """A freshly initialised model on the CPU; the initialisation depends on the stream alone.

        Args:
            stream: of the initialisation.
            description: of another model than the task's own, as `models.describe` gives it.
        """
        plain = {"name": self.model, "classes": self.classes, "shape": self.shape}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream.seed)
            return models.fresh(description or plain)

    def normalised(self, raw: Tensor) -> Tensor:
        """Raw inputs in [0, 1], of points in [-1, 1], shape (N, C, …), as the model takes them."""
        return Scale(self.info.mean, self.info.std, top=1.0)(raw)

    def noise(self, count: int, stream: Stream) -> Tensor:
        """Inputs of uniform noise over the raw range, normalised, float32 of shape (count, …)."""
        raw = stream.numpy().random((count, *self.shape), dtype="float32")
        if self.kind == "points":
            raw = 2 * raw - 1
        return self.normalised(torch.from_numpy(raw))
