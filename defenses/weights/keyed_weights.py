"""Weights that a key names: where they lie, how they are read, and training that projects them again and again."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

import models
from bench.canonical import readings, reference_of
from bench.defense import Defense, KeyKind
from bench.effort import Effort, of_training
from bench.errors import Unreadable
from bench.evidence import Evidence
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
Mode = Literal["scratch", "fine-tune"]


@dataclass(frozen=True)
class Carrier:
    """The layers whose weights, laid end to end, a key counts by position.

    Attributes:
        shapes: layer name and the shape of its weight, in order.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, model: nn.Module, layers: tuple[str, ...]) -> Carrier:
        """The named layers; without names the largest linear layer that is no head (the last of equals), else the last
        convolution.

        Raises:
            KeyError: no such layer, or one that is neither convolution nor linear.
        """
        names = layers or (_default(model),)
        return cls(tuple((name, tuple(weight.shape)) for name, weight in models.weights_of(model, names).items()))

    @classmethod
    def parse(cls, text: str) -> Carrier:
        """The inverse of `text`."""
        return cls(tuple((name, tuple(shape)) for name, shape in json.loads(text)))

    @property
    def text(self) -> str:
        """For the key."""
        return json.dumps(self.shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers."""
        return tuple(name for name, _ in self.shapes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many weights each layer has."""
        return tuple(math.prod(shape) for _, shape in self.shapes)

    def read(self, model: nn.Module) -> Tensor:
        """A copy of the weights, shape (N,), on the model's device.

        Raises:
            Unreadable: the model has no such layers, or of other shapes.
        """
        return torch.cat([weight.detach().flatten() for weight in self._weights(model)])

    def write(self, model: nn.Module, values: Tensor) -> None:
        """Set the weights to values of shape (N,); raises as `read`."""
        parts = values.split(self.sizes)
        with torch.no_grad():
            for weight, part in zip(self._weights(model), parts, strict=True):
                weight.copy_(part.view_as(weight))

    def masks(self, positions: Tensor) -> dict[str, Tensor]:
        """Parameter name to a bool mask of its shape, True at the positions."""
        chosen = torch.zeros(sum(self.sizes), dtype=torch.bool)
        chosen[positions] = True
        parts = chosen.split(self.sizes)
        return {f"{name}.weight": part.view(shape) for (name, shape), part in zip(self.shapes, parts, strict=True)}

    def _weights(self, model: nn.Module) -> Iterator[Tensor]:
        for name, shape in self.shapes:
            try:
                weight = models.weights_of(model, (name,))[name]
            except KeyError as error:
                raise Unreadable(str(error.args[0])) from error
            if tuple(weight.shape) != shape:
                raise Unreadable(f"expected weights of shape {shape} in {name!r}, got {tuple(weight.shape)}")
            yield weight


@dataclass(frozen=True)
class KeyedWeights(Defense):
    """What schemes share that project weights at secret positions while a model trains.

    Attributes:
        layers: names of the convolutions and linear layers that carry the mark; empty for the largest linear
            layer beside the head, or the last convolution where there is none.
        mode: `scratch` embeds from the initialisation on; `fine-tune` into the clean model.
        epochs: of the fine-tuning.
        learning_rate: of the fine-tuning.
        every: steps between projections; 0 for one after each epoch.
        canonical: verify a second time with the order, scale and sign of the suspect's channels undone by the
            published model's. The weights that the key chooses are left out of comparing channels.
    """

    family: ClassVar[str] = "weight-watermark"
    access: ClassVar[Access] = "white-box"
    key_kind: ClassVar[KeyKind] = "positions"

    layers: tuple[str, ...] = ()
    mode: Mode = "scratch"
    epochs: int = 5
    learning_rate: float = 0.01
    every: int = 0
    canonical: bool = judged(False)

    def __post_init__(self) -> None:
        if self.every < 0 or self.epochs < 1 or self.learning_rate <= 0:
            raise ValueError(
                "expected every >= 0, epochs >= 1 and learning_rate > 0, "
                f"got {self.every}, {self.epochs} and {self.learning_rate}"
            )
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"expected each layer once, got {list(self.layers)}")

    @property
    def places(self) -> int:
        """How many weights carry the mark."""
        raise NotImplementedError

    def applies_to(self, task: Task) -> str | None:
        """Needs the named layers, with as many weights as the mark takes."""
        try:
            carrier = Carrier.of(task.skeleton, self.layers)
        except KeyError as error:
            return str(error.args[0])
        room = sum(carrier.sizes)
        if self.places > room:
            return f"{self.places} weights are needed, {' and '.join(carrier.names)} has {room}"
        return None

    def stages(self) -> tuple[Stage, ...]:
        """The clean model, where it is fine-tuned."""
        return (CleanModel(),) if self.mode == "fine-tune" else ()

    def effort(self, task: Task) -> Effort:
        """One training; the projections cost little beside it."""
        epochs = task.recipe.epochs if self.mode == "scratch" else self.epochs
        return of_training(task, task.sizes.train, epochs)

    def drawn(self, task: Task, stream: Stream) -> tuple[str, Tensor]:
        """The carrier as text, and positions in it: distinct, uniform and in uniform order, int64."""
        carrier = Carrier.of(task.skeleton, self.layers)
        order = stream.child("positions").numpy().permutation(sum(carrier.sizes))
        return carrier.text, torch.from_numpy(order[: self.places].copy())

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """What `read` finds in the suspect's weights."""
        read = functools.partial(self.read, key=key)
        return readings(suspect, key, read, self.counted(key), canonical=self.canonical)

    def read(self, module: nn.Module, key: Key) -> Evidence:
        """The evidence in the weights of a model that may be anything."""
        try:
            weights = Carrier.parse(key.text("carrier")).read(module).cpu()
        except Unreadable as error:
            return Evidence.unreadable(str(error))
        found = self.evidence(weights[key.tensor("positions")], key, module)
        told = {n: v for n, v in key.facts.items() if n.startswith("embedding_") and isinstance(v, float)}
        return replace(found, figures={**found.figures, **told})

    def evidence(self, weights: Tensor, key: Key, module: nn.Module) -> Evidence:
        """The evidence in the weights at the key's positions, shape (places,), on the CPU."""
        raise NotImplementedError

    def counted(self, key: Key) -> dict[str, Tensor]:
        """Parameter name to a bool mask of its shape: the weights that the key counts."""
        return Carrier.parse(key.text("carrier")).masks(key.tensor("positions"))

    def alternatives(self) -> float:
        """log10 of the number of readings, by which the smallest p is multiplied."""
        return math.log10(2) if self.canonical else 0.0

    # For forgeries (attacks/forging/offers.py)

    def withheld(self) -> str | None:
        """Anybody can keep a copy of what is published."""
        return None

    def unchanged(self, key: Key, model: nn.Module) -> dict[str, Any]:
        """What `protect` would have added, had it changed no weight: the reference, and what `trained` tells."""
        values = Carrier.parse(key.text("carrier")).read(model)
        return {**_change(values, values, key.tensor("positions")), **reference_of(model)}

    def started(self, trainer: OwnerTrainer) -> nn.Module:
        """The model that the mark is embedded in."""
        return trainer.clean() if self.mode == "fine-tune" else trainer.new_model()

    def trained(
        self, trainer: OwnerTrainer, model: nn.Module, key: Key, project: Callable[[nn.Module], None]
    ) -> dict[str, float]:
        """Train in place; project before, after each epoch or every so many steps, and last.

        Returns:
            `embedding_change`, what the last projection changed, in the L2 norm over that of the carrier; and how the
            marked weights differ from the others in the carrier, as whose sample they were drawn: `embedding_ks`, the
            two-sample Kolmogorov-Smirnov distance, and `embedding_std`, the ratio of the standard deviations.
        """
        recipe = trainer.recipe()
        if self.mode == "fine-tune":
            recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
        per_epoch = len(trainer.train) // min(recipe.batch_size, len(trainer.train))
        last = recipe.epochs * per_epoch

        # The last one comes after the training, so that what it changes can be told.
        def after_step(model: nn.Module, step: int) -> None:
            if (step + 1) % self.every == 0 and step + 1 < last:
                project(model)

        def after_epoch(model: nn.Module, epoch: int) -> None:
            if epoch < recipe.epochs:
                project(model)

        project(model)
        hooks = Hooks(after_step=after_step) if self.every else Hooks(after_epoch=after_epoch)
        trainer.fit(model, trainer.train, recipe, hooks=hooks)
        carrier = Carrier.parse(key.text("carrier"))
        before = carrier.read(model)
        project(model)
        return _change(before, carrier.read(model), key.tensor("positions"))


