"""Slots, sides, products and losses of the pool, on the CPUs of this machine."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.errors import InputError
from bench.planning.job import Input, Job, Outcome, Side
from bench.running.executor import Executor, Finished, Handle
from bench.workers.pool import RayPool

# A token would be kept in the home directory.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

TESTS = Path(__file__).parent
ENV = {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
SECRET, PUBLIC = b"\x07" * 300_000, b"\x01" * 200_000
_numbers = itertools.count()


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    pool = RayPool("toy_runner:run", workers=2, threads=1, device="cpu", env=ENV)
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def all_idle(pool: Executor) -> Iterator[None]:
    assert pool.idle() == [0, 1]
    yield
    assert pool.idle() == [0, 1]


def toy(do: str, side: Side = "owner", inputs: Mapping[str, Input] | None = None, **spec: Any) -> Job:
    """A job for `toy_runner`."""
    return Job(f"{next(_numbers):016x}", "stage", side, do, {"do": do, **spec}, dict(inputs or {}), "")


def end(pool: Executor, slot: int, job: Job, inputs: Mapping[str, Handle] | None = None) -> Finished:
    """Run a job that is alone."""
    pool.start(slot, job, inputs or {})
    assert slot not in pool.idle()
    (finished,) = pool.wait(30)
    assert (finished.slot, finished.job) == (slot, job.id)
    return finished


def came_to(finished: Finished) -> Outcome:
    """The outcome of a job whose worker was not lost."""
    assert finished.lost is None
    assert finished.outcome is not None
    return finished.outcome


def pid(pool: Executor, slot: int, side: Side = "owner") -> int:
    """The process that runs a side's jobs on a slot."""
    return int(came_to(end(pool, slot, toy("nothing", side))).result["pid"])


def begun(file: Path) -> int:
    """Wait for a `sleep` job to run; its process."""
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(file.read_text())


