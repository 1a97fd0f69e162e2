"""Plugins of other packages, installed for real: found by entry points; a broken one disturbs nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_end_to_end import rows, suite_text

from bench import contract, registry
from bench.commands import new

ROOT = Path(__file__).parent.parent
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "1.0"
[project.entry-points."ownbench.defenses"]
{defenses}
[project.entry-points."ownbench.attacks"]
{attacks}
[tool.setuptools]
packages = ["{package}"]
"""


def install(name, files, target, defenses="", attacks=""):
    """Build and install a package into a folder of its own; nothing is downloaded."""
    source = target.parent / f"source-{name}"
    package = name.replace("-", "_")
    (source / package).mkdir(parents=True)
    (source / "pyproject.toml").write_text(
        PROJECT.format(name=name, package=package, defenses=defenses, attacks=attacks)
    )
    for file, text in {"__init__.py": "", **files}.items():
        (source / package / file).write_text(text)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with two installed packages; the import of the second one raises."""
    target = tmp_path_factory.mktemp("packages") / "site"
    install(
        "ownbench-example",
        {"marks.py": new.skeleton("defense", "example-mark"), "noise.py": new.skeleton("attack", "example-noise")},
        target,
        'example-mark = "ownbench_example.marks:ExampleMark"',
        'example-noise = "ownbench_example.noise:ExampleNoise"',
    )
    install(
        "ownbench-torn",
        {"marks.py": "raise OSError('the licence server does not answer')\n"},
        target,
        'torn-mark = "ownbench_torn.marks:TornMark"',
        'torn-noise = "ownbench_torn.marks:TornNoise"',
    )
    return target


@pytest.fixture
def ownbench(site, tmp_path):
    def run(*arguments):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
        command = [sys.executable, "-m", "bench", *map(str, arguments)]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)

    return run


def test_they_are_listed_and_the_broken_one_as_not_usable(ownbench):
    told = ownbench("list").stdout
    assert "example-mark" in told.split("attacks:")[0]
    assert "example-noise" in told.split("attacks:")[1].split("not usable:")[0]
    broken = told.split("not usable:")[1].split("tasks:")[0]
    for name in ("torn-mark", "torn-noise"):
        assert name in broken
    assert "OSError: the licence server does not answer" in broken
    assert "ownbench_torn.marks:TornMark (entry point)" in broken


def test_they_run_in_a_suite_and_the_broken_one_becomes_failed_rows(ownbench, tmp_path):
    scratch = 'name = "scratch"\nepochs = 1'
    marks = ['name = "example-mark"', 'name = "torn-mark"']
    noise = ['name = "example-noise"\nlevels = [0.1]', 'name = "torn-noise"', scratch]
    (tmp_path / "all.toml").write_text(suite_text(marks, noise, epochs=1))
    done = ownbench("run", "all.toml", "--out", "pool", "--workers", 1, "--device", "cpu")
    assert done.returncode == 1, done.stdout + done.stderr
    frame = rows(tmp_path / "pool")
    torn = (frame.defense == "torn-mark") | (frame.attack == "torn-noise")
    assert torn.sum() >= 4
    assert set(frame[torn].status) == {"failed"}
    assert set(frame[torn].error_type) == {"OSError"}
    assert frame[torn].error.str.contains("licence server").all()
    assert (frame[~torn].status == "ok").all()
    own = frame[~torn & (frame.defense == "example-mark") & (frame.attack_kind == "none")]
    assert own.claim.all() and len(own) == 1
    assert "failed: torn-mark" in done.stdout


def test_they_are_checked_and_the_broken_one_says_why_not(ownbench, site, monkeypatch):
    done = ownbench("check", "torn-mark")
    assert done.returncode == 2
    assert "ownbench_torn.marks:TornMark (entry point) cannot be used: OSError" in done.stderr
    assert "marks.py" in done.stderr
    done = ownbench("check", "example-noise")
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(site)
    registry.discover.cache_clear()
    try:
        plugin = registry.discover().defense["example-mark"]()
        rule = next(rule for rule in contract.rules_for(plugin) if rule.id == "a-spy-finds-no-key")
        with contract.Workshop(epochs=1) as workshop:
            verdict = contract.judge(rule, plugin, workshop)
    finally:
        registry.discover.cache_clear()
    assert verdict.status == "ok", verdict.detail
