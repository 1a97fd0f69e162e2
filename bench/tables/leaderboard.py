"""The leaderboard and the matrix of records, as typed tables. Pandas over Arrow, no loop over records."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from bench.tables import records as recorded
from bench.tables import schema
from bench.tables.matrix import cells, interval, labelled, order
from bench.tables.origins import parted
from bench.tables.prices import GROUP, points, runs
from bench.tables.protocols import withstood

CLASSES = {
    "in-place": "price_in_place",
    "reparametrisation": "price_reparametrisation",
    "extraction": "price_extraction",
}
_CONSTANT = ["dataset", "defense_family", "defense_access"]


class Boards(NamedTuple):
    """Both tables; the metadata says alpha, accuracy_budget, suite and the records' run.

    Attributes:
        leaderboard: a row per task, model, defense and parameters, the best first and the reference last.
        matrix: a row per task, model, defense, attack, kind of attack and judged key, parameters included.
    """

    leaderboard: pa.Table
    matrix: pa.Table


def boards(records: pa.Table) -> Boards:
    """Both tables of one or several runs' records (several: see `bench.tables.merge`), whoever ran them."""
    meta = recorded.metadata(records)
    labels = recorded.labels(records)
    if records.num_rows == 0:
        return Boards(
            _typed(pd.DataFrame(), schema.LEADERBOARD, records),
            _typed(pd.DataFrame(), schema.MATRIX, records),
        )
    # By origin, so that no number of a row depends on what somebody else submitted.
    rules = float(meta["alpha"]), float(meta["accuracy_budget"])
    made = [_of_one_origin(part, *rules, labels) for part in parted(records)]
    board, table = (parts[0] if len(parts) == 1 else pd.concat(parts) for parts in zip(*made, strict=True))
    return Boards(_typed(_ranked(board), schema.LEADERBOARD, records), _typed(order(table), schema.MATRIX, records))


