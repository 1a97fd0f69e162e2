"""One forged claim under three protocols: what a judge asks beside the evidence."""

from __future__ import annotations

import pandas as pd

from bench.tables.schema import FORGED, WITHSTOOD

_BEFORE = "committed before"


def forged(lines: pd.DataFrame) -> dict[str, pd.Series]:
    """By cell whether a forger's claim holds in any seed; missing where that is unknown, or no forger's key was judged.

    On evidence alone; if the key must have been committed to before the model was published, which refuses those made
    after the fact; and if it must follow from a seed and the forger's name as well. What fails on evidence fails under
    all three, whatever is known of the key.

    Args:
        lines: of `bench.tables.prices.runs`, with `cell`.
    """
    judged = lines[lines["judged_key"].eq("forger") & lines["ok"]]
    # Nullable flags: what is false on one side of a conjunction is false, whatever is unknown on the other.
    claimed = judged["claims"].gt(0).astype("boolean")
    committed = claimed & judged["time_model"].eq(_BEFORE).astype("boolean").mask(judged["time_model"].isna())
    derived = committed & judged["derived"].astype("boolean")
    each = (claimed, committed, derived)
    return {name: _any(flag, judged["cell"]) for name, flag in zip(FORGED.values(), each, strict=True)}


def withstood(table: pd.DataFrame) -> dict[str, pd.Series]:
    """By group how many forgeries end in no claim that holds under each protocol; missing where one is unknown.

    Args:
        table: rows of `bench.tables.matrix.cells` that judge a forger's key.
    """
    counts = {}
    for protocol, column in FORGED.items():
        failed = ~table[column]
        unknown = failed.isna().groupby(table["group"]).any()
        counts[WITHSTOOD[protocol]] = failed.astype("Int64").groupby(table["group"]).sum().mask(unknown)
    return counts


def _any(flag: pd.Series, group: pd.Series) -> pd.Series:
    """By group whether it is true in any row; missing where it may be."""
    holds = flag.fillna(False).astype("bool").groupby(group).any()
    unknown = flag.isna().groupby(group).any()
    return holds.astype("boolean").mask(unknown & ~holds)
