"""One record's whole provenance: its rows, the jobs behind it, and the command that makes just it again."""

from __future__ import annotations

import difflib
import itertools
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from bench.errors import InputError
from bench.parameters import canonical
from bench.planning.job import Cell, Plan
from bench.tables.book import Book, judge_of

_LISTED = 12
_COLUMNS = (
    *("strength", "accuracy_clean", "accuracy_protected", "accuracy_reference", "accuracy", "statistic"),
    *(
        "log10_p",
        "claim",
        "derived",
        "data_inputs",
        "data_labels",
        "queries",
        "seconds",
        "status",
        "error_type",
        "error",
    ),
)


def describe(plan: Plan, entries: Mapping[str, Mapping[str, Any]], records: pa.Table, prefix: str) -> str:
    """Everything that is known of a job: the cells that rest on it, their rows, its chain, how to repeat it.

    Args:
        plan: the plan of the run.
        entries: job id to its latest journal entry.
        records: the run's records.
        prefix: the first digits of the id of any job of the plan, enough to tell it from others.

    Raises:
        InputError: no job or several begin so; the nearest are named.
    """
    book = Book(plan, entries)
    job = _resolved(plan, prefix)
    # A record is named by the job that judges it; any other job may serve many cells.
    cells = [cell for cell in plan.cells if judge_of(cell) == job] or _resting_on(job, plan)
    parts = [_heading(plan, job)]
    if len(cells) == 1:
        parts += [_cell(cells[0]), _rows(cells[0], records)]
    elif cells:
        parts.append(_many(cells))
    start = cells[0].jobs.values() if len(cells) == 1 else [job]
    chain = [_job(one, book) for one in book.chain(start)]
    parts += ["Jobs, in the order of their work\n" + "\n".join(chain), _command(plan, cells, job)]
    return "\n\n".join(parts) + "\n"


def _resolved(plan: Plan, prefix: str) -> str:
    found = [job for job in plan.jobs if job.startswith(prefix)] if prefix else []
    if prefix in found:
        return prefix
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"job {prefix!r} is ambiguous, {len(found)} jobs begin so: {_listed(plan, found)}")
    raise InputError(f"no job begins with {prefix!r}. Nearest: {_listed(plan, _nearest(plan, prefix))}")


def _nearest(plan: Plan, prefix: str) -> list[str]:
    def likeness(job: str) -> tuple[int, float]:
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(job, prefix, strict=False)))
        return common, difflib.SequenceMatcher(None, job[: len(prefix)], prefix).ratio()

    return sorted(plan.jobs, key=likeness, reverse=True)[:3]


def _listed(plan: Plan, jobs: Iterable[str]) -> str:
    names = [f"{job} ({plan.jobs[job].label})" for job in jobs]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "(the plan has no jobs)"


def _resting_on(job: str, plan: Plan) -> list[Cell]:
    own = [cell for cell in plan.cells if job in cell.jobs.values()]
    if own or job not in plan.jobs:
        return own
    book = Book(plan, {})
    return [cell for cell in plan.cells if job in book.chain(cell.jobs.values())]


def _heading(plan: Plan, job: str) -> str:
    rules = f"alpha {plan.alpha:g}, accuracy budget {plan.accuracy_budget:g} points"
    return f"Job {job}: {plan.jobs[job].label}\nSuite {plan.suite} ({plan.source}), {rules}"


def _cell(cell: Cell) -> str:
    params = {"defense": cell.defense_params, "attack": cell.attack_params}
    capacity = "unknown" if cell.capacity_log10_p is None else f"{cell.capacity_log10_p:g}"
    facts = {
        "task": f"{cell.task} (data {cell.dataset}, model {cell.model})",
        "seed": cell.seed,
        "defense": f"{cell.defense_label} {canonical(params['defense'])}",
        "": f"family {cell.defense_family}, access {cell.defense_access}, capacity (log10 p) {capacity}",
        "attack": f"{cell.attack_label} {canonical(params['attack'])}",
        " ": f"kind {cell.attack_kind}, class {cell.attack_class}, access {cell.attack_access}, "
        f"knowledge {cell.knowledge}",
        "judged key": cell.judged_key,
        **({"time model": cell.time_model} if cell.time_model else {}),
    }
    return _aligned("Cell", facts)


