"""Ray itself: starting or joining it, and reserving what the slots need."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.seats import Bundle, Seat

# Products beyond this spill to disk.
_STORE_BYTES = 2**30
# A session below it still leaves room for the longest path that a Unix socket can have.
_LONGEST_TEMPORARY = 20
_RESERVE_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_SYSTEM = {
    # Processes started ahead lack the environment that workers get: one per CPU, and never used.
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
    # Out of memory, Ray would end the latest jobs, idle workers among them. The kernel ends the largest worker,
    # before all else because Ray has set their oom_score_adj.
    "memory_monitor_refresh_ms": 0,
}


class Cluster:
    """A connection to Ray: to the one of this process, to one elsewhere, or to a new one on this machine.

    Attributes:
        ray: the module; imported here, because it takes most of a second.
        logs: where the workers of a new one write.
    """

    def __init__(self, address: str | None) -> None:
        """Connect.

        Args:
            address: of a running cluster; None for a new one, unless this process already has one.

        Raises:
            InputError: nothing answers there.
        """
        self.logs: Path | None = None
        self._directory: Path | None = None
        self._group: Any = None
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
                self._start()
            else:
                self._join(address)

    def gpus(self) -> int:
        """The GPUs that it has."""
        return int(self.ray.cluster_resources().get("GPU", 0))

    def reserve(self, bundles: list[Bundle]) -> None:
        """Take resources for the slots.

        Raises:
            InputError: there are not as many.
        """
        there = self.ray.cluster_resources()
        for kind in sorted({kind for bundle in bundles for kind in bundle}):
            asked, has = sum(bundle.get(kind, 0) for bundle in bundles), there.get(kind, 0)
            if asked > has:
                raise InputError(f"{kind}: the workers need {asked:g}, there are {has:g}")
        self._group = self.ray.util.placement_group(bundles)
        if not self._group.wait(timeout_seconds=_RESERVE_SECONDS):
            free = {kind: self.ray.available_resources().get(kind, 0) for kind in ("CPU", "GPU")}
            asked_for = ", ".join(str(bundle) for bundle in bundles)
            raise InputError(f"the workers ask for {asked_for}, each on one node; free are {free}")

    def options(self, seat: Seat, environment: dict[str, str]) -> dict[str, Any]:
        """How to make a process at a seat: never restarted and nothing retried, whatever it dies of."""
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        return {
            "num_cpus": seat.cpus,
            "num_gpus": seat.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": environment},
            "scheduling_strategy": strategies.PlacementGroupSchedulingStrategy(self._group, seat.bundle),
        }

    def close(self) -> None:
        """Give back what was reserved, and end what was started."""
        if self._group is not None and self.ray.is_initialized():
            self.ray.util.remove_placement_group(self._group)
        self._group = None
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
        host, _, port = address.rpartition(":")
        try:
            if port.isdecimal() and "/" not in host:
                # Ray alone would try for minutes.
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
            self.ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(f"no Ray cluster at {address!r}: {error}") from error


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
