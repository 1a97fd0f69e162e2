"""The null tables: how often p-values are small on models that bear no mark, and which defenses lie about it.

Two readings. *Decoys* are fresh keys with the owners' facts, drawn anew for each model: with the models as they are,
every pair is a try of its own, so that an exact p-value is at or below a level with no more than that chance each time,
and models are clusters because the share of one may lie further below the level than that of another. *Owners* are the
few completed keys themselves, each held against all models: pairs hang together through the key as well.

A level is exceeded where the pooled share is too large for it, or that of a single model (for owners: the smallest
p-value of all): the smaller chance of the two, twice, after Holm over all rows of a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy import stats

from bench.parameters import canonical
from bench.planning.job import Plan, Trial
from bench.statistics import Share, clustered_share, holm
from bench.tables import schema
from bench.tables.book import Book
from bench.tables.calibration import RELIABLE, UNRELIABLE, UNTESTED

Row = dict[str, Any]

LEVELS = (0.1, 0.01, 0.001)
# The chance that some sound defense of a table is called a liar.
FALSE_ALARM = 1e-3
READINGS = ("decoys", "owners")
# At which quantiles of a model's p-values log10_p is kept: the least, and closer together where they are small.
QUANTILES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(n / 10 for n in range(1, 10)), 1.0)
# A p-value that is a level stands a rounding error away from it.
_ROUNDING = 1e-9


class Tables(NamedTuple):
    """Both null tables.

    Attributes:
        null: a row for each task, defense with parameters, reading and level, alpha among these.
        models: a row for each of its models and readings, with quantiles of log10_p, or all of the owners'.
    """

    null: pa.Table
    models: pa.Table


def build(plan: Plan, entries: Mapping[str, Mapping[str, Any]], metadata: Mapping[bytes, bytes]) -> Tables:
    """The null tables of a plan; without rows where its suite has no `[null]`.

    Args:
        plan: its trials.
        entries: job id to the latest journal entry of that job.
        metadata: of the run's records.
    """
    book = Book(plan, entries)
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in plan.trials:
        groups.setdefault((trial.task, trial.defense, canonical(trial.defense_params)), []).append(trial)
    rows = [row for group in groups.values() for row in _group_rows(group, book, plan.alpha)]
    _judge(rows)
    models = [row for group in groups.values() for trial in group for row in _model_rows(trial, book)]
    made = (pa.Table.from_pylist(rows, schema=schema.NULL), pa.Table.from_pylist(models, schema=schema.NULL_MODELS))
    return Tables(*(table.replace_schema_metadata(metadata) for table in made))


def failures(plan: Plan, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each trial without a result: defense, model, error."""
    book = Book(plan, entries)
    missing = [trial for trial in plan.trials if not book.ok(trial.job)]
    return [f"{one.defense_label} on a model without its mark ({one.stranger}): {_error(one, book)}" for one in missing]


def _group_rows(group: Sequence[Trial], book: Book, alpha: float) -> Iterator[Row]:
    done = [trial for trial in group if book.ok(trial.job)]
    failed = next((_error(trial, book) for trial in group if not book.ok(trial.job)), None)
    first = group[0]
    for reading in READINGS:
        common = {
            **_names(first),
            "defense_label": first.defense_label,
            "reading": reading,
            "models": len(done),
            "models_failed": len(group) - len(done),
            # Decoys are drawn anew for each model.
            "keys": sum(trial.decoys for trial in done) if reading == "decoys" else len(first.owners),
            "unreadable": sum(book.result(trial.job)[f"unreadable_{reading}"] for trial in done),
            "source_digest": first.source,
            "error": failed,
        }
        for level in dict.fromkeys((*LEVELS, alpha)):
            row = {**common, "level": level, "is_alpha": level == alpha}
            yield {**row, **_counted(reading, level, done, book)} if done else row


