"""What changed between two sets: paired over seeds, in words that say no more than the numbers do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench.commands.cli import main
from bench.errors import InputError
from bench.publishing import changes
from bench.publishing.comparison import compare
from tests.synthetic import HELD, LOST, Suite
from tests.test_publish import example, saved


def priced(prices: Sequence[float] | Mapping[str, Sequence[float]], **values: Any) -> Suite:
    """A removal attack on one defense or several, whose price in each seed is given in points; the ceiling is 50."""
    suite = Suite(**values)
    for defense, of_defense in (prices if isinstance(prices, Mapping) else {"mark": prices}).items():
        for seed, price in enumerate(of_defense):
            suite.base(defense, seed=seed, protected=0.9)
            suite.yardstick(defense, seed=seed, accuracy=0.4, protected=0.9)
            suite.cell(defense, seed=seed, log10_p=LOST, protected=0.9, accuracy=0.9 - price / 100)
    return suite


def line(lines: pd.DataFrame, measure: str = "price", attack: str = "wear", kind: str = "removal") -> Any:
    """The one line of a cell."""
    of_cell = lines[lines.measure == measure]
    if measure != "cost":
        of_cell = of_cell[(of_cell.attack == attack) & (of_cell.attack_kind == kind)]
    (found,) = of_cell.itertuples()
    return found


def outcomes(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """What became of the price of each defense."""
    lines = compare(priced(before).records, priced(after).records)
    wear = lines[(lines.attack == "wear") & (lines.measure == "price")]
    return dict(zip(wear.defense, wear.outcome, strict=True))


def test_a_set_is_the_same_as_itself() -> None:
    lines = compare(example().records, example().records)
    assert set(lines.outcome) == {"same"}
    assert "failed" in set(lines.verdict_a)


def test_differences_are_paired_and_beyond_noise_only_where_the_interval_leaves_out_zero() -> None:
    # The seeds differ by far more than A and B do in any of them.
    seeds = [1.0, 11.0, 21.0]
    before = {"up": seeds, "down": [3.0, 13.1, 22.9], "noise": seeds, "still": seeds}
    after = {"up": [3.0, 13.1, 22.9], "down": seeds, "noise": [9.0, 10.0, 22.0], "still": seeds}
    assert outcomes(before, after) == {"up": "better", "down": "worse", "noise": "within noise", "still": "same"}


def test_below_three_common_seeds_a_difference_is_said_to_be_untold_from_noise() -> None:
    found = line(compare(priced([1.0, 2.0]).records, priced([9.0, 10.0, 11.0]).records))
    assert (found.outcome, found.pairs) == ("too few seeds", 2)
    assert found.difference == pytest.approx(8.0)
    assert pd.isna(found.low)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    from scipy import stats

    before, after = [1.0, 4.0, 2.0, 7.0], [2.0, 4.5, 4.0, 7.5]
    found = line(compare(priced(before).records, priced(after).records))
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_from_a_to_b_and_back_better_is_worse() -> None:
    random = np.random.default_rng(0)
    before, after = (
        {f"d{place:02d}": random.uniform(0, 9, 3) + 4 * (place % 3) * side for place in range(24)} for side in (0, 1)
    )
    there, back = outcomes(before, after), outcomes(after, before)
    turned = {"better": "worse", "worse": "better"}
    assert back == {name: turned.get(word, word) for name, word in there.items()}
    assert {"better", "within noise"} <= set(there.values())


def with_claims(kind: str, **values: Any) -> Suite:
    suite = Suite()
    for seed in range(3):
        suite.base(seed=seed)
        suite.cell(kind=kind, seed=seed, **values)
    return suite


@pytest.mark.parametrize(("kind", "gain"), [("ambiguity", "worse"), ("control", "worse"), ("none", "better")])
def test_claims_of_others_are_bad_for_the_owner_and_its_own_are_good(kind: str, gain: str) -> None:
    without, claimed = (with_claims(kind, log10_p=value).records for value in (LOST, HELD))
    assert line(compare(without, claimed), "claim", "wear", kind).outcome == gain
    back = line(compare(claimed, without), "claim", "wear", kind)
    assert back.outcome == {"worse": "better", "better": "worse"}[gain]


def test_a_protection_that_costs_more_accuracy_is_worse() -> None:
    def suite(protected: float) -> Suite:
        made = Suite()
        for seed in range(3):
            made.base(seed=seed, protected=protected)
        return made

    found = line(compare(suite(0.97).records, suite(0.95).records), "cost")
    assert (found.outcome, found.a, found.b) == ("worse", pytest.approx(1.0), pytest.approx(3.0))


def test_what_only_one_side_has_is_missing_and_what_failed_there_is_not_comparable() -> None:
    first, second = priced([1.0, 2.0, 3.0]), priced([1.0, 2.0, 3.0])
    for seed in range(3):
        first.cell(attack="old", seed=seed)
        second.cell(attack="new", seed=seed)
    for cell in [one for one in second.cells if one.attack == "wear" and one.attack_kind == "removal"]:
        second.fail(cell.jobs["attack"], "boom")
    lines = compare(first.records, second.records)
    assert line(lines, attack="old").outcome == "missing in B"
    assert line(lines, attack="new").outcome == "missing in A"
    failed = line(lines)
    assert (failed.outcome, failed.verdict_a, failed.verdict_b) == ("not comparable", "removed", "failed")


def test_other_rules_are_refused() -> None:
    with pytest.raises(InputError, match="A, B: expected runs under one protocol, got accuracy_budget 1 and 5"):
        compare(priced([1.0]).records, priced([1.0], budget=1.0).records)


def test_the_text_fits_and_names_both_sides_and_every_outcome(tmp_path: Path) -> None:
    first, second = priced([1.0, 11.0, 21.0]), priced([9.0, 19.0, 29.1])
    for seed in range(3):
        first.cell(attack="old", seed=seed)
        second.cell(attack="copy", kind="ambiguity", seed=seed)
    runs = [saved(first, tmp_path / "before"), saved(second, tmp_path / "after")]
    told = CliRunner().invoke(main, ["compare", *map(str, runs)]).output
    assert f"A: {runs[0]}\nB: {runs[1]}\n" in told
    assert "BETTER: for the owner" in told and "MISSING IN B: only in A" in told and "MISSING IN A: only in B" in told
    assert "8.0 ±" in told
    assert "removed -> survived" in told
    assert all(len(one) <= 100 for one in told.splitlines() if str(tmp_path) not in one)
    values = json.loads(CliRunner().invoke(main, ["compare", *map(str, runs), "--format", "json"]).output)
    assert sum(values["counts"].values()) == len(values["lines"])


def test_how_many_differences_chance_would_make_is_said() -> None:
    first = priced({f"d{place}": [20.0, 20.0, 20.0] for place in range(25)})
    second = priced({f"d{place}": [28.0, 11.0, 21.0] for place in range(25)})
    text = changes.render(compare(first.records, second.records), ("a", "b"))
    assert "25 within noise" in text
    assert "Of 25 differences that were tested" in " ".join(text.split())
    assert "about 1 beyond noise" in " ".join(text.split())
