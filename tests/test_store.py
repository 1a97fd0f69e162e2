"""The run folder under bad luck: kills, corruption, other versions, a second writer."""

import json
import os

import pytest

from bench.errors import InputError
from bench.planning.job import Outcome
from bench.storage.store import RunFolder, write_whole


@pytest.fixture
def folder(tmp_path):
    with RunFolder.open_for_writing(tmp_path / "run") as opened:
        yield opened


def add(folder, job_id, status="ok", result=None, artifacts=None):
    outcome = Outcome("ok", result or {}) if status == "ok" else Outcome.failure("E", "message")
    folder.append(folder.entry_of(job_id, "attack", f"label {job_id}", outcome, artifacts or {}))


def again(folder):
    return RunFolder.open_for_reading(folder.path)


def test_entries_come_back_with_the_run_id(folder):
    add(folder, "a", result={"x": [1.5, 2]})
    assert again(folder).entries == folder.entries
    assert again(folder).entries["a"]["result"] == {"x": [1.5, 2]}
    assert again(folder).run_id == folder.run_id


def test_a_success_stands_and_a_failure_gives_way(folder):
    add(folder, "a", "failed")
    assert not folder.succeeded("a")
    add(folder, "a", result={"n": 1})
    add(folder, "a", "failed")
    assert again(folder).entries["a"]["result"] == {"n": 1}
    add(folder, "a", result={"n": 2})
    assert again(folder).entries["a"]["result"] == {"n": 2}


@pytest.mark.parametrize("cut", [2, 20, 200])
def test_a_torn_last_line_is_skipped_counted_and_not_continued(folder, cut):
    add(folder, "a")
    add(folder, "b")
    journal = folder.path / "journal.jsonl"
    os.truncate(journal, journal.stat().st_size - cut)
    torn = again(folder)
    assert set(torn.entries) == {"a"}
    assert torn.torn == 1
    add(torn, "c")
    assert set(again(folder).entries) == {"a", "c"}


def test_a_line_that_was_changed_is_skipped(folder):
    add(folder, "a", result={"n": 1234})
    journal = folder.path / "journal.jsonl"
    journal.write_text(journal.read_text().replace("1234", "4321"))
    assert again(folder).entries == {}
    assert again(folder).torn == 1


def test_products_are_checked_against_the_journal(folder):
    digest = folder.save("a", "public", b"content")
    assert folder.load("a", "public") is None
    add(folder, "a", artifacts={"public": digest})
    assert folder.load("a", "public") == b"content"
    assert folder.corrupted("a") == []
    folder.artifact("a", "public").write_bytes(b"cantent")
    assert folder.load("a", "public") is None
    assert folder.corrupted("a") == ["public"]
    folder.drop("a", "public")
    assert folder.load("a", "public") is None
    assert folder.corrupted("a") == []


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"first")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_without_its_end_is_whole_and_the_next_one_starts_anew(folder):
    add(folder, "a")
    journal = folder.path / "journal.jsonl"
    os.truncate(journal, journal.stat().st_size - 1)
    opened = again(folder)
    add(opened, "b")
    assert set(again(folder).entries) == {"a", "b"}
    assert again(folder).torn == 0


def test_a_folder_of_another_version_is_refused(tmp_path):
    with RunFolder.open_for_writing(tmp_path / "run") as folder:
        pass
    head = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps({**head, "schema_version": 99}))
    for opening in (RunFolder.open_for_reading, lambda p: RunFolder.open_for_writing(p).__enter__()):
        with pytest.raises(InputError, match=r"version 1, got 99"):
            opening(folder.path)


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"run\.json"):
        RunFolder.open_for_reading(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run\.json"):
        RunFolder.open_for_reading(tmp_path)


def test_a_second_writer_is_refused(folder):
    with pytest.raises(InputError, match="another run is writing"), RunFolder.open_for_writing(folder.path):
        pass


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="expected a folder that can be written"),
        RunFolder.open_for_writing(tmp_path / "file" / "run"),
    ):
        pass


def test_fresh_sets_the_old_folder_aside(tmp_path):
    with RunFolder.open_for_writing(tmp_path / "run") as first:
        add(first, "a")
    with RunFolder.open_for_writing(tmp_path / "run", fresh=True) as second:
        assert second.entries == {}
        assert second.run_id != first.run_id
    (aside,) = [path for path in tmp_path.iterdir() if path.name != "run"]
    assert set(RunFolder.open_for_reading(aside).entries) == {"a"}


def test_fresh_touches_neither_a_run_in_progress_nor_a_folder_of_other_things(folder, tmp_path):
    with (
        pytest.raises(InputError, match="another run is writing"),
        RunFolder.open_for_writing(folder.path, fresh=True),
    ):
        pass
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="other things"), RunFolder.open_for_writing(other, fresh=True):
        pass
    assert (other / "thesis.tex").exists()