def _of_one_origin(
    records: pa.Table, alpha: float, budget: float, labels: dict[str, dict[str, str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    lines = runs(records, alpha, budget)
    table = order(cells(lines, labels))
    return _leaderboard(lines, table, labels), table


def _typed(frame: pd.DataFrame, columns: pa.Schema, records: pa.Table) -> pa.Table:
    arrays = [
        pa.array(frame[field.name], field.type, from_pandas=True, safe=False)
        if field.name in frame
        else pa.nulls(len(frame), field.type)
        for field in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns.with_metadata(records.schema.metadata))


def _leaderboard(lines: pd.DataFrame, table: pd.DataFrame, labels: dict[str, dict[str, str]]) -> pd.DataFrame:
    board = lines.loc[~lines["group"].duplicated(), ["group", *GROUP, *_CONSTANT]].set_index("group")
    board["capacity_log10_p"] = lines.groupby("group")["capacity_log10_p"].max()
    board["reference"] = table.groupby("group")["reference"].any()
    board["defense_label"] = labelled(board, "defense", labels)
    board = board.assign(**_accuracy(lines), **_own(lines), **_removals(table), **_others(table))
    board = board.assign(**_cost(lines, board), **_coverage(lines), **_environment(lines))
    counted = (
        "survived",
        "survived_any",
        "attacks",
        "forgeries",
        "false_claims",
        "controls",
    )
    for name in (*counted, "insider_survived", "insider_attacks", "claims", "seeds"):
        board[name] = board[name].fillna(0).astype("int64")
    for name in schema.WITHSTOOD.values():
        board[name] = board[name].mask(board["forgeries"] == 0, 0)
    board["verdict"] = _verdict(board)
    board["worth"] = _worth(board)
    return board.reset_index()


def _accuracy(lines: pd.DataFrame) -> dict[str, pd.Series]:
    """Paired by seed; any row of a defense knows its accuracies, but controls are of the clean model."""
    known = lines[(lines["attack_kind"] != "control") & lines["accuracy_protected"].notna()]
    pairs = known.groupby(["group", "seed"])[["accuracy_clean", "accuracy_protected"]].max()
    cost = points(pairs["accuracy_clean"] - pairs["accuracy_protected"]).groupby("group")
    low, high = interval(cost.mean(), cost.std(), cost.count())
    return {
        "accuracy_clean": pairs["accuracy_clean"].groupby("group").mean(),
        "accuracy_protected": pairs["accuracy_protected"].groupby("group").mean(),
        "accuracy_cost": cost.mean(),
        "accuracy_cost_low": low,
        "accuracy_cost_high": high,
    }


def _own(lines: pd.DataFrame) -> dict[str, pd.Series]:
    """What the owner can say of the protected model itself."""
    own = lines[(lines["attack_kind"] == "none") & (lines["judged_key"] == "owner")]
    judged = own[own["ok"]].groupby("group")
    return {
        "seeds": judged.size(),
        "claims": own["claims"].gt(0).groupby(own["group"]).sum(),
        # The worst seed: the largest p.
        "log10_p": judged["log10_p_median"].max(),
        "seconds_verify": judged["seconds_verify"].mean(),
        "unable": lines["base"].eq("cannot claim at alpha").groupby(lines["group"]).any(),
        "own_failed": own["status"].eq("failed").groupby(own["group"]).any(),
        "applies": lines["status"].ne("not applicable").groupby(lines["group"]).any(),
    }


def _removals(table: pd.DataFrame) -> dict[str, pd.Series]:
    judged = table[(table["attack_kind"] == "removal") & (table["seeds"] > 0)]
    heads = judged[judged["headline"]]
    insiders = judged[judged["knowledge"] == "insider"]
    worst, inside = _least(heads), _least(insiders)
    columns = {
        "attacks": heads.groupby("group").size(),
        "survived": heads["survived"].eq(True).groupby(heads["group"]).sum(),
        "survived_any": heads["survived_any"].eq(True).groupby(heads["group"]).sum(),
        "ceiling": judged.groupby("group")["ceiling"].max(),
        "price": worst["price"],
        "price_censored": worst["price_censored"],
        "price_attack": worst["attack_label"],
        "insider_attacks": insiders.groupby("group").size(),
        "insider_survived": insiders["survived"].eq(True).groupby(insiders["group"]).sum(),
        "insider_price": inside["price"],
        "insider_price_censored": inside["price_censored"],
        "insider_price_attack": inside["attack_label"],
    }
    for attack_class, column in CLASSES.items():
        least = _least(heads[heads["attack_class"] == attack_class])
        columns |= {column: least["price"], f"{column}_censored": least["price_censored"]}
    return columns


def _least(table: pd.DataFrame) -> pd.DataFrame:
    """The cell of the least price in each group; at equal prices one that is a price, not a bound."""
    keyed = table[table["priced"].eq(True)].assign(
        _value=lambda rows: rows["price"].fillna(np.inf), _bound=lambda rows: rows["price_censored"].eq(True)
    )
    keyed = keyed.sort_values(["group", "_value", "_bound", "attack_label"])
    return keyed.drop_duplicates("group").set_index("group")


def _others(table: pd.DataFrame) -> dict[str, pd.Series]:
    judged = table[table["seeds"] > 0]
    forged = judged[(judged["attack_kind"] == "ambiguity") & (judged["judged_key"] == "forger")]
    forged = forged[forged["knowledge"] != "insider"]
    control = judged[judged["attack_kind"] == "control"].groupby("group")
    return {
        "forgeries": forged.groupby("group").size(),
        **withstood(forged),
        "false_claims": control["claims"].sum(),
        "controls": control["judged"].sum(),
    }


def _cost(lines: pd.DataFrame, board: pd.DataFrame) -> dict[str, pd.Series]:
    """Seconds to protect, and how many times those of the undefended model of the same seed."""
    seconds = lines.groupby(["task", "model", "seed", "group"], as_index=False)["seconds_protect"].max()
    plain = seconds[seconds["group"].map(board["reference"])]
    plain = plain.groupby(["task", "model", "seed"], as_index=False)["seconds_protect"].min()
    paired = seconds.merge(plain, "left", ["task", "model", "seed"], suffixes=("", "_plain"))
    ratio = paired["seconds_protect"] / paired["seconds_protect_plain"].where(lambda plain: plain > 0.0)
    return {
        "seconds_protect": seconds.groupby("group")["seconds_protect"].mean(),
        "protect_ratio": ratio.groupby(paired["group"]).mean(),
        "decoy_share_1e-2": lines.groupby("group")["share"].max(),
    }


def _coverage(lines: pd.DataFrame) -> dict[str, pd.Series]:
    failed = lines[lines["status"] == "failed"]
    # A failure tells more than a cell that cannot be, so its message comes first.
    told = pd.concat([failed, lines[lines["status"] == "not applicable"]])
    states = {"cells_ok": "ok", "cells_failed": "failed", "cells_not_applicable": "not applicable"}
    counts = {name: lines["status"].eq(state).groupby(lines["group"]).sum() for name, state in states.items()}
    return {**counts, "error": told.groupby("group")["error"].first()}


def _environment(lines: pd.DataFrame) -> dict[str, pd.Series]:
    """Devices of a defense; whether those, or the libraries, differ among the rows that are compared."""
    made = lines[lines["ok"]]
    task = lines.groupby(["task", "model"]).ngroup()
    mixed = {name: (made.groupby(task[made.index])[name].nunique() > 1) for name in ("device", "versions")}
    of_group = task.groupby(lines["group"]).first()
    return {
        "devices": made.groupby("group")["device"].agg(lambda names: sorted(names.dropna().unique())),
        "mixed_devices": of_group.map(mixed["device"]).eq(True),
        "mixed_versions": of_group.map(mixed["versions"]).eq(True),
    }


def _verdict(board: pd.DataFrame) -> np.ndarray:
    rules = [
        (board["reference"], "reference"),
        (~board["applies"], "not applicable"),
        (board["unable"], "cannot claim at alpha"),
        ((board["seeds"] == 0) & board["own_failed"].eq(True), "failed"),
        (board["seeds"] == 0, "unjudged"),
        (board["claims"] < board["seeds"], "no claim"),
    ]
    return np.select([flag for flag, _ in rules], [word for _, word in rules], "claim")


def _worth(board: pd.DataFrame) -> pd.Series:
    """Price, forgery and cost as one number of points: what an attacker pays less what the owner has paid.

    A mark that somebody else can claim settles nothing: its price counts as 0 where a forgery holds that was committed
    to before the model, or may hold. That protecting made a model better is chance, and no merit.
    """
    accepted = (board["forgeries"] - board[schema.WITHSTOOD["committed"]]).astype("Float64").fillna(np.inf) > 0
    price = board["price"].where(~accepted.astype("bool"), 0.0)
    known = board["verdict"].eq("claim") & board["price_attack"].notna()
    return (price - board["accuracy_cost"].clip(lower=0.0)).where(known)


def _ranked(board: pd.DataFrame) -> pd.DataFrame:
    """Best first: those that claim, by worth (unbounded before all), then by share survived, forgeries, cost."""
    ranks = {
        "claim": 0,
        "no claim": 1,
        "cannot claim at alpha": 2,
        "unjudged": 3,
        "failed": 4,
        "not applicable": 5,
    }
    keyed = board.assign(
        _rank=board["verdict"].map(ranks).fillna(9),
        _worth=-board["worth"].fillna(np.inf).where(board["price_attack"].notna(), -np.inf),
        _survived=-(board["survived"] / board["attacks"].where(board["attacks"] > 0)).fillna(0.0),
        _forged=board["forgeries"] - board["forgeries_withstood"].fillna(0),
    )
    by = [
        "task",
        "model",
        "_rank",
        "_worth",
        "_survived",
        "_forged",
        "accuracy_cost",
        "defense",
        "defense_params",
    ]
    return keyed.sort_values(by, ignore_index=True)[board.columns]
