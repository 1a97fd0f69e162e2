"""Ray itself: starting or joining it, and reserving what the slots need."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.workers.seats import Bundle, Node, Seat

# Products beyond this spill to disk.
_STORE_BYTES = 2**30
# A session below it still leaves room for the longest path that a Unix socket can have.
_LONGEST_TEMPORARY = 20
_RESERVE_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
# What begins a connection over HTTP/2, on which gRPC and so Ray rests: a preface, and an empty frame of settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_LONGEST_REASON = 400
_SYSTEM = {
    # Processes started ahead lack the environment that workers get: one per CPU, and never used.
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
    # Out of memory, Ray would end the latest jobs, idle workers among them. The kernel ends the largest worker,
    # before all else because Ray has set their oom_score_adj.
    "memory_monitor_refresh_ms": 0,
    # Ray would give way to everything else on the machine; who wants that starts the run with `nice`.
    "worker_niceness": 0,
}


class Cluster:
    """A connection to Ray: to the one of this process, to one elsewhere, or to a new one on this machine.

    Attributes:
        ray: the module; imported here, because it takes most of a second.
        logs: where the workers of a new one write.
        joined: it was there before, and nodes of it may go while this process lives.
    """

    def __init__(self, address: str | None) -> None:
        """Connect.

        Args:
            address: of a running cluster; None for a new one, unless this process already has one.

        Raises:
            InputError: nothing answers there.
        """
        self.logs: Path | None = None
        self.joined = True
        self._directory: Path | None = None
        self._groups: dict[str, Any] = {}
        # Before the import, so that it runs after Ray's own, which puts directories back.
        atexit.register(self._sweep)
        self.ray: Any = importlib.import_module("ray")
        self._leave: Callable[[], None] = self.ray.shutdown
        if self.ray.is_initialized():
            self._leave = _nothing
            return
        # Ray prints each loss of a worker to stdout; the pool returns them.
        silent = _replaced(self.ray._private.worker, "listen_error_messages", _nothing)
        with silent, _variables({"RAY_USAGE_STATS_ENABLED": "0"}):
            if address is None:
                self.joined = False
                self._start()
            else:
                self._join(address)

    def nodes(self, free: bool = False) -> list[Node]:
        """The nodes that live, that of this process first.

        Args:
            free: what nobody has taken of their CPUs and GPUs (Ray's account may be a moment old), instead of all.
        """
        here = self.ray.get_runtime_context().get_node_id()
        left = self.ray._private.state.available_resources_per_node() if free else {}
        found = []
        for node in self.ray.nodes():
            if node["Alive"]:
                offer = left.get(node["NodeID"], {}) if free else node["Resources"]
                gpus = int(offer.get("GPU", 0))
                found.append(Node(node["NodeID"], node["NodeName"], offer.get("CPU", 0.0), gpus))
        return sorted(found, key=lambda node: (node.id != here, node.name, node.id))

    def reserve(self, bundles: dict[str, list[Bundle]]) -> None:
        """Take resources for the slots.

        Args:
            bundles: of each node, by its id. A group for each, so that the loss of one touches no other.

        Raises:
            InputError: others have taken them.
        """
        for node, mine in bundles.items():
            on_it = [{"ray.io/node-id": node}] * len(mine)
            self._groups[node] = self.ray.util.placement_group(mine, bundle_label_selector=on_it)
        deadline = time.monotonic() + _RESERVE_SECONDS
        for node, mine in bundles.items():
            if not self._groups[node].wait(timeout_seconds=max(deadline - time.monotonic(), 0.0)):
                free = {kind: self.ray.available_resources().get(kind, 0) for kind in ("CPU", "GPU")}
                asked_for = ", ".join(str(bundle) for bundle in mine)
                raise InputError(f"the workers ask for {asked_for} on one node; free are {free}")

    def options(self, seat: Seat, environment: dict[str, str]) -> dict[str, Any]:
        """How to make a process at a seat: never restarted and nothing retried, whatever it dies of."""
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        return {
            "num_cpus": seat.cpus,
            "num_gpus": seat.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": environment},
            "scheduling_strategy": strategies.PlacementGroupSchedulingStrategy(self._groups[seat.node], seat.bundle),
        }

    def close(self) -> None:
        """Give back what was reserved, and end what was started."""
        if self.ray.is_initialized():
            for group in self._groups.values():
                self.ray.util.remove_placement_group(group)
        self._groups = {}
        self._leave()
        self._sweep()

    def _start(self) -> None:
        # A directory of its own, because products that spill to disk hold keys and Ray opens its own to all.
        below = tempfile.gettempdir() if len(tempfile.gettempdir()) <= _LONGEST_TEMPORARY else "/tmp"
        self._directory = Path(tempfile.mkdtemp(prefix="own-", dir=below))
        root = self._directory / "ray"
        self.logs = root / "session_latest" / "logs"
        every = os.cpu_count() or 1
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
        # A cluster of one machine needs no address that others reach: Ray then listens on loopback alone, which
        # it does by itself on Windows and macOS only.
        constants = self.ray._private.ray_constants
        alone = _replaced(constants, "ENABLE_RAY_CLUSTER", False)
        with alone, _variables({constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            self.ray.init(
                # Whatever RAY_ADDRESS says.
                address="local",
                num_cpus=affinity if affinity < every else None,
                object_store_memory=min(_STORE_BYTES, _memory() // 8),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=str(root),
                _system_config=_SYSTEM,
            )

    def _sweep(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _join(self, address: str) -> None:
        if "://" in address or address == "local":
            raise InputError(f"--address: expected HOST:PORT of a Ray cluster, or auto, got {address!r}")
        try:
            found = self.ray._private.services.canonicalize_bootstrap_address(address)
            if found is None:
                raise ConnectionError("none was started on this machine")
            # Ray alone would try for minutes.
            _greet(found)
            # With a token where there is one, as Ray does it; 40 s for what speaks gRPC and is no head of Ray.
            tokens = importlib.import_module("ray._private.authentication.authentication_token_setup")
            tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            importlib.import_module("ray._raylet").GcsClient(address=found)
            self.ray.init(address=found, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, OverflowError, RuntimeError, self.ray.exceptions.RayError) as error:
            # Ray's errors are essays.
            why = " ".join(str(error).split())[:_LONGEST_REASON]
            raise InputError(f"no Ray cluster at {address!r}: {why}") from error


def gpus_at(address: str) -> int:
    """The GPUs of the cluster at an address.

    Raises:
        InputError: nothing answers there.
    """
    cluster = Cluster(address)
    try:
        return sum(node.gpus for node in cluster.nodes())
    finally:
        cluster.close()


def _greet(address: str) -> None:
    """See that gRPC answers; raises OSError or ValueError where it does not."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        connection.sendall(_HELLO)
        head = connection.recv(9, socket.MSG_WAITALL)
        if len(head) < 9 or head[3] != _SETTINGS:
            raise ConnectionError("what listens there is no Ray")


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _nothing(*_: Any) -> None:
    return None


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
