"""Two-threshold weight watermarks: a constant-weight code, and the same without one (Kuribayashi et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

import models
from bench.canonical import reference_of
from bench.defense import Protected
from bench.evidence import Evidence
from bench.key import Key
from bench.statistics import hypergeometric_tail
from bench.stream import Stream
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.weights.enumerative_code import capacity, decode, encode, smallest_length
from defenses.weights.keyed_weights import Carrier, KeyedWeights, PlainBits

Pool = Literal["layer", "global"]


@dataclass(frozen=True)
class TwoThresholds:
    """The projection onto |w| >= T1 where a position holds a one and |w| <= T0 where it holds a zero.

    Attributes:
        carrier: the layers that the positions are in.
        positions: shape (L,).
        ones: which of them hold a one, bool (L,).
        rate: R*, the share of each pool that can be pruned without touching a one.
        margin: T0 = (1 - margin) T1.
        pool: whether the attacker prunes each layer by itself or all convolutions and linear layers together.
    """

    carrier: Carrier
    positions: Tensor
    ones: Tensor
    rate: float
    margin: float
    pool: Pool

    def thresholds(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """T0 and T1 from the current weights, scalars.

        T1 lies just above an order statistic of the weights that carry nothing, which the projection does not
        move: together with the zeros of the mark, at least ceil(R* n) of the n weights of each pool are below it.
        """
        zeros = self.carrier.masks(self.positions[~self.ones])
        carrying = self.carrier.masks(self.positions)
        least = []
        for weights in _pools(model, self.pool, self.carrier):
            n = sum(weight.numel() for weight in weights.values())
            free = torch.cat([_unmarked(name, weight, carrying) for name, weight in weights.items()])
            rank = math.ceil(self.rate * n) - sum(int(zeros[name].sum()) for name in weights if name in zeros)
            if rank > 0:
                least.append(free.kthvalue(rank).values)
        high = torch.nextafter(torch.stack(least).max(), torch.tensor(math.inf, device=least[0].device))
        return (1.0 - self.margin) * high, high

    def __call__(self, model: nn.Module) -> None:
        """Project the current weights: the nearest that satisfy both conditions, signs kept, sgn(0) = +1."""
        low, high = self.thresholds(model)
        values = self.carrier.read(model)
        positions, ones = self.positions.to(values.device), self.ones.to(values.device)
        chosen = values[positions]
        magnitudes = torch.where(ones, chosen.abs().clamp_min(high), chosen.abs().clamp_max(low))
        values[positions] = torch.where(chosen < 0, -magnitudes, magnitudes)
        self.carrier.write(model, values)


@dataclass(frozen=True)
class ThresholdMark(KeyedWeights):
    """What the coded and the uncoded mark share; see `KeyedWeights` for the rest.

    Attributes:
        bits: length k of the message.
        rate: R*, the pruning rate that the mark is to survive, in (0, 1).
        pool: what the attacker prunes by one rate: each `layer` by itself, or all of them together (`global`).
        margin: T0 = (1 - margin) T1, in (0, 1).
    """

    bits: int = 128
    rate: float = 0.99
    pool: Pool = "global"
    margin: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits < 1 or not (0 < self.rate < 1 and 0 < self.margin < 1):
            raise ValueError(
                f"expected bits >= 1, rate and margin in (0, 1), got {self.bits}, {self.rate} and {self.margin}"
            )

    @property
    def most_ones(self) -> int:
        """How many positions hold a one at most."""
        raise NotImplementedError

    def ones(self, key: Key) -> Tensor:
        """Which positions hold a one, bool (L,)."""
        raise NotImplementedError

    def applies_to(self, task: Task) -> str | None:
        """Also needs weights enough above the rate for all ones, and fewer zeros than lie below it."""
        reason = super().applies_to(task)
        if reason:
            return reason
        pools = list(_pools(task.skeleton, self.pool, Carrier.of(task.skeleton, self.layers)))
        sizes = [sum(weight.numel() for weight in pool.values()) for pool in pools]
        below = [math.ceil(self.rate * size) for size in sizes]
        room = min(size - under for size, under in zip(sizes, below, strict=True))
        if room < self.most_ones:
            return f"{self.most_ones} weights have to lie above the rate {self.rate}, which leaves {room}"
        if self.places >= sum(below):
            return f"more than {self.places} weights have to lie below the rate {self.rate}, there are {sum(below)}"
        return None

    def projection(self, key: Key) -> TwoThresholds:
        """The projection that embeds the key."""
        carrier = Carrier.parse(key.text("carrier"))
        return TwoThresholds(carrier, key.tensor("positions"), self.ones(key), self.rate, self.margin, self.pool)

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train with the projection; the key learns the thresholds and what the last projection changed."""
        project, model = self.projection(key), self.started(trainer)
        change = self.trained(trainer, model, key, project)
        low, high = (float(threshold) for threshold in project.thresholds(model))
        chosen = project.carrier.read(model)[project.positions.to(trainer.device)].abs()
        exact = int(((chosen == low) | (chosen == high)).sum())
        facts = {"t0": low, "t1": high, **change, "embedding_on_threshold": float(exact)}
        return Protected(model, key.complete(**facts, **reference_of(model)))

    def carried(self, key: Key, model: nn.Module) -> Tensor:
        """All weights that positions count, (N,); Unreadable without the layers."""
        return Carrier.parse(key.text("carrier")).read(model).float().cpu()

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """A drawn key with the model as its reference, and thresholds as if its least one and largest zero were those.

        A projection leaves some ones at T1 and some zeros at T0.
        """
        del task
        chosen, ones = self.carried(key, model)[key.tensor("positions")].abs(), self.ones(key)
        low, high = (float(part.max() if part.numel() else 0.0) for part in (chosen[~ones], -chosen[ones]))
        exact = int(((chosen == low) | (chosen == -high)).sum())
        facts = {"t0": low, "t1": -high, "embedding_on_threshold": float(exact)}
        return key.complete(**facts, **self.unchanged(key, model))


