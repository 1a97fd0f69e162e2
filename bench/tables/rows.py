"""The rows of one cell: one per judged surrogate, or one that says why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bench.evidence import Evidence, any_of
from bench.parameters import canonical
from bench.planning.job import Cell, roles
from bench.tables.book import Book, attack_of, judge_of

Row = dict[str, Any]

# The shares of decoys at or below these p that a decoys row carries as figures.
SHARES = {"share_1e-1": -1.0, "share_1e-2": -2.0, "share_1e-3": -3.0, "share_1e-4": -4.0}
# Of a weight as it is published.
_FLOAT_BITS = 32
_PROVENANCE = ("run_id", "device", "threads", "source_digest")


def rows_of(cell: Cell, book: Book) -> list[Row]:
    """All records of a cell; never none."""
    if cell.status != "ok":
        reason = {"error_type": cell.error_type, "error": cell.error, "traceback": cell.traceback}
        return [{**_cell_columns(cell, book), "status": cell.status, **reason}]
    culprit = book.culprit(cell)
    if culprit is not None:
        return [_failed_row(cell, book, culprit)]
    common = {**_cell_columns(cell, book), **_job_columns(cell, book), "status": "ok"}
    if "decoys" in cell.jobs:
        found = _decoys_row(cell, book)
        return [{**common, **found}] if found else [_malformed_row(cell, book, "no decoys")]
    surrogates, wrong = _surrogates(cell, book)
    return [_malformed_row(cell, book, wrong)] if wrong else [{**common, **one} for one in surrogates]


def decoy_rows(cell: Cell, book: Book) -> Row | None:
    """The columns of decoys.parquet for one cell, with lists under `statistic` and `log10_p`."""
    job = cell.jobs.get("decoys")
    if job is None or cell.status != "ok" or book.culprit(cell) is not None:
        return None
    return {
        "run_id": book.entry(job).get("run_id"),
        "job_id": job,
        "task": cell.task,
        "defense": cell.defense,
        "defense_params": canonical(cell.defense_params),
        "seed": cell.seed,
        "statistic": book.result(job).get("statistic", []),
        "log10_p": book.result(job).get("log10_p", []),
    }


def _cell_columns(cell: Cell, book: Book) -> Row:
    copied = (
        *(
            "task",
            "dataset",
            "model",
            "seed",
            "defense",
            "attack",
            "attack_kind",
            "attack_class",
            "knowledge",
        ),
        *("judged_key", "time_model", "strength_unit", "capacity_log10_p", "defense_family", "defense_access"),
        *("attack_family", "attack_access"),
    )
    clean, protected = _measured(cell, book, "clean"), _measured(cell, book, "protected")
    return {
        **{name: getattr(cell, name) for name in copied},
        "suite": book.plan.suite,
        "job_id": judge_of(cell),
        "parent_id": attack_of(cell) or cell.jobs.get("protect"),
        "defense_params": canonical(cell.defense_params),
        "attack_params": canonical(cell.attack_params),
        "accuracy_clean": clean,
        "accuracy_protected": protected,
        "accuracy_reference": None if cell.changes_task else protected,
        "data_digest": book.plan.data_digests.get(cell.task),
        "seconds_protect": book.seconds(cell.jobs.get("protect"), "owner"),
    }


def _job_columns(cell: Cell, book: Book) -> Row:
    links = [book.result(link) for link in book.links(attack_of(cell))]
    used = {name: [one[name] for one in links if name in one] for name in ("inputs_used", "labels_used")}
    return {
        **_provenance(book, judge_of(cell)),
        "data_inputs": max(used["inputs_used"], default=None),
        "data_labels": max(used["labels_used"], default=None),
        # Whom a later link asks is the attacker's own.
        "queries": links[0].get("queries") if links else None,
        "peak_memory_mb": book.entry(attack_of(cell) or judge_of(cell)).get("peak_memory_mb"),
    }


def _provenance(book: Book, job: str | None) -> Row:
    entry = book.entry(job)
    versions = entry.get("versions")
    return {
        **{name: entry.get(name) for name in _PROVENANCE},
        "versions": None if versions is None else sorted(versions.items()),
        "created_at": moment(entry.get("created_at")),
    }


def moment(text: str | None) -> datetime | None:
    """The time of an ISO 8601 string; UTC where it names no zone."""
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _failed_row(cell: Cell, book: Book, culprit: str) -> Row:
    entry = book.entry(culprit)
    error_type, error = "NotRun", "the run ended before this job"
    if entry:
        error_type, error = entry.get("error_type") or "Error", entry.get("error") or "no message"
    if culprit not in (attack_of(cell), judge_of(cell)):
        known = book.plan.jobs.get(culprit)
        error = f"{known.label if known else culprit}: {error}"
    reason = {"error_type": error_type, "error": error, "traceback": entry.get("traceback")}
    return {**_cell_columns(cell, book), **_provenance(book, culprit), "status": "failed", **reason}


def _malformed_row(cell: Cell, book: Book, wrong: str) -> Row:
    reason = {"error_type": "MalformedResult", "error": wrong}
    return {**_cell_columns(cell, book), **_provenance(book, judge_of(cell)), "status": "failed", **reason}


def _measured(cell: Cell, book: Book, role: str) -> float | None:
    accuracy: list[float] = book.result(cell.jobs.get(role)).get("accuracy") or []
    return accuracy[0] if accuracy else None


def _surrogates(cell: Cell, book: Book) -> tuple[list[Row], str | None]:
    """The columns that differ from surrogate to surrogate, or what is wrong with the results."""
    attack = attack_of(cell)
    forged = "forge" in cell.jobs
    found = book.result(attack)
    evidence = _evidence(cell, book, "judge")
    untouched = attack is None and "measure" not in cell.jobs
    measured = book.result(cell.jobs.get("protected" if untouched else "measure"))
    accuracy = measured.get("accuracy") or []
    strengths = [None] if forged or attack is None else found.get("strengths") or []
    seconds = [0.0] if forged else found.get("seconds") or [0.0] * len(strengths)
    taken = measured.get("figures") or [{}] * len(accuracy)
    lists: dict[str, Sequence[Any]] = {"strengths": strengths, "seconds": seconds}
    lists |= {"accuracies": accuracy, "figures": taken, "evidence": evidence}
    beside = _control(cell, book)
    if beside is not None:
        lists["controls"] = beside
    if cell.changes_task:
        lists["reference accuracies"] = book.result(cell.jobs.get("reference")).get("accuracy") or []
    if not strengths or len({len(values) for values in lists.values()}) > 1:
        counts = ", ".join(f"{len(values)} {name}" for name, values in lists.items())
        return [], f"expected one of each per surrogate, got {counts}"
    # Stages that the attack rests on are part of its cost; a forgery's own time is that of its whole job.
    started = _stage_seconds(attack, book, whole=forged)
    rows = [_surrogate(*one, started, book) for one in zip(strengths, seconds, accuracy, evidence, strict=True)]
    told = [found.get("figures", {})] if forged else found.get("figures") or [{}] * len(rows)
    how = "forge" if forged else "attack"
    original = _original(cell, book)
    for row, one, noted in zip(rows, taken, told, strict=True):
        named = {f"{how}.{name}": value for name, value in noted.items()}
        row["figures"] = _figures(named, one, _ratios(one, cell, book), row["figures"], original)
        row["derived"] = book.result(judge_of(cell)).get("derived")
    for row, reference in zip(rows, lists.get("reference accuracies", []), strict=False):
        row["accuracy_reference"] = reference
    for row, control in zip(rows, beside or [], strict=False):
        row["figures"] = _figures(row["figures"], control)
        # Evidence that a model shows which never met the protected one is none.
        row["claim"] = row["claim"] and row["log10_p"] < control["control.log10_p"]
    return rows, None


def _original(cell: Cell, book: Book) -> dict[str, float]:
    """What a forged key finds in the protected model; nothing for other keys, and in runs of before it was asked."""
    found = _evidence(cell, book, "original") if "original" in cell.jobs else []
    return {f"original.{name}": found[0][name] for name in ("log10_p", "statistic")} if found else {}


def _evidence(cell: Cell, book: Book, role: str) -> list[Mapping[str, Any]]:
    """What a role's judges say of each surrogate; of a pair the better reading, paid for by both."""
    judges = [cell.jobs[one] for one in roles(role, len(cell.readings)) if one in cell.jobs]
    told = [book.result(job).get("evidence") or [] for job in judges]
    if not cell.readings:
        return told[0] if told else []
    return [_better(dict(zip(cell.readings, each, strict=False)), cell.readings) for each in zip(*told, strict=False)]


