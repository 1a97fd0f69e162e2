"""Reparametrisations: other weights for the same function, free of data and training.

Channels trade places, scale or change sign where the channel graph (`models.channels`) allows it, and what reads them
makes up for it exactly, the eps of normalizations included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from bench.attack import AttackClass, RemovalAttack
from bench.effort import Effort
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.channels import Channels, channels
from models.frames import moved, of_gauges, reframe

Move = Literal["permute", "rescale", "sign-flip"]


@dataclass(frozen=True)
class _Reparametrisation(RemovalAttack):
    """What the attacks of this family share; a subclass says which moves it makes."""

    family: ClassVar[str] = "reparametrisation"
    attack_class: ClassVar[AttackClass] = "reparametrisation"
    strength_unit: ClassVar[str] = "fraction of channels changed"

    def _moves(self) -> tuple[Move, ...]:
        raise NotImplementedError

    def _spread(self) -> float:
        return 1.0

    def applies_to(self, task: Task) -> str | None:
        """Needs a net whose channels can be followed, and a place for at least one of the moves."""
        try:
            graph = channels(task.skeleton)
        except ValueError as error:
            return str(error)
        if any(_has_place(graph, move) for move in self._moves()):
            return None
        return f"{task.model} has no place for {' or '.join(self._moves())}"

    def effort(self, task: Task) -> Effort:
        """No input is ever passed through a model."""
        return Effort()

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """One surrogate with the same function."""
        model = target.copy()
        graph = channels(model)
        order, factors = drawn(graph, self._moves(), self._spread(), trainer.stream)
        reframe(model, graph, order, factors)
        yield share_changed(graph, order, factors), model


@dataclass(frozen=True)
class Permute(_Reparametrisation):
    """Let exchangeable channels trade places, in an order drawn uniformly."""

    name: ClassVar[str] = "permute"
    source: ClassVar[str] = "Hecht-Nielsen 1990; Yan et al. 2023, arXiv 2303.09732"

    def _moves(self) -> tuple[Move, ...]:
        return ("permute",)


@dataclass(frozen=True)
class _Scaling(_Reparametrisation):
    """What those share that scale.

    Attributes:
        spread: factors are log-uniform between 1 / spread and spread.
    """

    spread: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.spread) and self.spread > 1):
            raise ValueError(f"expected a finite spread > 1, got {self.spread}")

    def _spread(self) -> float:
        return self.spread


@dataclass(frozen=True)
class Rescale(_Scaling):
    """Multiply what each channel gives by a positive factor, before and behind normalization.

    Attributes:
        spread: factors are log-uniform between 1 / spread and spread.
    """

    name: ClassVar[str] = "rescale"
    source: ClassVar[str] = "Dinh et al. 2017, arXiv 1703.04933; Yan et al. 2023, arXiv 2303.09732"

    def _moves(self) -> tuple[Move, ...]:
        return ("rescale",)


@dataclass(frozen=True)
class SignFlip(_Reparametrisation):
    """Change the sign of every other channel at random, where a normalization or nothing at all follows."""

    name: ClassVar[str] = "sign-flip"
    source: ClassVar[str] = "Chen, Lu and Hecht-Nielsen 1993; Yan et al. 2023, arXiv 2303.09732"

    def _moves(self) -> tuple[Move, ...]:
        return ("sign-flip",)


@dataclass(frozen=True)
class Reparametrise(_Scaling):
    """Several moves in one.

    Attributes:
        moves: which; those for which the net has no place are left out.
        spread: factors are log-uniform between 1 / spread and spread.
    """

    name: ClassVar[str] = "reparametrise"
    source: ClassVar[str] = "Yan et al. 2023, arXiv 2303.09732"

    moves: tuple[Move, ...] = ("permute", "rescale", "sign-flip")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.moves or len(set(self.moves)) != len(self.moves):
            raise ValueError(f"expected at least one move, each once, got {list(self.moves)}")

    def _moves(self) -> tuple[Move, ...]:
        return self.moves


def drawn(graph: Channels, moves: tuple[Move, ...], spread: float, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Random moves, as `models.frames.reframe` takes them; each kind is a draw of its own."""
    order, factors = np.arange(len(graph.classes)), np.ones(len(graph.scalable))
    if "permute" in moves:
        chance = stream.child("permute").numpy()
        for members in graph.members:
            order[members] = chance.permutation(members)
    if "rescale" in moves:
        chance = stream.child("rescale").numpy()
        logs = chance.uniform(-math.log(spread), math.log(spread), len(factors))
        factors = np.where(graph.scalable, np.exp(logs), factors)
    if "sign-flip" in moves:
        chance = stream.child("sign-flip").numpy()
        factors = np.where(graph.signable, chance.choice([-1.0, 1.0], len(factors)), 1.0) * factors
    return order, factors


def share_changed(graph: Channels, order: np.ndarray, factors: np.ndarray) -> float:
    """The fraction of channels, layer by layer, that trade places or are multiplied by something."""
    changed = total = 0
    for layer in graph.layers:
        places = moved(layer.outputs, order)
        other = (places != np.arange(len(places))) | (of_gauges(factors, layer.outputs) != 1.0)
        changed, total = changed + int(other.sum()), total + len(other)
    return changed / total


def _has_place(graph: Channels, move: Move) -> bool:
    if move == "permute":
        return any(len(members) > 1 for members in graph.members)
    return bool((graph.scalable if move == "rescale" else graph.signable).any())
