"""The `run` command: suite, plan, workers, tables, and the exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.markup import escape

from bench import data, images
from bench.attack import Attack
from bench.commands import boards
from bench.defense import Defense
from bench.errors import InputError, unknown
from bench.planning import cells, suite
from bench.planning.job import Plan
from bench.planning.options import RUNS, Options
from bench.planning.suite import Suite, Unusable
from bench.running import jobs, ranking
from bench.running.executor import Executor, InlineExecutor
from bench.running.scheduler import Scheduler, Totals
from bench.storage import settled
from bench.storage.store import RunFolder
from bench.task import Task
from bench.text.progress import for_console

Named = Task | Defense | Attack | Unusable


def run(options: Options, console: Console | None = None, known: str | None = None) -> int:
    """Run a suite; returns the exit code: 0 all cells ok or not applicable, 1 some cell failed.

    Args:
        options: of the command line.
        console: where progress and tables go.
        known: `bench.storage.settled.inputs`, taken before this module was imported; with it a whole run is marked as
            such.

    Raises:
        InputError: bad input.
    """
    console = console or Console()
    device = device_of(options)
    chosen = narrowed(suite.read(options.suite), options.only)
    plan = cells.make(chosen, device, options.seeds)
    out = folder_of(options, chosen)
    with RunFolder.open_for_writing(out, options.fresh) as folder:
        if folder.torn:
            console.print(f"note: {folder.torn} torn journal line(s) in {out} skipped; their jobs are done again")
        settled.forget(out)
        folder.save_plan(plan)
        outside = settled.watched(_places(chosen, plan)) if known else {}
        try:
            totals = _execute(options, plan, folder, device, console)
        finally:
            tables = boards.write(folder, plan)
        failures = tables.failures()
        if known and not options.address and not failures and all(map(folder.succeeded, plan.jobs)):
            settled.stamp(out, known, outside, len(plan.jobs), tables.paths)
    told = boards.text(boards.calibrated(tables), "table")
    console.print(told, markup=False, highlight=False, soft_wrap=True, end="")
    console.print(escape(_summary(totals, out, tables)), highlight=False, soft_wrap=True)
    for line in failures:
        console.print(f"failed: {escape(line)}", highlight=False, soft_wrap=True)
    if torch.cuda.is_available():
        console.print(escape(_gpu_hint(options.suite)), highlight=False, soft_wrap=True)
    return 1 if failures else 0


def narrowed(chosen: Suite, only: Sequence[str]) -> Suite:
    """The suite with just the tasks, defenses and attacks that `--only` names, and what they are measured from.

    Args:
        chosen: the suite.
        only: entries `task=NAME`, `defense=NAME` or `attack=NAME`; a label with parameters is a name too, and of a
            task its dataset or its model.

    Raises:
        InputError: another form, or a name that the suite does not have.
    """
    wanted: dict[str, set[str]] = {"task": set(), "defense": set(), "attack": set()}
    for entry in only:
        role, found, name = entry.partition("=")
        if not found or role not in wanted:
            raise InputError(f"--only: expected task=NAME, defense=NAME or attack=NAME, got {entry!r}")
        wanted[role].add(name)
    for role, names in wanted.items():
        there: Sequence[Named] = getattr(chosen, f"{role}s")
        known = set().union(*map(_names, there))
        for name in sorted(names - known):
            raise unknown(role, name, known, f"--only, suite {chosen.header.name}")
        if names:
            kept = tuple(one for one in there if names & _names(one) or _is_base(one))
            chosen = replace(chosen, **{f"{role}s": kept})  # type: ignore[arg-type]
    return chosen


def _names(one: Named) -> set[str]:
    if isinstance(one, Task):
        return {one.name, one.info.name, one.model}
    return {one.name, one.label}


def _is_base(plugin: object) -> bool:
    """Whether every number is measured from it: the clean model, the model without attack, the ceiling."""
    is_nothing = getattr(plugin, "kind", "") == "none"
    return is_nothing or getattr(plugin, "undefended", False) or getattr(plugin, "ceiling", False)


def _places(chosen: Suite, plan: Plan) -> list[Path]:
    """Where the data and the files of the plugins lie."""
    files = {path for job in plan.jobs.values() for path in job.spec.get("files", {})}
    return [*(place for task in chosen.tasks for place in data.places(task.info)), *map(images.find, sorted(files))]


def folder_of(options: Options, chosen: Suite) -> Path:
    """The run folder."""
    return options.out or RUNS / chosen.header.name


def device_of(options: Options) -> Literal["cpu", "cuda"]:
    """The kind of device to run on; a cluster is asked what it has.

    Raises:
        InputError: what the command line asks for is not there, or does not fit together.
    """
    if options.local and (options.address or options.gpus_per_job):
        raise InputError("--local: one process has neither --address nor --gpus-per-job")
    device: Literal["cpu", "cuda"] = "cpu"
    if options.device != "cpu" and _has_gpu(options.address):
        device = "cuda"
    if options.device == "cuda" and device == "cpu":
        where = "PyTorch finds none here" if options.address is None else f"the cluster at {options.address} has none"
        raise InputError(f"--device: expected a GPU for 'cuda', {where}")
    if options.gpus_per_job is not None and device == "cpu":
        raise InputError(f"--gpus-per-job: expected a run on GPUs, got {options.gpus_per_job:g} for one on the CPU")
    return device


def _has_gpu(address: str | None) -> bool:
    if address is None:
        return torch.cuda.is_available()
    from bench.workers.cluster import gpus_at

    return gpus_at(address) > 0


def _execute(
    options: Options, plan: Plan, folder: RunFolder, device: Literal["cpu", "cuda"], console: Console
) -> Totals:
    if all(map(folder.succeeded, plan.jobs)) and not ranking.left(plan, folder)[0]:
        # Where nothing is to be done, no worker need start.
        return Totals(reused=len(plan.jobs))
    executor = _executor(options, plan, device)
    try:
        return Scheduler(plan, folder, executor, for_console(console)).run()
    finally:
        executor.close()


def _executor(options: Options, plan: Plan, device: Literal["cpu", "cuda"]) -> Executor:
    if options.local:
        return InlineExecutor(jobs.run, device)
    from bench.workers.pool import RayPool

    workers = options.workers
    if workers is None and device == "cpu" and options.address is None:
        workers = max(1, cores() // plan.threads)
    return RayPool(
        workers=workers,
        threads=plan.threads,
        device=device,
        address=options.address,
        gpus_per_job=options.gpus_per_job,
        env={name: value for name, value in os.environ.items() if name.startswith("OWNBENCH_")},
    )


def cores() -> int:
    """The cores that this process may use: its affinity, within the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):
        return allowed


def _summary(totals: Totals, out: Path, tables: boards.Tables) -> str:
    files = ", ".join(path.name for path in tables.paths)
    busy = f", workers {totals.efficiency:.0%} busy" if totals.ran else ""
    return (
        f"\n{totals.ran} jobs run, {totals.reused} finished before, {totals.failed} failed; "
        f"{totals.wall:.0f} s{busy}\nfiles in {out}: {files}"
    )


def _gpu_hint(name: str) -> str:
    suites = [other for other in suite.shipped() if other != name and suite.read(other).header.gpu]
    return "This machine has a GPU; the suites for it: " + ", ".join(f"make bench SUITE={n}" for n in suites)
