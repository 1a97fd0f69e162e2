"""The printed tables: what stands where, that they fit, and that nothing is hidden."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import InputError
from bench.tables.leaderboard import boards
from bench.text.layout import Grid, shorten, to_markdown, to_text
from bench.text.report import render
from tests.synthetic import HELD, LOST, Suite, evidence_of, replaced


def example(seeds: int = 1, **values: Any) -> Suite:
    """Two defenses and the undefended model against two attacks, a ceiling and a forgery."""
    suite = Suite(**values)
    for seed in range(seeds):
        nothing: dict[str, Any] = {
            "log10_p": 0.0,
            "reason": "nothing",
            "capacity": 0.0,
            "defense_access": "none",
        }
        suite.base("bare", seed=seed, protected=0.98, **nothing)
        for name in ("soft", "hard"):
            suite.base(name, seed=seed)
            suite.yardstick(name, seed=seed)
            held = {"log10_p": HELD} if name == "hard" else {"log10_p": LOST, "accuracy": 0.957}
            suite.cell(name, "wear", seed=seed, attack_params={"strong": True}, **held)
            suite.cell(name, "copy", seed=seed, cls="extraction", log10_p=LOST, accuracy=0.90)
            suite.cell(name, "fake", kind="ambiguity", seed=seed, log10_p=-7.0 if name == "soft" else -1.0)
            suite.cell(name, "wear", kind="control", seed=seed, log10_p=[-1.0, -2.0], accuracy=[0.9, 0.9])
    return suite


def table(suite: Suite) -> str:
    text = render(*boards(suite.records))
    assert isinstance(text, str)
    return text


def line(text: str, start: str) -> list[str]:
    """The words of the first line that begins so."""
    return next(one for one in text.splitlines() if one.strip().startswith(start)).split()


def test_the_leaderboard_says_who_holds_and_what_it_costs() -> None:
    text = table(example())
    assert line(text, "hard") == [
        "hard",
        "white",
        "6.0",
        "-20.0",
        "1.0",
        "2/2",
        ">=12.0",
        "7.0",
        "copy",
        "0/1",
        "0/2",
    ]
    assert line(text, "soft") == [
        *("soft", "white", "-1.0", "-20.0", "1.0", "1/2", "1.3", "7.0", "wear[strong=True]", "1/1", "0/2"),
    ]
    assert line(text, "bare")[-3:] == ["(undefended)", "-", "-"]
    assert "reparam." not in text


def test_the_matrix_says_which_attack_removes_which_mark() -> None:
    text = table(example())
    below = text[text.index("Price of removing") :]
    assert line(below, "attack") == ["attack", "hard", "soft"]
    assert line(below, "wear") == ["wear[strong=True]", ">=12.0", "1.3*"]
    assert line(below, "copy") == ["copy", "7.0", "7.0"]
    assert line(below, "anew") == ["anew", "12.0", "12.0"]
    assert line(below, "fake") == ["fake", "withstood", "FORGED"]


def test_forgeries_by_insiders_stand_below_the_others() -> None:
    suite = example()
    for name, log10_p in (("hard", HELD), ("soft", LOST)):
        suite.cell(name, attack="inside", kind="ambiguity", log10_p=log10_p, knowledge="insider")
    text = table(suite)
    below = text[text.index("Forging a second proof, by insiders") :]
    assert line(below, "inside") == ["inside", "FORGED", "withstood"]
    assert line(text[: text.index(below)], "fake")
    assert "by insiders" not in table(example())


def test_the_owners_claim_on_a_forgers_model_stands_beside_the_forgers() -> None:
    suite = example(seeds=2)
    for seed in (0, 1):
        for name, forged, owned in (("hard", -9.0, [HELD, HELD]), ("soft", -1.0, [HELD, LOST])):
            common: dict[str, Any] = {"attack": "again", "kind": "ambiguity", "seed": seed, "accuracy": 0.955}
            suite.cell(name, log10_p=forged, **common)
            # The owner's evidence on the same model is a judgement of its own.
            suite.cell(name, judged_key="owner", **common)
            evidence = [evidence_of(owned[seed])]
            judge = suite.job("judge", f"judge owner again {name} {seed}", {"evidence": evidence})
            replaced(suite, suite.cells[-1], jobs={**suite.cells[-1].jobs, "judge": judge})
    text = table(suite)
    forging = text[text.index("Forging a second proof") :]
    assert line(forging, "again") == ["again", "FORGED", "withstood"]
    owning = text[text.index("The owner's claim on the model that the forger shows") :]
    assert line(owning, "again") == ["again", "claims", "1.5", "claims", "1/2", "1.5"]
    assert "whether the owner's key verifies on the model that the forger shows" in " ".join(text.split())
    assert "already fails the check" not in text
    assert "the forger shows" not in table(example())


def test_an_owner_who_lost_a_claim_to_a_forger_had_one_before() -> None:
    suite = Suite()
    suite.base()
    suite.cell(attack="again", kind="ambiguity", judged_key="owner", log10_p=LOST, accuracy=0.95)
    text = table(suite)
    assert line(text[text.index("The owner's claim") :], "again") == ["again", "no", "claim", "2.0"]
    assert "already fails the check" not in text


def test_the_legend_names_the_rules() -> None:
    text = " ".join(table(example(alpha=1e-4, budget=3.0)).split())
    assert "at or below -4 (alpha 0.0001)" in text
    assert "within the budget of 3: mark removed" in text
    assert "the ceiling (12.0)" in text
    assert "1 seed" in text and "mean over seeds" not in text
    text = " ".join(table(example(seeds=3)).split())
    assert "3 seeds" in text and "mean over seeds" in text and "± 95 %" in text
    assert "1.0 ±0.0" in text


def test_what_compressing_brings_has_a_column_where_it_brings_something() -> None:
    suite = example()
    assert "smaller" not in table(suite)
    for name, bits in (("squeeze", 3200.0), ("stretch", 32000.0)):
        taken = [{"stored_bits": 1000.0, "stored_bits_indexed": bits}]
        suite.cell("hard", name, taken=taken, taken_before={"weights": 1000.0})
    text = table(suite)
    assert "10x" in line(text, "squeeze")
    assert not [word for word in line(text, "stretch") if word.endswith("x")]
    assert "smaller: what compressing brings" in text


def test_states_without_a_price_are_words_and_are_explained() -> None:
    suite = Suite()
    suite.base("mute", log10_p=-2.0)
    suite.base("weak", capacity=-3.0, log10_p=-3.0)
    suite.base("lone")
    for name, capacity in (("mute", -30.0), ("weak", -3.0)):
        suite.cell(name, log10_p=LOST, capacity=capacity)
    suite.cell("lone", status="not applicable")
    suite.cell("lost", log10_p=LOST)
    text = table(suite)
    wear = next(one for one in text.splitlines() if one.startswith("  wear"))
    for word, explained in (
        ("no claim", "already fails the check"),
        ("too weak", "even a perfect match"),
        ("n/a", "does not apply"),
        ("?", "was not judged"),
    ):
        assert word in wear
        assert explained in " ".join(text.split())


def test_without_a_ceiling_a_mark_that_stays_is_never_removed() -> None:
    suite = Suite()
    suite.base()
    suite.cell(log10_p=HELD)
    text = table(suite)
    assert line(text, "wear") == ["wear", "never"]
    assert line(text, "mark")[6:8] == ["never", "none"]
    assert "ceiling" not in text


def test_failures_are_counted_with_the_first_message() -> None:
    suite = example(seeds=2)
    broken = next(cell for cell in suite.cells if cell.defense == "soft" and cell.attack == "copy")
    suite.fail(broken.jobs["attack"], "CUDA error:\n  out of memory")
    text = table(suite)
    assert "FAILED: 1 of 26 cells. The first: soft x copy: CUDA error: out of memory" in text
    assert line(text[text.index("Price of") :], "copy") == ["copy", "7.0", "7.0!"]
    assert "!: failed in some seeds" in text
    assert "FAILED" not in table(example())


def test_what_does_not_apply_is_counted_with_its_reason() -> None:
    suite = example()
    suite.cell("soft", "odd", status="not applicable")
    assert "not applicable: 1 of 14 cells. The first: soft x odd: no such layer" in table(suite)


def test_what_does_not_apply_to_the_undefended_model_has_no_column() -> None:
    suite = example()
    suite.cell("bare", "odd", status="not applicable", capacity=None, defense_access="none")
    text = table(suite)
    assert "bare x odd: no such layer" in text
    assert not any(line.strip().startswith("odd") for line in text.splitlines())


def test_mixed_environments_and_a_ceiling_within_the_budget_are_said() -> None:
    suite = example()
    assert "MIXED" not in table(suite) and "CAUTION" not in table(suite)
    suite.entries[suite.cells[2].jobs["judge"]]["device"] = "cuda X"
    assert "MIXED: the rows come from different devices (cpu, cuda X)" in table(suite)
    assert "CAUTION: the ceiling is within the budget" in table(example(budget=12.0))


def test_survival_in_some_seeds_stands_beside_survival_in_all() -> None:
    suite = Suite()
    for seed, log10_p in enumerate([HELD, LOST]):
        suite.base(seed=seed)
        suite.yardstick(seed=seed)
        suite.cell(seed=seed, log10_p=log10_p)
    text = table(suite)
    assert line(text, "mark")[5] == "0-1/1"
    assert "a in every seed" in text
    assert line(text, "wear") == ["wear", ">=6.0*"]


def wide(defenses: int, length: int) -> Suite:
    suite = Suite()
    for number in range(defenses):
        params = {f"parameter{i}": number for i in range(length)}
        for name, attack in (("base", {}), ("cell", {"fraction": 0.25, "rounds": [1, 2, 3] * length})):
            add = suite.base if name == "base" else suite.cell
            add("a-defense-of-a-long-name", defense_params=params, attack_params=attack)
        suite.cell("a-defense-of-a-long-name", "tear", cls="extraction", defense_params=params)
        suite.cell("a-defense-of-a-long-name", "turn", cls="reparametrisation", defense_params=params)
    return suite


@pytest.mark.parametrize("length", [0, 1, 8])
def test_a_wide_table_fits_100_columns(length: int) -> None:
    suite = wide(9 if length else 1, length)
    text = table(suite)
    assert max(map(len, text.splitlines())) <= 100
    shown = [one.split() for one in text.splitlines() if one.startswith("  tear")]
    assert sum(len(words) - 1 for words in shown) == (9 if length else 1)
    assert ("(continued)" in text) == (length > 0)


def test_columns_of_different_defenses_have_different_heads() -> None:
    text = table(wide(9, 8))
    below = text[text.index("Price of") :].splitlines()
    heads = [word for one in below if one.startswith("attack") for word in one.split()[1:]]
    assert len(heads) == len(set(heads)) == 9


def test_tasks_have_tables_of_their_own() -> None:
    one, two = example(), example(task="other")
    one.jobs |= two.jobs
    one.entries |= two.entries
    one.cells += two.cells
    text = table(one)
    assert text.count("Task toy, model net") == text.count("Task other, model net") == 1
    assert text.count("claim: log10") == 1


def test_json_holds_both_tables_and_is_strict() -> None:
    suite = example()
    suite.base("sure", log10_p=-float("inf"), capacity=-float("inf"))
    text = render(*boards(suite.records), "json")
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (values["alpha"], values["accuracy_budget"], values["schema_version"]) == (1e-6, 5.0, 5)
    assert [row["defense"] for row in values["leaderboard"]] == ["hard", "soft", "sure", "bare"]
    assert next(row for row in values["leaderboard"] if row["defense"] == "sure")["log10_p"] == "-inf"
    assert len(values["matrix"]) == boards(suite.records).matrix.num_rows


def test_markdown_keeps_every_label_whole() -> None:
    text = render(*boards(wide(9, 8).records), "markdown")
    assert isinstance(text, str)
    tables = [one for one in text.splitlines() if one.startswith("|")]
    assert "…" not in text
    # Twelve columns of the leaderboard, then an attack and nine defenses.
    assert {one.count("|") for one in tables[:11]} == {13}
    assert {one.count("|") for one in tables[11:]} == {11}


def test_a_pair_has_a_line_for_each_of_its_members() -> None:
    first, second = "uchida[bits=32,canonical=true]", "constant-weight-code[canonical=true]"
    suite = example()
    suite.base(f"{first} & {second}")
    suite.cell(f"{first} & {second}", log10_p=HELD)
    lines = table(suite).splitlines()
    place = next(i for i, one in enumerate(lines) if one.startswith("uchida"))
    told = [one.split("  ")[0].strip() for one in lines[place : place + 4]]
    assert told == ["uchida", "[bits=32,canonical=true]", "& constant-weight-code", "[canonical=true]"]
    below = "\n".join(lines[place + 4 :])
    assert "uchida" in below and "& constant-" in below
    assert max(map(len, lines)) <= 100


def test_parquet_is_the_leaderboards_file() -> None:
    made = boards(example().records)
    assert pq.read_table(io.BytesIO(render(*made, "parquet"))).equals(made.leaderboard)


def test_what_only_reads_starts_without_the_slow_libraries() -> None:
    code = "import sys, bench.text.report, bench.tables.records, bench.text.show; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pyarrow" in loaded
    assert not {"torch", "pandas", "scipy", "ray"} & set(loaded)


def test_an_unknown_format_and_no_records() -> None:
    with pytest.raises(InputError, match=r"unknown format 'tabel'.*'table'"):
        render(*boards(example().records), "tabel")
    assert render(*boards(Suite().records)) == "No records yet.\n"


Labels = st.lists(st.text("ab[=,]", min_size=1, max_size=40), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(Labels, st.integers(8, 40))
def test_short_labels_fit_and_stay_apart(labels: list[str], width: int) -> None:
    short = shorten(labels, width)
    assert all(len(label) <= width for label in short)
    assert len(set(short)) == len(set(labels))


def test_labels_lose_first_what_tells_least() -> None:
    assert shorten(["wear[kind=deep,rate=3]"], 30) == ["wear[kind=deep,rate=3]"]
    assert shorten(["wear[kind=deep,rate=3]"], 15) == ["wear[deep,3]"]
    assert shorten(["wear[kind=deep,rate=3]"], 9) == ["wear…p,3]"]
    assert shorten(["wear[deeply=true,again=false,rate=3]"], 30) == ["wear[deeply,no again,3]"]


def test_layout_of_a_small_grid() -> None:
    grid = Grid(["name", "per\ncent"], [["one", "1.5"], "more", ["two", "22.0"]])
    assert to_text(grid, 20).splitlines() == [
        "       per",
        "name  cent",
        "──────────",
        "one    1.5",
        "more",
        "two   22.0",
    ]
    assert to_markdown(grid).splitlines() == [
        "| name | per cent |",
        "| :-- | --: |",
        "| one | 1.5 |",
        "| **more** |  |",
        "| two | 22.0 |",
    ]


def test_what_is_left_of_a_long_label_stands_below_it() -> None:
    rows = [["  wear-down then tear", "1"], ["  tear[rate=3.125,depth=8]", "2"]]
    rows += [["wear-down-slowly", "3"], ["wear", "4"]]
    assert to_text(Grid(["", "x"], rows), 19).splitlines()[2:] == [
        "  wear-down then  1",
        "   tear",
        "  tear            2",
        "   [3.125,8]",
        "wear-down-slowly  3",
        "wear              4",
    ]
    assert to_text(Grid(["", "x"], rows[2:]), 15).splitlines()[2:] == ["wear-down-    3", "slowly", "wear          4"]
