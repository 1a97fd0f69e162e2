"""The matrix: one line per defense and attack, over all seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bench.tables.prices import CELL, GROUP
from bench.tables.protocols import forged
from bench.tables.schema import COMPRESSION

_CONSTANT = [
    *("dataset", "defense_family", "defense_access", "attack_class", "attack_access", "knowledge"),
    *("strength_unit", "capacity_log10_p", "headline", "yardstick", "group"),
]
Labels = Mapping[str, Mapping[str, str]]


def cells(lines: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """One line per cell with the columns of the matrix, and `group`, `headline`, `priced` for leaderboards.

    Args:
        lines: of `bench.tables.prices.runs`.
        labels: of `bench.tables.records.labels`.
    """
    lines = lines.assign(cell=lines.groupby(CELL, sort=True).ngroup())
    table = lines.loc[~lines["cell"].duplicated(), ["cell", *CELL, *_CONSTANT]].set_index("cell")
    table = table.assign(**_counts(lines), **_prices(lines), **_measures(lines), **forged(lines))
    # An attack that never runs on a defense leaves nothing to average, which is not a gap but a verdict.
    table["seeds"] = table["seeds"].astype("int64")
    table["reference"] = is_reference(table)
    table["verdict"] = _verdict(table)
    table["defense_label"] = labelled(table, "defense", labels)
    table["attack_label"] = labelled(table, "attack", labels)
    unpriced = table["attack_kind"] != "removal"
    for flag in ("survived", "survived_any", "price_censored"):
        table[flag] = table[flag].astype("object").mask(unpriced | (table["seeds"] == 0), None)
    return table.reset_index(drop=True)


def is_reference(table: pd.DataFrame) -> pd.Series:
    """Whether a line belongs to the undefended model: nothing to read, and nothing that could be claimed."""
    # What does not apply to it was not asked for a capacity.
    return (table["defense_access"] == "none") & (table["capacity_log10_p"].fillna(0.0) == 0.0)


def labelled(table: pd.DataFrame, side: str, labels: Labels) -> pd.Series:
    """The plan's labels of defenses or attacks; name and parameters where it has none."""
    keys = table[side] + " " + table[f"{side}_params"]
    return keys.map(dict(labels[side])).fillna(keys)


def interval(mean: pd.Series, deviation: pd.Series, count: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The 95 % t interval of means, missing below three values."""
    enough = count >= 3
    if not enough.any():
        nothing = pd.Series(np.nan, index=mean.index)
        return nothing, nothing
    from scipy.special import stdtrit  # slow to import, and of no use below three seeds

    quantile = stdtrit(count.where(enough, 3) - 1, 0.975)
    reach = (quantile * deviation / np.sqrt(count.where(enough, 3))).where(enough)
    return mean - reach, mean + reach


def _counts(lines: pd.DataFrame) -> dict[str, pd.Series]:
    ok = lines[lines["ok"]].groupby("cell")
    every = lines.groupby("cell")
    index = every.size().index
    states = {state: lines["base"].eq(state) & lines["ok"] for state in lines["base"].unique()}
    counts = {f"base_{state}": flag.groupby(lines["cell"]).any() for state, flag in states.items()}
    return {
        "seeds": ok.size().reindex(index, fill_value=0),
        "seeds_failed": lines["status"].eq("failed").groupby(lines["cell"]).sum(),
        "seeds_not_applicable": lines["status"].eq("not applicable").groupby(lines["cell"]).sum(),
        "error": every["error"].first(),
        "time_model": every["time_model"].first(),
        "claims": every["claims"].sum().astype("int64"),
        "judged": every["judged"].sum(),
        "claimed_always": (lines["claims"].gt(0) | ~lines["ok"]).groupby(lines["cell"]).all(),
        **counts,
    }


def _prices(lines: pd.DataFrame) -> dict[str, pd.Series]:
    ok = lines[lines["ok"]]
    grouped = ok.groupby("cell")
    priced = grouped["priced"].all()
    bounded = priced & (grouped["price"].count() == grouped.size())
    price = grouped["price"].mean().where(bounded)
    censored = grouped["censored"].any()
    low, high = interval(price, grouped["price"].std(), grouped.size())
    return {
        "priced": priced,
        "price": price,
        "price_censored": censored,
        "price_low": low.where(~censored),
        "price_high": high.where(~censored),
        "ceiling": grouped["ceiling"].mean(),
        "survived": priced & ~grouped["success"].any(),
        "survived_any": (ok["priced"] & ~ok["success"]).groupby(ok["cell"]).any(),
    }


def _measures(lines: pd.DataFrame) -> dict[str, pd.Series]:
    lines = lines.assign(seconds_ratio=lines["seconds"] / lines["ceiling_seconds"])
    grouped = lines[lines["ok"]].groupby("cell")
    means = ("seconds", "seconds_ratio")
    # Infinite evidence is evidence; a mean would spread it over all seeds, the median does not.
    medians = ("strength", "log10_p_median", *COMPRESSION)
    return {
        **{name: grouped[name].mean() for name in means},
        **{name: grouped[name].median() for name in medians},
        **{name: grouped[name].max() for name in ("queries", "data_inputs", "data_labels", "log10_p_strongest")},
        "least_loss": grouped["loss"].mean(),
        "log10_p_min": grouped["log10_p_min"].min(),
    }


def _verdict(table: pd.DataFrame) -> np.ndarray:
    def base(state: str) -> pd.Series:
        return table.get(f"base_{state}", pd.Series(False, index=table.index))

    kind, claimed = table["attack_kind"], table["claims"] > 0
    forged = (kind == "ambiguity") & (table["judged_key"] == "forger")
    rules = [
        ((table["seeds"] == 0) & (table["seeds_failed"] > 0), "failed"),
        (table["seeds"] == 0, "not applicable"),
        ((kind == "control") & claimed, "false claim"),
        (forged & claimed, "forged"),
        (table["yardstick"], "ceiling"),
        (base("cannot claim at alpha"), "cannot claim at alpha"),
        (kind == "control", "no false claim"),
        ((kind == "none") | ((kind == "ambiguity") & ~forged), None),
        (base("no claim"), "no claim"),
        (forged, "withstood"),
        (base("unjudged"), "unjudged"),
        (table["survived"].eq(True), "survived"),
    ]
    own = np.where(table["claimed_always"], "claim", "no claim")
    choices = [own if word is None else word for _, word in rules]
    return np.select([flag for flag, _ in rules], choices, "removed")


def order(table: pd.DataFrame) -> pd.DataFrame:
    """The lines in an order that depends on their content alone: by defense, attacks by what they do."""
    kinds = {"none": 0, "removal": 1, "ambiguity": 2, "control": 3}
    classes = {"in-place": 0, "reparametrisation": 1, "extraction": 2}
    keyed = table.assign(
        _kind=table["attack_kind"].map(kinds),
        _insider=table["knowledge"] == "insider",
        _class=table["attack_class"].map(classes).fillna(-1),
    )
    by = [*GROUP, "_kind", "_insider", "_class", "yardstick", "attack", "attack_params", "judged_key"]
    return keyed.sort_values(by, ignore_index=True)[table.columns]
