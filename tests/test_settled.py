"""A whole run is told by its files; whatever changes, the next run plans again."""

import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import registry
from bench.commands.cli import main
from bench.planning.options import Options
from bench.storage import settled

SUITE = """
    name = "tiny"
    keep = "all"
    [[tasks]]
    dataset = "digits"
    recipe = { epochs = 1 }
    [[defenses]]
    name = "trigger-set"
    images = "IMAGES"
    triggers = 4
    per_batch = 2
    [[attacks]]
    name = "none"
    [[attacks]]
    name = "scratch"
    epochs = 1
"""
SAME = "nothing has changed since"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a suite, trigger images, plugins, and the run of that suite."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("settled")
    (folder / "images").mkdir()
    for number in range(4):
        Image.new("L", (8, 8), 40 * number).save(folder / "images" / f"{number}.png")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "extra.py").write_text("'''Nothing.'''\n")
    (folder / "tiny.toml").write_text(textwrap.dedent(SUITE).replace("IMAGES", str(folder / "images")))
    return folder


@pytest.fixture
def go(place, tmp_path, monkeypatch):
    """The command on a copy of the run; says what it printed."""
    monkeypatch.setenv("OWNBENCH_PLUGINS", str(place / "plugins"))
    registry.discover.cache_clear()

    def execute(*more, out=None):
        command = ["run", str(place / "tiny.toml"), "--out", str(out or place / "out"), "--local", "--device", "cpu"]
        result = CliRunner().invoke(main, [*command, *more])
        assert result.exit_code == 0, result.output
        return result.output

    if not (place / "out").exists():
        assert "0 finished before" in execute()
    yield execute
    registry.discover.cache_clear()


def test_a_whole_run_is_told_and_printed_without_planning(go, place, monkeypatch):
    settled.forget(place / "out")
    planned = go()
    monkeypatch.setitem(sys.modules, "bench.planning.cells", None)
    monkeypatch.setitem(sys.modules, "bench.commands.run", None)
    told = go("--workers", "7")
    assert SAME in told and SAME not in planned
    end = planned.index("0 jobs run, ")
    assert told.startswith(planned[:end])
    assert told[end:].split(";")[0] == planned[end:].split(";")[0]
    assert told.splitlines()[-1] == planned.splitlines()[-1]


def touch(path):
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


CHANGES = {
    "a plugin": lambda place: (place / "plugins" / "extra.py").write_text("'''Something.'''\n"),
    "a new plugin": lambda place: (place / "plugins" / "more.py").write_text("'''More.'''\n"),
    "the suite": lambda place: (place / "tiny.toml").write_text((place / "tiny.toml").read_text() + "# more\n"),
    "trigger images": lambda place: touch(place / "images" / "0.png"),
    "the journal": lambda place: touch(place / "out" / "journal.jsonl"),
    "a table": lambda place: touch(place / "out" / "leaderboard.parquet"),
    "a table that is gone": lambda place: (place / "out" / "matrix.parquet").unlink(),
    "a product": lambda place: touch(next((place / "out" / "artifacts").iterdir())),
    "the mark itself": lambda place: (place / "out" / settled.NAME).write_text("{}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_is_planned(go, place, what):
    go()
    assert SAME in go()
    CHANGES[what](place)
    assert SAME not in go()
    assert SAME in go()


@pytest.mark.parametrize("more", [("--seed", "0"), ("--only", "attack=scratch"), ("--fresh",)])
def test_other_options_are_planned(go, place, more):
    go()
    assert SAME not in go(*more)
    go()


def test_a_copy_of_the_folder_is_planned_once(go, place, tmp_path):
    go()
    shutil.copytree(place / "out", tmp_path / "copy")
    assert SAME not in go(out=tmp_path / "copy")
    assert SAME in go(out=tmp_path / "copy")


def test_an_edit_of_a_source_changes_the_inputs(tmp_path, monkeypatch):
    options = Options("digits")
    before = settled.inputs(options)
    assert settled.inputs(options) == before
    found = list(settled._sources())
    assert {Path(settled.__file__), *Path(settled.__file__).parent.parent.parent.glob("attacks/*.py")} <= set(found)
    extra = tmp_path / "extra.py"
    extra.write_text("x = 1\n")
    monkeypatch.setattr(settled, "_sources", lambda: iter([*found, extra]))
    assert settled.inputs(options) != before
    middle = settled.inputs(options)
    extra.write_text("x = 2\n")
    assert settled.inputs(options) != middle


def test_a_run_with_a_failed_cell_is_never_whole(place, tmp_path, monkeypatch):
    monkeypatch.setenv("OWNBENCH_PLUGINS", str(Path(__file__).parent / "plugins"))
    registry.discover.cache_clear()
    text = (place / "tiny.toml").read_text() + '[[attacks]]\nname = "raises"\n'
    (tmp_path / "bad.toml").write_text(text)
    command = ["run", str(tmp_path / "bad.toml"), "--out", str(tmp_path / "out"), "--local", "--device", "cpu"]
    for _ in range(2):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1, result.output
        assert not (tmp_path / "out" / settled.NAME).exists()
    registry.discover.cache_clear()


def test_no_worker_starts_where_nothing_is_to_be_done(go, place, monkeypatch):
    go()
    settled.forget(place / "out")
    monkeypatch.setattr("bench.commands.run._executor", lambda *args: pytest.fail("a worker was wanted"))
    assert "0 jobs run" in go()


def test_what_is_watched_is_seen_through_links(tmp_path):
    """A data folder that is a link, one with a link inside, and links that lead nowhere."""
    first, second, apart = (tmp_path / name for name in ("v1", "v2", "apart"))
    for folder in (first, second, apart):
        folder.mkdir()
        (folder / "x.png").write_bytes(b"same")
    (first / "train").symlink_to(apart)
    (first / "gone").symlink_to(tmp_path / "nowhere")
    (first / "round").symlink_to(first)
    latest = tmp_path / "latest"
    latest.symlink_to(first)
    before = settled.watched([latest])
    assert settled.watched([latest]) == before
    (apart / "y.png").write_bytes(b"new")
    changed = settled.watched([latest])
    assert changed != before
    latest.unlink()
    latest.symlink_to(second)
    assert settled.watched([latest]) not in (before, changed)


def test_another_working_directory_is_another_run(tmp_path, monkeypatch):
    before = settled.inputs(Options("digits"))
    monkeypatch.chdir(tmp_path)
    assert settled.inputs(Options("digits")) != before


def test_what_editors_leave_beside_plugins_disturbs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("OWNBENCH_PLUGINS", str(tmp_path))
    (tmp_path / ".#mark.py").symlink_to("user@host.1234")
    assert not [file for file in settled._sources() if file.name.startswith(".")]
    settled.inputs(Options("digits"))
