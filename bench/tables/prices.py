"""The price rules: from records to one line per cell and seed, with price, ceiling, censoring and success."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bench.tables.schema import COMPRESSION

GROUP = ["task", "model", "defense", "defense_params"]
CELL = [*GROUP, "attack", "attack_params", "attack_kind", "judged_key"]
RUN = [*CELL, "seed"]

# What is the same in all rows of a cell and seed.
_CONSTANT = [
    *("dataset", "defense_family", "defense_access", "attack_class", "attack_access", "knowledge"),
    *("strength_unit", "capacity_log10_p", "accuracy_clean", "accuracy_protected", "seconds_protect"),
    *("data_inputs", "data_labels", "queries", "status", "error_type", "error", "device", "versions"),
    *("time_model", "derived"),
]
_NUMBERS = ["strength", "accuracy_reference", "accuracy", "log10_p", "claim", "seconds", "seconds_verify"]
_FIGURES = {"floor": "log10_p_floor", "share": "share_1e-2", **{name: name for name in COMPRESSION}}


def runs(records: pa.Table, alpha: float, budget: float) -> pd.DataFrame:
    """One line per cell and seed, sorted, with what the price rules make of it.

    Beside the columns of records it has, in points: `loss` (the least of any surrogate), `lost` (the least of
    a surrogate without a claim, NaN where there is none), `ceiling`, `price` (at most the ceiling; NaN where
    nothing bounds it); `compression` and `compression_indexed`, the most of any surrogate within the budget;
    and `yardstick`, `headline`, `priced`, `censored`, `success` as flags, `base` as the state of the protected
    model (`claim`, `no claim`, `cannot claim at alpha`, `unjudged`).

    Args:
        records: the table of `bench.tables.records`.
        alpha: rate of false claims.
        budget: points of accuracy that a successful removal may cost.
    """
    found = _per_run(_frame(records), budget)
    return _judged(_with_ceiling(_with_base(found, math.log10(alpha))), budget)


def points(fractions: pd.Series) -> pd.Series:
    """Fractions as points, rounded so that five points are not more than five."""
    return (fractions * 100.0).round(9)


def _frame(records: pa.Table) -> pd.DataFrame:
    """The columns that are needed, strings as categories: a million rows are grouped by their codes."""
    table = records.select(sorted({*RUN, *_CONSTANT, *_NUMBERS} - {"versions", "claim", "derived"}))
    figures = records["figures"]
    for name, figure in _FIGURES.items():
        table = table.append_column(name, pc.map_lookup(figures, pa.scalar(figure), "first"))
    table = table.append_column("versions", _text_of(records["versions"]))
    for name in ("claim", "derived"):
        table = table.append_column(name, records[name].cast(pa.int8()).cast(pa.float64()))
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(place, field.name, table[field.name].dictionary_encode())
        elif pa.types.is_integer(field.type) and field.name != "seed":
            table = table.set_column(place, field.name, table[field.name].cast(pa.float64()))
    return table.to_pandas()


def _text_of(maps: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each map as one text, so that maps can be compared."""
    chunks = []
    for chunk in maps.chunks:
        pairs = pc.binary_join_element_wise(chunk.keys, chunk.items, " ", null_handling="replace")
        listed = pa.ListArray.from_arrays(chunk.offsets, pairs)
        chunks.append(pc.if_else(chunk.is_valid(), pc.binary_join(listed, ", "), pa.scalar(None, pa.string())))
    return pa.chunked_array(chunks, pa.string())


