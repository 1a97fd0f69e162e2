"""What the documentation shows is run."""

import io
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bench import registry
from bench.commands import check
from bench.commands.run import Options, run
from bench.contract import attacks, defenses, forgeries
from bench.planning import suite

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adding-a-defense.md").read_text()
PLUGIN = re.search(r"<!-- BEGIN PLUGIN -->\n```python\n(.*?)```", PAGE, re.DOTALL).group(1)
SUITE = re.search(r"```toml\n(name.*?)```", PAGE, re.DOTALL).group(1)


def test_the_plugin_of_the_walk_through_has_at_most_forty_lines_beside_its_algorithm():
    algorithm = ("draw", "protect", "verify")
    lines, inside = 0, False
    for line in PLUGIN.splitlines():
        if re.match(r"    def ", line):
            inside = any(f"def {name}(" in line for name in algorithm)
        lines += bool(line.strip()) and not inside
    assert lines <= 40


def test_the_plugin_of_the_walk_through_works(tmp_path, monkeypatch):
    (tmp_path / "sign_code.py").write_text(PLUGIN)
    short = "[[tasks]]\nrecipe = { epochs = 4 }"
    text = SUITE.replace("[[tasks]]", short).replace('"random-key"', '"random-key"\ndecoys = 200')
    text = text.replace('"fine-tune"', '"fine-tune"\nepochs = 5') + '[[attacks]]\nname = "scratch"\nepochs = 5\n'
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.setenv("OWNBENCH_PLUGINS", str(tmp_path))
    registry.discover.cache_clear()
    console = Console(file=io.StringIO(), width=120)
    try:
        options = Options(str(tmp_path / "mine.toml"), out=tmp_path / "out", device="cpu", local=True)
        assert run(options, console) == 0, console.file.getvalue()
    finally:
        monkeypatch.delenv("OWNBENCH_PLUGINS")
        registry.discover.cache_clear()
    frame = pq.read_table(tmp_path / "out" / "records.parquet").to_pandas()
    own = frame[(frame.attack_kind == "none") & (frame.defense == "sign-code")]
    assert own.claim.all()
    assert own.statistic.tolist() == [32, 64]
    assert not frame[frame.attack_kind.isin(["control", "ambiguity"])].claim.any()


def test_the_plugin_of_the_walk_through_passes_its_own_check(tmp_path, workshop):
    (tmp_path / "sign_code_checked.py").write_text(PLUGIN)
    told = []
    assert check.check([str(tmp_path / "sign_code_checked.py")], ["bits=32"], told.append, workshop) == 0, "\n".join(
        told
    )
    assert told[-1].startswith("\n18 ok, 0 violated")


def test_the_pages_list_the_rules_as_they_are():
    attack_page = (ROOT / "docs" / "adding-an-attack.md").read_text()
    for page, rules in ((PAGE, defenses.RULES), (attack_page, attacks.RULES + forgeries.RULES)):
        for rule in rules:
            assert f"| `{rule.id}` | {rule.demand} |" in page or (rule in forgeries.RULES and f"`{rule.id}`" in page)
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE))
    assert listed == {rule.id for rule in defenses.RULES}


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def rows_of(heading):
    """What stands in the first column of a table of the README, as names."""
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index(heading) :].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in first for name in re.findall(r"`([a-z0-9-]+)`", cell)}


def test_the_readme_names_every_defense_attack_and_suite():
    assert rows_of("| defenses |") == set(registry.discover().defense)
    assert rows_of("| attacks |") | {"none"} == set(registry.discover().attack)
    assert rows_of("| suite | task |") == set(suite.shipped())


def test_the_leaderboard_in_the_readme_is_the_published_one():
    from bench.commands import boards

    shown = re.search(r"<!-- BEGIN LEADERBOARD -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(
        1
    )
    assert shown == boards.show([ROOT / "results" / "digits"], "table")