def _counted(reading: str, level: float, done: Sequence[Trial], book: Book) -> Row:
    # A row for each model; of the owners, who meet every model, a column each.
    log10_p = np.array([book.result(trial.job)[reading] for trial in done], dtype=float)
    below = log10_p <= math.log10(level) + _ROUNDING
    if reading == "owners":
        share = clustered_share(below.astype(int), np.ones(below.shape, dtype=int), crossed=True)
    else:
        share = clustered_share(below.sum(1, keepdims=True), np.full((len(done), 1), below.shape[1]))
    pooled, worst = share.exceeding(level), _worst(reading, level, log10_p, below)
    place = int(below.mean(1).argmax())
    return {
        **_of_share(share, level),
        "worst_model": done[place].stranger if below.any() else None,
        "worst_rate": float(below[place].mean()),
        "log10_p_min": float(log10_p.min()),
        "p_pooled": pooled,
        "p_worst": worst,
        "p_exceeding": min(1.0, 2 * min(pooled, worst)),
    }


def _of_share(share: Share, level: float) -> Row:
    counts = {"pairs": share.tries, "expected": share.tries * level, "exceeding": share.hits, "rate": share.rate}
    return {**counts, "low": share.low, "high": share.high, "effective": share.effective}


def _worst(reading: str, level: float, log10_p: np.ndarray, below: np.ndarray) -> float:
    """The chance of so large a share on the worst model, or of so small a p-value, times how many there are."""
    if reading == "owners":
        # Whatever hangs together: no more than this.
        return min(1.0, int(log10_p.size) * math.pow(10.0, float(log10_p.min())))
    models, pairs = int(below.shape[0]), int(below.shape[1])
    return min(1.0, models * float(stats.binom.sf(int(below.sum(1).max()) - 1, pairs, level)))


def _judge(rows: list[Row]) -> None:
    """Verdicts of all rows together, and of each defense."""
    tested = [row for row in rows if row.get("pairs")]
    for row, p in zip(tested, holm([row["p_exceeding"] for row in tested]), strict=True):
        row |= {"p_holm": p, "verdict": "exceeded" if p <= FALSE_ALARM else "within"}
    liars = {_defense(row) for row in tested if row["verdict"] == "exceeded"}
    gaps = {_defense(row) for row in rows if row["models_failed"]}
    for row in rows:
        sound = UNTESTED if _defense(row) in gaps else RELIABLE
        row["calibration"] = UNRELIABLE if _defense(row) in liars else sound


def _defense(row: Row) -> tuple[str, str, str]:
    return row["task"], row["defense"], row["defense_params"]


def _names(trial: Trial) -> Row:
    return {"task": trial.task, "defense": trial.defense, "defense_params": canonical(trial.defense_params)}


def _model_rows(trial: Trial, book: Book) -> Iterator[Row]:
    if not book.ok(trial.job):
        return
    found = book.result(trial.job)
    for reading in READINGS:
        log10_p = found[reading]
        told: Row = {"owner": list(trial.owners), "log10_p": log10_p}
        if reading == "decoys":
            # Values that occur, since a mean of two p-values is none.
            values = np.quantile(log10_p, QUANTILES, method="inverted_cdf")
            told = {"quantile": list(QUANTILES), "log10_p": values.tolist()}
        yield {
            **_names(trial),
            "reading": reading,
            "stranger": trial.stranger,
            "kind": trial.kind,
            "model": trial.model,
            "job_id": trial.job,
            "pairs": len(log10_p),
            "unreadable": found[f"unreadable_{reading}"],
            "reason": found["reason"],
            **told,
        }


def _error(trial: Trial, book: Book) -> str:
    bad = book.chain([trial.job], follow=lambda job: not book.ok(job))
    failed = [job for job in bad if book.entry(job)]
    if not failed:
        return "the run ended before this job"
    entry = book.entry(failed[0])
    where = "" if failed[0] == trial.job else f"{book.plan.jobs[failed[0]].label}: "
    return f"{where}{entry.get('error_type') or 'Error'}: {entry.get('error') or 'no message'}"