def _many(cells: list[Cell]) -> str:
    lines = [
        f"  {judge_of(cell) or '(not run)':16}  {cell.defense_label} x {cell.attack_label}, "
        f"{cell.attack_kind}, {cell.judged_key}'s key, seed {cell.seed}"
        for cell in cells[:_LISTED]
    ]
    more = [f"  … and {len(cells) - _LISTED} more"] if len(cells) > _LISTED else []
    return "\n".join([f"{len(cells)} records rest on it; show one by its job", *lines, *more])


def _rows(cell: Cell, records: pa.Table) -> str:
    # By hand and without the times: Arrow imports pandas to filter and for times, and this must answer at once.
    judge, table = judge_of(cell), records.select([*_COLUMNS, "figures", "texts"])
    places = [place for place, job in enumerate(records["job_id"].to_pylist()) if job == judge]
    rows = [row for place in places for row in table.slice(place, 1).to_pylist()]
    blocks = []
    for place, row in enumerate(rows):
        facts = {name: _value(row[name]) for name in _COLUMNS if row[name] is not None}
        facts |= {f"figure {name}": _value(value) for name, value in row["figures"] or []}
        # Quoted, since whatever was read may hold anything.
        facts |= {f"text {name}": repr(value) for name, value in row["texts"] or []}
        blocks.append(_aligned(f"Row {place + 1} of {len(rows)}", facts))
    return "\n".join(blocks) if blocks else "No rows in the records yet."


def _job(job: str, book: Book) -> str:
    known, entry = book.plan.jobs.get(job), book.entry(job)
    facts: dict[str, Any] = {"status": entry.get("status", "not run")}
    for name in ("seconds", "peak_memory_mb", "device", "threads", "run_id", "created_at"):
        if entry.get(name) is not None:
            facts[name] = _value(entry[name])
    if entry.get("versions"):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in sorted(entry["versions"].items()))
    if known is not None:
        facts["source"] = known.source_digest
        ran = entry.get("source_digest")
        if ran and ran != known.source_digest:
            facts["source that ran"] = ran
        facts["spec"] = canonical(known.spec)
        inputs = [f"{role} = {one.job} ({one.channel})" for role, one in known.inputs.items()]
        facts["inputs"] = ", ".join(inputs) or "none"
    if entry.get("status") == "failed":
        facts["error"] = f"{entry.get('error_type')}: {entry.get('error')}"
    told = _aligned(f"{job}  {known.label if known else '(not in the plan)'}", facts)
    trace = entry.get("traceback")
    return told + ("\n" + "\n".join(f"    {line}" for line in trace.rstrip().splitlines()) if trace else "")


def _command(plan: Plan, cells: list[Cell], job: str) -> str:
    if not cells:
        return "No record rests on this job."
    words = ["ownbench", "run", plan.source]
    several = len({cell.task for cell in plan.cells}) > 1
    for option, labels in (
        ("task", [c.task for c in cells] if several else []),
        ("defense", [c.defense_label for c in cells]),
        ("attack", [c.attack_label for c in cells]),
    ):
        if len(set(labels)) == 1:
            words += ["--only", f"{option}={labels[0]}"]
    for seed in sorted({cell.seed for cell in cells}):
        words += ["--seed", str(seed)]
    words += ["--out", f"again-{job[:8]}"]
    return "To make just this again\n  " + " ".join(shlex.quote(word) for word in words)


def _aligned(title: str, facts: Mapping[str, Any]) -> str:
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in facts.items())])


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
