"""From run folders to printed tables and Parquet files, for the commands; no torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from bench.errors import InputError
from bench.planning.job import Plan
from bench.storage.store import RunFolder
from bench.tables import records as recorded

# Where the null table is looked for that says which defenses have honest p-values.
NULL = Path("results") / "null"
_NULL_FILE = "null.parquet"


@dataclass(frozen=True)
class Tables:
    """The tables of a run.

    Attributes:
        records: a row per judged surrogate and key.
        leaderboard: a row per defense.
        matrix: a row per defense and attack.
        paths: where they were written, where they were.
        null: how often p-values are small without a mark, where the suite asks.
        untried: a line for each trial of that kind without a result.
    """

    records: pa.Table
    leaderboard: pa.Table
    matrix: pa.Table
    paths: tuple[Path, ...] = ()
    null: pa.Table | None = None
    untried: tuple[str, ...] = ()

    def failures(self) -> list[str]:
        """A line for each failed row: defense, attack, seed, error; and for each trial without a result."""
        names = ["defense", "defense_params", "attack", "attack_params", "attack_kind", "seed"]
        failed = self.records.filter(pc.equal(self.records["status"], "failed"))
        rows = failed.select([*names, "error_type", "error"]).to_pylist()
        labels = recorded.labels(self.records)
        lines = []
        for row in rows:
            defense, attack = (
                labels[role].get(recorded.name_of(row[role], row[f"{role}_params"]), row[role])
                for role in ("defense", "attack")
            )
            kind = ", control" if row["attack_kind"] == "control" else ""
            what = f"{defense} x {attack} (seed {row['seed']}{kind})"
            lines.append(f"{what}: {row['error_type']}: {row['error']}")
        return list(dict.fromkeys([*lines, *self.untried]))


def write(folder: RunFolder, plan: Plan) -> Tables:
    """Compact the journal into the Parquet files of the folder."""
    records, decoys = recorded.build(plan, folder.entries)
    tables = _boards(records)
    files = {
        "records.parquet": records,
        "decoys.parquet": decoys,
        "leaderboard.parquet": tables.leaderboard,
        "matrix.parquet": tables.matrix,
    }
    made, untried = None, []
    if plan.trials:
        from bench.tables import null

        made, models = null.build(plan, folder.entries, records.schema.metadata)
        untried = null.failures(plan, folder.entries)
        files |= {_NULL_FILE: made, "null_models.parquet": models}
        tables = _marked(tables, made)
        files["leaderboard.parquet"] = tables.leaderboard
    for name, table in files.items():
        recorded.write(table, folder.path / name)
    paths = tuple(folder.path / name for name in files)
    return Tables(records, tables.leaderboard, tables.matrix, paths, made, tuple(untried))


def text(tables: Tables, form: str) -> str:
    """The tables as text; `form` is `table`, `markdown` or `json`."""
    from bench.text import nulls, report

    told = str(report.render(tables.leaderboard, tables.matrix, form))
    if tables.null is None:
        return told
    if form == "json":
        return json.dumps({**json.loads(told), "null": tables.null.to_pylist()}, indent=1, allow_nan=False) + "\n"
    return f"{told}\n{nulls.render(tables.null, form)}"


def calibrated(tables: Tables, null: Path | None = None) -> Tables:
    """The tables with a leaderboard that says which defenses have honest p-values.

    Args:
        tables: of a run; where it has a null table of its own, that one says so already.
        null: folder of a null table; None for that of `NULL`, where there is one.

    Raises:
        InputError: the named folder has none, or one of another version.
    """
    if null is not None and not (null / _NULL_FILE).exists():
        raise InputError(f"{null}: expected a folder with {_NULL_FILE}, which a run of a suite with [null] writes")
    path = (null or NULL) / _NULL_FILE
    if tables.null is not None or not path.exists():
        return tables
    return _marked(tables, recorded.read(path, "null"))


def show(runs: Sequence[Path], form: str, null: Path | None = None) -> str:
    """The leaderboard of run folders (or of folders with a records.parquet), several merged.

    Args:
        runs: folders.
        form: as for `text`; `parquet` writes both files into the current folder and names them.
        null: as for `calibrated`.

    Raises:
        InputError: a folder without records, another schema version, or runs under different rules.
    """
    tables = calibrated(read(runs), null)
    if form != "parquet":
        return text(tables, form)
    paths = {Path("leaderboard.parquet"): tables.leaderboard, Path("matrix.parquet"): tables.matrix}
    for path, table in paths.items():
        recorded.write(table, path)
    return "".join(f"{path}\n" for path in paths)


def read(runs: Sequence[Path]) -> Tables:
    """The tables of run folders, several merged; InputError as for `show`."""
    return _single(runs[0]) if len(runs) == 1 else _merged(runs)


def show_settled(run: Path, jobs: int) -> str:
    """The leaderboard of a run that is whole, with the words with which `run` ends."""
    files = "records.parquet, decoys.parquet, leaderboard.parquet, matrix.parquet"
    files += ", null.parquet, null_models.parquet" if (run / _NULL_FILE).exists() else ""
    told = f"0 jobs run, {jobs} finished before, 0 failed; nothing has changed since"
    return f"{show([run], 'table')}\n{told}\nfiles in {run}: {files}\n"


def describe(run: Path, job: str) -> str:
    """One record of a run folder by its job id or a prefix of it."""
    from bench.text import show as shown

    folder = RunFolder.open_for_reading(run)
    return shown.describe(folder.plan(), folder.entries, recorded.read(run / "records.parquet"), job)


def _single(run: Path) -> Tables:
    # Both tables were written with the records: reading them needs no pandas, and answers at once.
    names = ("records", "leaderboard", "matrix")
    paths = tuple(run / f"{name}.parquet" for name in names)
    records, leaderboard, matrix = (recorded.read(p, name) for p, name in zip(paths, names, strict=True))
    return Tables(records, leaderboard, matrix, paths, _null_of(run))


def _merged(runs: Sequence[Path]) -> Tables:
    from bench.tables.merge import merge

    tables = _boards(merge([recorded.read(run / "records.parquet") for run in runs]))
    null = next((found for found in map(_null_of, reversed(runs)) if found is not None), None)
    return tables if null is None else replace(_marked(tables, null), null=null)


def _null_of(run: Path) -> pa.Table | None:
    path = run / _NULL_FILE
    return recorded.read(path, "null") if path.exists() else None


def _marked(tables: Tables, null: pa.Table) -> Tables:
    from bench.tables.calibration import marked

    return replace(tables, leaderboard=marked(tables.leaderboard, tables.records, null))


def _boards(records: pa.Table) -> Tables:
    from bench.tables.leaderboard import boards

    made = boards(records)
    return Tables(records, made.leaderboard, made.matrix)
