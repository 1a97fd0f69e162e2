"""Jobs that share GPUs: Ray is told of four that need not be there."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_pool import ENV, toy
from test_scheduler import Notes, plan_of

from bench.errors import InputError
from bench.running.scheduler import Scheduler
from bench.storage.store import RunFolder
from bench.workers import cluster
from bench.workers.pool import RayPool


@pytest.fixture(scope="module", autouse=True)
def four_gpus() -> Iterator[None]:
    import ray

    with tempfile.TemporaryDirectory(dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        # Loopback alone.
        patch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        options = {"include_dashboard": False, "logging_level": "error", "_temp_dir": directory}
        ray.init(num_cpus=16, num_gpus=4, **options, _system_config=cluster._SYSTEM)
        yield
        ray.shutdown()


def test_sixteen_jobs_of_a_quarter_run_four_to_a_card(tmp_path: Path) -> None:
    together = tmp_path / "together"
    together.mkdir()
    jobs = [toy("meet", folder=str(together), count=16) for _ in range(16)]
    pool = RayPool("toy_runner:run", threads=1, device="cuda", gpus_per_job=0.25, env={**ENV, "TOY_MEMORY": "1,1,1,1"})
    try:
        assert Counter(pool.devices()) == {f"cuda:{gpu}": 4 for gpu in range(4)}
        assert pool.memory() == {}
        with RunFolder.open_for_writing(tmp_path / "run") as folder:
            totals = Scheduler(plan_of(*jobs), folder, pool, Notes()).run()
            results = [folder.entries[one.id]["result"] for one in jobs]
    finally:
        pool.close()
    assert (totals.ran, totals.failed, totals.slots) == (16, 0, 16)
    # Each saw all sixteen: they ran at the same time.
    assert {one["met"] for one in results} == {16}
    assert len({one["pid"] for one in results}) == 16
    assert Counter(one["environment"]["CUDA_VISIBLE_DEVICES"] for one in results) == {str(gpu): 4 for gpu in range(4)}


def test_memory_sets_the_slots_and_who_may_share(tmp_path: Path) -> None:
    """A GPU of 8 GiB gets two slots, one of 2 GiB gets one; jobs that take 5 GiB share neither."""
    env = {**ENV, "TOY_MEMORY": "8192,2048", "TOY_PEAK": "5000"}
    same = {"plugin": {"path": "toys:large"}, "task": "toy"}
    jobs = [toy("span", **same) for _ in range(6)]
    pool = RayPool("toy_runner:run", threads=1, device="cuda", gpus=2, env=env)
    try:
        assert pool.devices() == ["cuda:0", "cuda:0", "cuda:1"]
        # 512 MiB a slot are set aside.
        assert pool.memory() == {"cuda:0": 7168, "cuda:1": 1536}
        with RunFolder.open_for_writing(tmp_path / "run") as folder:
            assert Scheduler(plan_of(*jobs), folder, pool, Notes()).run().failed == 0
            results = [folder.entries[one.id]["result"] for one in jobs]
    finally:
        pool.close()
    spans = defaultdict(list)
    for one in results:
        spans[one["environment"]["CUDA_VISIBLE_DEVICES"]].append(one["span"])
    ordered = sorted(spans["0"])
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered))
    # The small card measured one, before anyone knew.
    assert (len(spans["0"]), len(spans["1"])) == (5, 1)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_is_above_zero_and_at_most_one(share: float) -> None:
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        RayPool("toy_runner:run", threads=1, device="cuda", gpus_per_job=share, env=ENV)
    with pytest.raises(InputError, match="on cpu"):
        RayPool("toy_runner:run", threads=1, device="cpu", gpus_per_job=0.5, env=ENV)


def test_more_slots_than_the_cpus_serve_are_refused() -> None:
    with pytest.raises(InputError, match="CPU: the workers need 40, there are 16"):
        RayPool("toy_runner:run", threads=2, workers=20, device="cuda", gpus_per_job=0.1, env=ENV)
    with pytest.raises(InputError, match="room for 8 of 9 workers of 1 threads, at most 2 on each GPU"):
        RayPool("toy_runner:run", threads=1, workers=9, device="cuda", gpus_per_job=0.5, env=ENV)
