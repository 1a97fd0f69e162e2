"""`ownbench check` and `ownbench new`: what they print, their exit codes, and that a skeleton runs as it stands."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import contract, registry
from bench.commands import check, new
from bench.commands.cli import main

ROOT = Path(__file__).parent.parent
CLUMSY = '''
from dataclasses import dataclass
from typing import ClassVar
from bench.attack import RemovalAttack

@dataclass(frozen=True)
class Clumsy(RemovalAttack):
    """Goes to and fro."""
    name: ClassVar[str] = "clumsy"
    family: ClassVar[str] = "test"
    strength_unit: ClassVar[str] = "tries"
    start: float = 1.0

    def run(self, target, trainer):
        for strength in (self.start, 0.5, 0.7):
            yield strength, target.copy()
'''


@pytest.fixture
def invoke(tmp_path, monkeypatch, workshop):
    """Runs a command in an empty folder, with short recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "Workshop", lambda: contextlib.nullcontext(workshop))
    registry.discover.cache_clear()
    yield lambda *arguments: CliRunner().invoke(main, [str(one) for one in arguments])
    registry.discover.cache_clear()
    # The next test has other files of these names.
    for name in [name for name in sys.modules if name.startswith("ownbench_plugins.")]:
        del sys.modules[name]


def test_skeletons_pass_the_contract_as_they_stand(invoke, tmp_path):
    for role, name in (("defense", "my-mark"), ("attack", "my-noise")):
        told = invoke("new", role, name)
        assert told.exit_code == 0, told.output
        assert f"ownbench check {name}" in told.output
        assert f"OWNBENCH_PLUGINS={tmp_path}" in told.output
        assert f"ownbench run {name}.toml" in told.output
    result = invoke("check", "my_mark.py", "my_noise.py")
    assert result.exit_code == 0, result.output
    assert f"defense my-mark ({tmp_path}/my_mark.py) on digits/vgg8, 3 epochs" in result.output
    expected = [*contract.defenses.RULES, *contract.attacks.RULES]
    lines = [line.split() for line in result.output.splitlines() if line.startswith("  ")]
    assert [line[1] for line in lines] == [rule.id for rule in expected]
    assert [line[0] for line in lines].count("skipped") == 1
    assert result.output.endswith(f"\n{len(expected) - 1} ok, 0 violated, 1 skipped\n")


def test_skeletons_are_clean_and_run_from_their_own_suite(invoke, tmp_path):
    """As in the project's own folders, where lint runs over them."""
    for role, name in (("defense", "key"), ("attack", "my-noise")):
        assert invoke("new", role, name).exit_code == 0
    assert "class KeyDefense(Defense):" in Path("key.py").read_text()
    config = ["--config", str(ROOT / "pyproject.toml"), "--config", "lint.isort.known-first-party=['bench', 'models']"]
    for command in (["check", *config], ["format", "--check", *config[:2]]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
    from bench.planning import suite

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OWNBENCH_PLUGINS", str(tmp_path))
        registry.discover.cache_clear()
        ours, theirs = suite.read("key.toml"), suite.read("my-noise.toml")
    assert [one.name for one in ours.defenses] == ["key"]
    assert {getattr(one, "attack_class", one.kind) for one in ours.attacks} >= {"in-place", "extraction", "ambiguity"}
    assert [one.name for one in theirs.attacks] == ["my-noise"]
    assert len(theirs.defenses) >= 2


def test_a_violated_rule_is_shown_with_its_demand_and_ends_with_one(invoke):
    Path("clumsy.py").write_text(CLUMSY)
    result = invoke("check", "clumsy.py")
    assert result.exit_code == 1, result.output
    lines = result.output.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("  VIOLATED"))
    assert "strengths-go-one-way" in lines[at] and "Strengths are finite numbers that rise" in lines[at]
    assert lines[at + 1].strip() == "expected strengths that rise, or fall, got [1.0, 0.5, 0.7]"
    assert "1 violated" in lines[-1]
    # With other parameters it does hold to the rule.
    result = invoke("check", "clumsy.py", "--set", "start=0.25")
    assert result.exit_code == 0, result.output
    assert "attack clumsy[start=0.25]" in result.output


def test_a_file_of_the_project_is_checked_under_its_own_name(invoke):
    result = invoke("check", ROOT / "attacks" / "none.py", ROOT / "attacks" / "random_key.py")
    assert result.exit_code == 0, result.output
    assert "attack none (" in result.output
    assert "draws-enough" in result.output


BAD = [
    (["check", "uchidda"], "Did you mean 'uchida'"),
    (["check", "nowhere.py"], "does not exist"),
    (["check", "./"], "is a folder"),
    (["check", "empty.py"], "found none"),
    (["check", "clumsy.py", "--set", "start"], "expected key=value"),
    (["check", "clumsy.py", "--set", "start=]"], "expected a TOML value"),
    (["check", "clumsy.py", "--set", "strat=1"], "Did you mean 'start'"),
    (["check", "clumsy.py", "--set", "start=true"], "expected float"),
    (["new", "defense", "My Mark"], "did you mean 'my-mark'"),
    (["new", "defense", "uchida"], "defenses.uchida:Uchida"),
    (["new", "attack", "clumsy"], "clumsy.py exists and is left as it is"),
    (["new", "attack", "ready"], "ready.toml exists and is left as it is"),
    (["new", "attack", "fresh", "--to", "nowhere"], "expected a folder"),
]


@pytest.mark.parametrize(("arguments", "word"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_ends_with_two_and_one_line(invoke, arguments, word):
    Path("clumsy.py").write_text(CLUMSY)
    Path("empty.py").write_text("")
    Path("ready.toml").write_text("")
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert Path("clumsy.py").read_text() == CLUMSY
    assert sorted(path.name for path in Path().iterdir()) == ["clumsy.py", "empty.py", "ready.toml"]


def test_a_file_that_does_not_import_is_told_with_the_end_of_its_traceback(invoke):
    Path("torn.py").write_text("import math\n\nmath.no_such_thing\n")
    result = invoke("check", "torn.py")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert "torn.py cannot be used: AttributeError" in lines[0]
    assert any("line 3" in line for line in lines)
    assert 3 <= len(lines) <= 10


def test_new_writes_into_the_project_where_that_is_the_current_folder(monkeypatch):
    written = []
    monkeypatch.chdir(ROOT)

    def keep(path, *arguments, **options):
        written.append(str(path))
        return io.StringIO()

    monkeypatch.setattr(new, "open", keep, raising=False)
    for role in ("defense", "attack"):
        told = CliRunner().invoke(main, ["new", role, "some-idea"])
        assert told.exit_code == 0, told.output
        assert "OWNBENCH_PLUGINS" not in told.output
    assert written == ["defenses/some_idea.py", "some-idea.toml", "attacks/some_idea.py", "some-idea.toml"]


def test_what_is_shipped_needs_no_test_library():
    code = (
        "import sys, bench.commands.check, bench.commands.new, bench.contract.attacks; "
        "assert not {'pytest', 'hypothesis', 'psutil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
