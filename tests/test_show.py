"""One record's provenance: its chain, its rows, its error, and the command that makes it again."""

from __future__ import annotations

import dataclasses

import pytest

from bench.errors import InputError
from bench.planning.job import Cell, Input
from bench.text.show import describe
from tests.synthetic import LOST, Suite


def made() -> tuple[Suite, Cell]:
    suite = Suite()
    stage = suite.job("stage", "stage clean-model 0", seconds=7.0)
    suite.base(defense_params={"bits": 8})
    cell = suite.cell(
        log10_p=[-20.0, LOST], accuracy=[0.97, 0.9], defense_params={"bits": 8}, figures={"bit_error": 0.25}
    )
    suite.jobs[cell.jobs["protect"]].inputs["clean"] = Input(stage, "secret")
    suite.base("other", seed=1)
    return suite, cell


def told(suite: Suite, prefix: str) -> str:
    return describe(suite.plan, suite.entries, suite.records, prefix)


def test_a_record_is_shown_with_all_that_it_rests_on() -> None:
    suite, cell = made()
    text = told(suite, cell.jobs["judge"])
    assert 'mark[bits=8] {"bits":8}' in text
    assert "Row 1 of 2" in text and "Row 2 of 2" in text
    assert "figure bit_error" in text
    assert "removal" in text and "(data toy-set, model net)" in text
    assert all(f"\n{job}  " in text for job in cell.jobs.values())
    assert text.index("stage clean-model 0") < text.index("\n" + cell.jobs["protect"] + "  ")
    assert text.index("\n" + cell.jobs["attack"] + "  ") < text.index("\n" + cell.jobs["judge"] + "  ")
    assert "python 3.11, torch 2.13" in text and "source of judge" in text and "(secret)" in text
    assert "other" not in text


def test_what_was_read_is_shown_quoted() -> None:
    suite, cell = made()
    suite.entries[cell.jobs["judge"]]["result"]["evidence"][1]["texts"] = {"decoded": "two\nlines"}
    text = told(suite, cell.jobs["judge"])
    (line,) = (line for line in text.splitlines() if "text decoded" in line)
    assert line.split() == ["text", "decoded", "'two\\nlines'"]
    assert text.index("Row 2 of 2") < text.index(line)


def test_it_ends_with_the_command_for_just_this_record() -> None:
    suite, cell = made()
    last = told(suite, cell.jobs["judge"]).splitlines()[-1]
    name = cell.jobs["judge"][:8]
    assert last == (
        "  ownbench run suites/made-up.toml --only 'defense=mark[bits=8]' --only attack=wear --seed 0 "
        f"--out again-{name}"
    )


def test_the_command_names_the_task_where_the_suite_has_several() -> None:
    suite, cell = made()
    suite.cells.append(dataclasses.replace(cell, task="toy-set/other", model="other", jobs={}))
    last = told(suite, cell.jobs["judge"]).splitlines()[-1]
    assert last.startswith(f"  ownbench run suites/made-up.toml --only task={cell.task} --only 'defense=mark[bits=8]'")


def test_a_job_of_one_cell_names_that_cell() -> None:
    suite, cell = made()
    assert "Row 1 of 2" in told(suite, cell.jobs["attack"])
    assert "Row 1 of 2" in told(suite, cell.jobs["measure"])


@pytest.mark.parametrize("shared", ["protect", "stage"])
def test_a_job_of_many_cells_lists_their_records(shared: str) -> None:
    suite, cell = made()
    job = cell.jobs["protect"] if shared == "protect" else next(iter(suite.jobs))
    text = told(suite, job)
    assert "2 records rest on it" in text
    assert cell.jobs["judge"] in text and "x still" in text and "Row 1" not in text
    assert text.splitlines()[-1].startswith("  ownbench run suites/made-up.toml --only 'defense=mark[bits=8]' --seed 0")


def test_a_failure_shows_its_error_and_traceback() -> None:
    suite, cell = made()
    suite.fail(cell.jobs["attack"], "out of range", "IndexError")
    text = told(suite, cell.jobs["judge"])
    assert "IndexError: out of range" in text
    assert "    Traceback: out of range" in text
    assert "not run" in text


def test_a_change_of_sources_since_is_seen() -> None:
    suite, cell = made()
    assert "source that ran" not in told(suite, cell.jobs["judge"])
    suite.entries[cell.jobs["judge"]]["source_digest"] = "older"
    assert "source that ran" in told(suite, cell.jobs["judge"])


def test_a_prefix_is_enough_where_it_is_clear() -> None:
    suite, cell = made()
    assert told(suite, cell.jobs["judge"][:6]) == told(suite, cell.jobs["judge"])


def test_an_unclear_prefix_names_the_candidates() -> None:
    suite, cell = made()
    with pytest.raises(InputError, match=r"ambiguous, 16 jobs begin so: .*judge.* and 4 more"):
        told(suite, "00")
    with pytest.raises(InputError, match="ambiguous"):
        told(suite, "000")
    with pytest.raises(InputError, match="no job begins with ''"):
        told(suite, "")
    wrong = cell.jobs["judge"][:8] + "zz"
    with pytest.raises(InputError, match=f"no job begins with '{wrong}'. Nearest: {cell.jobs['judge']}"):
        told(suite, wrong)
