"""The owner's side of spying: a process like an attacker's, what it reports, and what its memory holds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.contract import memory, spying
from bench.planning.job import Job

_PATIENCE = 120.0
# Of what is looked for in memory, in bytes.
LONGEST = 512


@dataclass(frozen=True)
class Report:
    """What was found in the spying process.

    Attributes:
        fingerprints: SHA-256 of what the spy came upon.
        objects: how many it looked at.
        in_memory: names of the searched bytes that stand in the process's memory.
        unread: why its memory could not be searched, where it could not.
    """

    fingerprints: frozenset[bytes]
    objects: int
    in_memory: frozenset[str]
    unread: str | None


class Spy:
    """A process of the attacker's side, started anew and not forked, so that it inherits no memory.

    Args:
        dataset: of the jobs to come.
        early: no key was drawn so far, so that none can stand in what the process has before its first job.
    """

    def __init__(self, dataset: str, early: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._wire, theirs = context.Pipe()
        self._process = context.Process(target=spying.serve, args=(theirs, dataset), daemon=True)
        self._process.start()
        theirs.close()
        self._early = early
        # Of its memory, once it is ready for the first job.
        self._before: memory.Picture | None = None

    def run(self, job: Job, inputs: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> Report:
        """Run a spying job.

        Args:
            job: of the attacker's side.
            inputs: its public products by role.
            wanted: bytes to be looked for in the spy's memory while it waits, by name, at most `LONGEST` each; it is
                not told them.

        Raises:
            RuntimeError: the job failed, or the process did.
        """
        if self._before is None:
            self._before = self._pictured()
        # As the harness tells its workers.
        files = os.environ.get("OWNBENCH_PLUGINS", "")
        self._wire.send((files, job, dict(inputs)))
        message = self._receive()
        if message[0] != "looked":
            raise RuntimeError(f"the spying job failed: {message[2]}")
        unread, held = None, frozenset[str]()
        try:
            held = memory.search(self._process.pid or 0, wanted, LONGEST, self._before)
        except OSError as error:
            unread = f"memory not searched: {error}"
        finally:
            self._wire.send("go on")
            done = self._receive()
        if done[1] != "ok":
            raise RuntimeError(f"the spying job failed: {done[2]}")
        return Report(frozenset(message[1]), message[2], held, unread)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError, ValueError):
            self._wire.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
        self._wire.close()

    def _pictured(self) -> memory.Picture:
        """What stands in the process's memory before any job, and need not be searched."""
        assert self._receive() == "ready"
        with contextlib.suppress(OSError):
            return memory.picture(self._process.pid or 0, LONGEST) if self._early else {}
        return {}

    def _receive(self) -> Any:
        if not self._wire.poll(_PATIENCE):
            raise RuntimeError(f"the spying process said nothing for {_PATIENCE:.0f} s")
        try:
            return self._wire.recv()
        except EOFError as error:
            raise RuntimeError(f"the spying process ended with exit code {self._process.exitcode}") from error
