"""Dither modulation in weights that a key chooses (Chen and Wornell 2001; Kuribayashi et al. 2021, IH&MMSec)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy import fft
from torch import Tensor, nn

from bench.canonical import reference_of
from bench.defense import Protected
from bench.evidence import Evidence
from bench.key import Key
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.weights.keyed_weights import Carrier, PlainBits


@dataclass(frozen=True)
class DmQim(PlainBits):
    """Message bits in which of two dithered lattices each keyed weight, or DCT coefficient of them, lies.

    Attributes:
        bits: length k of the message, one coefficient a bit.
        step: Delta over the standard deviation of the carrier before the first projection.
        transform: of the sampled weights: the orthonormal `dct`, or `none`.
    """

    name: ClassVar[str] = "dm-qim"
    source: ClassVar[str] = "Kuribayashi et al. 2021, IH&MMSec, doi 10.1145/3437880.3460402"
    parts: ClassVar[tuple[str, ...]] = ("positions", "message", "dither")

    bits: int = 128
    step: float = 3.0
    transform: Literal["dct", "none"] = "dct"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits < 1 or self.step <= 0:
            raise ValueError(f"expected bits >= 1 and step > 0, got {self.bits} and {self.step}")

    def draw(self, task: Task, stream: Stream) -> Key:
        """The message, a position for each bit, and the dither d_0 in units of Delta, uniform in [0, 1)."""
        carrier, positions = self.drawn(task, stream)
        message = stream.child("message").bits(self.bits)
        dither = torch.from_numpy(stream.child("dither").numpy().random(self.bits))
        return Key({"message": message, "positions": positions, "dither": dither, "carrier": carrier})

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train with the projection onto the message's lattices, whose step stays that of the start."""
        model, carrier = self.started(trainer), Carrier.parse(key.text("carrier"))
        step = self.step * float(carrier.read(model).double().std())
        message, dither = key.tensor("message").numpy(), key.tensor("dither").numpy()

        def project(model: nn.Module) -> None:
            values = carrier.read(model)
            positions = key.tensor("positions").to(values.device)
            nearest = lattice(self._forward(values[positions]), message, dither, step)
            values[positions] = self._backward(nearest).to(values)
            carrier.write(model, values)

        change = self.trained(trainer, model, key, project)
        return Protected(model, key.complete(step=step, **change, **reference_of(model)))

    def evidence(self, weights: Tensor, key: Key, module: nn.Module) -> Evidence:
        """Bits by the nearer lattice; binomial with rate 1/2, since the message is uniform."""
        return self.agreement(self._read(weights, key), key)

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """A drawn key with the step for the model's weights, and the model as its reference."""
        del task
        step = self.step * float(Carrier.parse(key.text("carrier")).read(model).double().std())
        return key.complete(step=step, **self.unchanged(key, model))

    def illegible(self) -> str | None:
        """Any message is as good as another."""
        return None

    def read_off(self, key: Key, suspect: Suspect, task: Task) -> Key:
        """The key with the message of the nearer lattices of its dither; raises Unreadable without the layers."""
        del task
        weights = Carrier.parse(key.text("carrier")).read(suspect.module).cpu()
        message = torch.from_numpy(self._read(weights[key.tensor("positions")], key).astype(np.int64))
        return key.redraw(Key({"message": message}), ("message",))

    def _read(self, weights: Tensor, key: Key) -> np.ndarray:
        coefficients = self._forward(weights)
        dither, step = key.tensor("dither").numpy(), float(key.facts["step"])  # type: ignore[arg-type]
        zero, one = (
            np.abs(coefficients - lattice(coefficients, np.full(self.bits, bit), dither, step)) for bit in (0, 1)
        )
        return one < zero  # type: ignore[no-any-return]

    def _forward(self, weights: Tensor) -> np.ndarray:
        sampled = weights.detach().double().cpu().numpy()
        return fft.dct(sampled, norm="ortho") if self.transform == "dct" else sampled  # type: ignore[no-any-return]

    def _backward(self, coefficients: np.ndarray) -> Tensor:
        return torch.from_numpy(fft.idct(coefficients, norm="ortho") if self.transform == "dct" else coefficients)


def lattice(values: np.ndarray, bits: np.ndarray, dither: np.ndarray, step: float) -> np.ndarray:
    """The nearest points of the lattices of the bits: Q(x - d_b) + d_b with d_1 = d_0 + Delta / 2.

    Args:
        values: float64 of shape (k,).
        bits: 0 or 1, shape (k,).
        dither: d_0 in units of Delta, shape (k,).
        step: Delta, in the unit of the values.
    """
    shift = step * (dither + bits / 2.0)
    return step * np.round((values - shift) / step) + shift  # type: ignore[no-any-return]
