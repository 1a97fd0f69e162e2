"""The journal as a plan reads it: which jobs ended well, and what a missing result goes back to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.planning.job import Cell, Job, Plan

# Where the numbers of a cell come from, last job first: the one that judges gives the row its identity.
_JUDGES = ("judge", "decoys")
_ATTACKS = ("attack", "forge")


class Book:
    """The latest journal entry of each job, read along the DAG."""

    def __init__(self, plan: Plan, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Look at a plan (jobs and cells) and at the latest journal entry of each job, by its id."""
        self.plan = plan
        self.entries = entries
        self._order = {job: position for position, job in enumerate(plan.jobs)}

    def entry(self, job: str | None) -> Mapping[str, Any]:
        """The job's entry, empty where it has none."""
        return self.entries.get(job, {}) if job else {}

    def result(self, job: str | None) -> Mapping[str, Any]:
        """What the job found, empty where it found nothing."""
        return self.entry(job).get("result") or {}

    def ok(self, job: str) -> bool:
        """Whether the job's latest attempt ended well."""
        return self.entry(job).get("status") == "ok"

    def chain(self, jobs: Iterable[str], follow: Callable[[str], bool] = lambda _: True) -> list[str]:
        """The jobs and all that they depend on, parents first.

        Args:
            jobs: where to start.
            follow: whether a job belongs to the chain and its parents are looked at.
        """
        seen: set[str] = set()
        waiting = list(jobs)
        while waiting:
            job = waiting.pop()
            if job in seen or not follow(job):
                continue
            seen.add(job)
            known = self.plan.jobs.get(job)
            waiting.extend(parent.job for parent in known.inputs.values()) if known else None
        return sorted(seen, key=lambda job: self._order.get(job, len(self._order)))

    def culprit(self, cell: Cell) -> str | None:
        """The job because of which the cell has no result: the first that failed, else the first not run."""
        bad = self.chain(cell.jobs.values(), follow=lambda job: not self.ok(job))
        failed = [job for job in bad if self.entry(job)]
        return next(iter(failed or bad), None)

    def seconds(self, job: str | None, side: str) -> float | None:
        """Seconds of the job with the shared stages of its side that it rests on; None where it has not run.

        A stage is computed once and counted for everyone who needs it: a clean model that is published as it
        is would otherwise cost nothing.
        """
        if not job or not self.ok(job):
            return None
        whole = self.links(job)
        rests_on = self.chain([job], follow=lambda one: one in whole or self._is_shared(one, side))
        return float(sum(self.entry(one).get("seconds") or 0.0 for one in rests_on))

    def links(self, job: str | None) -> list[str]:
        """The attacks that led to what this one left, the first one first; itself where it is no link of a chain."""
        found: list[str] = []
        while job is not None:
            found.insert(0, job)
            known = self.plan.jobs.get(job)
            target = known.inputs.get("target") if known else None
            before = self.plan.jobs.get(target.job) if target else None
            job = before.id if before is not None and before.kind == "attack" else None
        return found

    def _is_shared(self, job: str, side: str) -> bool:
        """Whether it is a stage, or on the owner's side a mark that was embedded before."""
        known: Job | None = self.plan.jobs.get(job)
        return known is not None and known.kind in ("stage", "protect") and known.side == side


def judge_of(cell: Cell) -> str | None:
    """The job that gives the cell its rows."""
    return _first(cell, _JUDGES)


def attack_of(cell: Cell) -> str | None:
    """The job that made what the cell judges; None for decoys and for a cell that cannot be run."""
    return _first(cell, _ATTACKS)


def _first(cell: Cell, roles: Iterable[str]) -> str | None:
    return next((cell.jobs[role] for role in roles if role in cell.jobs), None)
