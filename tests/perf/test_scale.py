"""Big suites: resuming a finished run of 10,000 cells, and leaderboards from a million records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from bench.storage import settled
from bench.storage.store import RunFolder
from bench.tables import records
from tests.perf import finished

ROOT = Path(__file__).parent.parent.parent
ROWS = 1_000_000


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """That of an ordinary installation, whose modules are compiled."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled"))}


@pytest.fixture(scope="module")
def big(tmp_path_factory, environment):
    """The command that resumes the big run, its folder and its plan; it has been resumed once."""
    path, folder, plan = finished.make(tmp_path_factory.mktemp("big"))
    command = [sys.executable, "-m", "bench", "run", str(path), "--out", str(folder), "--local", "--device", "cpu"]
    text = resumed(command, environment)
    assert f"0 jobs run, {len(plan.jobs)} finished before" in text
    return command, folder, plan


def resumed(command, environment):
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(1200)
@pytest.mark.benchmark(group="resume of 10,000 cells")
def test_resume_of_a_finished_run(benchmark, big, environment):
    """The whole command in a fresh process, best of three: at most 5 s."""
    command, _, plan = big
    assert finished.counted(plan) >= 10_000
    text = benchmark.pedantic(resumed, (command, environment), rounds=3, iterations=1)
    assert "nothing has changed since" in text
    benchmark.extra_info |= {"cells": finished.counted(plan), "jobs": len(plan.jobs), "all cells": len(plan.cells)}
    assert benchmark.stats.stats.min <= 5.0


@pytest.mark.timeout(1200)
@pytest.mark.benchmark(group="resume of 10,000 cells")
def test_resume_where_everything_is_planned_and_read_again(benchmark, big, environment):
    """The same after a change that redoes nothing: imports, plan, journal and tables are all made anew."""
    command, folder, plan = big

    def changed():
        settled.forget(folder)

    text = benchmark.pedantic(resumed, (command, environment), setup=changed, rounds=3, iterations=1)
    assert f"0 jobs run, {len(plan.jobs)} finished before" in text
    with RunFolder.open_for_writing(folder) as run:
        assert run.plan() == plan


@pytest.fixture(scope="module")
def million(big, tmp_path_factory):
    """The records of the big run, again and again with other seeds."""
    _, folder, plan = big
    table = records.read(folder / "records.parquet")
    parts, rows = [], 0
    place = table.schema.get_field_index("seed")
    while rows < ROWS:
        seeds = pa.array([seed + len(parts) * len(plan.seeds) for seed in table["seed"].to_pylist()], pa.int64())
        parts.append(table.set_column(place, "seed", seeds).cast(table.schema))
        rows += table.num_rows
    path = tmp_path_factory.mktemp("million") / "records.parquet"
    records.write(pa.concat_tables(parts).slice(0, ROWS), path)
    return path


@pytest.mark.timeout(1200)
@pytest.mark.benchmark(group="leaderboards from 1,000,000 records")
def test_leaderboards_of_a_million_records(benchmark, million, environment):
    """From the file to the printed table in a fresh process, best of three: at most 5 s, below 2 GB."""
    seen = []

    def once():
        command = [sys.executable, str(Path(__file__).parent / "leaderboards.py"), str(million)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen.append(json.loads(done.stderr.splitlines()[-1]))
        return done.stdout

    text = benchmark.pedantic(once, rounds=3, iterations=1, warmup_rounds=1)
    assert "Price of removing each mark" in text
    assert {one["rows"] for one in seen} == {ROWS}
    benchmark.extra_info["MB"] = [round(one["memory_mb"]) for one in seen]
    assert max(one["memory_mb"] for one in seen) * 2**20 < 2e9
    assert benchmark.stats.stats.min <= 5.0
