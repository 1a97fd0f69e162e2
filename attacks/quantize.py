"""Quantization after training: weights take a few evenly spaced levels (Jacob et al. 2018, arXiv 1712.05877)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import models
from attacks.quantization.int8 import dequantized, integer_model
from bench.attack import AttackClass, Data, RemovalAttack
from bench.effort import Effort
from bench.suspect import Target, predict
from bench.task import Task
from bench.trainer import AttackerTrainer

Granularity = Literal["channel", "tensor"]
Mode = Literal["symmetric", "affine"]
Engine = Literal["x86", "fbgemm", "onednn", "qnnpack"]


@dataclass(frozen=True)
class Quantize(RemovalAttack):
    """Round the weights of all convolutions and linear layers to levels; no training, no data.

    Attributes:
        bits: of a weight, falling, each from 2 to 8; each starts from the protected model.
        granularity: a scale for each output channel, or one for the whole tensor.
        mode: `symmetric` levels around zero, or `affine` ones between the smallest weight and the largest; zero is a
            level of both.
    """

    name: ClassVar[str] = "quantize"
    family: ClassVar[str] = "quantization"
    source: ClassVar[str] = "Jacob et al. 2018, arXiv 1712.05877, section 2.1"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "bits"

    bits: tuple[int, ...] = (8, 6, 5, 4, 3, 2)
    granularity: Granularity = "channel"
    mode: Mode = "symmetric"

    def __post_init__(self) -> None:
        falling = all(first > second for first, second in itertools.pairwise(self.bits))
        if not (self.bits and falling and all(2 <= bits <= 8 for bits in self.bits)):
            raise ValueError(f"expected bits from 8 to 2 that fall, got {list(self.bits)}")

    def effort(self, task: Task) -> Effort:
        """No training."""
        del task
        return Effort()

    def surrogates(self) -> int:
        """One per number of bits."""
        return len(self.bits)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Quantize the protected model to each number of bits."""
        protected = target.copy()
        for bits in self.bits:
            model = copy.deepcopy(protected)
            with torch.no_grad():
                for weight in models.weights_of(model).values():
                    weight.copy_(quantized(weight, bits, self.granularity, self.mode))
            yield float(bits), model


def quantized(weight: Tensor, bits: int, granularity: Granularity, mode: Mode) -> Tensor:
    """Weights on 2^bits levels: scale x (an integer), rounded to the nearest by PyTorch's fake quantization.

    Args:
        weight: float32 of shape (channels, …).
        bits: at least 2.
        granularity, mode: as for `Quantize`.

    Returns:
        The same shape; a weight of zero stays zero.
    """
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rows = weight.detach().flatten(1) if granularity == "channel" else weight.detach().reshape(1, -1)
    scale, zero = _range(rows, lowest, highest, mode)
    return torch.fake_quantize_per_channel_affine(rows, scale, zero, 0, lowest, highest).view_as(weight)


def _range(rows: Tensor, lowest: int, highest: int, mode: Mode) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row, as PyTorch's observers choose them, which are to be removed from it."""
    least, most = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    # Rows of zeros need a scale too, and one whose inverse is finite.
    tiny = torch.finfo(rows.dtype).tiny
    if mode == "symmetric":
        scale = (torch.maximum(-least, most) / ((highest - lowest) / 2)).clamp(min=tiny)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((most - least) / (highest - lowest)).clamp(min=tiny)
    zero = (lowest - (least / scale).round()).clamp(lowest, highest)
    return scale, zero.to(torch.int32)


@dataclass(frozen=True)
class QuantizeInt8(RemovalAttack):
    """PyTorch's own static int8 quantization, which computes in integers; its weights are given back as floats.

    The integer model itself is no net of floats that could be stored and judged like any other. The surrogate has its
    weights and biases, normalizations folded in as the library folds them; what it lacks is the rounding of what layers
    hand to each other. How often the two give the same label is counted while the integer model is there.

    Attributes:
        engine: the library's kernels; they also say whether each channel has a scale or each tensor (`qnnpack`).
        share: of the attacker's inputs, which calibrate the activations and on which labels are compared.
    """

    name: ClassVar[str] = "quantize-int8"
    family: ClassVar[str] = "quantization"
    source: ClassVar[str] = "Jacob et al. 2018, arXiv 1712.05877"
    attack_class: ClassVar[AttackClass] = "in-place"
    data: ClassVar[Data] = "inputs"
    strength_unit: ClassVar[str] = "bits"

    engine: Engine = "x86"
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"expected a share in (0, 1], got {self.share}")

    def effort(self, task: Task) -> Effort:
        """Inputs pass once to calibrate, once through each of the two models."""
        return Effort(answered=3 * self.share * task.sizes.attacker)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """One surrogate; noted is how often it agrees with the integer model that it came from."""
        # Integer kernels of this kind exist on CPUs alone.
        protected, inputs = target.copy().cpu().eval(), trainer.first_inputs(self.share).cpu()
        integers, answers = integer_model(protected, inputs, self.engine)
        model = dequantized(protected, integers)
        agreement = (predict(model, inputs).argmax(1) == answers.argmax(1)).double().mean()
        trainer.note({"agreement": float(agreement)})
        yield 8.0, model.to(trainer.device)