@dataclass(frozen=True)
class ConstantWeightCode(ThresholdMark):
    """A message as a word of few ones, which are the largest of the weights that the key chooses.

    Attributes:
        weight: number of ones in the word.
        length: of the word, L; 0 for the smallest that holds the message.
    """

    name: ClassVar[str] = "constant-weight-code"
    source: ClassVar[str] = "Kuribayashi et al. 2021, arXiv 2107.02961; Yasui et al. 2022, J. Imaging 8(6):152"
    uniform: ClassVar[tuple[str, ...]] = ("positions", "ties")
    parts: ClassVar[tuple[str, ...]] = ("positions", "message")

    weight: int = 24
    length: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 1 or (self.length and self.length < self.weight):
            raise ValueError(f"expected 1 <= weight <= length, got {self.weight} and {self.length}")
        if self.length and capacity(self.length, self.weight) < self.bits:
            raise ValueError(
                f"expected a length of at least {smallest_length(self.bits, self.weight)} for {self.bits} bits "
                f"with weight {self.weight}, got {self.length}"
            )

    @property
    def places(self) -> int:
        """The length of the word."""
        return self.length or smallest_length(self.bits, self.weight)

    @property
    def most_ones(self) -> int:
        """The weight of the word."""
        return self.weight

    def capacity(self, task: Task) -> float:
        """All ones right: one word of C(L, weight); one reading more costs a factor of 2."""
        del task
        return hypergeometric_tail(self.weight, self.places, self.weight, self.weight) + self.alternatives()

    def draw(self, task: Task, stream: Stream) -> Key:
        """The message; positions in uniform order; a second order of them, by which equal magnitudes are ranked."""
        carrier, positions = self.drawn(task, stream)
        ties = torch.from_numpy(stream.child("ties").numpy().permutation(self.places))
        message = stream.child("message").bits(self.bits)
        return Key({"message": message, "positions": positions, "ties": ties, "carrier": carrier})

    def ones(self, key: Key) -> Tensor:
        """The word of the message."""
        word = torch.zeros(self.places, dtype=torch.bool)
        word[list(encode(_number(key.tensor("message")), self.places, self.weight))] = True
        return word

    def evidence(self, weights: Tensor, key: Key, module: nn.Module) -> Evidence:
        """Ones among the largest; hypergeometric, since the order of the positions is uniform."""
        ones, magnitudes = self.ones(key), weights.abs().double()
        order = np.lexsort((key.tensor("ties").numpy(), magnitudes.numpy()))
        top = order[len(order) - self.weight :]
        hits = int(ones[top].sum())
        log10_p = hypergeometric_tail(hits, self.places, self.weight, self.weight)
        figures = {"wrong_positions": 2.0 * (self.weight - hits), **self._message(top, key)}
        figures |= self._erasures(magnitudes, ones, top)
        figures["r_max"] = self._r_max(magnitudes, ones, key, module)
        return Evidence(hits, log10_p, figures)

    def _message(self, top: np.ndarray, key: Key) -> dict[str, float]:
        message, rank = key.tensor("message"), decode(top.tolist(), self.places)
        if rank >= 1 << self.bits:
            # No message: as good as guessed bits.
            return {"message_right": 0.0, "bit_error": 0.5}
        wrong = (rank ^ _number(message)).bit_count()
        return {"message_right": float(wrong == 0), "bit_error": wrong / self.bits}

    def _erasures(self, magnitudes: Tensor, ones: Tensor, top: np.ndarray) -> dict[str, float]:
        """Where a top one is zero, so is all that is not on top: its place is any of L - alpha + e."""
        alive = torch.from_numpy(top)[magnitudes[top] > 0]
        erased = self.weight - len(alive)
        left = math.comb(self.places - self.weight + erased, erased)
        return {
            "erased": float(erased),
            "log2_candidates": math.log2(left),
            "message_among_candidates": float(bool(ones[alive].all())),
        }

    def _r_max(self, magnitudes: Tensor, ones: Tensor, key: Key, module: nn.Module) -> float:
        """The share of weights below the least of the ones; of layers that hold ones, the smallest share."""
        carrier, least = Carrier.parse(key.text("carrier")), magnitudes[ones].min()
        holding = {name for name, mask in carrier.masks(key.tensor("positions")[ones]).items() if mask.any()}
        shares = []
        for weights in _pools(module, self.pool, carrier):
            if holding & weights.keys():
                below = sum(int((weight.detach().abs() < least.to(weight)).sum()) for weight in weights.values())
                shares.append(below / sum(weight.numel() for weight in weights.values()))
        return min(shares)


