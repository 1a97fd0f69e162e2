"""Slots as long-lived processes under Ray, on CPUs or on GPUs that they share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from bench.cluster import Cluster
from bench.errors import InputError
from bench.executor import Finished, Handle
from bench.job import Channel, Job, Outcome, Side
from bench.loss import kernel_kills, reason
from bench.seats import Seat, layout
from bench.worker import CHANNELS, Worker, to_buffer

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# Ray waits for ever for what was spilled to a disk that has lost it.
_GET_SECONDS = 300.0


@dataclass
class _Run:
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
class _Slot:
    seat: Seat
    device: str = "cpu"
    processes: dict[Side, Any] = field(default_factory=dict)
    run: _Run | None = None


class RayPool:
    """An `Executor` whose slots have up to two processes each: one for owners' jobs, one for attackers'."""

    def __init__(
        self,
        runner: str = "bench.jobs:run",
        *,
        workers: int,
        threads: int,
        device: Literal["cpu", "cuda"],
        address: str | None = None,
        gpus: int | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Connect to Ray and start the processes of both sides, all at once.

        Args:
            runner: `module:function` of what runs a job, imported by the workers.
            workers: number of slots.
            threads: per slot.
            device: of all slots; on `cuda` they are spread evenly over the GPUs.
            address: of a running cluster; None starts one on this machine.
            gpus: how many GPUs to use; None: all there are.
            env: more environment variables of the workers.

        Raises:
            InputError: more is asked for than there is.
        """
        if workers < 1 or threads < 1:
            raise InputError(f"expected at least 1 worker of 1 thread, got {workers} of {threads}")
        if device == "cuda" and gpus is not None and gpus < 1:
            raise InputError(f"expected at least 1 GPU, got {gpus}")
        self._runner = runner
        self._kind = device
        self._environment = _variables(threads, device) | dict(env)
        self._slots: list[_Slot] = []
        self._cluster = Cluster(address)
        self._ray = self._cluster.ray
        try:
            self._open(workers, threads, gpus)
        except BaseException:
            self.close()
            raise

    def devices(self) -> list[str]:
        """For each slot the name of its device: `cpu`, or `cuda:` with the GPU's physical index."""
        return [slot.device for slot in self._slots]

    def idle(self) -> list[int]:
        """The slots that wait for a job."""
        return [index for index, slot in enumerate(self._slots) if slot.run is None]

    def start(self, slot: int, job: Job, inputs: Mapping[str, Handle]) -> None:
        """Start a job on an idle slot, in a new process if its side has none there.

        Raises:
            ValueError: the slot is busy, or the job would bring a key to the attacker's side.
        """
        seat = self._slots[slot]
        if seat.run is not None:
            raise ValueError(f"slot {slot} is busy with job {seat.run.job.id}")
        secret = [role for role, one in job.inputs.items() if one.channel == "secret"]
        if job.side == "attacker" and secret:
            raise ValueError(f"job {job.id} of the attacker's side asks for a secret: {', '.join(secret)}")
        process = self._process(seat, job.side)
        # Calls of one process run in order: this one is done when the job begins.
        ready = process.warm.remote()
        call = process.run.options(num_returns=1 + len(CHANNELS))
        outcome, *products = call.remote(job, list(inputs), *inputs.values())
        seat.run = _Run(job, outcome, dict(zip(CHANNELS, products, strict=True)), ready=ready)

    def wait(self, timeout: float | None) -> list[Finished]:
        """The jobs that have ended since, in no order; returns at once where none runs.

        Args:
            timeout: seconds to wait for the first; None: for ever.
        """
        running = {slot.run.outcome: index for index, slot in enumerate(self._slots) if slot.run is not None}
        if not running:
            return []
        seconds = None if timeout is None else max(timeout, 0.0)
        ended, _ = self._ray.wait(list(running), num_returns=1, timeout=seconds)
        if ended:
            ended, _ = self._ray.wait(list(running), num_returns=len(running), timeout=0)
        return [self._finish(running[outcome]) for outcome in ended]

    def begun(self, slot: int) -> float | None:
        """When the slot's job began, by `time.perf_counter`; None while its process is still starting."""
        run = self._slots[slot].run
        if run is not None and run.begun is None and self._ray.wait([run.ready], timeout=0)[0]:
            run.begun = time.perf_counter()
        return run.begun if run is not None else None

    def kill(self, slot: int) -> None:
        """End the process that runs a slot's job, or both where none runs; the next job gets a new one."""
        seat = self._slots[slot]
        if seat.run is not None and seat.run.killed is None:
            seat.run.killed = time.monotonic()
        for side in [seat.run.job.side] if seat.run else list(seat.processes):
            self._end(seat, side)

    def put(self, data: bytes) -> Handle:
        """A handle for a product that is on disk."""
        return self._ray.put(to_buffer(data))

    def get(self, handle: Handle) -> bytes:
        """The bytes behind a handle.

        Raises:
            LookupError: they are lost.
        """
        try:
            return bytes(self._ray.get(handle, timeout=_GET_SECONDS).tobytes())
        except self._ray.exceptions.RayError as error:
            raise LookupError(f"a product is lost: {error}") from error

    def close(self) -> None:
        """End all processes, and Ray where it was started here."""
        if self._ray.is_initialized():
            for slot in self._slots:
                for side in list(slot.processes):
                    self._end(slot, side)
        self._slots = []
        self._cluster.close()

    def _open(self, workers: int, threads: int, gpus: int | None) -> None:
        there = self._cluster.gpus()
        wanted = there if gpus is None else gpus
        if self._kind == "cuda" and not 1 <= wanted <= there:
            raise InputError(f"GPU: the workers need {max(wanted, 1)}, there are {there}")
        bundles, seats = layout(workers, threads, self._kind, wanted)
        self._cluster.reserve(bundles)
        self._slots = [_Slot(seat) for seat in seats]
        # All of them before the first job: one that starts beside a job would slow it, and its seconds are a result.
        sides: tuple[Side, ...] = ("owner", "attacker")
        warm = [self._process(slot, side).warm.remote() for side in sides for slot in self._slots]
        for slot, seen in zip(self._slots, self._ray.get(warm), strict=False):
            slot.device = "cpu" if self._kind == "cpu" else f"cuda:{seen}"

    def _process(self, slot: _Slot, side: Side) -> Any:
        if side not in slot.processes:
            options = self._cluster.options(slot.seat, self._environment)
            slot.processes[side] = self._ray.remote(**options)(Worker).remote(self._runner, self._kind)
        return slot.processes[side]

    def _end(self, slot: _Slot, side: Side) -> None:
        process = slot.processes.pop(side, None)
        if process is not None:
            self._ray.kill(process)

    def _finish(self, index: int) -> Finished:
        slot = self._slots[index]
        run, slot.run = slot.run, None
        assert run is not None
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(run.outcome)
        except errors.RayTaskError as error:
            # The process lives: an input could not be had, or there was no room for a product.
            for product in run.products.values():
                with suppress(errors.RayError):
                    # Ray prints an error that nobody has asked for.
                    self._ray.get(product)
            return Finished(index, run.job.id, None, f"{type(error.cause).__name__}: {error.cause}")
        except errors.RayError as error:
            self._end(slot, run.job.side)
            if run.killed is not None:
                after = run.killed - run.started
                return Finished(index, run.job.id, None, f"killed by the scheduler after {after:.1f} s")
            return Finished(index, run.job.id, None, reason(error, self._cluster.logs, run.kernel_kills))
        outcome.products = {channel: run.products[channel] for channel in CHANNELS if channel in outcome.products}
        if self._kind == "cuda" and "CUDA error" in (outcome.error or ""):
            # Such an error stays with the process: every later call on the GPU would fail as well.
            self._end(slot, run.job.side)
        return Finished(index, run.job.id, outcome)


def _variables(threads: int, device: str) -> dict[str, str]:
    # Ray leaves all GPUs in sight of a process that asked for none.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | hidden
