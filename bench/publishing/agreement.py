"""Whether records agree with each other, with their decoys and with the tables that lie beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bench.errors import InputError
from bench.publishing.numbers import figure
from bench.tables.prices import CELL, GROUP, RUN
from bench.tables.rows import SHARES

_OF_RUN = (
    *("job_id", "run_id", "status", "accuracy_clean", "accuracy_protected", "seconds_protect", "data_inputs"),
    *("data_labels", "queries", "attack_class", "attack_access", "knowledge", "strength_unit", "time_model"),
)
_OF_GROUP = ("dataset", "defense_family", "defense_access")
_DECOYS = ("run_id", "job_id", "task", "defense", "defense_params", "seed")
_CLOSE = 1e-9
# Of a page that anybody reads; every cell and every defense is drawn.
CELLS, DEFENSES = 50_000, 2_000


def require_agreement(records: pa.Table, decoys: pa.Table) -> None:
    """Raise InputError, naming what differs, where rows contradict each other or their decoys, or are too many.

    Args:
        records, decoys: as `bench.publishing.numbers.require_sound` lets them through.
    """
    for keys, most, what in ((CELL, CELLS, "cells"), (GROUP, DEFENSES, "defenses with parameters")):
        if (found := records.group_by(keys).aggregate([]).num_rows) > most:
            raise InputError(f"records.parquet: expected at most {most:,} {what}, got {found:,}")
    _require_constant(records, RUN, _OF_RUN)
    _require_constant(records, GROUP, _OF_GROUP)
    _require_decoys(records, decoys)


def require_same(given: pa.Table, made: pa.Table, name: str, columns: Sequence[str]) -> None:
    """Raise InputError, naming row and column, unless a table is the one that its records give.

    Args:
        given: what lay beside the records.
        made: computed from them.
        name: of the file, for the message.
        columns: that the file had; later versions have more.
    """
    if given.num_rows != made.num_rows:
        raise InputError(f"{name}: expected {made.num_rows:,} rows as the records give, got {given.num_rows:,}")
    for column in columns:
        theirs, ours = given[column].to_pylist(), made[column].to_pylist()
        for place, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            if not _is_same(one, other):
                row = made.slice(place, 1).to_pylist()[0]
                who = " x ".join(str(row[label]) for label in ("defense_label", "attack_label") if label in row)
                raise InputError(
                    f"{name}: row {place + 1} ({who}), column {column}: expected {other!r}, which the records give, "
                    f"got {one!r:.80}"
                )


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return bool(one == other)


def _require_constant(records: pa.Table, keys: Sequence[str], columns: Sequence[str]) -> None:
    """What belongs to a cell is the same in all of its rows; tables are made of the first."""
    runs = records.group_by(list(keys)).aggregate([]).num_rows
    for column in columns:
        found = records.group_by([*keys, column]).aggregate([])
        if found.num_rows > runs:
            seen: dict[tuple, Any] = {}
            for row in found.to_pylist():
                key = tuple(row[name] for name in keys)
                if key in seen:
                    raise InputError(
                        f"records.parquet, column {column}: expected one value for {row['defense']} in "
                        f"{', '.join(str(part)[:60] for part in key)}, got {seen[key]!r:.60} and {row[column]!r:.60}"
                    )
                seen[key] = row[column]


def _require_decoys(records: pa.Table, decoys: pa.Table) -> None:
    """The row of the best decoy says what the decoys say, and there are no others."""
    drawn = {key: group for key, group in decoys.to_pandas().groupby(list(_DECOYS[:2]), sort=False)}
    is_best = pc.and_(pc.is_valid(figure(records, "decoys")), pc.is_valid(figure(records, "share_1e-1")))
    best = records.filter(pc.and_(is_best, pc.equal(records["attack_kind"], "ambiguity")))
    met = set()
    for row in best.to_pylist():
        key = (row["run_id"], row["job_id"])
        if key not in drawn:
            raise InputError(f"decoys.parquet: expected the decoys of job {row['job_id']}, got none")
        met.add(key)
        _require_best(row, drawn[key])
    for key, group in drawn.items():
        if key not in met:
            raise InputError(f"decoys.parquet: job {key[1]} ({group['defense'].iloc[0]}): no record is of its decoys")


def _require_best(row: Mapping[str, Any], drawn: Any) -> None:
    where = f"decoys.parquet, job {row['job_id']}"
    for column in _DECOYS[2:]:
        if not drawn[column].eq(row[column]).all():
            raise InputError(f"{where}, column {column}: expected {row[column]!r:.80} as in records.parquet")
    if sorted(drawn["decoy"]) != list(range(len(drawn))):
        raise InputError(f"{where}, column decoy: expected 0 to {len(drawn) - 1}, each once")
    least = drawn["log10_p"].min()
    figures = dict(row["figures"])
    found = {
        "log10_p": row["log10_p"],
        "statistic": row["statistic"],
        **{name: figures.get(name) for name in ("decoys", *SHARES)},
    }
    expected = {"log10_p": least, "statistic": drawn["statistic"][drawn["log10_p"] == least].max()}
    expected |= {name: (drawn["log10_p"] <= bound).mean() for name, bound in SHARES.items()}
    expected["decoys"] = len(drawn)
    for name, value in expected.items():
        if not _is_same(found[name], float(value)):
            raise InputError(
                f"records.parquet, job {row['job_id']}, {name}: expected {float(value)!r}, which its decoys give, got "
                f"{found[name]!r}"
            )
