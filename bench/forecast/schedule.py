"""A plan on given slots, as the scheduler would run it: when each job ends, and what then lies on disk."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from bench.planning.job import Job, Plan
from bench.running import ranking


@dataclass(frozen=True)
class Schedule:
    """Jobs on slots, as the scheduler would start them.

    Attributes:
        work: seconds inside jobs, summed.
        wall: seconds from the first start to the last end.
        chain: ids of the longest chain of jobs, each of which waits for the one before.
        chain_seconds: of that chain.
        ended: seconds at which each job ends.
    """

    work: float
    wall: float
    chain: tuple[str, ...]
    chain_seconds: float
    ended: Mapping[str, float]


@dataclass(frozen=True)
class Disk:
    """Bytes that a run adds to its folder.

    Attributes:
        kept: products that stay.
        peak: the most that products take at any time of the run.
        tables: journal, plan and tables.
    """

    kept: int
    peak: int
    tables: int


def schedule(plan: Plan, todo: Collection[str], seconds: Mapping[str, float], slots: int) -> Schedule:
    """List scheduling, the longest chain first, as `bench.running.scheduler` does it.

    Args:
        plan: its jobs.
        todo: ids of those that are to be run.
        seconds: of each job.
        slots: how many run at once, at least 1.
    """
    rank = ranking.ranks(plan, {job: seconds[job] if job in todo else 0.0 for job in plan.jobs})
    missing, children = ranking.links(plan, todo)
    first = [job for job in todo if not missing[job]]
    ready = [(-rank[job], job) for job in first]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    ended: dict[str, float] = {}
    clock = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, job = heapq.heappop(ready)
            heapq.heappush(running, (clock + seconds[job], job))
        clock, job = heapq.heappop(running)
        ended[job] = clock
        for child in children.get(job, ()):
            missing[child] -= 1
            if not missing[child]:
                heapq.heappush(ready, (-rank[child], child))
    chain = _chain(children, first, rank)
    return Schedule(sum(seconds[job] for job in todo), clock, chain, sum(seconds[job] for job in chain), ended)


def disk(plan: Plan, ended: Mapping[str, float], size: Mapping[str, int]) -> Disk:
    """Bytes that the jobs to be run add, by the suite's `keep`.

    Args:
        plan: its jobs.
        ended: of `schedule`, for each job that is to be run.
        size: bytes of the products of each of them, as by `product_bytes`.
    """
    todo = ended.keys()
    last = dict(ended)
    for job in todo:
        for source in plan.jobs[job].inputs.values():
            if source.job in last:
                last[source.job] = max(last[source.job], ended[job])
    kept = sum(size[job] for job in todo if ranking.keeps(plan, plan.jobs[job]))
    # A product appears before the last that it was made from goes.
    steps = [(ended[job], 0, size[job]) for job in todo]
    steps += [(last[job], 1, -size[job]) for job in todo if not ranking.keeps(plan, plan.jobs[job])]
    now = peak = 0
    for _, _, change in sorted(steps):
        now += change
        peak = max(peak, now)
    return Disk(kept, peak, sum(_line_bytes(plan.jobs[job]) for job in todo))


def uses(plan: Plan, kinds: Iterable[str]) -> dict[str, tuple[int, int]]:
    """For each label of these kinds of jobs: how many jobs make it, and how many others take what they made."""
    makers = {job.id: job.label for job in plan.jobs.values() if job.kind in kinds}
    made = Counter(makers.values())
    takers: Counter[str] = Counter()
    for job in plan.jobs.values():
        takers.update({source.job for source in job.inputs.values()} & makers.keys())
    used: Counter[str] = Counter()
    for maker, count in takers.items():
        used[makers[maker]] += count
    return {label: (count, used[label]) for label, count in made.items()}


def _chain(children: Mapping[str, list[str]], first: Iterable[str], rank: Mapping[str, float]) -> tuple[str, ...]:
    chain: list[str] = []
    waiting = list(first)
    while waiting:
        # By id where ranks are equal, as the scheduler does.
        chain.append(min(waiting, key=lambda job: (-rank[job], job)))
        waiting = children.get(chain[-1], [])
    return tuple(chain)


def _line_bytes(job: Job) -> int:
    """Of the journal, the plan and the tables, as they were measured on the suite `digits`."""
    return 2_000 + 30 * int(job.spec.get("options", {}).get("decoys", 0))
