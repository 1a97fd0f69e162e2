"""Slots as long-lived processes under Ray, on CPUs or on GPUs that they share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Literal

from bench.errors import InputError
from bench.planning.job import Job, Outcome, Side
from bench.running.executor import Finished, Handle
from bench.workers.cluster import Cluster
from bench.workers.loss import reason
from bench.workers.seats import layout, slots_for
from bench.workers.slots import Run, Slot, memory_for_jobs
from bench.workers.worker import CHANNELS, Seen, Worker, to_buffer

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

# Ray waits for ever for what was spilled to a disk that has lost it.
_GET_SECONDS = 300.0
# Importing PyTorch from a cold shared disk takes minutes.
_OPEN_SECONDS = 600.0
# How often it is asked which nodes live.
_LOOK_SECONDS = 1.0
_SIDES: tuple[Side, ...] = ("owner", "attacker")


class RayPool:
    """An `Executor` whose slots have up to two processes each: one for owners' jobs, one for attackers'."""

    def __init__(
        self,
        runner: str = "bench.running.jobs:run",
        *,
        workers: int | None = None,
        threads: int,
        device: Literal["cpu", "cuda"],
        address: str | None = None,
        gpus: int | None = None,
        gpus_per_job: float | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Connect to Ray and start the processes of both sides, all at once.

        Args:
            runner: `module:function` of what runs a job, imported by the workers.
            workers: number of slots; None: as many as the CPUs allow, on GPUs also their memory.
            threads: per slot.
            device: of all slots; they are spread evenly over the nodes or the GPUs.
            address: of a running cluster; None starts one on this machine.
            gpus: how many GPUs to use; None: all there are.
            gpus_per_job: share of a GPU, in (0, 1], that a job gets whatever memory it takes; None: `memory` tells
                what may run together.
            env: more environment variables of the workers.

        Raises:
            InputError: more is asked for than there is, or the workers do not start.
        """
        _require(workers, threads, device, gpus, gpus_per_job)
        self._runner = runner
        self._kind = device
        self._environment = _variables(threads, device) | dict(env)
        self._slots: list[Slot] = []
        self._memory: dict[str, float] = {}
        self._looked = 0.0
        self._cluster = Cluster(address)
        self._ray = self._cluster.ray
        try:
            self._open(workers, threads, gpus, gpus_per_job)
        except BaseException:
            self.close()
            raise

    def devices(self) -> list[str]:
        """For each slot the name of its device: `cpu`, or `cuda:` with the GPU's physical index.

        With slots on several nodes, `@` and the beginning of the node's id follow.
        """
        return [slot.device for slot in self._slots]

    def memory(self) -> Mapping[str, float]:
        """MiB that jobs may take together on each GPU that is there; nothing where shares were set."""
        there = {slot.device for slot in self._slots if not slot.gone}
        return {device: free for device, free in self._memory.items() if device in there}

    def idle(self) -> list[int]:
        """The slots that wait for a job; those of lost nodes never do."""
        return [index for index, slot in enumerate(self._slots) if slot.run is None and not slot.gone]

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
        seat.run = Run(job, outcome, dict(zip(CHANNELS, products, strict=True)), ready=ready)

    def wait(self, timeout: float | None) -> list[Finished]:
        """The jobs that have ended since, in no order; returns at once where none runs.

        Args:
            timeout: seconds to wait for the first; None: for ever.
        """
        deadline = None if timeout is None else time.monotonic() + max(timeout, 0.0)
        while True:
            running = {slot.run.outcome: index for index, slot in enumerate(self._slots) if slot.run is not None}
            if not running:
                return []
            left = _LOOK_SECONDS if deadline is None else deadline - time.monotonic()
            seconds = min(max(left, 0.0), _LOOK_SECONDS)
            ended, _ = self._ray.wait(list(running), num_returns=1, timeout=seconds)
            if ended:
                ended, _ = self._ray.wait(list(running), num_returns=len(running), timeout=0)
            finished = [self._finish(running[outcome]) for outcome in ended] + self._lost_with_nodes()
            if finished or (deadline is not None and time.monotonic() >= deadline):
                return finished

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

    def _open(self, workers: int | None, threads: int, gpus: int | None, share: float | None) -> None:
        per_gpu = None if share is None else int(1 / share + 1e-9)
        arguments = (self._kind, threads, workers, gpus, per_gpu)
        try:
            bundles, seats = layout(self._cluster.nodes(free=self._cluster.joined), *arguments)
        except InputError:
            # What others have taken they may be about to give back; what is not there at all is an error.
            bundles, seats = layout(self._cluster.nodes(), *arguments)
        self._cluster.reserve(bundles)
        self._slots = [Slot(seat) for seat in seats]
        if self._kind == "cuda" and workers is None and share is None:
            self._slots = self._within_memory()
        # All of them before the first job: one that starts beside a job would slow it, and its seconds are a result.
        seen = self._warm([(slot, side) for side in _SIDES for slot in self._slots])
        several = len({slot.seat.node for slot in self._slots}) > 1
        for slot, one in zip(self._slots, seen, strict=False):
            where = f"@{slot.seat.node[:8]}" if several else ""
            slot.device = ("cpu" if self._kind == "cpu" else f"cuda:{one.gpus}") + where
        if share is None:
            self._memory = memory_for_jobs(self._slots * len(_SIDES), seen)

    def _within_memory(self) -> list[Slot]:
        """As many of the slots as the memory of their GPUs allows, told by the first process on each."""
        sharing: dict[tuple[str, int], list[Slot]] = {}
        for slot in self._slots:
            sharing.setdefault((slot.seat.node, slot.seat.bundle), []).append(slot)
        seen = self._warm([(slots[0], "owner") for slots in sharing.values()])
        kept = [slots[: slots_for(s.memory, len(slots))] for s, slots in zip(seen, sharing.values(), strict=True)]
        return [slot for slots in kept for slot in slots]

    def _warm(self, places: list[tuple[Slot, Side]]) -> list[Seen]:
        warm = [self._process(slot, side).warm.remote() for slot, side in places]
        try:
            seen: list[Seen] = self._ray.get(warm, timeout=_OPEN_SECONDS)
        except self._ray.exceptions.RayError as error:
            raise InputError(f"the workers do not start; is the package installed on all nodes? {error}") from error
        return seen

    def _process(self, slot: Slot, side: Side) -> Any:
        if side not in slot.processes:
            options = self._cluster.options(slot.seat, self._environment)
            slot.processes[side] = self._ray.remote(**options)(Worker).remote(self._runner, self._kind)
        return slot.processes[side]

    def _end(self, slot: Slot, side: Side) -> None:
        process = slot.processes.pop(side, None)
        if process is not None:
            self._ray.kill(process)

    def _has_gone(self, slot: Slot) -> bool:
        # The account of a node's end comes with that of its processes.
        self._looked = 0.0
        return self._cluster.joined and slot.seat.node not in {node.id for node in self._cluster.nodes()}

    def _lost_with_nodes(self) -> list[Finished]:
        """Take slots whose node has gone out of use; the jobs that they ran.

        A job may wait there for ever, for a process that can be placed nowhere.
        """
        if not self._cluster.joined or time.monotonic() < self._looked + _LOOK_SECONDS:
            return []
        there = {node.id for node in self._cluster.nodes()}
        self._looked = time.monotonic()
        lost = []
        for index, slot in enumerate(self._slots):
            if slot.seat.node not in there and not slot.gone:
                slot.gone = True
                for side in list(slot.processes):
                    self._end(slot, side)
                if slot.run is not None:
                    lost.append(Finished(index, slot.run.job.id, None, slot.epitaph, blameless=True))
                    slot.run = None
        return lost

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
            why = f"{type(error.cause).__name__}: {error.cause}"
            return Finished(index, run.job.id, None, why, blameless=isinstance(error.cause, errors.ObjectLostError))
        except errors.RayError as error:
            self._end(slot, run.job.side)
            if run.killed is not None:
                after = run.killed - run.started
                return Finished(index, run.job.id, None, f"killed by the scheduler after {after:.1f} s")
            if self._has_gone(slot):
                return Finished(index, run.job.id, None, slot.epitaph, blameless=True)
            why = reason(error, self._cluster.logs, run.kernel_kills)
            return Finished(index, run.job.id, None, why)
        outcome.products = {channel: run.products[channel] for channel in CHANNELS if channel in outcome.products}
        if self._kind == "cuda" and "CUDA error" in (outcome.error or ""):
            # Such an error stays with the process: every later call on the GPU would fail as well.
            self._end(slot, run.job.side)
        return Finished(index, run.job.id, outcome)


def _require(workers: int | None, threads: int, device: str, gpus: int | None, share: float | None) -> None:
    """Refuse numbers that make no sense on any machine."""
    if (workers is not None and workers < 1) or threads < 1:
        raise InputError(f"expected at least 1 worker of 1 thread, got {workers} of {threads}")
    if device == "cuda" and gpus is not None and gpus < 1:
        raise InputError(f"expected at least 1 GPU, got {gpus}")
    if share is not None and not (device == "cuda" and 0 < share <= 1):
        raise InputError(f"expected a share of a GPU in (0, 1] and device cuda, got {share} on {device}")


def _variables(threads: int, device: str) -> dict[str, str]:
    # Ray leaves all GPUs in sight of a process that asked for none.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | hidden
