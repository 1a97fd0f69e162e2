"""Records: the schema, what each column says, failures as rows, and files that appear whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.errors import InputError
from bench.planning.job import Input
from bench.tables import records, schema
from bench.tables.leaderboard import boards
from tests.synthetic import Suite, evidence_of, listed, replaced, spelled

SCHEMA_5 = """
run_id string, job_id string, parent_id string, suite string, task string, dataset string, model string,
seed int64, defense string, defense_params string, attack string, attack_params string, attack_kind string,
attack_class string, knowledge string, judged_key string, time_model string, derived bool, strength double,
strength_unit string,
accuracy_clean double, accuracy_protected double, accuracy_reference double, accuracy double,
statistic double, log10_p double, claim bool, figures map<string,double>, texts map<string,string>, data_inputs int64,
data_labels int64, data_digest string, queries int64, seconds_protect double, seconds double,
seconds_verify double, capacity_log10_p double, defense_family string, defense_access string,
attack_family string, attack_access string, peak_memory_mb double, device string, threads int64,
versions map<string,string>, source_digest string, status string, error_type string, error string,
traceback string, created_at timestamp[us,tz=UTC]
"""
DECOYS_5 = """
run_id string, job_id string, task string, defense string, defense_params string, seed int64, decoy int64,
statistic double, log10_p double
"""


def rows(suite: Suite) -> list[dict[str, Any]]:
    return suite.records.to_pylist()


def test_the_schema_of_version_5_is_as_published() -> None:
    assert schema.VERSION == 5
    assert spelled(schema.RECORDS) == listed(SCHEMA_5)
    assert spelled(schema.DECOYS) == listed(DECOYS_5)


def test_a_row_per_surrogate_with_its_own_numbers() -> None:
    suite = Suite()
    cell = suite.cell(
        attack_params={"b": 1, "a": [2]}, log10_p=[-20.0, -6.0, -5.9], accuracy=[0.97, 0.96, 0.9], seconds=9.0
    )
    found = rows(suite)
    assert [row["strength"] for row in found] == [1.0, 2.0, 3.0]
    assert [row["seconds"] for row in found] == [3.0, 6.0, 9.0]
    assert [row["accuracy"] for row in found] == [0.97, 0.96, 0.9]
    assert [row["claim"] for row in found] == [True, True, False]
    one = found[0]
    assert one["attack_params"] == '{"a":[2],"b":1}'
    assert (one["job_id"], one["parent_id"]) == (cell.jobs["judge"], cell.jobs["attack"])
    assert (one["accuracy_clean"], one["accuracy_protected"], one["accuracy_reference"]) == (0.98, 0.97, 0.97)
    assert (one["data_inputs"], one["data_labels"], one["queries"]) == (300, 100, 0)
    assert (one["seconds_protect"], one["seconds_verify"], one["peak_memory_mb"]) == (4.0, 0.5, 100.0)
    assert (one["data_digest"], one["device"], one["threads"]) == ("d1", "cpu", 1)
    assert dict(one["versions"]) == {"python": "3.11", "torch": "2.13"}
    assert (one["status"], one["source_digest"]) == ("ok", "source of judge")
    assert one["created_at"].isoformat() == suite.entries[cell.jobs["judge"]]["created_at"]


def test_where_the_task_changes_each_surrogate_has_its_own_reference() -> None:
    suite = Suite()
    suite.cell(log10_p=[-20.0, -1.0], accuracy=[0.8, 0.7], reference=[0.85, 0.75])
    assert [row["accuracy_reference"] for row in rows(suite)] == [0.85, 0.75]
    assert {row["accuracy_protected"] for row in rows(suite)} == {0.97}


def test_where_the_task_changes_and_the_reference_failed_there_is_none() -> None:
    suite = Suite()
    cell = suite.cell(reference=[0.85], accuracy=0.8)
    suite.fail(cell.jobs["reference"])
    (row,) = rows(suite)
    assert (row["accuracy_reference"], row["accuracy_protected"]) == (None, 0.97)
    assert row["error"].startswith("measure reference wear mark 0 toy: ")


def test_control_rows_compare_with_the_clean_model() -> None:
    suite = Suite()
    suite.base()
    suite.cell(kind="control", log10_p=-0.3, accuracy=0.96)
    control = rows(suite)[1]
    assert (control["attack_kind"], control["accuracy_protected"], control["accuracy_reference"]) == (
        "control",
        0.98,
        0.98,
    )


def test_an_unreadable_suspect_is_a_good_row_with_the_reason() -> None:
    suite = Suite()
    suite.cell(log10_p=0.0, reason="no layer conv6")
    (row,) = rows(suite)
    assert (row["status"], row["claim"], row["error_type"], row["error"]) == (
        "ok",
        False,
        "unreadable",
        "no layer conv6",
    )


def test_a_forgery_is_one_row_without_strength_and_keeps_both_sets_of_figures() -> None:
    suite = Suite()
    suite.cell(kind="ambiguity", log10_p=-7.0, figures={"bit_error": 0.1}, seconds=12.0)
    (row,) = rows(suite)
    assert row["strength"] is None
    assert (row["judged_key"], row["claim"], row["seconds"]) == ("forger", True, 12.0)
    assert dict(row["figures"]) == {"bit_error": 0.1, "forge.tries": 2.0}


def test_what_a_surrogate_takes_stands_beside_its_evidence_with_the_ratio_to_the_protected_model() -> None:
    suite = Suite()
    before = {"weights": 1000.0, "stored_bits": 32000.0, "stored_bits_indexed": 32000.0}
    pruned = {"weights": 1000.0, "stored_bits": 3200.0, "stored_bits_indexed": 6400.0}
    # A narrower net has fewer weights of its own; the ratio is to those of the protected one.
    narrow = {"weights": 500.0, "stored_bits": 16000.0, "stored_bits_indexed": 16000.0}
    empty = {"weights": 1000.0, "stored_bits": 0.0, "stored_bits_indexed": 0.0}
    suite.cell(log10_p=[-20.0] * 3, figures={"bit_error": 0.1}, taken=[pruned, narrow, empty], taken_before=before)
    found = [dict(row["figures"]) for row in rows(suite)]
    assert found[0] == {"bit_error": 0.1, **pruned, "compression": 10.0, "compression_indexed": 5.0}
    assert found[1] == {"bit_error": 0.1, **narrow, "compression": 2.0, "compression_indexed": 2.0}
    # Nothing that is left has no ratio.
    assert found[2] == {"bit_error": 0.1, **empty}


def test_figures_of_another_number_of_surrogates_are_a_failed_row() -> None:
    suite = Suite()
    suite.cell(log10_p=[-20.0] * 2, taken=[{"weights": 1.0}])
    (row,) = rows(suite)
    assert (row["status"], row["error_type"]) == ("failed", "MalformedResult")
    assert "1 figures" in row["error"]


def test_decoys_are_one_row_of_the_best_and_a_table_of_all() -> None:
    suite = Suite()
    drawn = [-0.5, -1.0, -2.5, -4.0]
    cell = suite.cell(kind="ambiguity", attack="guess", decoys=drawn, defense_params={"bits": 8}, seed=3)
    table, decoys = records.build(suite.plan, suite.entries)
    (row,) = table.to_pylist()
    assert (row["statistic"], row["log10_p"], row["claim"]) == (4.0, -4.0, False)
    shares = {"decoys": 4.0, "share_1e-1": 0.75, "share_1e-2": 0.5, "share_1e-3": 0.25, "share_1e-4": 0.25}
    assert dict(row["figures"]) == shares
    assert (row["accuracy"], row["job_id"]) == (0.97, cell.jobs["decoys"])
    assert decoys["log10_p"].to_pylist() == drawn
    assert decoys["decoy"].to_pylist() == [0, 1, 2, 3]
    assert set(decoys["defense_params"].to_pylist()) == {'{"bits":8}'}
    assert set(decoys["seed"].to_pylist()) == {3}


def test_a_failed_attack_is_one_row_with_its_error() -> None:
    suite = Suite()
    cell = suite.cell(log10_p=[-20.0, -1.0])
    suite.fail(cell.jobs["attack"], "out of range", "IndexError")
    (row,) = rows(suite)
    assert (row["status"], row["error_type"], row["error"]) == ("failed", "IndexError", "out of range")
    assert row["traceback"] == "Traceback: out of range"
    assert (row["accuracy"], row["claim"], row["accuracy_protected"]) == (None, None, 0.97)
    assert row["job_id"] == cell.jobs["judge"]


def test_a_failure_further_up_names_its_job() -> None:
    suite = Suite()
    cell = suite.cell()
    suite.fail(cell.jobs["protect"])
    (row,) = rows(suite)
    assert (row["error_type"], row["error"]) == ("ValueError", "protect mark 0 toy: boom")


def test_a_failed_stage_behind_the_jobs_of_a_cell_is_the_one_named() -> None:
    suite = Suite()
    stage = suite.job("stage", "stage clean-model 0")
    cell = suite.cell()
    suite.jobs[cell.jobs["protect"]].inputs["clean"] = Input(stage, "public")
    suite.fail(stage, "no data")
    for job in cell.jobs.values():
        suite.entries.pop(job, None)
    (row,) = rows(suite)
    assert row["error"] == "stage clean-model 0: no data"


def test_an_interrupted_run_has_rows_for_what_it_did_not_reach() -> None:
    suite = Suite()
    cell = suite.cell()
    del suite.entries[cell.jobs["judge"]]
    (row,) = rows(suite)
    assert (row["status"], row["error_type"], row["run_id"]) == ("failed", "NotRun", None)


def test_a_cell_that_cannot_be_run_is_a_row_with_the_reason() -> None:
    suite = Suite()
    suite.cell(status="not applicable")
    (row,) = rows(suite)
    assert (row["status"], row["error"], row["job_id"]) == ("not applicable", "no such layer", None)


def test_results_of_unequal_length_are_a_failure_not_a_guess() -> None:
    suite = Suite()
    cell = suite.cell(log10_p=[-20.0, -1.0])
    suite.entries[cell.jobs["judge"]]["result"]["evidence"] = [evidence_of(-20.0)]
    (row,) = rows(suite)
    assert (row["status"], row["error_type"]) == ("failed", "MalformedResult")
    assert "2 strengths" in row["error"] and "1 evidence" in row["error"]


def test_an_attack_that_yields_nothing_is_a_failure() -> None:
    suite = Suite()
    cell = suite.cell()
    for role, empty in (
        ("attack", "strengths"),
        ("attack", "seconds"),
        ("judge", "evidence"),
        ("measure", "accuracy"),
    ):
        suite.entries[cell.jobs[role]]["result"][empty] = []
    assert [row["status"] for row in rows(suite)] == ["failed"]


def test_shared_stages_count_towards_the_seconds_of_those_who_need_them() -> None:
    suite = Suite()
    cell = suite.cell(seconds=10.0, seconds_protect=1.0)
    clean = suite.job("stage", "stage clean-model 0", seconds=5.0)
    suite.jobs[cell.jobs["protect"]].inputs["clean"] = Input(clean, "public")
    (row,) = rows(suite)
    assert (row["seconds_protect"], row["seconds"]) == (6.0, 10.0)


def test_rows_are_in_the_order_of_the_plan_and_building_twice_is_the_same() -> None:
    suite = Suite()
    for name in ("zeta", "alpha", "mid"):
        suite.cell(attack=name, log10_p=[-20.0, -1.0])
    first, again = suite.records, suite.records
    assert first.equals(again, check_metadata=True)
    assert first["attack"].to_pylist() == ["zeta", "zeta", "alpha", "alpha", "mid", "mid"]


def test_infinite_evidence_survives(tmp_path: Path) -> None:
    suite = Suite()
    suite.cell(log10_p=-math.inf, capacity=-math.inf)
    records.write(suite.records, tmp_path / "r.parquet")
    (row,) = records.read(tmp_path / "r.parquet").to_pylist()
    assert (row["log10_p"], row["capacity_log10_p"], row["claim"]) == (-math.inf, -math.inf, True)


def test_a_file_comes_back_equal_with_its_metadata(tmp_path: Path) -> None:
    suite = Suite()
    suite.base()
    suite.cell(kind="ambiguity", decoys=[-0.1, -0.2])
    suite.cell(status="not applicable")
    for kind, table in zip(("records", "decoys"), records.build(suite.plan, suite.entries), strict=True):
        records.write(table, tmp_path / f"{kind}.parquet")
        assert records.read(tmp_path / f"{kind}.parquet", kind).equals(table)
        meta = records.metadata(records.read(tmp_path / f"{kind}.parquet", kind))
        assert (meta["schema_version"], meta["suite"], meta["alpha"]) == (str(schema.VERSION), "made-up", "1e-06")
        assert (meta["accuracy_budget"], meta["run_id"]) == ("5.0", "run1")
        assert meta["created_at"].startswith("2030-01-01T00:00:")


def test_writing_replaces_and_leaves_nothing_aside(tmp_path: Path) -> None:
    suite = Suite()
    suite.base()
    path = tmp_path / "records.parquet"
    path.write_bytes(b"old")
    records.write(suite.records, path)
    assert [file.name for file in tmp_path.iterdir()] == ["records.parquet"]
    assert records.read(path).num_rows == 1


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite()
    suite.base()
    path = tmp_path / "records.parquet"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="no space left"):
        records.write(suite.records, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["records.parquet"]


# Columns that came after version 1.
LATER = ["texts", "time_model", "derived"]


def with_version(table: pa.Table, version: str) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"ownbench.schema_version": version.encode()})


@pytest.mark.parametrize(("version", "found"), [("99", "found version 99"), ("0", "found version 0")])
def test_another_schema_version_is_refused(tmp_path: Path, version: str, found: str) -> None:
    suite = Suite()
    suite.base()
    pq.write_table(with_version(suite.records, version), tmp_path / "r.parquet")
    with pytest.raises(InputError, match=f"expected schema version 5, {found}"):
        records.read(tmp_path / "r.parquet")


def test_an_older_version_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite()
    suite.base()
    renamed = suite.records.drop_columns(LATER).rename_columns({"knowledge": "knows"})
    old = with_version(renamed.replace_schema_metadata(suite.records.schema.metadata), "0")
    pq.write_table(old, tmp_path / "r.parquet")
    monkeypatch.setitem(records.MIGRATIONS, 0, lambda table: table.rename_columns({"knows": "knowledge"}))
    found = records.read(tmp_path / "r.parquet")
    assert found.drop_columns(LATER).equals(suite.records.drop_columns(LATER))


def test_records_of_version_1_are_read_without_texts(tmp_path: Path) -> None:
    suite = Suite()
    suite.base()
    old = with_version(suite.records.drop_columns(LATER), "1")
    records.write(old, tmp_path / "r.parquet")
    found = records.read(tmp_path / "r.parquet")
    assert found.schema.equals(suite.records.schema, check_metadata=True)
    assert [found[name].null_count for name in LATER] == [found.num_rows] * 3
    assert found.drop_columns(LATER).equals(suite.records.drop_columns(LATER))
    _, decoys = records.build(suite.plan, suite.entries)
    records.write(with_version(decoys, "1"), tmp_path / "d.parquet")
    assert records.read(tmp_path / "d.parquet", "decoys").equals(decoys)


def test_texts_stand_beside_figures() -> None:
    suite = Suite()
    cell = suite.cell(log10_p=[-3.0, -2.0], accuracy=[0.9, 0.8])
    evidence = suite.entries[cell.jobs["judge"]]["result"]["evidence"]
    evidence[1]["texts"] = {"decoded": "signature", "a": "sigiature"}
    assert [row["texts"] for row in rows(suite)] == [[], [("a", "sigiature"), ("decoded", "signature")]]


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        records.read(tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        records.read(tmp_path / "torn.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="found none"):
        records.read(tmp_path / "other.parquet")
    suite = Suite()
    suite.base()
    records.write(suite.records, tmp_path / "r.parquet")
    with pytest.raises(InputError, match="missing defense_label"):
        records.read(tmp_path / "r.parquet", "leaderboard")


def test_a_cell_may_judge_the_protected_model_without_an_attack_job() -> None:
    suite = Suite()
    cell = suite.base()
    jobs = {role: job for role, job in cell.jobs.items() if role not in ("attack", "measure")}
    replaced(suite, cell, jobs=jobs)
    (row,) = rows(suite)
    assert (row["status"], row["strength"], row["accuracy"], row["parent_id"]) == (
        "ok",
        None,
        0.97,
        jobs["protect"],
    )


def test_a_matrix_of_version_4_is_read_without_compression(tmp_path: Path) -> None:
    suite = Suite()
    suite.base()
    whole = boards(suite.records).matrix
    names = ["compression", "compression_indexed"]
    records.write(with_version(whole.drop_columns(names), "4"), tmp_path / "m.parquet")
    found = records.read(tmp_path / "m.parquet", "matrix")
    assert found.schema.equals(whole.schema, check_metadata=True)
    assert [found[name].null_count for name in names] == [found.num_rows] * 2
    assert found.drop_columns(names).equals(whole.drop_columns(names))
