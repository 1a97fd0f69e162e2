"""Which defenses of a leaderboard are known to have honest p-values: those that a null table tests as they stand."""

from __future__ import annotations

import pyarrow as pa

from bench.tables import schema

RELIABLE, UNRELIABLE, UNTESTED = "reliable", "unreliable", "not tested"
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
    # Rows of the best decoy come from a job of another kind; so many others tell of the same defense.
    for row in _distinct(records, [*_DEFENSE, "attack_kind", "status", "source_digest"]):
        if row["status"] == "ok" and row["attack_kind"] in ("none", "removal", "control"):
            judged.setdefault(_named(row), set()).add(row["source_digest"])
    found = []
    for row in leaderboard.select([*_DEFENSE, "reference"]).to_pylist():
        words = {tested.get((*_named(row), source), UNTESTED) for source in judged.get(_named(row), {""})}
        found.append(None if row["reference"] else words.pop() if len(words) == 1 else UNTESTED)
    place, field = leaderboard.schema.get_field_index("calibration"), schema.LEADERBOARD.field("calibration")
    # By a builder: an array made of a list imports pandas, for which a command that only reads should not wait.
    column = pa.lib.StringBuilder()
    column.append_values(found)
    return leaderboard.set_column(place, field, column.finish())


def _distinct(table: pa.Table, names: list[str]) -> list[dict[str, str]]:
    """The different rows of some columns of texts."""
    # By hand, because grouping in Arrow imports pandas too.
    encoded = [table[name].dictionary_encode().combine_chunks() for name in names]
    words = [one.dictionary.to_pylist() for one in encoded]
    places = set(zip(*(one.indices.to_pylist() for one in encoded), strict=True))
    return [
        {name: known[place] for name, known, place in zip(names, words, row, strict=True) if place is not None}
        for row in places
    ]


def _named(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in _DEFENSE)
