"""The `run` command: suite, plan, workers, tables, and the exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.markup import escape

from bench import boards, jobs, planning, suite
from bench.errors import InputError, unknown
from bench.executor import Executor, InlineExecutor
from bench.job import Plan
from bench.progress import for_console
from bench.scheduler import Scheduler, Totals
from bench.store import RunFolder
from bench.suite import Suite


@dataclass(frozen=True)
class Options:
    """What the command line said; see `ownbench run --help`."""

    suite: str
    out: Path | None = None
    workers: int | None = None
    seeds: tuple[int, ...] | None = None
    only: tuple[str, ...] = ()
    device: str = "auto"
    fresh: bool = False
    local: bool = False
    address: str | None = None


def run(options: Options, console: Console | None = None) -> int:
    """Run a suite; returns the exit code: 0 all cells ok or not applicable, 1 some cell failed.

    Raises:
        InputError: bad input.
    """
    console = console or Console()
    device = _device(options.device)
    chosen = narrowed(suite.read(options.suite), options.only)
    plan = planning.make(chosen, device, options.seeds)
    out = options.out or Path("results") / "runs" / chosen.header.name
    with RunFolder.open_for_writing(out, options.fresh) as folder:
        if folder.torn:
            console.print(f"note: {folder.torn} torn journal line(s) in {out} skipped; their jobs are done again")
        folder.save_plan(plan)
        executor = _executor(options, plan, device)
        try:
            totals = Scheduler(plan, folder, executor, for_console(console)).run()
        finally:
            executor.close()
            tables = boards.write(folder, plan)
    console.print(boards.text(tables, "table"), markup=False, highlight=False, soft_wrap=True, end="")
    console.print(escape(_summary(totals, out, tables)), highlight=False, soft_wrap=True)
    failures = tables.failures()
    for line in failures:
        console.print(f"failed: {escape(line)}", highlight=False, soft_wrap=True)
    if torch.cuda.is_available():
        console.print(escape(_gpu_hint(options.suite)), highlight=False, soft_wrap=True)
    return 1 if failures else 0


def narrowed(chosen: Suite, only: Sequence[str]) -> Suite:
    """The suite with just the defenses and attacks that `--only` names, and what they are measured from.

    Args:
        chosen: the suite.
        only: entries `defense=NAME` or `attack=NAME`; a label with parameters is a name too.

    Raises:
        InputError: another form, or a name that the suite does not have.
    """
    wanted: dict[str, list[str]] = {"defense": [], "attack": []}
    for entry in only:
        role, found, name = entry.partition("=")
        if not found or role not in wanted:
            raise InputError(f"--only: expected defense=NAME or attack=NAME, got {entry!r}")
        wanted[role].append(name)
    for role, names in wanted.items():
        plugins = getattr(chosen, f"{role}s")
        known = {n for one in plugins for n in (one.name, getattr(one, "label", one.name))}
        for name in names:
            if name not in known:
                raise unknown(role, name, known, f"--only, suite {chosen.header.name}")
        if names:
            kept = tuple(p for p in plugins if p.name in names or getattr(p, "label", "") in names or _is_base(p))
            chosen = replace(chosen, **{f"{role}s": kept})  # type: ignore[arg-type]
    return chosen


def _is_base(plugin: object) -> bool:
    """Whether every number is measured from it: the clean model, the model without attack, the ceiling."""
    is_nothing = getattr(plugin, "kind", "") == "none"
    return is_nothing or getattr(plugin, "undefended", False) or getattr(plugin, "ceiling", False)


def _device(wanted: str) -> Literal["cpu", "cuda"]:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: expected a GPU for 'cuda', PyTorch finds none here")
    if wanted != "cpu" and torch.cuda.is_available():
        return "cuda"
    return "cpu"


def _executor(options: Options, plan: Plan, device: Literal["cpu", "cuda"]) -> Executor:
    if options.local:
        return InlineExecutor(jobs.run, device)
    from bench.pool import RayPool

    env = {name: value for name, value in os.environ.items() if name.startswith("OWNBENCH_")}
    if device == "cuda":
        workers = options.workers or torch.cuda.device_count()
    else:
        workers = options.workers or max(1, cores() // plan.threads)
    return RayPool(workers=workers, threads=plan.threads, device=device, address=options.address, env=env)


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
    suites = [n for n, path in suite.shipped().items() if n != name and "gpu = true" in path.read_text()]
    if not suites:
        return "This machine has a GPU; every method at three seeds: make bench SUITE=digits-full"
    return "This machine has a GPU; the suites for it: " + ", ".join(f"make bench SUITE={n}" for n in suites)
