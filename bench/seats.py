"""Which part of the CPUs and GPUs each slot gets. No Ray here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# Ray's precision of fractional resources.
_PARTS = 10_000

Bundle = dict[str, float]


@dataclass(frozen=True)
class Seat:
    """What each of the two processes of a slot asks for.

    Attributes:
        bundle: index of the reserved bundle that it is taken from.
        cpus: share of CPUs.
        gpus: share of the bundle's GPU.
    """

    bundle: int
    cpus: float
    gpus: float


def layout(workers: int, threads: int, device: Literal["cpu", "cuda"], gpus: int) -> tuple[list[Bundle], list[Seat]]:
    """What to reserve, and the seat of each slot.

    On GPUs a bundle is one whole GPU with the slots that share it: left to itself, Ray would fill the first
    GPU with the processes of all owners before it looks at the second.

    Args:
        workers: number of slots.
        threads: per slot.
        device: of all slots.
        gpus: number to use; more than `workers` are not needed.
    """
    half = threads / 2
    if device == "cpu":
        return [{"CPU": threads} for _ in range(workers)], [Seat(i, half, 0.0) for i in range(workers)]
    used = min(gpus, workers)
    places = [slot * used // workers for slot in range(workers)]
    shared = [places.count(gpu) for gpu in range(used)]
    seats = [Seat(gpu, half, math.floor(_PARTS / (2 * shared[gpu])) / _PARTS) for gpu in places]
    return [{"CPU": threads * count, "GPU": 1} for count in shared], seats
