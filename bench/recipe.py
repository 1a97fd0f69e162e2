"""How a model is trained: one frozen recipe for owner and attacker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """A training recipe.

    Attributes:
        epochs: passes over the data.
        batch_size: inputs a step, before extra inputs; a smaller set is one batch.
        optimizer: SGD with momentum, or Adam.
        learning_rate: its peak.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        weight_decay: L2, added to the gradient.
        schedule: of the learning rate, step by step: `one-cycle` rises over `warmup` and falls linearly to
            zero; `cosine` falls from the start; `step` divides by ten at each of `milestones`.
        warmup: share of the steps in which `one-cycle` rises, in [0, 1).
        milestones: shares of the steps, in (0, 1).
        label_smoothing: in [0, 1).
        clip_norm: the gradient's norm is clipped to it; 0 for never.
        shift: each image is shifted by up to so many pixels each way.
        flip: whether half of the images are mirrored left to right.
        rotate: whether each cloud of points is rotated, uniformly over all rotations.
        rescale: each cloud is scaled by a factor between 1 / (1 + rescale) and 1 + rescale.
        offset: each cloud is moved by up to so much along each axis, in units of what a model takes.
        jitter: standard deviation of normal noise on each coordinate, in the same units.
        drop: of each cloud a share of points, up to this one, is replaced by the first point, in [0, 1].
        compile: whether PyTorch compiles the model for training; takes about a minute, and pays on a GPU in long
            trainings of large nets.
    """

    epochs: int = 20
    batch_size: int = 32
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["one-cycle", "cosine", "step", "constant"] = "one-cycle"
    warmup: float = 0.2
    milestones: tuple[float, ...] = (0.5, 0.75)
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    shift: int = 0
    flip: bool = False
    rotate: bool = False
    rescale: float = 0.0
    offset: float = 0.0
    jitter: float = 0.0
    drop: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"expected epochs >= 0 and batch_size >= 1, got {self.epochs}, {self.batch_size}")
        if not (self.learning_rate > 0 and 0 <= self.warmup < 1 and 0 <= self.label_smoothing < 1):
            raise ValueError("expected learning_rate > 0, warmup and label_smoothing in [0, 1)")
        if not (min(self.rescale, self.offset, self.jitter) >= 0 and 0 <= self.drop <= 1):
            raise ValueError("expected rescale, offset, jitter >= 0 and drop in [0, 1]")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step.

        Args:
            step: from 0 on.
            steps: their number in the whole training.
        """
        progress = (step + 0.5) / max(1, steps)
        if self.schedule == "one-cycle":
            rising = progress / self.warmup if self.warmup else math.inf
            return self.learning_rate * min(rising, (1.0 - progress) / (1.0 - self.warmup))
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.schedule == "step":
            passed = sum(progress >= milestone for milestone in self.milestones)
            return float(self.learning_rate * 0.1**passed)
        return self.learning_rate