def _better(told: Mapping[str, Mapping[str, Any]], readings: Sequence[str]) -> Mapping[str, Any]:
    """Evidence by label; a key that is for one of the two leaves the other nothing to read."""
    without = {label: Evidence.unreadable("the key is not for it") for label in readings}
    found = any_of(without | {label: _as_evidence(one) for label, one in told.items()})
    values = {name: getattr(found, name) for name in ("statistic", "log10_p", "figures", "reason", "texts")}
    return {**values, "seconds": sum(one.get("seconds") or 0.0 for one in told.values())}


def _as_evidence(one: Mapping[str, Any]) -> Evidence:
    return Evidence(
        one["statistic"], one["log10_p"], one.get("figures") or {}, one.get("reason"), one.get("texts") or {}
    )


def _control(cell: Cell, book: Book) -> list[dict[str, float]] | None:
    """For each surrogate the figures of the control's, under `control.`; None where the attack has no control."""
    if "control" not in cell.jobs:
        return None
    evidence = _evidence(cell, book, "control")
    accuracy = book.result(cell.jobs["control_measure"]).get("accuracy") or []
    found = []
    for one, right in zip(evidence, accuracy, strict=False):
        figures = {"accuracy": right, "log10_p": one["log10_p"], "statistic": one["statistic"], **one["figures"]}
        found.append({f"control.{name}": value for name, value in figures.items()})
    return found