def _per_run(frame: pd.DataFrame, budget: float) -> pd.DataFrame:
    frame["run"] = frame.groupby(RUN, observed=True, sort=False).ngroup()
    frame["loss"] = points((frame["accuracy_reference"] - frame["accuracy"]).clip(lower=0.0))
    frame["lost"] = frame["loss"].where(frame["claim"] == 0.0)
    for name in COMPRESSION:
        frame[name] = frame[name].where(frame["loss"] <= budget)
    grouped = frame.groupby("run", sort=False)
    frame["last"] = frame["strength"].fillna(0.0) == grouped["strength"].transform("max").fillna(0.0)
    best = frame[frame["lost"] == grouped["lost"].transform("min")]
    lines = frame.loc[~frame["run"].duplicated(), ["run", *RUN, *_CONSTANT]].set_index("run")
    lines = lines.assign(
        loss=grouped["loss"].min(),
        lost=grouped["lost"].min(),
        strength=best.groupby("run")["strength"].min(),
        claims=grouped["claim"].sum(),
        judged=grouped["claim"].count(),
        log10_p_min=grouped["log10_p"].min(),
        log10_p_median=grouped["log10_p"].median(),
        log10_p_strongest=frame[frame["last"]].groupby("run")["log10_p"].max(),
        seconds=grouped["seconds"].max(),
        seconds_verify=grouped["seconds_verify"].median(),
        floor=grouped["floor"].max(),
        share=grouped["share"].max(),
        **{name: grouped[name].max() for name in COMPRESSION},
    )
    # Categories are in the order of first appearance; results must not depend on the order of rows.
    plain = {name: lines[name].astype("object") for name in lines if lines[name].dtype == "category"}
    lines = lines.assign(**plain).sort_values(RUN, ignore_index=True)
    lines["ok"] = lines["status"] == "ok"
    # What could not be read stands beside the surrogates of a good cell; it is no failure.
    lines["error"] = lines["error"].where(~lines["ok"])
    lines["group"] = lines.groupby(GROUP, sort=True).ngroup()
    return lines


def _with_base(lines: pd.DataFrame, log10_alpha: float) -> pd.DataFrame:
    """Adds `base`: what the owner can say of the protected model itself."""
    own = lines[(lines["attack_kind"] == "none") & (lines["judged_key"] == "owner") & lines["ok"]]
    own = own.groupby(["group", "seed"], as_index=False)[["claims", "floor"]].max()
    lines = lines.merge(own.rename(columns={"claims": "base_claims", "floor": "base_floor"}), "left", ["group", "seed"])
    reach = lines[["capacity_log10_p", "base_floor"]].max(axis=1)
    states = [reach > log10_alpha, lines["base_claims"].isna(), lines["base_claims"] == 0.0]
    lines["base"] = np.select(states, ["cannot claim at alpha", "unjudged", "no claim"], "claim")
    return lines


def _with_ceiling(lines: pd.DataFrame) -> pd.DataFrame:
    """Adds `ceiling`, the least loss without touching the model, and the seconds of its attack."""
    removal = lines["attack_kind"] == "removal"
    lines["headline"] = removal & (lines["knowledge"] != "insider")
    lines["yardstick"] = lines["headline"] & (lines["attack_access"] == "none")
    lines["headline"] &= ~lines["yardstick"]
    anew = lines[lines["yardstick"] & lines["ok"]].sort_values([*GROUP, "seed", "loss", "seconds"])
    anew = anew.drop_duplicates(["group", "seed"])[["group", "seed", "loss", "seconds"]]
    anew = anew.rename(columns={"loss": "ceiling", "seconds": "ceiling_seconds"})
    return lines.merge(anew, "left", ["group", "seed"])


def _judged(lines: pd.DataFrame, budget: float) -> pd.DataFrame:
    lines["priced"] = (lines["attack_kind"] == "removal") & lines["ok"] & (lines["base"] == "claim")
    never = lines["lost"].isna()
    lines["censored"] = lines["priced"] & (never | (lines["lost"] >= lines["ceiling"]))
    lines["price"] = lines["lost"].where(~lines["censored"], lines["ceiling"]).where(lines["priced"])
    lines["strength"] = lines["strength"].where(lines["priced"] & ~lines["censored"])
    # By what was really lost: a removal within the budget is one, even where training anew costs less still.
    lines["success"] = lines["priced"] & ~never & (lines["lost"] <= budget)
    return lines
