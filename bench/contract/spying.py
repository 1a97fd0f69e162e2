"""The spy's side: an attack that looks for a key in all that it is handed and in its whole process.

It runs in a process that is started like an attacker's: it is given a job and public products, and never the key.
It cannot tell a key from other things, so it reports fingerprints of all that it finds, and the owner compares.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from bench import data
from bench.attack import Data, Knowledge, RemovalAttack
from bench.planning.sources import PACKAGES
from bench.running import jobs
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer

# Larger lists of numbers are not what a key would be hidden in.
_LONGEST_LIST = 100_000
# How the attack, which the harness makes, reaches the owner's process, and what was there before the first job.
_wire: Connection | None = None
_imported: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Spying(RemovalAttack):
    """Walks every object within reach and says what it found; it declares all that an attack may know."""

    name: ClassVar[str] = ""
    family: ClassVar[str] = "spy"
    data: ClassVar[Data] = "labels"
    knowledge: ClassVar[Knowledge] = "scheme"
    strength_unit: ClassVar[str] = "objects"

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Look around, report, and wait while the owner reads this process's memory."""
        found, count = look([self, target, trainer, trainer.inputs, trainer.labelled])
        if _wire is not None:
            _wire.send(("looked", sorted(found), count))
            _wire.recv()
        yield float(count), target.copy()


def serve(wire: Connection, dataset: str) -> None:
    """Run jobs until there are no more; the process's whole life.

    Args:
        wire: to the owner's process. Requests are (OWNBENCH_PLUGINS, job, inputs by
            role), or None at the end.
        dataset: loaded once beforehand, so that what it imports was there before any job.
    """
    global _wire, _imported
    _wire = wire
    torch.set_num_threads(1)
    # What the pool does, and the first seeding, import much that no job has to do with.
    jobs.warm()
    torch.manual_seed(0)
    info = data.info(dataset)
    data.whole(Task(info, info.model, info.recipe))
    gc.collect()
    _imported = frozenset(id(one) for one in gc.get_objects())
    wire.send("ready")
    while True:
        request = wire.recv()
        if request is None:
            return
        os.environ["OWNBENCH_PLUGINS"], job, inputs = request
        outcome = jobs.run(job, inputs, "cpu")
        wire.send(("done", outcome.status, f"{outcome.error_type}: {outcome.error}"))


def look(handed: list[Any]) -> tuple[set[bytes], int]:
    """Fingerprints (SHA-256) of every tensor, array, text, bytes and list of numbers within reach.

    Within reach is what can be got from the handed objects, from this project's and plugins' modules, the
    environment, all frames, and from any object that was made since the process was ready. What libraries
    made before that, when there was no job yet, is not gone through.

    Returns:
        The fingerprints, and how many objects were seen.
    """
    waiting = [*handed, *gc.get_objects(), *sys._current_frames().values(), dict(os.environ)]
    waiting += [vars(module) for name, module in list(sys.modules.items()) if name.split(".")[0] in PACKAGES]
    # The walk's own lists are no finding.
    seen = {id(waiting), id(_imported)}
    roots = {id(one) for one in waiting}
    found: set[bytes] = set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        found.update(hashlib.sha256(content).digest() for content in contents(one))
        if id(one) in roots or id(one) not in _imported:
            waiting.extend(gc.get_referents(one))
            if isinstance(one, torch.Tensor):
                waiting.extend(vars(one).values())
    return found, len(seen)


def contents(one: Any) -> Iterator[bytes]:
    """What of an object could be a key's bytes."""
    kind = type(one)
    if kind is str:
        yield one.encode("utf-8", "surrogatepass")
    elif kind in (bytes, bytearray):
        yield bytes(one)
    elif kind in (list, tuple):
        if 0 < len(one) <= _LONGEST_LIST and all(type(entry) in (int, float, bool) for entry in one):
            yield as_list(one)
    elif issubclass(kind, torch.Tensor):
        yield from _of_tensor(one)
    elif issubclass(kind, np.ndarray) and one.dtype != object:
        yield np.ascontiguousarray(one).tobytes()


def as_list(numbers: list[Any] | tuple[Any, ...]) -> bytes:
    """How a list of numbers is fingerprinted."""
    return json.dumps([int(n) if isinstance(n, bool) else n for n in numbers]).encode()


def _of_tensor(tensor: torch.Tensor) -> Iterator[bytes]:
    if tensor.layout != torch.strided or tensor.device.type == "meta" or not tensor.numel():
        return
    plain = tensor.detach().cpu().contiguous()
    yield plain.view(-1).view(torch.uint8).numpy().tobytes()
    whole = tensor.untyped_storage()
    if whole.device.type == "cpu" and whole.nbytes() != plain.numel() * plain.element_size():
        # A slice carries the storage of the whole.
        yield torch.empty(0, dtype=torch.uint8).set_(whole).numpy().tobytes()
