"""A slot of the pool: its place, its processes, and the job that it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.planning.job import Channel, Job, Side
from bench.workers.loss import kernel_kills
from bench.workers.seats import Seat
from bench.workers.worker import Seen

# MiB of a GPU, for what CUDA loads into the two processes of a slot as they first need it.
_BESIDE_JOBS = 512.0


@dataclass
class Run:
    """A job under way: references to what it will leave, and what helps to tell how it was lost."""

    job: Job
    outcome: Any
    products: dict[Channel, Any]
    started: float = field(default_factory=time.monotonic)
    ready: Any = None
    begun: float | None = None
    kernel_kills: int = field(default_factory=kernel_kills)
    killed: float | None = None


@dataclass
class Slot:
    """Where one job runs at a time.

    Attributes:
        seat: what its processes take, and where.
        device: its name.
        processes: by side; one that was lost is made anew by the next job.
        run: its job; None while it is idle.
        gone: its node is no more.
    """

    seat: Seat
    device: str = "cpu"
    processes: dict[Side, Any] = field(default_factory=dict)
    run: Run | None = None
    gone: bool = False

    @property
    def epitaph(self) -> str:
        """What is told of a job that was lost with the node."""
        return f"its node {self.seat.node[:8]} is gone"


def memory_for_jobs(slots: Sequence[Slot], seen: Sequence[Seen]) -> dict[str, float]:
    """MiB that jobs may take together, by device.

    The least that a process has seen free was seen when the CUDA contexts of all had been made.

    Args:
        slots: one for each process.
        seen: what that process saw.
    """
    least: dict[str, float] = {}
    for slot, one in zip(slots, seen, strict=True):
        if one.memory is not None:
            least[slot.device] = min(least.get(slot.device, one.memory), one.memory)
    # Two processes to a slot.
    shared = Counter(slot.device for slot in slots)
    return {device: free - _BESIDE_JOBS / 2 * shared[device] for device, free in least.items()}
