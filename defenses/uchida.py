"""Weight watermark by a linear projection (Uchida, Nagai, Sakazawa and Satoh 2017, arXiv 1701.04082)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from bench.canonical import readings, reference_of
from bench.defense import Defense, KeyKind, Protected
from bench.effort import Effort, of_training
from bench.evidence import Evidence
from bench.hooks import Hooks
from bench.key import Key
from bench.parameters import judged
from bench.plugin import Access
from bench.statistics import binomial_tail
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer

Convolution = nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Uchida(Defense):
    """A message in the signs of a secret projection of one convolution's mean filter.

    Attributes:
        bits: length T of the uniform message.
        projection: rows of the secret matrix X: `random` normal numbers, `direct` one weight each, `diff` the
            difference of two weights.
        layer: name of the convolution; empty for the last one.
        strength: weight of the summed cross-entropy between sigmoid(X w) and the message (eq. 3 and 5).
        canonical: verify a second time with the order, scale and sign of the suspect's channels undone by the
            published model's. All that X reads of a filter is left out of comparing filters.
    """

    name: ClassVar[str] = "uchida"
    family: ClassVar[str] = "weight-watermark"
    source: ClassVar[str] = "Uchida et al. 2017, arXiv 1701.04082"
    access: ClassVar[Access] = "white-box"
    key_kind: ClassVar[KeyKind] = "linear"
    uniform: ClassVar[tuple[str, ...]] = ("message",)
    parts: ClassVar[tuple[str, ...]] = ("message", "projection")

    bits: int = 64
    projection: Literal["random", "direct", "diff"] = "random"
    layer: str = ""
    strength: float = 0.01
    canonical: bool = judged(False)

    def __post_init__(self) -> None:
        if self.bits < 1 or self.strength <= 0:
            raise ValueError(f"expected bits >= 1 and strength > 0, got {self.bits} and {self.strength}")

    def applies_to(self, task: Task) -> str | None:
        """Needs a convolution whose mean filter has at least as many weights as the message has bits."""
        try:
            carrier = _convolution(task.skeleton, _chosen(task.skeleton, self.layer))
        except KeyError as error:
            return str(error.args[0])
        room = carrier.weight[0].numel()
        needed = 2 * self.bits if self.projection == "diff" else self.bits
        return None if needed <= room else f"{needed} weights are needed, the mean filter has {room}"

    def capacity(self, task: Task) -> float:
        """All bits right: 2 ** -T; one reading more costs a factor of 2."""
        del task
        return (int(self.canonical) - self.bits) * math.log10(2)

    def effort(self, task: Task) -> Effort:
        """One training; the loss term costs little beside it."""
        return of_training(task, task.sizes.train, task.recipe.epochs)

    def draw(self, task: Task, stream: Stream) -> Key:
        """The message and the projection, float32 of shape (T, M)."""
        layer = _chosen(task.skeleton, self.layer)
        length = _convolution(task.skeleton, layer).weight[0].numel()
        chance = stream.child("projection").numpy()
        if self.projection == "random":
            projection = torch.from_numpy(chance.standard_normal((self.bits, length), dtype="float32"))
        else:
            projection = torch.zeros(self.bits, length)
            places = torch.from_numpy(chance.permutation(length))
            rows = torch.arange(self.bits)
            projection[rows, places[: self.bits]] = 1.0
            if self.projection == "diff":
                projection[rows, places[self.bits : 2 * self.bits]] = -1.0
        return Key({"message": stream.child("message").bits(self.bits), "projection": projection, "layer": layer})

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train from scratch with the embedding loss on the current weights; the owner keeps what is published."""
        projection = key.tensor("projection").to(trainer.device)
        message = key.tensor("message").float().to(trainer.device)
        layer = key.text("layer")

        def embedding(model: nn.Module) -> Tensor:
            logits = projection @ mean_filter(_convolution(model, layer))
            return self.strength * F.binary_cross_entropy_with_logits(logits, message, reduction="sum")

        model = trainer.fit(trainer.new_model(), trainer.train, hooks=Hooks(loss_term=embedding))
        return Protected(model, key.complete(**reference_of(model)))

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Bits that agree with the message; binomial with rate 1/2, since the message is uniform."""
        counted = {f"{key.text('layer')}.weight": key.tensor("projection")}
        return readings(suspect, key, lambda model: _read(model, key), counted, canonical=self.canonical)

    # For forgeries (attacks/forging/offers.py)

    def withheld(self) -> str | None:
        """Anybody can keep a copy of what is published."""
        return None

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """A drawn key with the model as its reference."""
        del task
        return key.complete(**reference_of(model))

    def illegible(self) -> str | None:
        """Any message is as good as another."""
        return None

    def read_off(self, key: Key, suspect: Suspect, task: Task) -> Key:
        """The key with the message that the suspect says under its projection; KeyError without the layer."""
        del task
        read = _bits(key.tensor("projection"), self.carried(key, suspect.module))
        return key.redraw(Key({"message": read}), ("message",))

    @property
    def rows(self) -> Literal["any", "either-sign", "fixed"]:
        """Normal numbers may be any; pairs may change places; single weights count as they are."""
        forms: dict[str, Literal["any", "either-sign", "fixed"]]
        forms = {"random": "any", "diff": "either-sign", "direct": "fixed"}
        return forms[self.projection]

    def carried(self, key: Key, model: nn.Module) -> Tensor:
        """The mean filter of the layer in the key, float32 (M,); KeyError without the layer."""
        return mean_filter(_convolution(model, key.text("layer"))).detach().cpu()


def _read(model: nn.Module, key: Key) -> Evidence:
    projection, message = key.tensor("projection"), key.tensor("message")
    try:
        carrier = _convolution(model, key.text("layer"))
    except KeyError as error:
        return Evidence.unreadable(str(error.args[0]))
    weights = mean_filter(carrier).detach().cpu()
    if len(weights) != projection.shape[1]:
        return Evidence.unreadable(f"expected {projection.shape[1]} weights in the mean filter, got {len(weights)}")
    read = _bits(projection, weights)
    right = int((read == message).sum())
    error_rate = 1.0 - right / len(message)
    return Evidence(right, binomial_tail(right, len(message), 0.5), {"bit_error": error_rate})


def _bits(projection: Tensor, weights: Tensor) -> Tensor:
    return (projection @ weights >= 0).long()


def mean_filter(convolution: Convolution) -> Tensor:
    """The mean over the output channels, flattened: M = in_channels * kernel numbers (section 3.1)."""
    return convolution.weight.float().mean(0).flatten()


def _chosen(model: nn.Module, layer: str) -> str:
    if layer:
        return layer
    convolutions: list[str] = [name for name, module in model.named_modules() if isinstance(module, Convolution)]
    if not convolutions:
        raise KeyError("the model has no convolution")
    return convolutions[-1]


def _convolution(model: nn.Module, name: str) -> Convolution:
    found = models.layer(model, name)
    if not isinstance(found, Convolution):
        raise KeyError(f"layer {name!r} is a {type(found).__name__}, not a convolution")
    return found
