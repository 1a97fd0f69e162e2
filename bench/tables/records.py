"""Records: from a plan and its journal to Parquet, and back with the schema's version checked."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.errors import InputError
from bench.parameters import canonical
from bench.planning.job import Plan
from bench.tables import schema
from bench.tables.book import Book
from bench.tables.rows import decoy_rows, moment, rows_of

PREFIX = "ownbench."


def _with_texts(table: pa.Table) -> pa.Table:
    """Version 2 has what was read that is no number beside the figures of records; before, nothing had any."""
    if "figures" not in table.column_names:
        return table
    field = schema.RECORDS.field("texts")
    return table.append_column(field, pa.nulls(table.num_rows, field.type))


def _with_protocols(table: pa.Table) -> pa.Table:
    """Version 3 says when a forged key was there, whether it is derived, and whether p-values were tested.

    Of older rows none of it is known. A forgery that has no claim on evidence has none under a stricter protocol,
    whatever its key.
    """
    if "figures" in table.column_names:
        return _with_nulls(table, schema.RECORDS, ("time_model", "derived"))
    if "forgeries" in table.column_names:
        withstood = table["forgeries_withstood"]
        all_of_them = pc.if_else(pc.equal(withstood, table["forgeries"]), withstood, pa.scalar(None, withstood.type))
        for name in ("forgeries_withstood_committed", "forgeries_withstood_derived"):
            table = table.append_column(schema.LEADERBOARD.field(name), all_of_them)
        return _with_nulls(table, schema.LEADERBOARD, ("calibration",))
    if "yardstick" in table.column_names:
        rows = zip(*(table[name].to_pylist() for name in ("judged_key", "seeds", "claims")), strict=True)
        forged = [claims > 0 if key == "forger" and seeds else None for key, seeds, claims in rows]
        table = table.append_column(schema.MATRIX.field("forged"), pa.array(forged, pa.bool_()))
        for name in ("forged_committed", "forged_derived"):
            known = pa.array([None if one else one for one in forged], pa.bool_())
            table = table.append_column(schema.MATRIX.field(name), known)
        return _with_nulls(table, schema.MATRIX, ("time_model",))
    return table


def _with_worth(table: pa.Table) -> pa.Table:
    """Version 4 says what a mark is worth; a leaderboard made of older records has it."""
    return _with_nulls(table, schema.LEADERBOARD, ("worth",)) if "forgeries" in table.column_names else table


def _with_compression(table: pa.Table) -> pa.Table:
    """Version 5 says how much smaller an attacker's copy is; a matrix made of older records has it."""
    return _with_nulls(table, schema.MATRIX, schema.COMPRESSION) if "least_loss" in table.column_names else table


def _with_nulls(table: pa.Table, columns: pa.Schema, names: tuple[str, ...]) -> pa.Table:
    for name in names:
        field = columns.field(name)
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


# Version to the function that makes of a table of that version one of the next.
MIGRATIONS: dict[int, Callable[[pa.Table], pa.Table]] = {
    1: _with_texts,
    2: _with_protocols,
    3: _with_worth,
    4: _with_compression,
}


