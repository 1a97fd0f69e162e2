"""The harness itself: how much of the workers' time is spent inside jobs, and what a job that does nothing costs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.planning.job import Job, Outcome, Plan
from bench.running.executor import InlineExecutor
from bench.running.scheduler import Scheduler
from bench.storage.store import RunFolder
from bench.workers.pool import RayPool

TESTS = Path(__file__).parent.parent
RUNNER = "perf.test_harness:spin"
WORKERS = 2


def spin(job, inputs, device):
    """Computes for as long as the job says."""
    started = time.perf_counter()
    while time.perf_counter() - started < job.spec["seconds"]:
        sum(range(1000))
    return Outcome("ok", {}, {"public": b"x" * 100_000}, seconds=time.perf_counter() - started)


class Silent:
    """Shows nothing."""

    def begin(self, total, done, slots): ...
    def started(self, job): ...
    def ended(self, job, outcome): ...
    def note(self, text): ...
    def tick(self, remaining): ...
    def end(self): ...


def plan_of(count, seconds):
    jobs = {}
    for number in range(count):
        name = f"{number:016x}"
        side = "owner" if number % 2 else "attacker"
        # Between 0.8 and 1.2 of the length, as real jobs differ.
        spec = {"seconds": seconds * (0.8 + 0.4 * (number % 5) / 4)}
        jobs[name] = Job(name, "attack", side, f"job {number}", spec, {}, "")
    return Plan("perf", "perf", 1e-6, 5.0, (0,), "all", 600.0, 1, {}, jobs, [])


def run(plan, executor, path):
    with RunFolder.open_for_writing(path) as folder:
        return Scheduler(plan, folder, executor, Silent()).run()


@pytest.fixture(scope="module")
def pool():
    opened = RayPool(RUNNER, workers=WORKERS, threads=1, device="cpu", env={"PYTHONPATH": f"{TESTS.parent}:{TESTS}"})
    yield opened
    opened.close()


@pytest.mark.benchmark(group="pool")
def test_pool_efficiency(benchmark, pool, tmp_path):
    """60 jobs of about a second on 2 workers: at least 0.90 of the workers' time is inside jobs."""
    totals = []

    def once():
        totals.append(run(plan_of(60, 1.0), pool, tmp_path / str(len(totals))))

    benchmark.pedantic(once, rounds=3, iterations=1)
    best = max(one.efficiency for one in totals)
    benchmark.extra_info["efficiency"] = [round(one.efficiency, 4) for one in totals]
    assert best >= 0.90


@pytest.mark.timeout(600)
@pytest.mark.benchmark(group="no-op job")
@pytest.mark.parametrize("kind", ["pool", "inline"])
def test_overhead_of_a_job_that_does_nothing(benchmark, pool, tmp_path, kind):
    """Scheduling, moving and storing 100 jobs; divide by 100 for one."""
    executor = pool if kind == "pool" else InlineExecutor(spin)
    rounds = []

    def once():
        rounds.append(run(plan_of(100, 0.0), executor, tmp_path / str(len(rounds))))

    benchmark.pedantic(once, rounds=3, iterations=1, warmup_rounds=1)
    benchmark.extra_info["ms per job"] = [round(1000 * one.wall / 100, 2) for one in rounds]
    assert all(one.ran == 100 for one in rounds)
