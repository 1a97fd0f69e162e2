"""Runs a plan: ready jobs longest first, results taken as they end, each on disk before the next is chosen."""

from __future__ import annotations

import heapq
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Protocol

from bench.executor import Executor, Finished, Handle
from bench.job import Input, Job, Outcome, Plan
from bench.store import RunFolder

# Rough seconds of a job of which no earlier time is known; only their order matters.
_GUESS = {"protect": 20.0, "stage": 15.0, "attack": 10.0, "forge": 10.0, "decoys": 5.0}
# How often the display and the time limits are looked at.
_TICK = 0.25


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
    _handles: dict[Input, Handle] = field(default_factory=dict)
    _waiting_for: dict[Input, int] = field(default_factory=Counter)
    _running: dict[int, _Running] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=Counter)
    _alone: list[str] = field(default_factory=list)
    _alone_on: str | None = None
    _held: set[Input] = field(default_factory=set)
    _timed_out: set[str] = field(default_factory=set)
    _rank: dict[str, float] = field(default_factory=dict)
    _guess: dict[str, float] = field(default_factory=dict)

    def run(self) -> Totals:
        """Run what is missing or failed; returns when nothing more can be done."""
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
        finally:
            self.totals.wall = time.perf_counter() - started
            self.progress.end()
        return self.totals

    # What has to be run

    def _choose(self) -> set[str]:
        """Jobs without a good result, and those whose product is needed again or was spoilt."""
        jobs, todo = self.plan.jobs, set()
        for job_id, job in jobs.items():
            if not self.store.succeeded(job_id):
                todo.add(job_id)
            elif spoilt := self.store.corrupted(job_id):
                self.progress.note(f"{job.label}: stored {' and '.join(spoilt)} product is corrupted; redone")
                todo.add(job_id)
        queue = list(todo)
        while queue:
            for source in jobs[queue.pop()].inputs.values():
                if source.job not in todo and not self.store.artifact(source.job, source.channel).exists():
                    self.progress.note(f"{jobs[source.job].label}: its product was not kept and is needed; redone")
                    todo.add(source.job)
                    queue.append(source.job)
        return todo

    def _estimate(self) -> None:
        """Rank jobs by the longest chain of work that hangs on them."""
        known: dict[str, list[float]] = defaultdict(list)
        for entry in self.store.entries.values():
            if entry["status"] == "ok":
                known[entry["label"]].append(entry["seconds"])
        for job in reversed(self.plan.jobs.values()):
            times = known.get(job.label)
            self._guess[job.id] = sum(times) / len(times) if times else _GUESS.get(job.kind, 0.2)
            self._rank[job.id] = self._rank.get(job.id, 0.0) + self._guess[job.id]
            for source in job.inputs.values():
                self._rank[source.job] = max(self._rank.get(source.job, 0.0), self._rank[job.id])

    def _connect(self) -> None:
        """Count what each job waits for, and offer those that wait for nothing."""
        for job_id in self._todo:
            sources = self.plan.jobs[job_id].inputs.values()
            for source in sources:
                self._waiting_for[source] += 1
            parents = {source.job for source in sources} & self._todo
            for parent in parents:
                self._children[parent].append(job_id)
            self._missing[job_id] = len(parents)
            if not parents:
                self._offer(job_id)

    # Starting

    def _dispatch(self) -> None:
        devices = self.executor.devices()
        while True:
            idle = self.executor.idle()
            if self._alone and self._alone_on is None:
                self._alone_on = devices[idle[0]] if idle else None
            if self._alone_on is not None:
                idle = self._idle_for_lonely(idle, devices)
            job = self._next() if idle else None
            if job is None:
                return
            self._start(idle[0], job)

    def _idle_for_lonely(self, idle: list[int], devices: list[str]) -> list[int]:
        """Keep a device free for a job that has to be alone on it; the other devices go on."""
        busy = [slot for slot in self._running if devices[slot] == self._alone_on]
        if self._alone and not busy:
            job = self.plan.jobs[self._alone.pop(0)]
            self._start(next(slot for slot in idle if devices[slot] == self._alone_on), job)
        elif not self._alone and not busy:
            self._alone_on = None
            return idle
        return [slot for slot in self.executor.idle() if devices[slot] != self._alone_on]

    def _next(self) -> Job | None:
        """The ready job with the longest chain behind it."""
        while self._ready:
            _, job_id = heapq.heappop(self._ready)
            if job_id in self._todo:
                return self.plan.jobs[job_id]
        return None

    def _offer(self, job_id: str) -> None:
        # By id where ranks are equal: the order must not depend on that of a set.
        heapq.heappush(self._ready, (-self._rank[job_id], job_id))

    def _start(self, slot: int, job: Job) -> None:
        inputs = {role: self._handle(source) for role, source in job.inputs.items()}
        since = time.perf_counter()
        self._running[slot] = _Running(job, since)
        self._attempts[job.id] += 1
        self.progress.started(job)
        self.executor.start(slot, job, inputs)

    def _handle(self, source: Input) -> Handle:
        if source not in self._handles:
            content = self.store.load(source.job, source.channel)
            if content is None:
                raise FileNotFoundError(f"product {source.channel} of job {source.job} vanished from {self.store.path}")
            self._handles[source] = self.executor.put(content)
        return self._handles[source]

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
        job, spent = one.job, time.perf_counter() - one.since
        outcome = finished.outcome
        if job.id in self._timed_out and outcome is None:
            limit = f"did not end within the suite's limit of {self.plan.timeout:g} s"
            outcome = Outcome.failure("Timeout", limit, seconds=spent)
        elif outcome is None or _out_of_memory(outcome):
            why = finished.lost if outcome is None else outcome.error
            if self._attempts[job.id] < 2:
                self.progress.note(f"{job.label}: {why}; tried once more, alone on its device")
                self._alone.append(job.id)
                return
            if outcome is None:
                outcome = Outcome.failure("WorkerLost", f"twice: {why}", seconds=spent)
        self._record(job, outcome)

    def _record(self, job: Job, outcome: Outcome) -> None:
        artifacts: dict[str, str] = {}
        for channel, handle in outcome.products.items():
            artifacts[channel] = self.store.save(job.id, channel, self.executor.get(handle))
        entry = self.store.entry_of(job.id, job.kind, job.label, outcome, artifacts)
        self.store.append({**entry, "source_digest": job.source_digest})
        self.totals.ran += 1
        self.totals.work += outcome.seconds
        if outcome.status == "ok":
            self._todo.discard(job.id)
            for channel, handle in outcome.products.items():
                self._handles[Input(job.id, channel)] = handle
            for child in self._children[job.id]:
                self._missing[child] -= 1
                if self._missing[child] == 0 and child in self._todo:
                    self._offer(child)
        else:
            self.totals.failed += 1
            self._give_up(job.id)
        self._release(job, done=outcome.status == "ok")
        self.progress.ended(job, outcome)

    def _give_up(self, job_id: str) -> None:
        """Take a failed job and all that hang on it off the list; their cells become failed rows."""
        self._todo.discard(job_id)
        queue = list(self._children[job_id])
        while queue:
            one = queue.pop()
            if one in self._todo:
                self._todo.discard(one)
                self._release(self.plan.jobs[one], done=False)
                queue += self._children[one]

    def _release(self, job: Job, done: bool) -> None:
        """Let go of products that nothing waits for; delete those that are used up and not to be kept."""
        for source in job.inputs.values():
            self._waiting_for[source] -= 1
            if not done:
                # The next run will try this job again, and needs it then.
                self._held.add(source)
        for source in {*job.inputs.values(), *(Input(job.id, c) for c in ("public", "secret"))}:
            if self._waiting_for.get(source, 0) <= 0:
                self._handles.pop(source, None)
                keep = source in self._held or self._keeps(self.plan.jobs[source.job].kind)
                if not keep and self.store.succeeded(source.job):
                    self.store.drop(source.job, source.channel)

    def _keeps(self, kind: str) -> bool:
        if self.plan.keep == "all":
            return True
        return self.plan.keep == "protected" and kind in ("stage", "protect")


def _out_of_memory(outcome: Outcome) -> bool:
    return outcome.status == "failed" and outcome.error_type in ("OutOfMemoryError", "MemoryError")
