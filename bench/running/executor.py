"""Where jobs run: the interface between the scheduler and its workers, and the one-process version of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.planning.job import Job, Outcome

# A product as the executor keeps it: bytes, or a reference to bytes that lie elsewhere.
Handle = Any
# (job, bundles by role, device) to an outcome whose products are bytes; `bench.running.jobs:run` in earnest.
Runner = Callable[[Job, Mapping[str, bytes], str], Outcome]


@dataclass
class Finished:
    """The end of a job on a slot.

    Attributes:
        slot: the slot, which is idle again.
        job: the id of the job.
        outcome: what it came to; its `products` are handles here. None where the worker was lost.
        lost: how the worker was lost, where it was (a signal, an exit, memory, killed by `kill`).
        blameless: the loss cannot be the job's doing: its node is gone, or what another job left for it.
    """

    slot: int
    job: str
    outcome: Outcome | None
    lost: str | None = None
    blameless: bool = False


class Executor(Protocol):
    """Slots that run one job each; a slot whose machine goes is never idle again."""

    def devices(self) -> list[str]:
        """For each slot the name of its device; slots that share a device share the name."""

    def memory(self) -> Mapping[str, float]:
        """MiB that jobs may take together, by name of the device; a device that is not named has no limit."""

    def idle(self) -> list[int]:
        """The slots that wait for a job."""

    def start(self, slot: int, job: Job, inputs: Mapping[str, Handle]) -> None:
        """Start a job on an idle slot; returns at once where it can."""

    def wait(self, timeout: float | None) -> list[Finished]:
        """The jobs that have ended since; waits up to `timeout` seconds for the first, never where none runs."""

    def begun(self, slot: int) -> float | None:
        """When the slot's job began, by `time.perf_counter`; None while its process is still starting."""

    def kill(self, slot: int) -> None:
        """End the worker of a slot now and replace it; its job comes back from `wait` as lost."""

    def put(self, data: bytes) -> Handle:
        """A handle for a product that is on disk."""

    def get(self, handle: Handle) -> bytes:
        """The bytes behind a handle; raises LookupError where they are lost."""

    def close(self) -> None:
        """Let all workers go."""


@dataclass
class InlineExecutor:
    """One process, one slot, no Ray: for debuggers. No time limit and no isolation.

    Attributes:
        runner: runs a job.
        device: on which.
    """

    runner: Runner
    device: str = "cpu"
    _ended: list[Finished] = field(default_factory=list)

    def devices(self) -> list[str]:
        """The one slot's device."""
        return [self.device]

    def memory(self) -> Mapping[str, float]:
        """No limit."""
        return {}

    def idle(self) -> list[int]:
        """Slot 0, unless its job has not been collected."""
        return [] if self._ended else [0]

    def start(self, slot: int, job: Job, inputs: Mapping[str, Handle]) -> None:
        """Run the job to its end."""
        self._ended.append(Finished(slot, job.id, self.runner(job, inputs, self.device)))

    def wait(self, timeout: float | None) -> list[Finished]:
        """The job that ran."""
        del timeout
        ended, self._ended = self._ended, []
        return ended

    def begun(self, slot: int) -> float | None:
        """None: a job in this process has ended before anyone can ask."""
        del slot
        return None

    def kill(self, slot: int) -> None:
        """Nothing: a job in this process has ended before anyone can ask."""
        del slot

    def put(self, data: bytes) -> Handle:
        """The bytes themselves."""
        return data

    def get(self, handle: Handle) -> bytes:
        """The bytes themselves."""
        return bytes(handle)

    def close(self) -> None:
        """Nothing to let go."""
