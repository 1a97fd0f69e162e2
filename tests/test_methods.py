"""Every method has a card that says what its plugin says."""

import re
from pathlib import Path

import pytest

from bench import registry
from bench.attack import Attack
from bench.parameters import types_of

CARDS = Path(__file__).parent.parent / "docs" / "methods"
INDEX = CARDS / "README.md"


def plugins():
    """All that come with the project, except those that do nothing."""
    known = registry.discover()
    for cls in (*known.defense.values(), *known.attack.values()):
        nothing = cls.kind == "none" if issubclass(cls, Attack) else cls.undefended
        if cls.__module__.split(".")[0] in ("defenses", "attacks") and not nothing:
            yield cls


def parameters_of(text):
    """The names that begin the rows of the tables headed `parameter`, in backticks."""
    tables = re.findall(r"^\| parameter \|.*\n\|[-| :]+\n((?:\|.*(?:\n|$))*)", text, re.MULTILINE)
    return [re.match(r"\| `([^`]+)` \|", row).group(1) for table in tables for row in table.splitlines()]


def wrong_with(cls, text):
    """What in a card does not match the plugin."""
    lines = [line for line in text.splitlines() if line.strip()]
    # Sources may be broken into lines.
    opening = " ".join(text.split("\n\n")[1].split()) if text.count("\n\n") else ""
    fields, listed = list(types_of(cls)), parameters_of(text)
    wrong = []
    if lines[0] != f"# {cls.name}":
        wrong.append(f"title {lines[0]!r}")
    if not opening.startswith("Source: ") or cls.source not in opening:
        wrong.append(f"first line {opening!r}")
    wrong += [f"parameter {name!r} is missing" for name in fields if name not in listed]
    wrong += [f"parameter {name!r} is none of its" for name in listed if name not in fields]
    wrong += [f"parameter {name!r} stands twice" for name in set(listed) if listed.count(name) > 1]
    return wrong


@pytest.mark.parametrize("cls", list(plugins()), ids=lambda cls: cls.name)
def test_a_card_says_what_its_plugin_says(cls):
    assert wrong_with(cls, (CARDS / f"{cls.name}.md").read_text()) == []


def test_a_card_that_falls_behind_is_noticed():
    from defenses.uchida import Uchida

    text = (CARDS / "uchida.md").read_text()
    assert wrong_with(Uchida, text) == []
    for name in types_of(Uchida):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert wrong_with(Uchida, text.replace(row + "\n", "")) == [f"parameter '{name}' is missing"]
        assert wrong_with(Uchida, text + row + "\n") == [f"parameter '{name}' stands twice"]
        assert len(wrong_with(Uchida, text.replace(row, row.replace(name, f"{name}s")))) == 2
    assert wrong_with(Uchida, text + "| `more` | of it |\n") == ["parameter 'more' is none of its"]
    assert wrong_with(Uchida, text + "\n| figure | meaning |\n| --- | --- |\n| `bit_error` | of it |\n") == []
    assert len(wrong_with(Uchida, text.replace("| parameter |", "| figure |"))) == len(types_of(Uchida))
    assert len(wrong_with(Uchida, text.replace("# uchida", "# nagai"))) == 1
    assert len(wrong_with(Uchida, text.replace("2017", "2018", 1))) == 1


def test_the_index_lists_every_card_once():
    listed = re.findall(r"^\| \[([a-z0-9-]+)\]\(([a-z0-9-]+)\.md\)", INDEX.read_text(), re.MULTILINE)
    assert all(name == file for name, file in listed)
    cards = sorted(path.stem for path in CARDS.glob("*.md") if path != INDEX)
    assert sorted(name for name, _ in listed) == cards


@pytest.mark.parametrize("card", [path for path in sorted(CARDS.glob("*.md")) if path != INDEX], ids=lambda p: p.stem)
def test_a_card_is_named_after_its_method(card):
    assert card.read_text().splitlines()[0] == f"# {card.stem}"
