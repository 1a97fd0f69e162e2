"""What runs inside a worker process: one side of one slot, one job after another. No Ray here."""

from __future__ import annotations

import importlib
import os
import pickle
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from bench.planning.job import Channel, Job, Outcome
from bench.running.executor import Runner

# The order in which products follow the outcome; each travels alone, so that it can be kept from the other side.
CHANNELS: tuple[Channel, ...] = get_args(Channel)

Buffer = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """What a process has of GPUs.

    Attributes:
        gpus: those in its sight, as `CUDA_VISIBLE_DEVICES` names them.
        memory: MiB that are free on its GPU, its own CUDA context made; None on a CPU or where the runner cannot tell.
    """

    gpus: str
    memory: float | None


class Worker:
    """One long-lived process that belongs to one side of one slot."""

    def __init__(self, runner: str, device: str) -> None:
        """Import nothing yet.

        Args:
            runner: `module:function`.
            device: `cpu` or `cuda`, as the runner is told.
        """
        self._name = runner
        self._device = device
        self._seen: Seen | None = None

    def warm(self) -> Seen:
        """Import the runner and do what the first job would pay.

        The runner's module may have the functions `warm()` for that and `device_memory(device)` for `Seen.memory`.
        """
        if self._seen is None:
            module = importlib.import_module(self._runner().__module__)
            getattr(module, "warm", _nothing)()
            memory = getattr(module, "device_memory", _nothing)
            self._seen = Seen(os.environ.get("CUDA_VISIBLE_DEVICES", ""), memory(self._device))
        return self._seen

    def run(self, job: Job, roles: list[str], *products: Buffer) -> tuple[Outcome | Buffer | None, ...]:
        """Run one job to its end; what escapes the runner is a failed outcome.

        Args:
            job: what to run.
            roles: the role of each of `products`.
            products: of other jobs.

        Returns:
            The outcome, in whose `products` sizes stand for the bytes; then one buffer per channel, or None.
        """
        started = time.perf_counter()
        try:
            inputs = {role: product.tobytes() for role, product in zip(roles, products, strict=True)}
            outcome = self._runner()(job, inputs, self._device)
            buffers = _buffers(outcome.products)
            outcome = replace(outcome, products={channel: buffer.size for channel, buffer in buffers.items()})
            pickle.dumps(outcome)
        except (Exception, SystemExit) as error:  # noqa: BLE001  A plugin may raise anything; the run goes on.
            seconds = time.perf_counter() - started
            trace = traceback.format_exc()
            outcome, buffers = Outcome.failure(type(error).__name__, str(error), trace, seconds), {}
        return outcome, *(buffers.get(channel) for channel in CHANNELS)

    def _runner(self) -> Runner:
        module, _, function = self._name.partition(":")
        runner: Runner = getattr(importlib.import_module(module), function)
        return runner


def _nothing(*_: Any) -> Any:
    return None


def to_buffer(data: bytes) -> Buffer:
    """A view of the bytes that Ray moves without pickling them."""
    return np.frombuffer(data, dtype=np.uint8)


def _buffers(products: dict[Channel, Any]) -> dict[Channel, Buffer]:
    unknown = sorted(set(products) - set(CHANNELS))
    if unknown:
        raise ValueError(f"expected products by channel {', '.join(CHANNELS)}, got {', '.join(unknown)}")
    return {channel: to_buffer(data) for channel, data in products.items()}
