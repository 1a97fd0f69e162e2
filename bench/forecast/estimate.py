"""What a plan will take before anything is started: seconds of each job, the schedule on given slots, disk."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench import specs
from bench.attack import Attack
from bench.effort import Effort
from bench.forecast.speed import Speed
from bench.parameters import canonical
from bench.planning.job import Job, Plan
from bench.running import jobs, ranking
from bench.stage import Stage
from bench.task import Task

Source = Literal["measured", "declared", "guessed"]

# What a job costs beside its computation: a clean state, inputs unpacked, products packed.
_FIXED = 0.05
# Guesses of one look at one suspect, which no scheme declares: a few sums, and as many answers.
_VERIFY_SECONDS, _VERIFY = 0.003, Effort(answered=64)


@dataclass(frozen=True)
class Devices:
    """The slots of a run.

    Attributes:
        kind: of all slots.
        names: for each slot the name of its device; slots that share a device share the name.
        threads: per slot.
        at_hand: whether a device of this kind is in this machine, so that its speed can be measured.
    """

    kind: Literal["cpu", "cuda"]
    names: tuple[str, ...]
    threads: int = 1
    at_hand: bool = True


@dataclass(frozen=True)
class Cost:
    """Seconds of a job, and how they are known: from an earlier run, from declared effort, or not at all."""

    seconds: float
    source: Source


def costs(plan: Plan, entries: ranking.Entries, speeds: Mapping[str, Speed], devices: Devices) -> dict[str, Cost]:
    """Seconds of every job of the plan.

    Args:
        plan: its jobs.
        entries: the journal of earlier runs; jobs of the same label on the same kind of device count.
        speeds: measured speed of each task, by `task_key`.
        devices: on which it is to run.
    """
    known = _known(plan, entries, devices.kind)
    known_tasks, found = tasks(plan), {}
    for job in plan.jobs.values():
        key = task_key(job)
        seconds = known.get((job.label, key))
        measured = Cost(seconds, "measured") if seconds is not None else None
        found[job.id] = measured or _declared(plan, job, known_tasks[key], speeds[key])
    return found


def task_key(job: Job) -> str:
    """By which jobs of the same task are found."""
    return canonical([job.spec.get("task"), job.spec.get("data")])


def tasks(plan: Plan) -> dict[str, Task]:
    """The tasks of a plan by `task_key`."""
    of_key = {task_key(job): job for job in plan.jobs.values()}
    return {key: specs.task_of(job.spec["task"], job.spec["data"]) for key, job in of_key.items()}


def product_bytes(job: Job, task: Task) -> int:
    """Bytes of what a job leaves for others: models of the task's architecture, and answers.

    Keys and releases are not known before they are drawn, and small beside a model.
    """
    model = model_bytes(task)
    if job.kind == "stage":
        plugin: Stage = _plugin(job)
        # A stage of the attacker's side is taken for answers: one row of logits per input.
        return model if plugin.side == "owner" else task.sizes.attacker * task.classes * 4
    if job.kind == "attack":
        return model * _surrogates(job)
    return model if job.kind in ("protect", "forge") else 0


def model_bytes(task: Task) -> int:
    """Bytes of the weights and statistics of the task's architecture."""
    state = task.skeleton.state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def _known(plan: Plan, entries: ranking.Entries, kind: str) -> dict[tuple[str, str], float]:
    """Mean seconds by label and task; a label does not tell the task, so a job outside the plan tells it alone."""
    keys = {task_key(job) for job in plan.jobs.values()}
    only = next(iter(keys)) if len(keys) == 1 else None
    parts: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for name, entry in entries.items():
        if str(entry.get("device", "")).startswith(kind):
            key = task_key(plan.jobs[name]) if name in plan.jobs else only
            if key is not None:
                parts[key][name] = entry
    return {
        (label, key): seconds for key, part in parts.items() for label, seconds in ranking.known_seconds(part).items()
    }


def _declared(plan: Plan, job: Job, task: Task, speed: Speed) -> Cost:
    source: Source = "declared"
    if job.kind == "measure":
        effort = Effort(answered=task.sizes.test * _judged(plan, job))
    elif job.kind in ("judge", "decoys", "null"):
        options = job.spec.get("options", {})
        looks = options["decoys"] + len(options.get("owners", [])) if "decoys" in options else _judged(plan, job)
        return Cost(_FIXED + looks * (_VERIFY_SECONDS + speed.seconds(_VERIFY)), "guessed")
    elif job.kind == "disclose":
        return Cost(_FIXED, "guessed")
    else:
        plugin: Attack | Stage = _plugin(job)
        declared = plugin.effort(task)
        source = "guessed" if declared is None else "declared"
        effort = declared or Effort(trained=float(task.recipe.epochs * task.sizes.train))
    return Cost(_FIXED + speed.seconds(effort), source)


def _judged(plan: Plan, job: Job) -> int:
    """How many surrogates a job measures or judges."""
    return _surrogates(plan.jobs[job.inputs["surrogates"].job])


def _surrogates(job: Job) -> int:
    if job.kind != "attack":
        return 1
    plugin: Attack = _plugin(job)
    return plugin.surrogates()


def _plugin(job: Job) -> Any:
    return _rebuilt(canonical(job.spec["plugin"]))


@functools.cache
def _rebuilt(spec: str) -> Any:
    return jobs.plugin_of(json.loads(spec))
