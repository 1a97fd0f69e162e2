"""Runs on several nodes: simulated ones, each with processes and a product store of its own; some are killed."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console
from test_end_to_end import comparable, suite_text
from test_faults import journal
from test_pool import ENV, came_to, toy
from test_scheduler import Notes, plan_of

from bench.commands.cli import main
from bench.commands.run import Options, device_of, run
from bench.errors import InputError, NoWorkers
from bench.running.scheduler import Scheduler
from bench.storage.store import RunFolder
from bench.workers import cluster as joining
from bench.workers.pool import RayPool

REPOSITORY = Path(__file__).parent.parent
# Ray takes a node for dead after half a minute otherwise.
QUICK = {
    **joining._SYSTEM,
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A head that takes no jobs."""
    import ray
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Of what the nodes inherit: their workers find the package, wherever they run.
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("RAY_TMPDIR", directory)
        (Path(directory) / "ray").mkdir()
        options = {"num_cpus": 0, "include_dashboard": False, "temp_dir": directory, "_system_config": QUICK}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def add(head: Any) -> Iterator[Callable[..., Any]]:
    """Adds a node, which is gone after the test."""
    added = []

    def node(**options: Any) -> Any:
        added.append(head.add_node(**options))
        return added[-1]

    yield node
    for one in added:
        if one in head.worker_nodes:
            head.remove_node(one, allow_graceful=False)


def kill(head: Any, node: Any) -> None:
    head.remove_node(node, allow_graceful=False)


def at_work(node: Any) -> bool:
    """Whether a process of the node runs a job just now; Ray names processes after what they do."""
    raylet = node.all_processes["raylet"][0].process.pid
    for child in psutil.Process(raylet).children():
        with suppress(psutil.Error):
            if "Worker.run" in " ".join(child.cmdline()):
                return True
    return False


def slot_on(pool: RayPool, node: Any) -> int:
    return next(i for i, device in enumerate(pool.devices()) if device.endswith("@" + node.node_id[:8]))


def test_rows_are_those_of_one_process_though_a_node_is_killed_in_the_middle(
    head: Any, add: Callable[..., Any], tmp_path: Path
) -> None:
    text = suite_text(
        ['name = "uchida"\nbits = 16'],
        ['name = "scratch"\nepochs = 2', 'name = "magnitude-prune"\nfractions = [0.5, 0.99]\nretrain_epochs = 2'],
        epochs=4,
    )
    suite = tmp_path / "small.toml"
    suite.write_text(text)
    alone = Options(str(suite), out=tmp_path / "alone", device="cpu", local=True)
    assert run(alone, Console(file=io.StringIO(), width=200)) == 0
    doomed, _ = add(num_cpus=1), add(num_cpus=1)
    # The run folder is known by a name that means nothing where the nodes' processes are.
    command = [sys.executable, "-m", "bench", "run", str(suite), "--out", "out", "--address", head.address]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    driver = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while len(journal(tmp_path / "out")) < 2 or not at_work(doomed):
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[0]
        time.sleep(0.02)
    kill(head, doomed)
    told, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, told
    assert "2 at a time" in told
    assert f"its node {doomed.node_id[:8]} is gone; started again elsewhere" in told
    entries = journal(tmp_path / "out")
    assert len(entries) == len({entry["job_id"] for entry in entries})
    assert comparable(tmp_path / "out") == comparable(tmp_path / "alone")


