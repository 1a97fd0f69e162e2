"""The price rules, worked out by hand, and what must hold for any records."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench.tables.leaderboard import boards
from tests.synthetic import HELD, LOST, Suite, board, cell, started


def priced(log10_p: list[float], accuracy: list[float], **values: Any) -> dict[str, Any]:
    suite = started()
    suite.cell(log10_p=log10_p, accuracy=accuracy, **values)
    return cell(suite)


def outcome(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["verdict"], row["price"], row["price_censored"], row["survived"]


def test_the_price_is_the_least_over_surrogates_without_a_claim() -> None:
    row = priced([HELD, LOST, LOST], [0.97, 0.94, 0.90])
    assert outcome(row) == ("removed", 3.0, False, False)
    assert row["strength"] == 2.0


def test_a_claim_that_comes_back_changes_nothing() -> None:
    row = priced([LOST, HELD, LOST], [0.95, 0.96, 0.93])
    assert outcome(row) == ("removed", 2.0, False, False)
    assert row["claims"] == 1 and row["judged"] == 3


def test_compression_is_the_most_of_a_copy_within_the_budget_and_the_median_over_seeds() -> None:
    suite, whole = Suite(), {"weights": 1000.0}
    for seed, bits in enumerate((4000.0, 8000.0, 3200.0)):
        suite.base(seed=seed)
        stored = [{"stored_bits": b, "stored_bits_indexed": 2 * b} for b in (16000.0, bits, 1000.0)]
        values: dict[str, Any] = {"log10_p": [HELD] * 3, "accuracy": [0.97, 0.92, 0.919]}
        suite.cell(seed=seed, taken=stored, taken_before=whole, **values)
        suite.cell(attack="ruin", seed=seed, log10_p=LOST, accuracy=0.5, taken=stored[:1], taken_before=whole)
    made = {row["attack"]: row for row in boards(suite.records).matrix.to_pylist()}
    assert (made["wear"]["compression"], made["wear"]["compression_indexed"]) == (8.0, 4.0)
    assert made["ruin"]["compression"] is None
    assert made["still"]["compression"] is None


def test_a_model_that_got_better_costs_nothing() -> None:
    assert outcome(priced([LOST], [0.99])) == ("removed", 0.0, False, False)


def test_a_claim_never_lost_is_counted_at_the_ceiling() -> None:
    row = priced([HELD, HELD], [0.97, 0.5])
    assert outcome(row) == ("survived", 12.0, True, True)
    assert row["strength"] is None
    assert row["least_loss"] == 0.0


@pytest.mark.parametrize(("accuracy", "expected"), [(0.85, (12.0, True)), (0.8, (12.0, True)), (0.851, (11.9, False))])
def test_a_price_from_the_ceiling_on_is_a_bound(accuracy: float, expected: tuple[float, bool]) -> None:
    row = priced([LOST], [accuracy])
    assert (row["price"], row["price_censored"]) == expected
    assert row["survived"] is True


@pytest.mark.parametrize(
    ("ceiling", "accuracy", "verdict"),
    [(0.99, 0.99, "removed"), (0.97, 0.965, "removed"), (0.97, 0.93, "survived"), (0.5, 0.93, "survived")],
)
def test_success_is_what_was_really_lost_wherever_the_ceiling_is(ceiling: float, accuracy: float, verdict: str) -> None:
    """A free removal is one also where training anew is as good; a scheme must not survive by being worthless."""
    suite = Suite()
    suite.base(protected=0.99)
    suite.yardstick(protected=0.99, accuracy=ceiling)
    suite.cell(log10_p=LOST, accuracy=accuracy, protected=0.99)
    row = cell(suite)
    assert row["verdict"] == verdict
    assert row["price"] <= (0.99 - ceiling) * 100 + 1e-9


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
    suite.cell(attack="anew-longer", log10_p=[0.0, 0.0], accuracy=[0.80, 0.89], access="none", cls="extraction")
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
    # At the budget itself rounding decides, between a price and the mean of one price.
    assume(abs(row["price"] - 5.0) > 1e-9)
    assert 0.0 <= row["price"] <= row["ceiling"]
    assert row["survived_any"] or not row["survived"]
    if not row["survived_any"]:
        # Removed in every seed for at most the budget, even where training anew costs less still.
        assert row["price"] <= 5.0 and (row["ceiling"] <= 5.0 or not row["price_censored"])


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