def _ratios(one: Mapping[str, float], cell: Cell, book: Book) -> dict[str, float]:
    """How many times less a surrogate takes to store than the protected model's weights do, all of them as floats."""
    before = (book.result(cell.jobs.get("protected")).get("figures") or [{}])[0].get("weights")
    stored = {"compression": one.get("stored_bits"), "compression_indexed": one.get("stored_bits_indexed")}
    return {name: _FLOAT_BITS * before / bits for name, bits in stored.items() if before and bits}


def _stage_seconds(attack: str | None, book: Book, *, whole: bool) -> float:
    total = book.seconds(attack, "attacker") or 0.0
    return total if whole else total - float(book.entry(attack).get("seconds") or 0.0)


def _surrogate(
    strength: float | None,
    seconds: float,
    accuracy: float,
    evidence: Mapping[str, Any],
    started: float,
    book: Book,
) -> Row:
    log10_p, reason = evidence["log10_p"], evidence.get("reason")
    return {
        "strength": strength,
        "seconds": started + seconds,
        "accuracy": accuracy,
        "statistic": evidence["statistic"],
        "log10_p": log10_p,
        "claim": _claims(log10_p, book),
        "figures": _figures(evidence.get("figures") or {}),
        "texts": sorted((evidence.get("texts") or {}).items()),
        "seconds_verify": evidence.get("seconds"),
        "error_type": "unreadable" if reason else None,
        "error": reason,
    }


def _decoys_row(cell: Cell, book: Book) -> Row | None:
    job = cell.jobs["decoys"]
    drawn = list(_pairs(book.result(job)))
    if not drawn:
        return None
    log10_p, negative = min((p, -statistic) for p, statistic in drawn)
    shares = {name: sum(p <= bound for p, _ in drawn) / len(drawn) for name, bound in SHARES.items()}
    return {
        "accuracy": _measured(cell, book, "protected"),
        "accuracy_reference": _measured(cell, book, "protected"),
        "statistic": -negative,
        "log10_p": log10_p,
        "claim": _claims(log10_p, book),
        "derived": book.result(job).get("derived"),
        "figures": _figures({"decoys": float(len(drawn)), **shares}),
        "seconds": book.entry(job).get("seconds"),
    }


def _pairs(result: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    return zip(result.get("log10_p", []), result.get("statistic", []), strict=False)


def _claims(log10_p: float, book: Book) -> bool:
    return log10_p <= math.log10(book.plan.alpha)


def _figures(*parts: Mapping[str, float] | list[tuple[str, float]]) -> list[tuple[str, float]]:
    merged: dict[str, float] = {}
    for part in parts:
        merged.update(part)
    return sorted(merged.items())
