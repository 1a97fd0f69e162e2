"""Which jobs may run together on a device: as many as its memory holds, told by what their like took before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.planning.job import Job, Outcome

# What a job is given beyond the peak of PyTorch's tensors: fragments of the allocator, and other runs of its
# kind that take more.
_SLACK = 1.25
# MiB beside them: what CUDA and its libraries take for themselves while it runs.
_BESIDE_MB = 256.0
# Devices of one model differ by little in what is free; above this share of the largest they count as equal.
_AS_LARGE = 0.9


def kind_of(job: Job) -> str:
    """A name shared by jobs that should take about the same memory: same work, plugin and task."""
    names = [(job.spec.get(role) or {}).get("path") for role in ("plugin", "scheme")]
    text = json.dumps([job.kind, names, job.spec.get("task")], sort_keys=True)
    return f"{job.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass
class Admission:
    """Finds the slot for a job.

    A job of a kind whose memory nobody knows, and one that is tried again, runs alone on its device.

    Attributes:
        devices: the device of each slot.
    """

    devices: Sequence[str]
    _peaks: dict[str, float] = field(default_factory=dict)
    _inside: dict[int, float | None] = field(default_factory=dict)

    def remember(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Learn from the journal of earlier runs."""
        for entry in entries:
            if entry["status"] == "ok" and "memory_kind" in entry:
                self._learn(entry["memory_kind"], entry["device"], entry["peak_memory_mb"])

    def learn(self, job: Job, outcome: Outcome) -> None:
        """Learn from a job that ended; one that failed may not have come to its peak."""
        if outcome.status == "ok":
            self._learn(kind_of(job), outcome.device, outcome.peak_memory_mb)

    def slot(self, job: Job, alone: bool, idle: Sequence[int], memory: Mapping[str, float]) -> int | None:
        """The slot on which a job can start now, on the device with the fewest jobs; None where it has to wait.

        Args:
            job: to be started.
            alone: it must have its device to itself.
            idle: slots to choose from.
            memory: MiB by device; a device that is not named has no limit.
        """
        share = self._share(job)
        fitting = [slot for slot in idle if self._fits(self.devices[slot], share, alone, memory)]
        return min(fitting, key=lambda slot: (len(self._on(self.devices[slot])), slot), default=None)

    def device_to_clear(self, job: Job, alone: bool, devices: Iterable[str], memory: Mapping[str, float]) -> str | None:
        """The device on which a job that has to wait should start next, so that nothing else is to start there.

        Args:
            job: that `slot` has no slot for.
            alone: it must have its device to itself.
            devices: to choose from.
            memory: MiB by device.
        """
        share = self._share(job)
        large = [device for device in devices if _is_large_enough(device, share, alone, memory)]
        return min(large, key=lambda device: (len(self._on(device)), device), default=None)

    def enter(self, slot: int, job: Job, alone: bool, memory: Mapping[str, float]) -> None:
        """A job starts on a slot."""
        limited = self.devices[slot] in memory
        self._inside[slot] = None if alone else (self._share(job) if limited else 0.0)

    def leave(self, slot: int) -> None:
        """The job of a slot has ended."""
        del self._inside[slot]

    def _learn(self, kind: str, device: str, peak: float) -> None:
        if device.startswith("cuda"):
            self._peaks[kind] = max(peak, self._peaks.get(kind, 0.0))

    def _share(self, job: Job) -> float | None:
        """MiB that a job is given; None where its kind was never seen."""
        peak = self._peaks.get(kind_of(job))
        return None if peak is None else peak * _SLACK + _BESIDE_MB

    def _on(self, device: str) -> list[float | None]:
        return [share for slot, share in self._inside.items() if self.devices[slot] == device]

    def _fits(self, device: str, share: float | None, alone: bool, memory: Mapping[str, float]) -> bool:
        others = self._on(device)
        if None in others or not _is_large_enough(device, share, alone, memory):
            return False
        if not others:
            return True
        if alone or (device in memory and share is None):
            return False
        # Nothing on a limited device is without a share here.
        return device not in memory or sum(one or 0.0 for one in others) + (share or 0.0) <= memory[device]


def _is_large_enough(device: str, share: float | None, alone: bool, memory: Mapping[str, float]) -> bool:
    """Whether a job fits there at all; where it fits nowhere, and where it failed before, the largest are to try."""
    if device not in memory or (share is None and not alone):
        return True
    largest = _AS_LARGE * max(memory.values())
    return memory[device] >= (largest if alone or share is None else min(share, largest))
