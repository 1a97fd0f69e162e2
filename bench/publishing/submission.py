"""What is sent of a run, and the checks that it passes before anybody looks at it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.errors import InputError
from bench.publishing import agreement, archive, declared, intake, numbers
from bench.publishing.sets import require_one_protocol
from bench.storage.store import RunFolder
from bench.tables import origins
from bench.tables import records as recorded
from bench.tables.leaderboard import boards

# Of a plan: what it takes to run the suite again, beside what the records say.
_PLANNED = ("seeds", "threads", "timeout", "tasks")


@dataclass(frozen=True)
class Submission:
    """A run that passed all checks.

    Attributes:
        records: a row per judged surrogate and key.
        decoys: of them.
        suite: tasks, defenses and attacks, by the records; under `planned` what the plan says, where it was sent.
        environment: devices, threads and versions, by the records.
        digest: SHA-256 of the archive.
    """

    records: pa.Table
    decoys: pa.Table
    suite: dict[str, Any]
    environment: dict[str, Any]
    digest: str


def members(run: Path) -> dict[str, bytes]:
    """What is sent of a run folder or of a set of one's own runs: the members of an archive, without the manifest.

    Raises:
        InputError: no records, some that somebody else submitted, or names that an archive may not have.
    """
    records, decoys = recorded.read(run / "records.parquet"), recorded.read(run / "decoys.parquet", "decoys")
    if others := [name for name in origins.origins(records) if name]:
        raise InputError(f"{run}: expected runs of one's own, got rows that {', '.join(others)} submitted")
    try:
        stated = _stated(records)
    except InputError as error:
        raise InputError(f"{run}: would not be accepted: {error}") from error
    records, decoys = (table.replace_schema_metadata(stated) for table in (records, decoys))
    made = boards(records)
    tables = {"records": records, "decoys": decoys, "leaderboard": made.leaderboard, "matrix": made.matrix}
    return {
        **{f"{name}.parquet": recorded.to_bytes(table) for name, table in tables.items()},
        archive.SUITE: archive.as_json({**suite_of(records), "planned": _planned(run)}),
        archive.ENVIRONMENT: archive.as_json(environment_of(records)),
    }


def checked(path: Path) -> Submission:
    """An archive that anybody may have made, after all checks.

    Raises:
        InputError: what is wrong with it, and where.
    """
    found = archive.unpacked(path)
    try:
        return _checked(found, digest_of(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def digest_of(path: Path) -> str:
    """SHA-256 of an archive."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def suite_of(records: pa.Table) -> dict[str, Any]:
    """What was run, by its records: rules, tasks, defenses and attacks with parameters and labels, seeds."""
    meta, labels = recorded.metadata(records), recorded.labels(records)
    tasks = _distinct(records, ("task", "dataset", "model", "data_digest"))
    sides = {}
    for side in ("defense", "attack"):
        found = _distinct(records, (side, f"{side}_params"))
        sides[f"{side}s"] = [
            {**row, "label": labels[side].get(recorded.name_of(row[side], row[f"{side}_params"]))} for row in found
        ]
    seeds = sorted(set(records["seed"].to_pylist()))
    rules = {"alpha": float(meta["alpha"]), "accuracy_budget": float(meta["accuracy_budget"])}
    return {"suite": meta["suite"], **rules, "seeds": seeds, "tasks": tasks, **sides}


def environment_of(records: pa.Table) -> dict[str, Any]:
    """On what it was run, by its records: each mix of device, threads and versions with the number of its rows."""
    counts: dict[str, int] = {}
    for row in records.select(["device", "threads", "versions"]).to_pylist():
        text = json.dumps({**row, "versions": row["versions"] and dict(row["versions"])}, sort_keys=True)
        counts[text] = counts.get(text, 0) + 1
    return {"environments": [{**json.loads(text), "records": count} for text, count in sorted(counts.items())]}


def _stated(records: pa.Table) -> dict[str, str]:
    known = declared.described(records)
    return {recorded.PREFIX + name: value for name, value in known.items()}


def _distinct(records: pa.Table, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = records.group_by(list(columns)).aggregate([]).to_pylist()
    return sorted(found, key=lambda row: [str(row[column]) for column in columns])


def _planned(run: Path) -> dict[str, Any] | None:
    """Facts of the plan that are in no record: how the models of a task are trained, above all."""
    if not (run / "plan.json").exists():
        return None
    plan = RunFolder.open_for_reading(run).plan()
    tasks = {archive.as_json(job.spec["task"]): job.spec["task"] for job in plan.jobs.values() if "task" in job.spec}
    values = {"seeds": list(plan.seeds), "threads": plan.threads, "timeout": plan.timeout}
    return {**values, "tasks": [task for _, task in sorted(tasks.items())]}


def _checked(found: Mapping[str, bytes], digest: str) -> Submission:
    tables, columns = {}, {}
    for kind in archive.TABLES:
        tables[kind], columns[kind] = intake.table_of(found[f"{kind}.parquet"], kind)
    stated = _stated(tables["records"])
    for kind, table in tables.items():
        tables[kind] = table.replace_schema_metadata(stated)
        if _stated(table) != stated:
            raise InputError(f"{kind}.parquet: expected the metadata of records.parquet, got others")
    records, decoys = tables["records"], tables["decoys"]
    numbers.require_sound(records, decoys, float(recorded.metadata(records)["alpha"]))
    agreement.require_agreement(records, decoys)
    require_one_protocol([records], ["records.parquet"])
    made = boards(records)
    for kind, table in (("leaderboard", made.leaderboard), ("matrix", made.matrix)):
        agreement.require_same(tables[kind], table, f"{kind}.parquet", columns[kind])
    suite = archive.from_json(found[archive.SUITE], archive.SUITE)
    planned = suite.pop("planned", None)
    if planned is not None and (not isinstance(planned, dict) or set(planned) != set(_PLANNED)):
        raise InputError(f"{archive.SUITE}: expected {', '.join(_PLANNED)} under planned, or nothing")
    environment = archive.from_json(found[archive.ENVIRONMENT], archive.ENVIRONMENT)
    for name, given, expected in (
        (archive.SUITE, suite, suite_of(records)),
        (archive.ENVIRONMENT, environment, environment_of(records)),
    ):
        wrong = sorted(key for key in {*given, *expected} if given.get(key) != expected.get(key))
        if wrong:
            raise InputError(f"{name}: {wrong[0][:80]!r}: expected what the records say")
    return Submission(records, decoys, {**suite, "planned": planned}, environment, digest)
