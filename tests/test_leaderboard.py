"""The price rules, worked out by hand, and what must hold for any records."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import merge, records, schema
from bench.errors import InputError
from bench.leaderboard import boards
from bench.statistics import t_interval
from tests.synthetic import HELD, LOST, Suite, listed, replaced, spelled

LEADERBOARD_1 = """
task string, dataset string, model string, defense string, defense_params string, defense_label string,
defense_family string, defense_access string, reference bool, verdict string, seeds int64,
accuracy_clean double, accuracy_protected double, accuracy_cost double, accuracy_cost_low double,
accuracy_cost_high double, log10_p double, claims int64, survived int64, survived_any int64, attacks int64,
price_in_place double, price_in_place_censored bool, price_reparametrisation double,
price_reparametrisation_censored bool, price_extraction double, price_extraction_censored bool, price double,
price_censored bool, price_attack string, ceiling double, forgeries_withstood int64, forgeries int64,
false_claims int64, controls int64, decoy_share_1e-2 double, capacity_log10_p double, seconds_protect double,
protect_ratio double, seconds_verify double, insider_survived int64, insider_attacks int64,
insider_price double, insider_price_censored bool, insider_price_attack string, cells_ok int64,
cells_failed int64, cells_not_applicable int64, error string, devices list<string>, mixed_devices bool,
mixed_versions bool
"""
MATRIX_1 = """
task string, dataset string, model string, defense string, defense_params string, defense_label string,
reference bool, attack string, attack_params string, attack_label string, attack_kind string,
attack_class string, attack_access string, knowledge string, yardstick bool, judged_key string,
verdict string, price double, price_censored bool, price_low double, price_high double, ceiling double,
survived bool, survived_any bool, strength double, strength_unit string, least_loss double,
log10_p_min double, log10_p_median double, log10_p_strongest double, claims int64, judged int64,
seconds double, seconds_ratio double, queries int64, data_inputs int64, data_labels int64, seeds int64,
seeds_failed int64, seeds_not_applicable int64, error string
"""


def board(suite: Suite, defense: str = "mark") -> dict[str, Any]:
    (row,) = [row for row in boards(suite.records).leaderboard.to_pylist() if row["defense"] == defense]
    return row


def cell(suite: Suite, attack: str = "wear", defense: str = "mark", kind: str = "removal") -> dict[str, Any]:
    (row,) = [
        row
        for row in boards(suite.records).matrix.to_pylist()
        if (row["attack"], row["defense"], row["attack_kind"]) == (attack, defense, kind)
    ]
    return row


def started(**values: Any) -> Suite:
    """A suite whose protected model claims at 0.97, with a ceiling of 12 points (0.85)."""
    suite = Suite(**values)
    suite.base()
    suite.yardstick()
    return suite


def priced(log10_p: list[float], accuracy: list[float], **values: Any) -> dict[str, Any]:
    suite = started()
    suite.cell(log10_p=log10_p, accuracy=accuracy, **values)
    return cell(suite)


def outcome(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["verdict"], row["price"], row["price_censored"], row["survived"]


def test_the_columns_of_version_1_are_as_published() -> None:
    assert schema.VERSION == 1
    assert spelled(schema.LEADERBOARD) == listed(LEADERBOARD_1)
    assert spelled(schema.MATRIX) == listed(MATRIX_1)
    made = boards(started().records)
    assert made.leaderboard.schema.equals(schema.LEADERBOARD)
    assert made.matrix.schema.equals(schema.MATRIX)


def test_the_price_is_the_least_over_surrogates_without_a_claim() -> None:
    row = priced([HELD, LOST, LOST], [0.97, 0.94, 0.90])
    assert outcome(row) == ("removed", 3.0, False, False)
    assert row["strength"] == 2.0


def test_a_claim_that_comes_back_changes_nothing() -> None:
    row = priced([LOST, HELD, LOST], [0.95, 0.96, 0.93])
    assert outcome(row) == ("removed", 2.0, False, False)
    assert row["claims"] == 1 and row["judged"] == 3


def test_a_model_that_got_better_costs_nothing() -> None:
    assert outcome(priced([LOST], [0.99])) == ("removed", 0.0, False, False)


def test_a_claim_never_lost_is_counted_at_the_ceiling() -> None:
    row = priced([HELD, HELD], [0.97, 0.5])
    assert outcome(row) == ("survived", 12.0, True, True)
    assert row["strength"] is None
    assert row["least_loss"] == 0.0


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.85, (12.0, True)), (0.8, (12.0, True)), (0.851, (11.9, False))]
)
def test_a_price_from_the_ceiling_on_is_a_bound(accuracy: float, expected: tuple[float, bool]) -> None:
    row = priced([LOST], [accuracy])
    assert (row["price"], row["price_censored"]) == expected
    assert row["survived"] is True


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.94, "removed"), (0.9399, "survived")])
def test_the_budget_itself_is_within_the_budget(accuracy: float, verdict: str) -> None:
    # A difference of five points is a little more than that in binary.
    assert (0.99 - 0.94) * 100 > 5.0
    suite = Suite()
    suite.base(protected=0.99)
    suite.yardstick(protected=0.99)
    suite.cell(log10_p=LOST, accuracy=accuracy, protected=0.99)
    assert cell(suite)["verdict"] == verdict


def test_a_claim_exactly_at_alpha_holds() -> None:
    assert priced([-6.0], [0.97])["verdict"] == "survived"
    assert priced([-5.999], [0.97])["verdict"] == "removed"


def test_the_ceiling_is_the_least_loss_of_attacks_that_never_touch_the_model() -> None:
    suite = started()
    suite.cell(
        attack="anew-longer", log10_p=[0.0, 0.0], accuracy=[0.80, 0.89], access="none", cls="extraction"
    )
    suite.cell(log10_p=LOST, accuracy=0.88)
    assert cell(suite)["ceiling"] == 8.0
    assert outcome(cell(suite)) == ("survived", 8.0, True, True)
    row = board(suite)
    assert (row["attacks"], row["survived"], row["ceiling"]) == (1, 1, 8.0)
    assert row["price_extraction"] is None
    assert cell(suite, "anew")["verdict"] == "ceiling"


def test_the_ceiling_is_found_from_accuracy_alone() -> None:
    suite = Suite()
    suite.base()
    suite.yardstick(log10_p=HELD, accuracy=0.9)
    suite.cell(log10_p=HELD)
    assert cell(suite)["price"] == 7.0


def test_without_a_ceiling_a_claim_never_lost_has_no_number() -> None:
    suite = Suite()
    suite.base()
    suite.cell(log10_p=HELD)
    suite.cell(attack="tear", log10_p=LOST, accuracy=0.90)
    assert outcome(cell(suite)) == ("survived", None, True, True)
    assert outcome(cell(suite, "tear")) == ("survived", 7.0, False, True)
    row = board(suite)
    assert (row["price"], row["price_attack"], row["ceiling"]) == (7.0, "tear", None)


def test_where_the_task_changes_the_price_is_from_the_reference() -> None:
    row = priced([LOST, LOST], [0.80, 0.84], reference=[0.85, 0.85])
    assert outcome(row) == ("removed", 1.0, False, False)


def test_a_protected_model_without_a_claim_has_no_price() -> None:
    suite = Suite()
    suite.base(log10_p=-5.0)
    suite.yardstick()
    suite.cell(log10_p=LOST)
    suite.cell(attack="guess", kind="ambiguity", log10_p=-1.0)
    assert outcome(cell(suite)) == ("no claim", None, False, False)
    row = board(suite)
    assert (row["verdict"], row["claims"], row["price"], row["survived"]) == ("no claim", 0, None, 0)
    assert (row["attacks"], row["ceiling"], row["log10_p"]) == (1, 12.0, -5.0)
    assert cell(suite, "guess", kind="ambiguity")["verdict"] == "no claim"


@pytest.mark.parametrize(("capacity", "verdict"), [(-5.9, "cannot claim at alpha"), (-6.0, "survived")])
def test_a_capacity_above_alpha_cannot_claim(capacity: float, verdict: str) -> None:
    suite = Suite()
    suite.base(capacity=capacity, log10_p=-6.0)
    suite.cell(capacity=capacity, log10_p=HELD)
    assert cell(suite)["verdict"] == verdict
    assert board(suite)["capacity_log10_p"] == capacity


def test_a_floor_above_alpha_cannot_claim_either() -> None:
    suite = Suite()
    suite.base(log10_p=-3.0, figures={"log10_p_floor": -3.0})
    suite.cell(log10_p=-3.0)
    assert cell(suite)["verdict"] == "cannot claim at alpha"
    assert board(suite)["verdict"] == "cannot claim at alpha"


def test_over_seeds_the_price_is_the_mean_and_survived_means_in_every_seed() -> None:
    suite = Suite()
    for seed, (log10_p, accuracy) in enumerate([(LOST, 0.95), (LOST, 0.90), (HELD, 0.97)]):
        suite.base(seed=seed)
        suite.yardstick(seed=seed, accuracy=0.85)
        suite.cell(seed=seed, log10_p=log10_p, accuracy=accuracy)
    row = cell(suite)
    # 2 points, 7 points, and a bound of 12.
    assert (row["price"], row["price_censored"], row["seeds"]) == (7.0, True, 3)
    assert (row["survived"], row["survived_any"], row["verdict"]) == (False, True, "removed")
    assert row["price_low"] is None
    assert (board(suite)["survived"], board(suite)["survived_any"], board(suite)["attacks"]) == (0, 1, 1)


def test_each_seed_has_its_own_ceiling() -> None:
    suite = Suite()
    for seed, anew in enumerate([0.90, 0.80]):
        suite.base(seed=seed)
        suite.yardstick(seed=seed, accuracy=anew)
        suite.cell(seed=seed, log10_p=LOST, accuracy=0.85)
    # Beyond the ceiling of 7 in the one, 12 points below that of 17 in the other.
    assert (cell(suite)["price"], cell(suite)["price_censored"]) == (9.5, True)
    assert board(suite)["ceiling"] == 12.0


def test_one_seed_without_a_claim_leaves_no_price() -> None:
    suite = Suite()
    for seed, log10_p in enumerate([HELD, LOST]):
        suite.base(seed=seed, log10_p=log10_p)
        suite.cell(seed=seed, log10_p=HELD)
    row = cell(suite)
    assert (row["verdict"], row["price"], row["survived"], row["survived_any"]) == (
        "no claim",
        None,
        False,
        True,
    )
    assert (board(suite)["claims"], board(suite)["seeds"], board(suite)["log10_p"]) == (1, 2, LOST)


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


Surrogates = st.lists(
    st.tuples(st.sampled_from([-9.0, -6.0, -3.0, 0.0]), st.integers(0, 100).map(lambda n: n / 100)),
    min_size=1,
    max_size=4,
)
Seeds = st.lists(Surrogates, min_size=1, max_size=3)


def drawn(seeds: list[list[tuple[float, float]]], ceiling: float | None = 0.85) -> Suite:
    suite = Suite()
    for seed, surrogates in enumerate(seeds):
        suite.base(seed=seed)
        if ceiling is not None:
            suite.yardstick(seed=seed, accuracy=ceiling)
        suite.cell(seed=seed, log10_p=[p for p, _ in surrogates], accuracy=[a for _, a in surrogates])
    return suite


@settings(max_examples=15, deadline=None)
@given(Seeds, st.integers(0, 100).map(lambda n: n / 100))
def test_no_price_is_above_the_ceiling_and_success_is_within_the_budget(
    seeds: list[list[tuple[float, float]]], ceiling: float
) -> None:
    row = cell(drawn(seeds, ceiling))
    assert 0.0 <= row["price"] <= row["ceiling"]
    assert row["survived_any"] or not row["survived"]
    if not row["survived_any"]:
        assert row["price"] <= 5.0 and not row["price_censored"]


@settings(max_examples=15, deadline=None)
@given(Seeds, st.integers(0, 100).map(lambda n: n / 100))
def test_a_surrogate_with_a_claim_never_changes_a_price(
    seeds: list[list[tuple[float, float]]], accuracy: float
) -> None:
    before = outcome(cell(drawn(seeds)))
    assert outcome(cell(drawn([[*surrogates, (-7.0, accuracy)] for surrogates in seeds]))) == before


@settings(max_examples=15, deadline=None)
@given(Seeds, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(seeds: list[list[tuple[float, float]]], random: Any) -> None:
    suite = drawn(seeds)
    suite.cell("other", "apart", log10_p=HELD)
    suite.cell(attack="guess", kind="ambiguity", decoys=[-1.0, -2.0])
    suite.cell(attack="gone", status="not applicable")
    table = suite.records
    places = list(range(table.num_rows))
    random.shuffle(places)
    # In two chunks, the second of them a slice, as tables of several files are.
    mixed = table.take(pa.array(places))
    half = table.num_rows // 2
    chunked = pa.concat_tables([mixed.slice(0, half), mixed.slice(half)])
    for one, other in zip(boards(table), boards(chunked), strict=True):
        assert one.equals(other)
