"""What changed between two sets or runs: every cell and every accuracy cost, paired over the seeds of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from bench.publishing.sets import require_one_protocol
from bench.tables import records as recorded
from bench.tables.leaderboard import boards
from bench.tables.matrix import interval, labelled
from bench.tables.prices import CELL, GROUP, points, runs

OUTCOMES = (
    "better",
    "worse",
    "too few seeds",
    "not comparable",
    "missing in A",
    "missing in B",
    "within noise",
    "same",
)
MEASURES = {"removal": "price", "none": "claim", "ambiguity": "claim", "control": "claim"}
_SEEDS = 3


def compare(first: pa.Table, second: pa.Table, names: Sequence[str] = ("A", "B")) -> pd.DataFrame:
    """One line per cell of either, and one per defense for its accuracy cost.

    Columns: those that name the cell, `defense_label`, `attack_label`, `measure` (`price` and `cost` in points, `claim`
    as a share of seeds), `a` and `b` (means over the seeds of both), `difference` (B - A), `low` and `high` (95 % t
    interval of the paired differences, from three seeds on), `pairs`, `verdict_a`, `verdict_b` and `outcome`: `better`
    or `worse` for the owner where the interval leaves out 0, `within noise` where it does not, `same` where all seeds
    are equal, `too few seeds` where they differ and are fewer than three, `missing in A` or `B`, and `not comparable`
    where no seed has a number in both.

    Args:
        first: records of A.
        second: records of B.
        names: of both, for messages.

    Raises:
        InputError: they were judged by different rules or on different data.
    """
    tables = (first, second)
    require_one_protocol(tables, names)
    measured = [pd.concat([_cells(table), _costs(table)], ignore_index=True) for table in tables]
    keys = [*CELL, "measure"]
    both = measured[0].merge(measured[1], "outer", [*keys, "seed"], suffixes=("_a", "_b"))
    both["difference"] = both["value_b"] - both["value_a"]
    paired = both[both["difference"].notna()]
    grouped = paired.groupby(keys)
    lines = both[keys].drop_duplicates().set_index(keys)
    mean, count = grouped["difference"].mean(), grouped["difference"].count()
    low, high = interval(mean, grouped["difference"].std().fillna(0.0), count)
    lines = lines.assign(
        **{
            "a": grouped["value_a"].mean(),
            "b": grouped["value_b"].mean(),
            "difference": mean,
            "low": low,
            "high": high,
        },
        pairs=count,
        equal=grouped["difference"].agg(lambda found: bool((found.abs() < 1e-9).all())),
        in_a=both["present_a"].notna().groupby([both[key] for key in keys]).any(),
        in_b=both["present_b"].notna().groupby([both[key] for key in keys]).any(),
    ).reset_index()
    lines["pairs"] = lines["pairs"].fillna(0).astype("int64")
    lines["outcome"] = _outcome(lines)
    return _told(lines, tables)


def _cells(records: pa.Table) -> pd.DataFrame:
    """A line per cell and seed: what the cell measures, missing where it has no number."""
    meta = recorded.metadata(records)
    lines = runs(records, float(meta["alpha"]), float(meta["accuracy_budget"]))
    measure = lines["attack_kind"].map(MEASURES)
    claim = lines["claims"].gt(0).astype(float).where(lines["ok"])
    value = lines["price"].where(measure == "price", claim)
    return lines[[*CELL, "seed"]].assign(measure=measure, value=value, present=1.0)


def _costs(records: pa.Table) -> pd.DataFrame:
    names = [*GROUP, "seed", "attack_kind", "accuracy_clean", "accuracy_protected"]
    frame = records.select(names).to_pandas()
    known = frame[(frame["attack_kind"] != "control") & frame["accuracy_protected"].notna()]
    pairs = known.groupby([*GROUP, "seed"], as_index=False)[["accuracy_clean", "accuracy_protected"]].max()
    cost = points(pairs["accuracy_clean"] - pairs["accuracy_protected"])
    nothing = {name: "" for name in CELL if name not in GROUP}
    return pairs[[*GROUP, "seed"]].assign(measure="cost", value=cost, present=1.0, **nothing)


def _outcome(lines: pd.DataFrame) -> np.ndarray:
    # What is good for the owner: a high price, its own claim, no claim of others, a low cost.
    others = (lines["attack_kind"] == "control") | (lines["judged_key"] == "forger")
    sign = np.where((lines["measure"] == "cost") | others, -1.0, 1.0)
    gain, loss = (lines["low"] > 0.0, lines["high"] < 0.0)
    rules = [
        (~lines["in_a"], "missing in A"),
        (~lines["in_b"], "missing in B"),
        (lines["pairs"] == 0, "not comparable"),
        (lines["equal"].eq(True), "same"),
        (lines["pairs"] < _SEEDS, "too few seeds"),
        (np.where(sign > 0, gain, loss), "better"),
        (np.where(sign > 0, loss, gain), "worse"),
    ]
    return np.select([flag for flag, _ in rules], [word for _, word in rules], "within noise")


def _told(lines: pd.DataFrame, tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Adds labels and the verdicts of both matrices; cells that are gaps for the same reason in both are the same."""
    known = {
        side: {**recorded.labels(tables[0])[side], **recorded.labels(tables[1])[side]} for side in ("defense", "attack")
    }
    lines["defense_label"] = labelled(lines, "defense", known)
    lines["attack_label"] = labelled(lines, "attack", known).where(lines["measure"] != "cost", "")
    for name, table in zip(("verdict_a", "verdict_b"), tables, strict=True):
        verdicts = boards(table).matrix.select([*CELL, "verdict"]).to_pandas().rename(columns={"verdict": name})
        lines = lines.merge(verdicts, "left", CELL)
    unmeasured = (lines["outcome"] == "not comparable") & (lines["verdict_a"] == lines["verdict_b"])
    lines["outcome"] = lines["outcome"].mask(unmeasured, "same")
    order = lines["outcome"].map({word: place for place, word in enumerate(OUTCOMES)})
    lines = lines.assign(_order=order).sort_values(["_order", *CELL, "measure"], ignore_index=True)
    return lines.drop(columns=["_order", "equal", "in_a", "in_b"])
