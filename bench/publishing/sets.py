"""What is published: the records of one or several runs under one protocol, and the tables made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bench.errors import InputError
from bench.tables import records as recorded
from bench.tables.leaderboard import boards
from bench.tables.merge import merge
from bench.tables.prices import RUN

_JUDGED = ["job_id", "strength", "accuracy", "log10_p"]


@dataclass(frozen=True)
class Published:
    """The four tables of a set.

    Attributes:
        records: a row per judged surrogate and key.
        decoys: a row per decoy of the records.
        leaderboard: a row per defense.
        matrix: a row per defense and attack.
        notes: what a reader of the set has to know of how it was put together.
    """

    records: pa.Table
    decoys: pa.Table
    leaderboard: pa.Table
    matrix: pa.Table
    notes: tuple[str, ...] = ()

    def tables(self) -> dict[str, pa.Table]:
        """Each table by the name of its file, without the ending."""
        return {name: getattr(self, name) for name in ("records", "decoys", "leaderboard", "matrix")}


def gather(runs: Sequence[Path]) -> Published:
    """The set of one or several runs; in which order they are named changes nothing.

    Args:
        runs: run folders, or folders of earlier sets.

    Raises:
        InputError: no run, a folder without records or decoys, another schema version, or runs under different
            protocols (alpha, accuracy budget, data, dataset or model of a task).
    """
    pairs = [(records_of(run), recorded.read(run / "decoys.parquet", "decoys")) for run in runs]
    pairs.sort(key=lambda pair: _age(pair[0]))
    tables = [records for records, _ in pairs]
    require_one_protocol(tables, [str(run) for run in runs])
    records = merge(tables).combine_chunks()
    decoys = _of_records([decoys for _, decoys in pairs], records)
    made = boards(records)
    return Published(records, decoys, made.leaderboard, made.matrix, tuple(_notes(tables, records)))


def records_of(run: Path) -> pa.Table:
    """The records of a run folder or a published set.

    Raises:
        InputError: there are none, or of a schema version that nothing leads away from.
    """
    return recorded.read(run / "records.parquet")


def require_one_protocol(tables: Sequence[pa.Table], names: Sequence[str]) -> None:
    """Raise InputError unless all records were judged by the same rules on the same tasks.

    Args:
        tables: records.
        names: of the runs, for the message.
    """
    if not tables:
        raise InputError("expected at least one run, got none")
    where = ", ".join(names)
    for rule in ("alpha", "accuracy_budget"):
        values = sorted({float(recorded.metadata(table)[rule]) for table in tables})
        if len(values) > 1:
            found = " and ".join(f"{value:g}" for value in values)
            raise InputError(f"{where}: expected runs under one protocol, got {rule} {found}")
    known: dict[str, dict[str, str]] = {}
    for table in tables:
        named = ["task", "dataset", "model", "data_digest"]
        for row in table.select(named).group_by(named).aggregate([]).to_pylist():
            first = known.setdefault(row["task"], row)
            for column in named[1:]:
                if row[column] != first[column]:
                    raise InputError(
                        f"{where}: expected runs under one protocol, got task {row['task']} with {column} "
                        f"{first[column]} and {row[column]}"
                    )


def _age(records: pa.Table) -> tuple[str, str]:
    meta = recorded.metadata(records)
    return meta.get("created_at", ""), meta.get("run_id", "")


def _of_records(tables: Sequence[pa.Table], records: pa.Table) -> pa.Table:
    """The decoys of the jobs that are left, each once."""
    if len(tables) == 1:
        return tables[0].combine_chunks()
    frame = records.select(["run_id", "job_id"]).to_pandas().drop_duplicates()
    kept = set(zip(frame["run_id"], frame["job_id"], strict=True))
    whole = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    names = whole.select(["run_id", "job_id", "decoy"]).to_pandas()
    wanted = pd.Series([pair in kept for pair in zip(names["run_id"], names["job_id"], strict=True)], dtype=bool)
    wanted &= ~names.duplicated()
    return whole.filter(pa.array(wanted)).replace_schema_metadata(records.schema.metadata).combine_chunks()


def _notes(tables: Sequence[pa.Table], records: pa.Table) -> list[str]:
    if len(tables) == 1:
        return []
    notes = [f"{len(tables)} runs with {sum(t.num_rows for t in tables)} records, of which {records.num_rows} count"]
    frames = [table.select([*RUN, *_JUDGED]).to_pandas() for table in tables]
    whole = pd.concat(frames, ignore_index=True)
    jobs = whole.groupby(RUN, dropna=False)["job_id"].nunique()
    if changed := int((jobs > 1).sum()):
        notes.append(f"{changed} cells were run by different jobs (other sources or parents): the newest count")
    once = whole.drop_duplicates([*RUN, *_JUDGED])
    twice = once[once.duplicated([*RUN, "job_id", "strength"], keep=False)]
    if disagree := twice["job_id"].nunique():
        notes.append(f"{disagree} jobs gave different numbers in different runs: the newest count")
    return notes