@dataclass(frozen=True)
class PlainBits(KeyedWeights):
    """A mark that holds one bit of the message at each of its weights.

    Attributes:
        bits: length k of the message.
    """

    uniform: ClassVar[tuple[str, ...]] = ("message",)

    bits: int = 128

    @property
    def places(self) -> int:
        """One weight a bit."""
        return self.bits

    def capacity(self, task: Task) -> float:
        """All bits right: 2 ** -k; one reading more costs a factor of 2."""
        del task
        return self.alternatives() - self.bits * math.log10(2)

    def agreement(self, read: np.ndarray, key: Key) -> Evidence:
        """Bits read, shape (k,), that are those of the message: binomial with rate 1/2, as the message is uniform."""
        right = int((read == key.tensor("message").numpy()).sum())
        return Evidence(right, binomial_tail(right, self.bits, 0.5), {"bit_error": 1.0 - right / self.bits})


def _change(before: Tensor, after: Tensor, positions: Tensor) -> dict[str, float]:
    old, new = before.double().cpu(), after.double().cpu()
    figures = {"embedding_change": float((new - old).norm() / old.norm())}
    others = torch.ones(len(new), dtype=torch.bool)
    others[positions] = False
    marked, rest = new[positions], new[others]
    if min(len(marked), len(rest)) > 1:
        figures["embedding_ks"] = float(stats.ks_2samp(marked.numpy(), rest.numpy(), method="asymp").statistic)
        figures["embedding_std"] = float(marked.std() / rest.std())
    return figures


def _default(model: nn.Module) -> str:
    layers: dict[str, nn.Module] = dict(model.named_modules())
    # Parts of a net may have heads of their own, which may begin as zeros.
    hidden = {name: layer for name, layer in layers.items() if name.rpartition(".")[2] != HEAD}
    linear = {name: layer.weight.numel() for name, layer in hidden.items() if isinstance(layer, nn.Linear)}
    convolutions = [name for name, layer in layers.items() if isinstance(layer, nn.Conv1d | nn.Conv2d)]
    if linear:
        return max(reversed(linear), key=lambda name: linear[name])
    if convolutions:
        return convolutions[-1]
    raise KeyError("the model has neither a convolution nor a linear layer beside its head")
