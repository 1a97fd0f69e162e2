"""What the page knows of the records of a cell: its course over strength, its seeds and its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bench.tables.prices import CELL

# Points of all curves together; where there are more, each curve keeps its ends and an even choice between them.
POINTS = 16_000
# Jobs named for a cell; all of them stand in the records.
JOBS = 10


def curves(records: pa.Table, most: int = POINTS) -> pd.DataFrame:
    """One line per cell and strength, over seeds.

    The columns are those that name a cell, `strength`, `accuracy`, `accuracy_low`, `accuracy_high` (mean and range,
    fractions), `log10_p`, `log10_p_low`, `log10_p_high` (median and range; a mean would not bear infinities), `seeds`,
    `claims` and `left_out` (points of this cell that are not here).

    Args:
        records: a table of `bench.tables.records`.
        most: points kept of all cells together, at least two per cell.
    """
    frame = _coded(records.select([*CELL, "strength", "accuracy", "log10_p", "claim", "status"]))
    frame = frame[frame["status"] == "ok"]
    keys = [*CELL, "strength"]
    grouped = frame.groupby(keys, observed=True, dropna=False, sort=True)
    accuracy, log10_p = grouped["accuracy"], grouped["log10_p"]
    lines = pd.DataFrame(
        {
            **{"accuracy": accuracy.mean(), "accuracy_low": accuracy.min(), "accuracy_high": accuracy.max()},
            **{"log10_p": log10_p.median(), "log10_p_low": log10_p.min(), "log10_p_high": log10_p.max()},
            "seeds": grouped.size(),
            "claims": grouped["claim"].sum().astype("int64"),
        }
    ).reset_index()
    return _thinned(lines, most)


def jobs(records: pa.Table) -> pd.DataFrame:
    """One line per cell: `suite`, `seeds` (the options that run them again), `jobs` (a few), `jobs_more` (a count)."""
    frame = _coded(records.select([*CELL, "seed", "job_id", "suite"])).drop_duplicates([*CELL, "seed", "job_id"])
    frame = frame.sort_values([*CELL, "seed"], kind="stable")
    by_cell = {"by": CELL, "observed": True, "sort": False}
    seeds = frame.groupby(**by_cell)["seed"].agg(lambda found: seed_options(sorted(set(found))))
    suites = frame.groupby(**by_cell)["suite"].agg(lambda found: " + ".join(sorted(set(found.astype(str)))))
    named = frame.dropna(subset=["job_id"])
    few = (
        named.groupby(**by_cell).head(JOBS).groupby(**by_cell)["job_id"].agg(lambda found: [str(one) for one in found])
    )
    lines = pd.DataFrame({"suite": suites, "seed_options": seeds, "jobs": few.reindex(seeds.index)})
    lines["jobs_more"] = (named.groupby(**by_cell).size().reindex(seeds.index, fill_value=0) - JOBS).clip(lower=0)
    lines["jobs"] = [one if isinstance(one, list) else [] for one in lines["jobs"]]
    return lines.reset_index()


def seed_options(seeds: Sequence[int]) -> str:
    """The options of `ownbench run` for these seeds."""
    if list(seeds) == list(range(len(seeds))):
        return f"--seeds {len(seeds)}"
    return " ".join(f"--seed {seed}" for seed in seeds)


def _coded(table: pa.Table) -> pd.DataFrame:
    """Texts as categories in alphabetical order, so that the order of rows decides nothing."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(place, field.name, table[field.name].dictionary_encode())
    frame: pd.DataFrame = table.to_pandas()
    for name in frame:
        if frame[name].dtype == "category":
            frame[name] = frame[name].cat.reorder_categories(sorted(frame[name].cat.categories))
    return frame


def _thinned(lines: pd.DataFrame, most: int) -> pd.DataFrame:
    cell = lines.groupby(CELL, observed=True, sort=False).ngroup()
    size = cell.map(cell.value_counts())
    place = lines.groupby(cell).cumcount()
    share = max(2, most // max(1, cell.nunique()))
    # The place among those kept moves on just where a point is kept; first and last always are.
    step = np.floor(place * (share - 1) / (size - 1).clip(lower=1))
    before = np.floor((place - 1) * (share - 1) / (size - 1).clip(lower=1))
    kept = (size <= share) | (step > before) | (place == 0)
    found: Any = lines.assign(left_out=(size - kept.groupby(cell).transform("sum")).astype("int64"))[kept]
    return pd.DataFrame(found.reset_index(drop=True))
