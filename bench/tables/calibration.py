"""Which defenses of a leaderboard are known to have honest p-values: those that a null table tests as they stand."""

from __future__ import annotations

import pyarrow as pa

from bench.tables import schema
from bench.tables.null import UNTESTED

_DEFENSE = ["task", "defense", "defense_params"]


def marked(leaderboard: pa.Table, records: pa.Table, null: pa.Table) -> pa.Table:
    """The leaderboard with its column `calibration` filled in.

    A defense is tested where the null table has it on the same task, with the same parameters, and judged by the
    very sources that judged every row of it here; the reference, which claims nothing, stays empty.

    Args:
        leaderboard: a row per defense.
        records: that it was made of.
        null: of `bench.tables.null`.
    """
    tested = {(*_named(row), row["source_digest"]): row["calibration"] for row in null.to_pylist()}
    judged: dict[tuple[str, ...], set[str]] = {}
    columns = records.select([*_DEFENSE, "attack_kind", "status", "source_digest"])
    for row in columns.group_by(columns.column_names).aggregate([]).to_pylist():
        # Rows of the best decoy come from a job of another kind; so many others tell of the same defense.
        if row["status"] == "ok" and row["attack_kind"] in ("none", "removal", "control"):
            judged.setdefault(_named(row), set()).add(row["source_digest"])
    found = []
    for row in leaderboard.select([*_DEFENSE, "reference"]).to_pylist():
        words = {tested.get((*_named(row), source), UNTESTED) for source in judged.get(_named(row), {""})}
        found.append(None if row["reference"] else words.pop() if len(words) == 1 else UNTESTED)
    place, field = leaderboard.schema.get_field_index("calibration"), schema.LEADERBOARD.field("calibration")
    return leaderboard.set_column(place, field, pa.array(found, field.type))


def _named(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in _DEFENSE)
