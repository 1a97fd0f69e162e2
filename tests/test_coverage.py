"""The page that compares with peers names what there is, and says `planned` of nothing that it also calls covered."""

import re
from pathlib import Path

from bench.planning import suite
from bench.registry import discover

PAGE = (Path(__file__).parent.parent / "docs" / "coverage.md").read_text()


def lines():
    for line in PAGE.splitlines():
        if line.startswith("| ") and "---" not in line and not line.endswith("| here |"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def named(cell):
    return {name for name in re.findall(r"`([^`=]+)`", cell) if name not in PARAMETERS}


PARAMETERS = {"variant", "architecture", "temperature", "alpha"}


def test_each_line_names_a_plugin_or_says_planned():
    registry = discover()
    known = set(registry.defense) | set(registry.attack)
    found = list(lines())
    assert len(found) > 35
    for first, here in found:
        assert named(here) or here.startswith("planned"), first
        assert named(here) <= known, first


def test_no_forgery_and_no_free_change_is_missing():
    for name, cls in discover().attack.items():
        free = getattr(cls, "attack_class", "") == "reparametrisation"
        if cls.__module__.startswith("attacks.") and (free or cls.kind == "ambiguity"):
            assert f"`{name}`" in PAGE, name


def test_the_suite_of_compression_crosses_every_defense_with_every_compression():
    made, known = suite.read("compression"), discover()
    defenses = {name for name, cls in known.defense.items() if cls.__module__.startswith("defenses.")}
    attacks = {name for name, cls in known.attack.items() if cls.family in ("compression", "quantization")}
    assert {one.name for one in made.defenses} == defenses
    assert attacks < {one.name for one in made.attacks}


def test_the_full_suite_crosses_every_defense_with_every_attack():
    made, known = suite.read("digits-full"), discover()
    for kind, chosen in (("defense", made.defenses), ("attack", made.attacks)):
        ours = {name for name, cls in getattr(known, kind).items() if cls.__module__.startswith(f"{kind}s.")}
        assert {one.name for one in chosen} == ours
