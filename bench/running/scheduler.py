"""Runs a plan: ready jobs longest first, results taken as they end, each on disk before the next is chosen."""

from __future__ import annotations

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bench.errors import NoWorkers, is_shortage
from bench.planning.job import Job, Outcome, Plan
from bench.running import ranking
from bench.running.admission import Admission, kind_of
from bench.running.executor import Executor, Finished
from bench.running.products import Products
from bench.storage.store import RunFolder

# How often the display and the time limits are looked at.
_TICK = 0.25
# How often a job is lost with its node, or with what it needs, before it is taken for the cause.
_MOST_LOSSES = 3


class Progress(Protocol):
    """What the scheduler tells while it runs."""

    def begin(self, total: int, done: int, slots: int) -> None:
        """The run starts; `done` of `total` jobs need not be run."""

    def started(self, job: Job) -> None:
        """A job starts."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended for good."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def tick(self, remaining: float) -> None:
        """Time passes; `remaining` is the estimated work left, in seconds of one slot."""

    def end(self) -> None:
        """The run is over."""


@dataclass
class Totals:
    """What a run came to.

    Attributes:
        wall: seconds from the first start to the last end.
        work: seconds inside jobs, summed.
        slots: how many jobs could run at once.
        ran: jobs that ran.
        reused: jobs of the plan that an earlier run had finished.
        failed: jobs that failed now.
    """

    wall: float = 0.0
    work: float = 0.0
    slots: int = 1
    ran: int = 0
    reused: int = 0
    failed: int = 0

    @property
    def efficiency(self) -> float:
        """Share of the slots' time that was spent inside jobs."""
        return self.work / (self.wall * self.slots) if self.wall else 1.0


@dataclass
class _Running:
    job: Job
    since: float


