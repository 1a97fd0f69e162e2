"""The leaderboard, the matrix and several runs together: what is counted, where, and in which columns."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from bench.errors import InputError
from bench.statistics import t_interval
from bench.tables import merge, records, schema
from bench.tables.leaderboard import boards
from tests.synthetic import HELD, LOST, Suite, board, cell, listed, replaced, spelled, started

LEADERBOARD_5 = """
task string, dataset string, model string, defense string, defense_params string, defense_label string,
defense_family string, defense_access string, reference bool, verdict string, worth double, seeds int64,
accuracy_clean double, accuracy_protected double, accuracy_cost double, accuracy_cost_low double,
accuracy_cost_high double, log10_p double, claims int64, survived int64, survived_any int64, attacks int64,
price_in_place double, price_in_place_censored bool, price_reparametrisation double,
price_reparametrisation_censored bool, price_extraction double, price_extraction_censored bool, price double,
price_censored bool, price_attack string, ceiling double, forgeries_withstood int64,
forgeries_withstood_committed int64, forgeries_withstood_derived int64, forgeries int64,
false_claims int64, controls int64, decoy_share_1e-2 double, capacity_log10_p double, seconds_protect double,
protect_ratio double, seconds_verify double, insider_survived int64, insider_attacks int64,
insider_price double, insider_price_censored bool, insider_price_attack string, cells_ok int64,
cells_failed int64, cells_not_applicable int64, error string, devices list<string>, mixed_devices bool,
mixed_versions bool, calibration string
"""
MATRIX_5 = """
task string, dataset string, model string, defense string, defense_params string, defense_label string,
reference bool, attack string, attack_params string, attack_label string, attack_kind string,
attack_class string, attack_access string, knowledge string, yardstick bool, judged_key string,
time_model string, verdict string,
forged bool, forged_committed bool, forged_derived bool,
price double, price_censored bool, price_low double, price_high double, ceiling double,
survived bool, survived_any bool, strength double, strength_unit string, least_loss double,
compression double, compression_indexed double,
log10_p_min double, log10_p_median double, log10_p_strongest double, claims int64, judged int64,
seconds double, seconds_ratio double, queries int64, data_inputs int64, data_labels int64, seeds int64,
seeds_failed int64, seeds_not_applicable int64, error string
"""


def test_the_columns_of_version_5_are_as_published() -> None:
    assert schema.VERSION == 5
    assert spelled(schema.LEADERBOARD) == listed(LEADERBOARD_5)
    assert spelled(schema.MATRIX) == listed(MATRIX_5)
    made = boards(started().records)
    assert made.leaderboard.schema.equals(schema.LEADERBOARD)
    assert made.matrix.schema.equals(schema.MATRIX)


def test_intervals_from_three_seeds_on() -> None:
    suite = Suite()
    protected, prices = [0.97, 0.96, 0.975, 0.965], [1.0, 2.0, 4.0, 3.0]
    for seed, (accuracy, points) in enumerate(zip(protected, prices, strict=True)):
        common: dict[str, Any] = {"seed": seed, "protected": accuracy}
        suite.base(**common)
        suite.cell(log10_p=LOST, accuracy=accuracy - points / 100, **common)
        row, whole = cell(suite), board(suite)
        if seed < 2:
            assert (row["price_low"], row["price_high"], whole["accuracy_cost_low"]) == (None, None, None)
            continue
        low, high = t_interval(prices[: seed + 1]) or (0, 0)
        assert (row["price_low"], row["price_high"]) == pytest.approx((low, high))
        costs = [100 * (0.98 - one) for one in protected[: seed + 1]]
        assert whole["accuracy_cost"] == pytest.approx(sum(costs) / len(costs))
        found = whole["accuracy_cost_low"], whole["accuracy_cost_high"]
        assert found == pytest.approx(t_interval(costs))


def test_the_leaderboard_takes_the_least_price_per_class_and_over_all() -> None:
    suite = started()
    suite.cell(attack="a", log10_p=LOST, accuracy=0.90)
    suite.cell(attack="b", log10_p=LOST, accuracy=0.89)
    suite.cell(attack="c", cls="extraction", log10_p=HELD)
    row = board(suite)
    assert (row["price_in_place"], row["price_in_place_censored"]) == (7.0, False)
    assert (row["price_extraction"], row["price_extraction_censored"]) == (12.0, True)
    assert (row["price_reparametrisation"], row["price_reparametrisation_censored"]) == (None, None)
    assert (row["price"], row["price_censored"], row["price_attack"]) == (7.0, False, "a")
    assert (row["survived"], row["attacks"]) == (3, 3)


def test_insiders_stay_out_of_the_headline() -> None:
    suite = started()
    suite.cell(log10_p=HELD)
    suite.cell(attack="inside", knowledge="insider", log10_p=LOST, accuracy=0.97)
    row = board(suite)
    assert (row["price"], row["price_censored"], row["attacks"]) == (12.0, True, 1)
    assert (row["insider_survived"], row["insider_attacks"]) == (0, 1)
    assert (row["insider_price"], row["insider_price_censored"], row["insider_price_attack"]) == (
        0.0,
        False,
        "inside",
    )
    assert cell(suite, "inside")["verdict"] == "removed"


def test_forgeries_and_decoys() -> None:
    suite = started()
    suite.cell(attack="fake", kind="ambiguity", log10_p=-7.0)
    suite.cell(attack="guess", kind="ambiguity", decoys=[-0.1, -2.0, -0.3, -0.4])
    row = board(suite)
    assert (row["forgeries_withstood"], row["forgeries"], row["decoy_share_1e-2"]) == (1, 2, 0.25)
    assert cell(suite, "fake", kind="ambiguity")["verdict"] == "forged"
    assert cell(suite, "guess", kind="ambiguity")["verdict"] == "withstood"
    assert cell(suite, "fake", kind="ambiguity")["survived"] is None


def test_forgeries_by_insiders_are_not_counted() -> None:
    suite = started()
    suite.cell(attack="fake", kind="ambiguity", log10_p=LOST)
    suite.cell(attack="inside", kind="ambiguity", log10_p=HELD, knowledge="insider")
    row = board(suite)
    assert (row["forgeries_withstood"], row["forgeries"]) == (1, 1)
    assert cell(suite, "inside", kind="ambiguity")["verdict"] == "forged"


def test_an_owners_claim_on_a_forgers_model_is_not_a_forgery() -> None:
    suite = started()
    made = suite.cell(attack="fake", kind="ambiguity", log10_p=HELD)
    replaced(suite, made, judged_key="owner")
    assert (board(suite)["forgeries"], cell(suite, "fake", kind="ambiguity")["verdict"]) == (0, "claim")


def test_claims_in_controls_are_false_and_touch_no_price() -> None:
    suite = started()
    suite.cell(log10_p=HELD)
    suite.cell(kind="control", log10_p=[-1.0, -8.0], accuracy=[0.5, 0.5])
    suite.cell(attack="tear", kind="control", log10_p=-1.0)
    row = board(suite)
    assert (row["false_claims"], row["controls"]) == (1, 3)
    assert (row["price"], row["accuracy_protected"]) == (12.0, 0.97)
    assert cell(suite, kind="control")["verdict"] == "false claim"
    assert cell(suite, "tear", kind="control")["verdict"] == "no false claim"


def test_the_undefended_model_is_the_reference() -> None:
    suite = Suite()
    for seed in (0, 1):
        clean: dict[str, Any] = {"protected": 0.98, "log10_p": 0.0, "reason": "nothing", "capacity": 0.0}
        suite.base("bare", seed=seed, defense_access="none", seconds_protect=2.0 + seed, **clean)
        suite.base(seed=seed, seconds_protect=6.0)
    rows = boards(suite.records).leaderboard.to_pylist()
    assert [(row["defense"], row["verdict"], row["reference"]) for row in rows] == [
        ("mark", "claim", False),
        ("bare", "reference", True),
    ]
    # Paired by seed: 6 / 2 and 6 / 3.
    assert [row["protect_ratio"] for row in rows] == [2.5, 1.0]


def test_failures_are_counted_and_the_rest_still_stands() -> None:
    suite = Suite()
    for seed in (0, 1):
        suite.base(seed=seed)
        suite.yardstick(seed=seed)
        made = suite.cell(seed=seed, log10_p=LOST, accuracy=0.96)
    suite.fail(made.jobs["attack"], "out of memory")
    broken = suite.cell(attack="tear")
    suite.fail(broken.jobs["judge"])
    suite.cell(attack="never", status="not applicable")
    assert (cell(suite)["price"], cell(suite)["seeds"], cell(suite)["seeds_failed"]) == (1.0, 1, 1)
    assert cell(suite)["error"] == "out of memory"
    assert (cell(suite, "tear")["verdict"], cell(suite, "tear")["survived"]) == ("failed", None)
    assert cell(suite, "never")["verdict"] == "not applicable"
    row = board(suite)
    assert (row["cells_ok"], row["cells_failed"], row["cells_not_applicable"]) == (5, 2, 1)
    assert (row["attacks"], row["survived"]) == (1, 0)
    assert row["error"] in ("boom", "out of memory")


def test_without_the_protected_row_nothing_is_said_of_removal() -> None:
    suite = Suite()
    suite.cell(log10_p=LOST)
    assert (cell(suite)["verdict"], cell(suite)["price"], board(suite)["verdict"]) == (
        "unjudged",
        None,
        "unjudged",
    )
    base = suite.base()
    suite.fail(base.jobs["judge"])
    assert (cell(suite)["verdict"], board(suite)["verdict"]) == ("unjudged", "failed")


def test_a_defense_that_applies_nowhere_still_has_a_row() -> None:
    suite = Suite()
    suite.base(status="not applicable")
    suite.cell(status="not applicable")
    row = board(suite)
    assert (row["verdict"], row["cells_not_applicable"], row["attacks"]) == ("not applicable", 2, 0)
    assert row["error"] == "no such layer"


def test_no_removal_attacks_and_no_records() -> None:
    suite = Suite()
    suite.base()
    row = board(suite)
    assert (row["attacks"], row["survived"], row["price"], row["ceiling"]) == (0, 0, None, None)
    empty = boards(Suite().records)
    assert (empty.leaderboard.num_rows, empty.matrix.num_rows) == (0, 0)
    assert empty.leaderboard.schema.equals(schema.LEADERBOARD)


def test_compute_is_in_units_of_the_ceilings() -> None:
    suite = Suite()
    suite.base()
    suite.yardstick(seconds=20.0)
    suite.cell(log10_p=[HELD, LOST], accuracy=[0.97, 0.96], seconds=5.0)
    row = cell(suite)
    assert (row["seconds"], row["seconds_ratio"]) == (5.0, 0.25)
    assert (row["queries"], row["data_inputs"], row["data_labels"]) == (0, 300, 100)
    assert (row["log10_p_min"], row["log10_p_median"], row["log10_p_strongest"]) == (HELD, -10.5, LOST)


def test_infinite_evidence_stays_infinite() -> None:
    suite = Suite()
    for seed in (0, 1, 2):
        suite.base(seed=seed, log10_p=-math.inf, capacity=-math.inf)
        suite.cell(seed=seed, log10_p=[-math.inf, LOST], accuracy=[0.97, 0.96], capacity=-math.inf)
    assert (board(suite)["verdict"], board(suite)["log10_p"]) == ("claim", -math.inf)
    assert (cell(suite)["log10_p_min"], cell(suite)["price"]) == (-math.inf, 1.0)


def test_mixed_devices_and_versions_are_said() -> None:
    suite = started()
    made = suite.cell()
    assert (board(suite)["mixed_devices"], board(suite)["mixed_versions"]) == (False, False)
    suite.entries[made.jobs["judge"]]["device"] = "cuda X"
    assert (board(suite)["mixed_devices"], board(suite)["mixed_versions"]) == (True, False)
    assert board(suite)["devices"] == ["cpu", "cuda X"]
    suite.entries[made.jobs["judge"]]["versions"] = {"torch": "2.14"}
    assert board(suite)["mixed_versions"] is True


def test_tasks_do_not_mix() -> None:
    one, two = started(), started(task="other")
    one.cell(log10_p=LOST, accuracy=0.95)
    two.cell(log10_p=HELD)
    one.jobs |= two.jobs
    one.entries |= two.entries
    one.cells += two.cells
    rows = boards(one.records).leaderboard.to_pylist()
    assert {row["task"]: row["price"] for row in rows} == {"toy": 2.0, "other": 12.0}


def test_the_best_stands_first() -> None:
    suite = Suite()
    facts = {"weak": (LOST, 0.97), "bound": (HELD, 0.97), "dear": (LOST, 0.90), "void": (HELD, 0.97)}
    for name, (log10_p, accuracy) in facts.items():
        suite.base(name, log10_p=LOST if name == "void" else HELD)
        suite.yardstick(name)
        suite.cell(name, log10_p=log10_p, accuracy=accuracy)
    rows = boards(suite.records).leaderboard.to_pylist()
    assert [row["defense"] for row in rows] == ["bound", "dear", "weak", "void"]


def test_worth_is_price_less_cost_and_nothing_is_won_by_chance() -> None:
    suite = started()
    assert board(suite)["worth"] is None
    suite.cell(log10_p=LOST, accuracy=0.93)
    assert board(suite)["worth"] == pytest.approx(4.0 - 1.0)
    better = Suite()
    better.base(protected=0.99)
    better.yardstick(protected=0.99)
    better.cell(protected=0.99, log10_p=LOST, accuracy=0.95)
    assert (board(better)["accuracy_cost"], board(better)["worth"]) == (pytest.approx(-1.0), pytest.approx(4.0))


@pytest.mark.parametrize(
    ("log10_p", "time_model", "worth"),
    [
        (HELD, "after the fact", 3.0),
        (LOST, "committed before", 3.0),
        (HELD, "committed before", -1.0),
        (HELD, None, -1.0),
    ],
)
def test_a_mark_that_is_forged_in_spite_of_commitments_is_worth_less_than_nothing(
    log10_p: float, time_model: str | None, worth: float
) -> None:
    suite = started()
    suite.cell(log10_p=LOST, accuracy=0.93)
    suite.cell(attack="forge", kind="ambiguity", log10_p=log10_p, time_model=time_model)
    assert board(suite)["worth"] == pytest.approx(worth)


def test_price_cost_and_forgeries_rank_together() -> None:
    suite = Suite()
    facts = {
        "dear": (0.88, 0.97, LOST),
        "costly": (0.85, 0.92, LOST),
        "forged": (0.80, 0.97, HELD),
        "fair": (0.91, 0.97, LOST),
    }
    for name, (accuracy, protected, forged) in facts.items():
        suite.base(name, protected=protected)
        suite.yardstick(name, protected=protected, accuracy=0.7)
        suite.cell(name, protected=protected, log10_p=LOST, accuracy=accuracy)
        suite.cell(name, "forge", "ambiguity", protected=protected, log10_p=forged, time_model="committed before")
    rows = boards(suite.records).leaderboard.to_pylist()
    assert [(row["defense"], round(row["worth"], 6)) for row in rows] == [
        ("dear", 8.0), ("fair", 5.0), ("costly", 1.0), ("forged", -1.0)
    ]  # fmt: skip


def test_runs_together_take_the_newest_of_each_cell() -> None:
    old, new = started(), started()
    old.cell(log10_p=LOST, accuracy=0.96)
    old.cell(attack="only-old", log10_p=LOST, accuracy=0.95)
    made = new.cell(log10_p=LOST, accuracy=0.93)
    for entry in new.entries.values():
        entry |= {"created_at": entry["created_at"].replace("2030", "2031"), "run_id": "run2"}
    tables = [new.records, old.records]
    rows = boards(merge.merge(tables)).matrix.to_pylist()
    prices = {row["attack"]: row["price"] for row in rows if row["price"] is not None}
    assert prices == {"wear": 4.0, "only-old": 2.0, "anew": 12.0}
    # What a later, interrupted run did not reach does not hide what is known.
    del new.entries[made.jobs["judge"]]
    rows = boards(merge.merge([old.records, new.records])).matrix.to_pylist()
    assert {row["attack"]: row["price"] for row in rows if row["attack"] == "wear"} == {"wear": 1.0}
    assert records.metadata(merge.merge(tables))["run_id"] == "run2 + run1"


def test_runs_under_different_rules_do_not_go_together() -> None:
    with pytest.raises(InputError, match=r"alpha.*found 1e-06 and 0\.001"):
        merge.merge([started().records, started(alpha=1e-3).records])
    with pytest.raises(InputError, match="at least one run"):
        merge.merge([])
    other = started().records
    place = other.schema.get_field_index("data_digest")
    other = other.set_column(place, "data_digest", pa.array(["d2"] * other.num_rows))
    with pytest.raises(InputError, match="task toy with digest d1 and with d2"):
        merge.merge([started().records, other])
