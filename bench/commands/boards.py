"""From run folders to printed tables and Parquet files, for the commands; no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from bench.planning.job import Plan
from bench.storage.store import RunFolder
from bench.tables import records as recorded


@dataclass(frozen=True)
class Tables:
    """The tables of a run.

    Attributes:
        records: a row per judged surrogate and key.
        leaderboard: a row per defense.
        matrix: a row per defense and attack.
        paths: where they were written, where they were.
    """

    records: pa.Table
    leaderboard: pa.Table
    matrix: pa.Table
    paths: tuple[Path, ...] = ()

    def failures(self) -> list[str]:
        """A line for each failed row: defense, attack, seed, error."""
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
        return list(dict.fromkeys(lines))


def write(folder: RunFolder, plan: Plan) -> Tables:
    """Compact the journal into the four Parquet files of the folder."""
    records, decoys = recorded.build(plan, folder.entries)
    tables = _boards(records)
    files = {
        "records.parquet": records,
        "decoys.parquet": decoys,
        "leaderboard.parquet": tables.leaderboard,
        "matrix.parquet": tables.matrix,
    }
    for name, table in files.items():
        recorded.write(table, folder.path / name)
    return Tables(records, tables.leaderboard, tables.matrix, tuple(folder.path / name for name in files))


def text(tables: Tables, form: str) -> str:
    """The tables as text; `form` is `table`, `markdown` or `json`."""
    from bench.text import report

    return str(report.render(tables.leaderboard, tables.matrix, form))


def show(runs: Sequence[Path], form: str) -> str:
    """The leaderboard of run folders (or of folders with a records.parquet), several merged.

    Args:
        runs: folders.
        form: as for `text`; `parquet` writes both files into the current folder and names them.

    Raises:
        InputError: a folder without records, another schema version, or runs under different rules.
    """
    tables = read(runs)
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
    return Tables(records, leaderboard, matrix, paths)


def _merged(runs: Sequence[Path]) -> Tables:
    from bench.tables.merge import merge

    return _boards(merge([recorded.read(run / "records.parquet") for run in runs]))


def _boards(records: pa.Table) -> Tables:
    from bench.tables.leaderboard import boards

    made = boards(records)
    return Tables(records, made.leaderboard, made.matrix)