@dataclass
class Scheduler:
    """One run of a plan into a folder.

    Attributes:
        plan: what to run.
        store: where results go, and where those of earlier runs are.
        executor: the slots.
        progress: is told what happens.
    """

    plan: Plan
    store: RunFolder
    executor: Executor
    progress: Progress
    totals: Totals = field(default_factory=Totals)
    _todo: set[str] = field(default_factory=set)
    _ready: list[tuple[float, str]] = field(default_factory=list)
    _missing: dict[str, int] = field(default_factory=dict)
    _children: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _running: dict[int, _Running] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=Counter)
    _losses: dict[str, int] = field(default_factory=Counter)
    _alone: set[str] = field(default_factory=set)
    _timed_out: set[str] = field(default_factory=set)
    _rank: dict[str, float] = field(default_factory=dict)
    _guess: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._products = Products(self.plan, self.store, self.executor)
        self._admission = Admission(self.executor.devices())
        self._admission.remember(self.store.entries.values())

    def run(self) -> Totals:
        """Run what is missing or failed; returns when nothing more can be done.

        Raises:
            NoWorkers: no slot is left; what has finished is in the journal.
        """
        self._todo = self._choose()
        self._estimate()
        self._connect()
        self.totals.slots = len(self.executor.devices())
        self.totals.reused = len(self.plan.jobs) - len(self._todo)
        self.progress.begin(len(self.plan.jobs), self.totals.reused, self.totals.slots)
        started = time.perf_counter()
        try:
            while True:
                self._dispatch()
                if not self._running:
                    break
                self._collect()
            if left := [job_id for _, job_id in self._ready if job_id in self._todo]:
                raise NoWorkers(
                    f"no worker is left to run {len(left)} job(s) and what hangs on them; "
                    "what has finished is kept, and the same command goes on from there"
                )
        finally:
            self.totals.wall = time.perf_counter() - started
            self.progress.end()
        return self.totals

    # What has to be run

    def _choose(self) -> set[str]:
        """Jobs without a good result, and those whose product is needed again or was spoilt."""
        todo, notes = ranking.left(self.plan, self.store)
        for note in notes:
            self.progress.note(note)
        return todo

    def _estimate(self) -> None:
        """Rank jobs by the longest chain of work that hangs on them."""
        self._guess = ranking.guesses(self.plan, self.store.entries)
        self._rank = ranking.ranks(self.plan, self._guess)

    def _connect(self) -> None:
        """Count what each job waits for, and offer those that wait for nothing."""
        self._missing, self._children = ranking.links(self.plan, self._todo)
        for job_id, count in self._missing.items():
            self._products.expect(self.plan.jobs[job_id])
            if not count:
                self._offer(job_id)

    # Starting

    def _dispatch(self) -> None:
        """Start ready jobs; one that does not fit anywhere now has a device cleared for it, and the others go on."""
        devices, memory = self.executor.devices(), self.executor.memory()
        clearing: set[str] = set()
        waiting: list[Job] = []
        while idle := [slot for slot in self.executor.idle() if devices[slot] not in clearing]:
            job = self._next()
            if job is None:
                break
            alone = job.id in self._alone
            slot = self._admission.slot(job, alone, idle, memory)
            if slot is not None:
                self._start(slot, job, alone, memory)
                continue
            waiting.append(job)
            there = {devices[one] for one in (*self._running, *self.executor.idle())} - clearing
            cleared = self._admission.device_to_clear(job, alone, there, memory)
            clearing |= {cleared} if cleared else set()
        for job in waiting:
            self._offer(job.id)

    def _next(self) -> Job | None:
        """The ready job with the longest chain behind it."""
        while self._ready:
            _, job_id = heapq.heappop(self._ready)
            if job_id in self._todo:
                return self.plan.jobs[job_id]
        return None

    def _offer(self, job_id: str) -> None:
        # By id where ranks are equal: the order must not depend on that of a set. A second try comes first.
        rank = float("inf") if job_id in self._alone else self._rank[job_id]
        heapq.heappush(self._ready, (-rank, job_id))

    def _start(self, slot: int, job: Job, alone: bool, memory: Mapping[str, float]) -> None:
        inputs = {role: self._products.handle(source) for role, source in job.inputs.items()}
        since = time.perf_counter()
        self._running[slot] = _Running(job, since)
        self._admission.enter(slot, job, alone, memory)
        self._attempts[job.id] += 1
        self.progress.started(job)
        self.executor.start(slot, job, inputs)

    # Ending

    def _collect(self) -> None:
        for finished in self.executor.wait(_TICK):
            self._finish(finished)
        for slot, one in list(self._running.items()):
            # The start of a process is not the job's time.
            begun = self.executor.begun(slot)
            late = begun is not None and time.perf_counter() > begun + self.plan.timeout
            if late and one.job.id not in self._timed_out:
                self._timed_out.add(one.job.id)
                self.executor.kill(slot)
        self.progress.tick(sum(self._guess[job_id] for job_id in self._todo))

    def _finish(self, finished: Finished) -> None:
        one = self._running.pop(finished.slot)
        self._admission.leave(finished.slot)
        job, spent = one.job, time.perf_counter() - one.since
        outcome = finished.outcome
        if job.id in self._timed_out and outcome is None:
            limit = f"did not end within the suite's limit of {self.plan.timeout:g} s"
            outcome = Outcome.failure("Timeout", limit, seconds=spent)
        elif finished.blameless:
            self._again(job, str(finished.lost), spent)
            return
        elif outcome is None or _out_of_memory(outcome):
            why = finished.lost if outcome is None else outcome.error
            if self._attempts[job.id] < 2:
                self.progress.note(f"{job.label}: {why}; tried once more, alone on its device")
                self._products.forget(job)
                self._alone.add(job.id)
                self._offer(job.id)
                return
            if outcome is None:
                outcome = Outcome.failure("WorkerLost", f"twice: {why}", seconds=spent)
        try:
            artifacts = self._products.save(job, outcome)
        except LookupError as error:
            self._again(job, str(error), spent)
            return
        self._record(job, outcome, artifacts)

    def _again(self, job: Job, why: str, spent: float) -> None:
        """Start a job anew that was lost with its node, or whose input or product was."""
        self._products.forget()
        self._losses[job.id] += 1
        if self._losses[job.id] >= _MOST_LOSSES:
            self._record(job, Outcome.failure("WorkerLost", f"{_MOST_LOSSES} times: {why}", seconds=spent), {})
            return
        self.progress.note(f"{job.label}: {why}; started again elsewhere")
        self._attempts[job.id] -= 1
        self._offer(job.id)

    def _record(self, job: Job, outcome: Outcome, artifacts: dict[str, str]) -> None:
        entry = self.store.entry_of(job.id, job.kind, job.label, outcome, artifacts)
        self.store.append({**entry, "source_digest": job.source_digest, "memory_kind": kind_of(job)})
        self._admission.learn(job, outcome)
        self.totals.ran += 1
        self.totals.work += outcome.seconds
        if outcome.status == "ok":
            self._todo.discard(job.id)
            self._products.offer(job, outcome)
            for child in self._children[job.id]:
                self._missing[child] -= 1
                if self._missing[child] == 0 and child in self._todo:
                    self._offer(child)
        else:
            self.totals.failed += 1
            self._give_up(job.id)
        self._products.release(job, done=outcome.status == "ok")
        self.progress.ended(job, outcome)

    def _give_up(self, job_id: str) -> None:
        """Take a failed job and all that hang on it off the list; their cells become failed rows."""
        self._todo.discard(job_id)
        queue = list(self._children[job_id])
        while queue:
            one = queue.pop()
            if one in self._todo:
                self._todo.discard(one)
                self._products.release(self.plan.jobs[one], done=False)
                queue += self._children[one]


def _out_of_memory(outcome: Outcome) -> bool:
    return outcome.status == "failed" and is_shortage(outcome.error_type or "", outcome.error or "")
