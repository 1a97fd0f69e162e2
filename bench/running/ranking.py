"""What of a plan is left to do, how long it takes, and in which order: shared by the scheduler and forecasts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from bench.planning.job import Job, Plan
from bench.storage.store import RunFolder

# Rough seconds of a job of which no earlier time is known; only their order matters.
_GUESS = {"protect": 20.0, "stage": 15.0, "attack": 10.0, "forge": 10.0, "decoys": 5.0, "null": 10.0}

Entries = Mapping[str, Mapping[str, Any]]


def left(plan: Plan, store: RunFolder) -> tuple[set[str], list[str]]:
    """Jobs without a good result, and those whose product is needed again or was spoilt.

    Returns:
        Their ids, and a note for each job that has to be done again.
    """
    jobs, todo, notes, there = plan.jobs, set(), [], store.stored()
    with_products = {name.partition(".")[0] for name in there}
    for job_id, job in jobs.items():
        if not store.succeeded(job_id):
            todo.add(job_id)
        elif job_id in with_products and (spoilt := store.corrupted(job_id)):
            notes.append(f"{job.label}: stored {' and '.join(spoilt)} product is corrupted; redone")
            todo.add(job_id)
    queue = list(todo)
    while queue:
        for source in jobs[queue.pop()].inputs.values():
            if source.job not in todo and store.artifact(source.job, source.channel).name not in there:
                notes.append(f"{jobs[source.job].label}: its product was not kept and is needed; redone")
                todo.add(source.job)
                queue.append(source.job)
    return todo, notes


def known_seconds(entries: Entries) -> dict[str, float]:
    """The mean seconds of earlier jobs that ended well, by their labels."""
    known: dict[str, list[float]] = defaultdict(list)
    for entry in entries.values():
        if entry["status"] == "ok":
            known[entry["label"]].append(entry["seconds"])
    return {label: sum(times) / len(times) for label, times in known.items()}


def guesses(plan: Plan, entries: Entries) -> dict[str, float]:
    """Seconds of each job: from earlier jobs of the same label, else by its kind."""
    known = known_seconds(entries)
    return {job.id: known.get(job.label, _GUESS.get(job.kind, 0.2)) for job in plan.jobs.values()}


def ranks(plan: Plan, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the longest chain of jobs that begins with each job; the longest is started first."""
    rank: dict[str, float] = {}
    for job in reversed(plan.jobs.values()):
        rank[job.id] = rank.get(job.id, 0.0) + seconds[job.id]
        for source in job.inputs.values():
            rank[source.job] = max(rank.get(source.job, 0.0), rank[job.id])
    return rank


def links(plan: Plan, todo: Collection[str]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """How many of the jobs to be run each of them waits for, in the order of `todo`, and which wait for each."""
    chosen = set(todo)
    missing: dict[str, int] = {}
    children: dict[str, list[str]] = defaultdict(list)
    for job in todo:
        parents = {source.job for source in plan.jobs[job].inputs.values()} & chosen
        missing[job] = len(parents)
        for parent in parents:
            children[parent].append(job)
    return missing, children


def keeps(plan: Plan, job: Job) -> bool:
    """Whether the products of a job stay on disk when nothing needs them any more."""
    if plan.keep == "all":
        return True
    return plan.keep == "protected" and job.kind in ("stage", "protect")
