"""How slots share GPUs: Ray is told of two that need not be there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from test_pool import ENV, came_to, end, pid, script, toy

from bench.errors import InputError
from bench.planning.job import Side
from bench.workers import cluster
from bench.workers.pool import RayPool

SIDES: tuple[Side, Side] = ("owner", "attacker")


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    import ray

    with tempfile.TemporaryDirectory(dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        # Loopback alone.
        patch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        options = {"include_dashboard": False, "logging_level": "error", "_temp_dir": directory}
        ray.init(num_cpus=5, num_gpus=2, **options, _system_config=cluster._SYSTEM)
        pool = RayPool("toy_runner:run", workers=4, threads=1, device="cuda", env=ENV)
        yield pool
        pool.close()
        ray.shutdown()


def test_slots_spread_over_gpus(pool: RayPool) -> None:
    assert pool.devices() == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    for slot, gpu in enumerate("0011"):
        for side in SIDES:
            outcome = came_to(end(pool, slot, toy("nothing", side)))
            assert outcome.result["environment"]["CUDA_VISIBLE_DEVICES"] == gpu
            assert outcome.device == "cuda"


def test_a_replaced_process_stays_on_its_gpu(pool: RayPool) -> None:
    for side in SIDES:
        assert end(pool, 2, toy("os._exit", side)).lost
        outcome = came_to(end(pool, 2, toy("nothing", side)))
        assert outcome.result["environment"]["CUDA_VISIBLE_DEVICES"] == "1"


def test_an_error_of_cuda_ends_the_process(pool: RayPool) -> None:
    before = pid(pool, 3)
    assert pid(pool, 3) == before
    outcome = came_to(end(pool, 3, toy("cuda error")))
    assert outcome.error == "CUDA error: device-side assert triggered"
    assert pid(pool, 3) != before


def test_cpu_slots_see_no_gpu_and_leave_ray_to_its_owner(pool: RayPool) -> None:
    other = RayPool("toy_runner:run", workers=1, threads=1, device="cpu", env=ENV)
    seen = [came_to(end(other, 0, toy("nothing", side))).result["environment"] for side in SIDES]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["", ""]
    assert other.devices() == ["cpu"]
    other.close()
    assert came_to(end(pool, 0, toy("nothing"))).status == "ok"


def test_what_others_hold_cannot_be_had(pool: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_RESERVE_SECONDS", 0.5)
    with pytest.raises(InputError, match="free are"):
        RayPool("toy_runner:run", workers=1, threads=1, device="cuda", env=ENV)
    assert came_to(end(pool, 0, toy("nothing"))).status == "ok"


def test_joins_a_cluster_and_leaves_it_running(pool: RayPool) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    code = f"""
from bench.workers.pool import RayPool
from test_pool import ENV, came_to, end, toy
pool = RayPool("toy_runner:run", workers=1, threads=1, device="cpu", address="{address}", env=ENV)
assert end(pool, 0, toy("os._exit")).lost
assert came_to(end(pool, 0, toy("nothing", "attacker"))).status == "ok"
pool.close()
"""
    done = script("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert came_to(end(pool, 0, toy("nothing"))).status == "ok"
