"""Several runs as one: for each cell and seed the newest of them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa

from bench.errors import InputError
from bench.parameters import canonical
from bench.tables import origins
from bench.tables import records as recorded
from bench.tables.prices import RUN


def merge(tables: Sequence[pa.Table]) -> pa.Table:
    """The records of all runs, each cell and seed from the run that judged it last.

    Args:
        tables: records, one table per run; at equal times the later one in this list counts.

    Raises:
        InputError: no table, runs that judge by different rules (alpha, accuracy budget), or of one task on
            different data.
    """
    if not tables:
        raise InputError("expected at least one run, got none")
    if len(tables) == 1:
        return tables[0]
    metas = [recorded.metadata(table) for table in tables]
    for rule in ("alpha", "accuracy_budget"):
        values = sorted({float(meta[rule]) for meta in metas})
        if len(values) > 1:
            found = " and ".join(f"{value:g}" for value in values)
            raise InputError(f"runs with different {rule} make no leaderboard together: found {found}")
    _require_same_data(tables)
    whole = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    kept = whole.filter(pa.array(_newest(whole, [table.num_rows for table in tables])))
    return kept.replace_schema_metadata(_joined(tables, metas))


def _require_same_data(tables: Sequence[pa.Table]) -> None:
    known: dict[str, str] = {}
    for table in tables:
        pairs = table.select(["task", "data_digest"]).group_by(["task", "data_digest"]).aggregate([]).to_pylist()
        for pair in pairs:
            first = known.setdefault(pair["task"], pair["data_digest"])
            if pair["data_digest"] != first:
                raise InputError(
                    f"runs on different data make no leaderboard together: task {pair['task']} with digest {first} "
                    f"and with {pair['data_digest']}"
                )


def _newest(whole: pa.Table, sizes: Sequence[int]) -> pd.Series:
    frame = whole.select([*RUN, "created_at"]).to_pandas()
    frame["file"] = [place for place, size in enumerate(sizes) for _ in range(size)]
    frame["cell"] = frame.groupby(RUN, sort=False).ngroup()
    last = frame.groupby(["cell", "file"], as_index=False)["created_at"].max()
    # Rows without a time were never run: they count only where nothing else is known.
    last = last.sort_values(["cell", "created_at", "file"], na_position="first").drop_duplicates("cell", keep="last")
    return frame["file"] == frame["cell"].map(last.set_index("cell")["file"])


def _joined(tables: Sequence[pa.Table], metas: Sequence[dict[str, str]]) -> dict[str, str]:
    labels: dict[str, dict[str, str]] = {"defense": {}, "attack": {}}
    # Our own labels of an attack count where a submission has others.
    for table in sorted(tables, key=_is_own):
        for side, known in recorded.labels(table).items():
            labels[side] |= known
    joined = {name: " + ".join(dict.fromkeys(meta[name] for meta in metas)) for name in ("suite", "run_id")}
    newest = max(meta.get("created_at", "") for meta in metas)
    values = {**metas[0], **joined, "created_at": newest, "labels": canonical(labels)}
    return {recorded.PREFIX + name: value for name, value in values.items()}


def _is_own(table: pa.Table) -> int:
    """0 for a submission, 1 for a set that has some, 2 for our own."""
    found = origins.origins(table)
    return 2 if found in ([], [None]) else int(None in found)