def test_a_lost_node_takes_its_slots_and_its_products_alone(head: Any, add: Callable[..., Any], tmp_path: Path) -> None:
    doomed, last = add(num_cpus=1, num_gpus=1), add(num_cpus=1, num_gpus=1)
    pool = RayPool("toy_runner:run", threads=1, device="cuda", address=head.address, gpus_per_job=1, env=ENV)
    try:
        assert sorted(pool.devices()) == sorted(f"cuda:0@{node.node_id[:8]}" for node in (doomed, last))
        there, other = slot_on(pool, doomed), slot_on(pool, last)
        pool.start(there, toy("nothing", products={"public": (1, 10**6)}), {})
        handle = came_to(pool.wait(30)[0]).products["public"]
        endless, other_job = toy("sleep", seconds=300), toy("sleep", seconds=4.0)
        pool.start(there, endless, {})
        pool.start(other, other_job, {})
        kill(head, doomed)
        (finished,) = pool.wait(60)
        assert (finished.slot, finished.job, finished.outcome) == (there, endless.id, None)
        assert finished.blameless
        # The neighbour goes on, and its slot is the only one left.
        (finished,) = pool.wait(60)
        assert came_to(finished).status == "ok"
        assert pool.idle() == [other]
        with pytest.raises(LookupError, match="a product is lost"):
            pool.get(handle)
        pool.start(other, toy("join"), {"a": handle})
        (finished,) = pool.wait(60)
        assert finished.outcome is None and finished.blameless
        # Two jobs for one node, which goes as well.
        jobs = [toy("nothing"), toy("sleep", seconds=300, file=str(tmp_path / "c"))]
        watch = threading.Thread(target=lambda: (_appears(tmp_path / "c"), kill(head, last)))
        watch.start()
        with RunFolder.open_for_writing(tmp_path / "run") as folder, pytest.raises(NoWorkers, match="to run 1 job"):
            Scheduler(plan_of(*jobs, timeout=600.0), folder, pool, Notes()).run()
        watch.join()
        assert [folder.succeeded(one.id) for one in jobs] == [True, False]
        assert pool.idle() == []
    finally:
        pool.close()


def _appears(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def test_what_a_cluster_has_decides(head: Any, add: Callable[..., Any]) -> None:
    at = head.address
    add(num_cpus=3)
    assert device_of(Options("s", address=at)) == "cpu"
    with pytest.raises(InputError, match=r"--device: expected a GPU for 'cuda', the cluster at .* has none"):
        device_of(Options("s", address=at, device="cuda"))
    add(num_cpus=2, num_gpus=2)
    assert device_of(Options("s", address=at)) == "cuda"
    assert device_of(Options("s", address=at, device="cpu")) == "cpu"
    assert joining.gpus_at(at) == 2


def _listen(answer: bytes | None) -> int:
    """A port at which something that is not Ray takes connections and answers so, or never."""
    server = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            kept.append(connection)
            if answer is not None:
                connection.sendall(answer)
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return int(server.getsockname()[1])


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1:9", "refused"),
        ("mute", "timed out"),
        ("web", "no Ray"),
        ("closes", "no Ray"),
        ("no.such.host.invalid:6379", "no.such.host.invalid"),
        ("nonsense", "nonsense"),
        ("ray://127.0.0.1:10001", "expected HOST:PORT"),
    ],
)
def test_an_address_where_no_cluster_answers_is_bad_input(
    address: str, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(joining, "_CONNECT_SECONDS", 0.5)
    answers = {"mute": None, "web": b"HTTP/1.1 400 Bad Request\r\n\r\n", "closes": b""}
    if address in answers:
        address = f"127.0.0.1:{_listen(answers[address])}"
    for more in ([], ["--device", "cpu"]):
        out = tmp_path / "out"
        result = CliRunner().invoke(main, ["run", "digits", "--address", address, "--out", str(out), *more])
        assert result.exit_code == 2, result.output
        assert word in result.stderr and address in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_options_that_do_not_fit_together() -> None:
    for arguments, word in [
        (["--gpus-per-job", "0.5", "--device", "cpu"], "--gpus-per-job: expected a run on GPUs, got 0.5"),
        (["--gpus-per-job", "0"], "--gpus-per-job"),
        (["--gpus-per-job", "1.5"], "--gpus-per-job"),
        (["--local", "--address", "127.0.0.1:9"], "--local: one process"),
    ]:
        result = CliRunner().invoke(main, ["run", "digits", *arguments])
        assert result.exit_code == 2
        assert word in result.stderr