def build(plan: Plan, entries: Mapping[str, Mapping[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """The records and the decoys of a plan, in the plan's order.

    A function of its arguments alone: the metadata takes run and time from the newest entry.

    Args:
        plan: the jobs and the cells that they fill.
        entries: job id to the latest journal entry of that job.
    """
    book = Book(plan, entries)
    rows = [row for cell in plan.cells for row in rows_of(cell, book)]
    described = _metadata(plan, entries)
    records = pa.Table.from_pylist(rows, schema=schema.RECORDS).replace_schema_metadata(described)
    parts = [decoy_rows(cell, book) for cell in plan.cells]
    return records, _decoys([part for part in parts if part]).replace_schema_metadata(described)


def _decoys(parts: list[dict[str, Any]]) -> pa.Table:
    tables = [schema.DECOYS.empty_table()]
    for part in parts:
        count = len(part["log10_p"])
        columns = {"statistic": part["statistic"], "log10_p": part["log10_p"], "decoy": range(count)}
        arrays = [
            pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.repeat(pa.scalar(part[field.name], field.type), count)
            for field in schema.DECOYS
        ]
        tables.append(pa.Table.from_arrays(arrays, schema=schema.DECOYS))
    return pa.concat_tables(tables)


def _metadata(plan: Plan, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    newest = max(entries.values(), key=lambda entry: str(entry.get("created_at") or ""), default={})
    created = moment(newest.get("created_at"))
    labels = {
        "defense": {name_of(cell.defense, canonical(cell.defense_params)): cell.defense_label for cell in plan.cells},
        "attack": {name_of(cell.attack, canonical(cell.attack_params)): cell.attack_label for cell in plan.cells},
    }
    values = {
        "schema_version": str(schema.VERSION),
        "suite": plan.suite,
        "alpha": repr(plan.alpha),
        "accuracy_budget": repr(plan.accuracy_budget),
        "created_at": created.isoformat() if created else "",
        "run_id": newest.get("run_id") or "",
        "labels": canonical(labels),
    }
    return {PREFIX + name: value for name, value in values.items()}


def name_of(plugin: str, params: str) -> str:
    """The name under which the metadata keeps the label of a plugin with parameters (canonical JSON)."""
    return f"{plugin} {params}"


def metadata(table: pa.Table) -> dict[str, str]:
    """The table's own metadata without the prefix: schema_version, suite, alpha, accuracy_budget, …"""
    pairs = (table.schema.metadata or {}).items()
    decoded = {key.decode(): value.decode() for key, value in pairs}
    return {key.removeprefix(PREFIX): value for key, value in decoded.items() if key.startswith(PREFIX)}


def labels(table: pa.Table) -> dict[str, dict[str, str]]:
    """The labels of the plan, by `defense` and `attack`, then by `name_of`."""
    found: dict[str, dict[str, str]] = json.loads(metadata(table).get("labels", "{}"))
    return {"defense": {}, "attack": {}, **found}


def to_bytes(table: pa.Table) -> bytes:
    """The table as one Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def write(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Write a Parquet file that appears whole or not at all.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = Path(path)
    data = to_bytes(table)
    aside: str | None = None
    try:
        descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            # mkstemp makes files that only their owner may read; results are for others too.
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        aside = None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
    finally:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)


def read(path: str | os.PathLike[str], kind: str = "records") -> pa.Table:
    """A table that `write` wrote, in the columns of today's schema.

    Args:
        path: the Parquet file.
        kind: one of `bench.tables.schema.TABLES`.

    Raises:
        InputError: no such file, not Parquet, or of a version that no migration leads away from.
    """
    try:
        table = pq.ParquetFile(path).read()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from error
    return of_today(table, kind, path)


def of_today(table: pa.Table, kind: str, path: str | os.PathLike[str]) -> pa.Table:
    """A table as it was read, in the columns of today's schema; `path` is for messages. Arguments as for `read`.

    Raises:
        InputError: of a version that no migration leads away from, or without some of the columns.
    """
    table = _migrated(table, path)
    expected = schema.TABLES[kind]
    missing = [name for name in expected.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: expected the columns of {kind}, missing {', '.join(missing[:5])}")
    return table.select(expected.names).cast(expected.with_metadata(table.schema.metadata))


def _migrated(table: pa.Table, path: str | os.PathLike[str]) -> pa.Table:
    text = metadata(table).get("schema_version", "")
    version = int(text) if text.isdigit() else None
    while version is not None and version < schema.VERSION and version in MIGRATIONS:
        described = table.schema.metadata
        table = MIGRATIONS[version](table)
        version += 1
        stamp = {f"{PREFIX}schema_version".encode(): str(version).encode()}
        table = table.replace_schema_metadata({**described, **stamp})
    if version != schema.VERSION:
        found = f"found version {text}" if text else "found none"
        raise InputError(f"{path}: expected schema version {schema.VERSION}, {found}")
    return table