@dataclass(frozen=True)
class UncodedThreshold(PlainBits, ThresholdMark):
    """Message bits as large and small magnitudes of weights that the key chooses, without a code."""

    name: ClassVar[str] = "uncoded-threshold"
    source: ClassVar[str] = "the two thresholds of Kuribayashi et al. 2021, arXiv 2107.02961, without their code"
    parts: ClassVar[tuple[str, ...]] = ("positions", "message")

    @property
    def most_ones(self) -> int:
        """A message of ones alone."""
        return self.bits

    def draw(self, task: Task, stream: Stream) -> Key:
        """The message, and a position for each bit."""
        carrier, positions = self.drawn(task, stream)
        message = stream.child("message").bits(self.bits)
        return Key({"message": message, "positions": positions, "carrier": carrier})

    def ones(self, key: Key) -> Tensor:
        """The bits themselves."""
        return key.tensor("message").bool()

    def evidence(self, weights: Tensor, key: Key, module: nn.Module) -> Evidence:
        """Bits by the threshold half-way between T0 and T1; binomial with rate 1/2, since the message is uniform."""
        middle = (float(key.facts["t0"]) + float(key.facts["t1"])) / 2  # type: ignore[arg-type]
        return self.agreement((weights.abs() > middle).numpy(), key)


def _number(bits: Tensor) -> int:
    """Bit t of the message is bit t of the number."""
    return int.from_bytes(np.packbits(bits.numpy().astype(np.uint8), bitorder="little").tobytes(), "little")


def _pools(model: nn.Module, pool: Pool, carrier: Carrier) -> Iterator[dict[str, Tensor]]:
    """The weights that are pruned by one rate, by parameter name, a set for each rate."""
    weights = {f"{name}.weight": weight.detach() for name, weight in models.weights_of(model).items()}
    if pool == "global":
        yield weights
    else:
        yield from ({f"{name}.weight": weights[f"{name}.weight"]} for name in carrier.names)


def _unmarked(name: str, weight: Tensor, carrying: dict[str, Tensor]) -> Tensor:
    magnitudes = weight.abs().flatten()
    return magnitudes[~carrying[name].flatten().to(weight.device)] if name in carrying else magnitudes