def alive(process: int) -> bool:
    """Whether a process runs (one that has ended but was not yet asked about does not)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    command, variables = [sys.executable, *arguments], {**os.environ, **ENV}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


def test_products_travel_by_channel(pool: Executor) -> None:
    made = came_to(end(pool, 0, toy("nothing", products={"public": (1, 200_000), "secret": (7, 300_000)})))
    public, secret = made.products["public"], made.products["secret"]
    assert (pool.get(public), pool.get(secret)) == (PUBLIC, SECRET)
    joined = came_to(end(pool, 1, toy("join"), {"a": public, "b": secret}))
    assert joined.result["inputs"] == {"a": 200_000, "b": 300_000}
    assert joined.result["types"] == ["bytes"]
    assert pool.get(joined.products["public"]) == PUBLIC + SECRET


def test_absent_products_have_no_handle(pool: Executor) -> None:
    assert came_to(end(pool, 0, toy("nothing"))).products == {}
    assert list(came_to(end(pool, 0, toy("nothing", products={"secret": (1, 9)}))).products) == ["secret"]


def test_unknown_channel_fails(pool: Executor) -> None:
    outcome = came_to(end(pool, 0, toy("nothing", products={"open": (1, 9)})))
    assert (outcome.status, outcome.error_type) == ("failed", "ValueError")
    assert outcome.products == {}


@pytest.mark.parametrize("data", [b"", b"x", SECRET])
def test_put_products_are_inputs(pool: Executor, data: bytes) -> None:
    handle = pool.put(data)
    assert pool.get(handle) == data
    assert pool.get(came_to(end(pool, 0, toy("join"), {"a": handle})).products["public"]) == data


def test_products_outlive_the_process_that_made_them(pool: Executor) -> None:
    made = came_to(end(pool, 0, toy("nothing", products={"secret": (7, 300_000)})))
    pool.kill(0)
    assert pool.get(made.products["secret"]) == SECRET


def test_dropped_handles_free_their_products(pool: Executor) -> None:
    from ray._private.worker import global_worker

    handle = came_to(end(pool, 0, toy("nothing", products={"public": (1, 200_000)}))).products["public"]
    name = handle.hex().encode()
    assert name in global_worker.core_worker.get_all_reference_counts()
    del handle
    assert name not in global_worker.core_worker.get_all_reference_counts()


def test_secrets_do_not_go_to_the_attacker(pool: Executor) -> None:
    handle = pool.put(SECRET)
    job = toy("join", "attacker", {"key": Input("f" * 16, "secret")})
    with pytest.raises(ValueError, match="asks for a secret: key"):
        pool.start(0, job, {"key": handle})


def test_each_side_keeps_a_process_of_its_own(pool: Executor) -> None:
    places: list[tuple[int, Side]] = [(0, "owner"), (0, "attacker"), (1, "owner"), (1, "attacker")]
    first = [pid(pool, *place) for place in places]
    assert len(set(first)) == 4
    assert [pid(pool, *place) for place in places] == first


def test_processes_see_threads_but_no_gpu(pool: Executor) -> None:
    assert pool.devices() == ["cpu", "cpu"]
    for side in ("owner", "attacker"):
        outcome = came_to(end(pool, 0, toy("nothing", side)))
        seen = outcome.result["environment"]
        assert outcome.device == "cpu"
        assert seen["CUDA_VISIBLE_DEVICES"] == ""
        assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == ("1", "1")


def test_processes_give_way_to_others_no_more_than_who_started_them(pool: Executor) -> None:
    assert came_to(end(pool, 0, toy("nothing"))).result["niceness"] == os.nice(0)


def test_returns_what_ends_first(pool: Executor) -> None:
    assert pool.wait(None) == []
    slow, quick = toy("sleep", seconds=1.0), toy("nothing")
    pool.start(0, slow, {})
    pool.start(1, quick, {})
    assert [one.job for one in pool.wait(10)] == [quick.id]
    assert pool.wait(0.01) == []
    assert [one.job for one in pool.wait(10)] == [slow.id]


def test_a_busy_slot_refuses(pool: Executor) -> None:
    pool.start(0, toy("sleep", seconds=0.3), {})
    with pytest.raises(ValueError, match="slot 0 is busy"):
        pool.start(0, toy("nothing"), {})
    assert came_to(pool.wait(10)[0]).status == "ok"


@pytest.mark.parametrize(
    ("do", "error_type", "error"),
    [
        ("raise", "ZeroDivisionError", "a toy error"),
        ("sys.exit", "SystemExit", "a toy exit"),
        ("unpicklable", "TypeError", "cannot be sent"),
    ],
)
def test_what_escapes_a_job_is_a_failure(pool: Executor, do: str, error_type: str, error: str) -> None:
    before = pid(pool, 0)
    outcome = came_to(end(pool, 0, toy(do)))
    assert (outcome.status, outcome.error_type, outcome.error) == ("failed", error_type, error)
    assert "toy_runner.py" in str(outcome.traceback)
    assert pid(pool, 0) == before


@pytest.mark.parametrize(("do", "lost"), [("os._exit", "End of file"), ("crash", "Segmentation fault")])
def test_a_dying_worker_loses_its_job_alone(pool: Executor, do: str, lost: str) -> None:
    owner, attacker = pid(pool, 0), pid(pool, 0, "attacker")
    finished = end(pool, 0, toy(do, "attacker"))
    assert finished.outcome is None
    assert lost in str(finished.lost)
    assert pid(pool, 0, "attacker") != attacker
    assert pid(pool, 0) == owner


def test_a_worker_killed_from_outside(pool: Executor, tmp_path: Path) -> None:
    pool.start(0, toy("sleep", seconds=600, file=str(tmp_path / "pid")), {})
    os.kill(begun(tmp_path / "pid"), signal.SIGKILL)
    (finished,) = pool.wait(30)
    assert finished.outcome is None
    assert "SYSTEM_ERROR" in str(finished.lost)
    assert came_to(end(pool, 0, toy("nothing"))).status == "ok"


def test_kill_ends_one_job_and_no_other(pool: Executor, tmp_path: Path) -> None:
    endless, other = toy("spin", seconds=600), toy("sleep", seconds=2.0, file=str(tmp_path / "pid"))
    neighbour, victim = pid(pool, 1), pid(pool, 0)
    pool.start(0, endless, {})
    pool.start(1, other, {})
    assert begun(tmp_path / "pid") == neighbour
    pool.kill(0)
    assert 0 not in pool.idle()
    (finished,) = pool.wait(1.5)
    assert (finished.job, finished.outcome) == (endless.id, None)
    assert str(finished.lost).startswith("killed by the scheduler after ")
    (finished,) = pool.wait(10)
    assert finished.job == other.id
    assert came_to(finished).result["pid"] == neighbour
    assert pid(pool, 0) != victim


def test_kill_of_a_process_that_still_starts(pool: Executor) -> None:
    pool.kill(0)
    pool.start(0, toy("nothing"), {})
    pool.kill(0)
    (finished,) = pool.wait(30)
    assert finished.outcome is None
    assert came_to(end(pool, 0, toy("nothing"))).status == "ok"


def test_kill_of_an_idle_slot_replaces_its_processes(pool: Executor) -> None:
    before = {pid(pool, 0), pid(pool, 0, "attacker")}
    pool.kill(0)
    assert not before & {pid(pool, 0), pid(pool, 0, "attacker")}


def test_a_lost_product_loses_the_job_and_not_the_worker(pool: Executor) -> None:
    import ray

    before = pid(pool, 0)
    handle = ray.remote(num_cpus=0, max_retries=0)(lambda: os._exit(1)).remote()
    ray.wait([handle])
    finished = end(pool, 0, toy("join"), {"a": handle})
    assert finished.outcome is None
    assert "WorkerCrashedError" in str(finished.lost)
    assert pid(pool, 0) == before
    with pytest.raises(LookupError, match="a product is lost"):
        pool.get(handle)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"workers": 0, "threads": 1, "device": "cpu"}, "at least 1 worker"),
        ({"workers": 1, "threads": 0, "device": "cpu"}, "at least 1 worker"),
        ({"workers": 5000, "threads": 2, "device": "cpu"}, "CPU: the workers need 10000, there are "),
        (
            {"workers": 1, "threads": 1, "device": "cuda", "gpus": 500},
            "GPU: the workers need 500, there are ",
        ),
        ({"workers": 1, "threads": 1, "device": "cuda", "gpus": 0}, "at least 1 GPU"),
    ],
)
def test_unmeetable_requests_are_refused(pool: Executor, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RayPool("toy_runner:run", env=ENV, **asked)
    assert came_to(end(pool, 0, toy("nothing"))).status == "ok"


def test_no_cluster_at_the_address() -> None:
    code = "import bench.workers.pool as p; p.RayPool(workers=1, threads=1, device='cpu', address='127.0.0.1:9')"
    done = script("-c", code)
    assert done.returncode == 1
    assert "InputError: no Ray cluster at '127.0.0.1:9'" in done.stderr


def test_starts_on_loopback_and_leaves_nothing() -> None:
    done = script(str(TESTS / "toy_session.py"))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["imported early"] is False
    assert len(seen["processes"]) >= 4
    assert [process for process in seen["processes"] if alive(process)] == []
    assert len(seen["listening"]) >= 4
    assert set(seen["listening"]) == {"127.0.0.1"}
    assert seen["mode"] == 0o700
    assert seen["spilled"] >= 1
    assert not Path(seen["directory"]).exists()
