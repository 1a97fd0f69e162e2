"""The game of defenses against attacks: equilibria of games with known value, and the rules for gaps."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic import Suite, started

from bench.commands.cli import main
from bench.storage.store import RunFolder
from bench.tables import records as recorded
from bench.tables.game import Contest, Game, contest, equilibrium, maximin, unseen
from bench.tables.leaderboard import boards
from bench.text import equilibria

MATRICES = arrays(
    np.float64,
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    elements=st.floats(-50, 50, allow_subnormal=False).map(lambda x: round(x, 3)),
)


def one_game(payoff, bounded=None):
    payoff = np.array(payoff, dtype=float)
    rows, columns = payoff.shape
    kept = np.zeros(payoff.shape, dtype=bool) if bounded is None else np.array(bounded)
    names = tuple(f"d{i}" for i in range(rows)), tuple(f"a{i}" for i in range(columns))
    return Contest((Game(*names, payoff, kept),), {}, {})


@pytest.mark.parametrize(
    ("payoff", "value", "rows", "columns"),
    [
        ([[1, -1], [-1, 1]], 0.0, [0.5, 0.5], [0.5, 0.5]),
        ([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], 0.0, [1 / 3] * 3, [1 / 3] * 3),
        ([[4, 2, 5], [3, 1, 9]], 2.0, [1, 0], [0, 1, 0]),
        ([[2, 3], [1, 0], [0, 1]], 2.0, [1, 0, 0], [1, 0]),
        ([[3, 0], [1, 2]], 1.5, [0.25, 0.75], [0.5, 0.5]),
        ([[7]], 7.0, [1], [1]),
    ],
    ids=["matching pennies", "rock, paper, scissors", "saddle", "dominated rows", "two by two", "no choice"],
)
def test_games_of_known_value_are_solved(payoff, value, rows, columns):
    found = equilibrium(np.array(payoff, dtype=float))
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.rows == pytest.approx(rows, abs=1e-7)
    assert found.columns == pytest.approx(columns, abs=1e-7)


@settings(max_examples=60)
@given(MATRICES)
def test_both_sides_can_hold_the_same_value(payoff):
    found = equilibrium(payoff)
    for mixture in (found.rows, found.columns):
        assert (mixture >= 0).all() and mixture.sum() == pytest.approx(1)
    scale = max(1.0, float(np.ptp(payoff)))
    assert (found.rows @ payoff).min() == pytest.approx(found.value, abs=1e-6 * scale)
    assert (payoff @ found.columns).max() == pytest.approx(found.value, abs=1e-6 * scale)
    pure = maximin(one_game(payoff))
    assert pure.value <= found.value + 1e-6 * scale <= payoff.max(axis=0).min() + 2e-6 * scale


@settings(max_examples=30)
@given(MATRICES, st.floats(0.01, 1000), st.floats(-100, 100))
def test_the_value_scales_with_the_unit_and_moves_with_the_origin(payoff, unit, origin):
    value, moved = equilibrium(payoff).value, equilibrium(unit * payoff + origin).value
    assert moved == pytest.approx(unit * value + origin, abs=1e-6 * max(1.0, unit * float(np.ptp(payoff))))


@pytest.mark.parametrize("payoff", [np.zeros((0, 2)), np.zeros((2, 0)), np.zeros(3), np.array([[np.nan]])])
def test_what_is_no_game_is_refused(payoff):
    with pytest.raises(ValueError, match="finite matrix"):
        equilibrium(payoff)


def test_the_best_pure_choice_names_the_worst_attack_on_it():
    pure = maximin(one_game([[5, 1, 3], [2, 2.5, 2], [0, 9, 9]]))
    assert pure == (2.0, (("d1", "a0"),))


def test_equal_choices_are_all_named_and_one_that_nothing_removes_has_no_worst_attack():
    pure = maximin(one_game([[3, 3], [3, 4], [1, 1]], [[True, True], [False, True], [False, False]]))
    assert pure == (3.0, (("d0", None), ("d1", "a0")))


def test_at_one_price_the_worst_attack_is_the_one_that_removes():
    assert maximin(one_game([[3, 3]], [[True, False]])).choices == (("d0", "a1"),)


def test_mixing_over_several_games_gives_no_more_than_the_best():
    pennies = Game(("d0", "d1"), ("a0", "a1"), np.array([[2.0, 0.0], [0.0, 2.0]]), np.zeros((2, 2), dtype=bool))
    poor = Game(("d2",), ("a2",), np.array([[0.5]]), np.zeros((1, 1), dtype=bool))
    chosen, mixed = unseen(Contest((poor, pennies), {}, {}))
    assert chosen is pennies
    assert mixed.value == pytest.approx(1.0)
    assert maximin(Contest((poor, pennies), {}, {})).value == 0.5


def made(suite, kind="price"):
    board, matrix = boards(suite.records)
    return contest(board.to_pylist(), matrix.to_pylist(), kind)


def with_defenses(*names):
    suite = Suite()
    for name in names:
        suite.base(name)
        suite.yardstick(name)
    return suite


def test_prices_are_the_payoff_at_most_the_ceiling_and_without_insiders_or_the_yardstick():
    suite = with_defenses("mark", "print")
    suite.cell("mark", "wear", log10_p=0.0, accuracy=0.94)
    suite.cell("print", "wear", log10_p=-20.0, accuracy=0.5)
    suite.cell("mark", "inside", log10_p=0.0, accuracy=0.97, knowledge="insider")
    (one,) = made(suite).games
    assert one.attacks == ("wear",)
    found = dict(zip(one.defenses, one.payoff[:, 0], strict=True))
    assert found == pytest.approx({"mark": 3.0, "print": 12.0})
    assert dict(zip(one.defenses, one.bounded[:, 0], strict=True)) == {"mark": False, "print": True}


def test_survival_counts_one_and_removal_within_the_budget_nothing():
    suite = with_defenses("mark", "print")
    suite.cell("mark", "wear", log10_p=0.0, accuracy=0.94)
    suite.cell("print", "wear", log10_p=0.0, accuracy=0.90)
    (one,) = made(suite, "survived").games
    assert dict(zip(one.defenses, one.payoff[:, 0], strict=True)) == {"mark": 0.0, "print": 1.0}


def test_a_defense_without_a_claim_is_worth_nothing():
    suite = with_defenses("print")
    suite.base("mark", log10_p=-1.0)
    suite.yardstick("mark")
    suite.cell("mark", "wear", log10_p=0.0, accuracy=0.5)
    suite.cell("print", "wear", log10_p=0.0, accuracy=0.94)
    found = made(suite)
    assert found.worthless == {"mark": "no claim"}
    (one,) = found.games
    assert one.payoff[one.defenses.index("mark")].tolist() == [0.0]


def test_a_defense_with_a_failed_cell_is_left_out_with_the_attack_named():
    suite = with_defenses("mark", "print")
    for name in ("mark", "print"):
        suite.cell(name, "wear", log10_p=0.0, accuracy=0.94)
    suite.fail(suite.cell("print", "tear", log10_p=0.0).jobs["attack"])
    found = made(suite)
    assert found.left_out == {"print": "failed under tear"}
    assert [one.defenses for one in found.games] == [("mark",)]


def test_defenses_to_which_other_attacks_apply_are_in_a_game_of_their_own():
    suite = with_defenses("mark", "print")
    for name in ("mark", "print"):
        suite.cell(name, "wear", log10_p=0.0, accuracy=0.94)
    suite.cell("mark", "tear", log10_p=0.0, accuracy=0.95)
    suite.cell("print", "tear", status="not applicable")
    found = {one.defenses: one.attacks for one in made(suite).games}
    assert found == {("mark",): ("tear", "wear"), ("print",): ("wear",)}


def test_without_a_ceiling_an_endless_price_is_left_out_and_survival_is_not():
    suite = Suite()
    suite.base("mark")
    suite.cell("mark", "wear", log10_p=-20.0, accuracy=0.9)
    assert made(suite).left_out == {"mark": "nothing bounds its price under wear; the suite needs `scratch`"}
    assert made(suite, "survived").games[0].payoff.tolist() == [[1.0]]


def test_without_removal_attacks_there_is_no_game():
    assert made(started()).games == ()
    text = equilibria.render(*boards(started().records), "table")
    assert "No game" in text and "no removal attack was run on it" in text


@pytest.fixture
def folder(tmp_path):
    """A run folder of a game like matching pennies, worth 2.5 unseen and 1 seen."""
    suite = with_defenses("mark", "print")
    for defense, attack, accuracy in (
        ("mark", "wear", 0.96),
        ("mark", "tear", 0.93),
        ("print", "wear", 0.93),
        ("print", "tear", 0.96),
    ):
        suite.cell(defense, attack, log10_p=0.0, accuracy=accuracy)
    made = boards(suite.records)
    tables = {"records": suite.records, "leaderboard": made.leaderboard, "matrix": made.matrix}
    with RunFolder.open_for_writing(tmp_path / "run") as run:
        for name, table in tables.items():
            recorded.write(table, run.path / f"{name}.parquet")
    return tmp_path / "run"


def test_the_command_tells_both_ways_to_play(folder):
    done = CliRunner().invoke(main, ["game", str(folder)])
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert "If the attacker sees the defense before it chooses: worth 1.00" in told
    assert "If both choose unseen, each by chance: worth 2.50, points of accuracy on average" in told
    assert told.count("50.0 %") == 4
    assert max(map(len, done.output.splitlines())) <= 100
    values = json.loads(CliRunner().invoke(main, ["game", str(folder), "--format", "json"]).output)
    price, survived = values["games"]
    assert price["unseen"]["value"] == pytest.approx(2.5)
    assert price["unseen"]["owner"] == pytest.approx({"mark": 0.5, "print": 0.5})
    assert survived["seen"]["value"] == 0.0


def test_a_folder_without_records_is_bad_input(tmp_path):
    assert CliRunner().invoke(main, ["game", str(tmp_path)]).exit_code == 2
