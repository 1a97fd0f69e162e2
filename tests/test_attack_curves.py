"""The figure and the table of attacks on marks: what stands in them, from records made up and from published ones."""

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.tables import records as recorded
from bench.tables.leaderboard import boards
from tests.perf.attack_curves import COLOURS, MARKERS, PANELS, chosen, draw, figures, panels, table
from tests.synthetic import HELD, LOST, Suite, replaced

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def records():
    """Two marks and two seeds: `wear` ends the first one, `rub` the second one above the budget, and readings."""
    suite = Suite(budget=2.0)
    for seed, accuracy in ((0, 0.98), (1, 0.96)):
        common = {"seed": seed, "protected": accuracy}
        suite.base("plain", seed=seed, log10_p=0.0, capacity=0.0, defense_access="none", protected=0.98)
        for defense in ("first", "second"):
            suite.base(defense, log10_p=-math.inf if defense == "second" else -40.0, **common)
            suite.yardstick(defense, 0.9, **common)
        weaker = [accuracy - 0.005, accuracy - 0.01, 0.5]
        suite.cell("first", "wear", log10_p=[-30.0, LOST, LOST], accuracy=weaker, **common)
        suite.cell("second", "wear", log10_p=[HELD] * 3, accuracy=weaker, **common)
        suite.cell("second", "rub", log10_p=[HELD, LOST], accuracy=[accuracy, accuracy - 0.03], **common)
        read = suite.cell("first", "read", log10_p=[HELD, HELD], accuracy=accuracy, **common)
        replaced(suite, read, strength_unit="readings")
        suite.cell("first", "steal", log10_p=LOST, knowledge="insider", **common)
        suite.cell("first", "pass on", log10_p=LOST, reference=[0.99], **common)
        suite.cell("first", "forge", "ambiguity", log10_p=LOST, **common)
        suite.cell("first", "still", "control", log10_p=0.0, seed=seed)
    return suite.records


def test_a_panel_has_the_protected_model_and_each_attack_along_its_way(records):
    first, second = panels(records)
    assert (first.title, second.title) == ("first", "second")
    assert first.protected == (pytest.approx(97), -40.0) and second.protected[1] == -math.inf
    assert (first.budget, first.ceiling) == (pytest.approx(95), pytest.approx(90))
    assert list(first.curves) == ["wear", "read"] and list(second.curves) == ["wear", "rub"]
    assert (first.scattered, second.scattered) == ({"read"}, set())
    wear = first.curves["wear"]
    assert wear.accuracy.tolist() == pytest.approx([96.5, 96, 50])
    assert wear.log10_p.tolist() == [-30.0, LOST, LOST]


def test_prices_are_those_of_the_matrix(records):
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in table(records).splitlines()]
    # A mark that is gone for more than the budget has a price too; insiders and forgeries have no column.
    assert lines[0] == ["", "pass on", "read", "wear", "rub", "anew"]
    told = {line[0]: dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[2:]}
    assert told["first"] == {"pass on": "2.0\\*", "read": "survived", "wear": "1.0\\*", "rub": "", "anew": "7.0"}
    assert told["second"] == {"pass on": "", "read": "", "wear": "survived", "rub": "3.0", "anew": "7.0"}
    matrix = {(row["defense"], row["attack"]): row for row in boards(records).matrix.to_pylist()}
    assert matrix["second", "rub"]["verdict"] == "survived" and matrix["second", "rub"]["price"] == pytest.approx(3)


def test_defenses_and_attacks_can_be_chosen(records):
    found = panels(chosen(chosen(records, "defense", ["second"]), "attack", ["rub"]))
    assert [(one.title, list(one.curves)) for one in found] == [("second", ["rub"])]
    # What they are read by stays.
    assert found[0].protected and found[0].ceiling == pytest.approx(90)


def test_panels_are_dealt_to_as_few_figures_as_hold_them():
    assert [len(part) for part in figures(list(range(PANELS)))] == [PANELS]
    assert [len(part) for part in figures(list(range(PANELS + 2)))] == [6, 5]
    assert figures([]) == []


def test_attacks_differ_by_colour_and_marker_together():
    looks = {(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]) for place in range(40)}
    assert len(looks) == 40 and len(set(MARKERS)) == len(MARKERS)


@pytest.mark.parametrize("source", ["made up", "passports"])
def test_a_figure_is_small_and_the_same_each_time(source, records, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plots`")
    if source != "made up":
        records = recorded.read(ROOT / "results" / source / "records.parquet")
    shown = figures(panels(records))[0]
    for name in ("one.svg", "two.svg"):
        draw(shown, float(recorded.metadata(records)["alpha"]), tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert len(text) < 300_000
    assert len(re.findall(r'<g id="axes_\d+">', text)) == len(shown)
    # Nothing is drawn at infinity, and each defense is named.
    assert "inf" not in text and "nan" not in text
    said = "".join(ElementTree.fromstring(text).itertext()) + text
    assert all(f"<!-- {panel.title.partition('[')[0]}" in said for panel in shown)
