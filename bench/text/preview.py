"""What a run would take, as text of at most 100 columns."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.forecast.estimate import Cost, Devices
from bench.forecast.schedule import Disk, Schedule, uses
from bench.forecast.speed import Speed
from bench.planning.job import Plan
from bench.planning.options import Options
from bench.planning.suite import Suite
from bench.task import Task
from bench.text.layout import Grid, shorten, to_text
from bench.text.report import WIDTH

# More shared jobs than these are summed up in one line.
_LISTED = 12
_KINDS = {
    "stage": "shared stages",
    "protect": "protected models",
    "disclose": "parts disclosed to insiders",
    "attack": "removal attacks",
    "forge": "forgeries",
    "measure": "accuracies measured",
    "judge": "keys judged",
    "decoys": "random keys drawn",
    "null": "models without a mark",
}
_SHARING = ["Slots that share a GPU are counted as if each had one of its own."]
_SOURCES = {
    "measured": "an earlier run",
    "declared": "declared effort x measured speed",
    "guessed": "guesses",
}


@dataclass(frozen=True)
class Preview:
    """All that the text is made of.

    Attributes:
        suite: as narrowed.
        plan: of it.
        todo: ids of the jobs that would run.
        devices: on which.
        cost: seconds of each job.
        speeds: by task.
        schedule: of those jobs.
        disk: bytes that they add.
        there: bytes of products that are in the folder already.
        free: bytes free on the folder's disk.
        out: the folder.
        probed_on: kind of device whose speed was measured.
    """

    suite: Suite
    plan: Plan
    todo: frozenset[str]
    devices: Devices
    cost: Mapping[str, Cost]
    speeds: Mapping[str, tuple[Task, Speed]]
    schedule: Schedule
    disk: Disk
    there: int
    free: int
    out: Path
    probed_on: Literal["cpu", "cuda"]


def render(found: Preview, options: Options) -> str:
    """The text, in lines of at most 100 columns."""
    parts = [
        _heading(found),
        to_text(_jobs(found.plan, found.todo, found.cost), WIDTH),
        _shared(found.plan),
        _time(found),
        _disk(found),
        "To run it:\n" + _command(options),
    ]
    return "\n\n".join(parts) + "\n"


def _heading(found: Preview) -> str:
    plan = found.plan
    tasks = ", ".join(task.name for task in found.suite.tasks)
    seeds = ", ".join(map(str, plan.seeds))
    state = Counter("control" if cell.attack_kind == "control" else cell.status for cell in plan.cells)
    cells = ", ".join(f"{count} {_CELLS[name]}" for name, count in state.items())
    lines = [
        f"Suite {plan.suite}: {tasks}; {'seed' if len(plan.seeds) == 1 else 'seeds'} {seeds}",
        f"{len(found.suite.defenses)} defenses, {len(found.suite.attacks)} attacks: {cells}",
    ]
    return _wrapped(lines)


_CELLS = {"ok": "cells", "control": "controls", "not applicable": "cells not applicable", "failed": "cells broken"}


def _jobs(plan: Plan, todo: Collection[str], cost: Mapping[str, Cost]) -> Grid:
    grid = Grid(["jobs", "all", "done\nbefore", "to do", "seconds\neach", "seconds\nin all"])
    for kind, words in _KINDS.items():
        every = [job.id for job in plan.jobs.values() if job.kind == kind]
        if every:
            grid.rows.append(_row(words, every, todo, cost))
    grid.rows.append(_row("all", list(plan.jobs), todo, cost))
    return grid


def _row(words: str, every: list[str], todo: Collection[str], cost: Mapping[str, Cost]) -> list[str]:
    mine = [job for job in every if job in todo]
    total = sum(cost[job].seconds for job in mine)
    each = f"{total / len(mine):.2f}" if mine else "-"
    return [words, str(len(every)), str(len(every) - len(mine)), str(len(mine)), each, f"{total:.0f}"]


def _shared(plan: Plan) -> str:
    rows = sorted(uses(plan, ("stage", "protect")).items(), key=lambda one: -one[1][1])
    rows = [(label, count) for label, count in rows if count[1] > count[0]]
    lines = ["Computed once for all jobs that take it (the product, how often it is made, jobs that take it):"]
    labels = shorten([label for label, _ in rows[:_LISTED]], 72)
    lines += [f"  {label:<72} {made:>6} {used:>8}" for label, (_, (made, used)) in zip(labels, rows, strict=False)]
    if rest := rows[_LISTED:]:
        made, used = (sum(count[place] for _, count in rest) for place in (0, 1))
        lines.append(f"  {f'{len(rest)} more':<72} {made:>6} {used:>8}")
    return "\n".join(lines)


def _time(found: Preview) -> str:
    plan, made, slots = found.plan, found.schedule, len(found.devices.names)
    lines = [f"Devices: {_slots(found.devices)}"]
    if not found.todo:
        return "\n".join([*lines, "Time: nothing is left to do"])
    lines += [
        f"Time: {_duration(made.wall)} on {slots} {'slot' if slots == 1 else 'slots'}, "
        f"{_duration(made.work)} of work in all; the longest chain of jobs takes {_duration(made.chain_seconds)}: "
        + ", then ".join(plan.jobs[job].label for job in made.chain),
        "The start of the worker processes, some seconds, comes on top.",
        *_SHARING[: len(set(found.devices.names)) < slots and found.devices.kind == "cuda"],
        f"The work is known from {_shares(found.todo, found.cost)}.",
    ]
    if any(found.cost[job].source != "measured" for job in found.todo):
        lines += [_speed(task, one, found.devices, found.probed_on) for task, one in found.speeds.values()]
    return _wrapped(lines)


def _slots(devices: Devices) -> str:
    count, threads = len(devices.names), devices.threads
    each = f"{threads} {'thread' if threads == 1 else 'threads'}"
    if devices.kind == "cpu":
        return f"{count} {'worker' if count == 1 else 'workers'} x {each} on cpu"
    shared = Counter(Counter(devices.names).values())
    gpus = ", ".join(f"{number} x cuda with {most} each" for most, number in sorted(shared.items()))
    return f"{count} {'slot' if count == 1 else 'slots'}: {gpus}; {each} per slot"


def _shares(todo: Collection[str], cost: Mapping[str, Cost]) -> str:
    total: dict[str, float] = defaultdict(float)
    for job in todo:
        total[cost[job].source] += cost[job].seconds
    whole = sum(total.values()) or 1.0
    return ", ".join(f"{words} ({total[name] / whole:.0%})" for name, words in _SOURCES.items() if name in total)


def _speed(task: Task, one: Speed, devices: Devices, probed_on: str) -> str:
    where = f"{probed_on}, {devices.threads} {'thread' if devices.threads == 1 else 'threads'}"
    told = (
        f"Speed of {task.name}: {1 / one.trained:,.0f} inputs a second trained, "
        f"{1 / one.answered:,.0f} answered (measured now on this machine's {where})"
    )
    if probed_on != devices.kind:
        return f"{told}; none of the GPUs is at hand, and a GPU is faster than that."
    return f"{told}." if devices.at_hand else f"{told}; the machines of the run are other ones."


def _disk(found: Preview) -> str:
    disk = found.disk
    total, most = found.there + disk.kept, found.there + max(disk.peak, disk.kept)
    words = (
        f"Disk: {_bytes(total)} of models and other products stay (keep = {found.plan.keep!r}), "
        f"{_bytes(most)} at the most while it runs, {_bytes(found.there)} are there now; "
        f"{_bytes(disk.tables)} of journal and tables; {_bytes(found.free)} free at {found.out}"
    )
    return _wrapped([words + ("." if most < found.free else ". THAT IS NOT ENOUGH.")])


def _command(options: Options) -> str:
    words = ["ownbench", "run", options.suite]
    if options.out:
        words += ["--out", str(options.out)]
    if options.workers:
        words += ["--workers", str(options.workers)]
    if options.seeds is not None:
        words += [word for seed in options.seeds for word in ("--seed", str(seed))]
    words += [word for entry in options.only for word in ("--only", entry)]
    words += ["--device", options.device] if options.device != "auto" else []
    words += ["--fresh"] if options.fresh else []
    words += ["--local"] if options.local else []
    words += ["--gpus-per-job", f"{options.gpus_per_job:g}"] if options.gpus_per_job else []
    words += ["--address", options.address] if options.address else []
    lines = textwrap.wrap(shlex.join(words), WIDTH - 6, break_long_words=False, break_on_hyphens=False)
    return "    " + " \\\n      ".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _wrapped(lines: Iterable[str]) -> str:
    return "\n".join(
        part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    )
