"""Running one job in a worker: a clean state, the right side's data, products as bytes, failures as outcomes."""

from __future__ import annotations

import atexit
import functools
import gc
import platform
import random
import resource
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bench
from bench import data, parameters, registry, work
from bench.bundle import Bundle
from bench.job import Job, Outcome
from bench.recipe import Recipe
from bench.stream import Stream
from bench.task import Task
from bench.training import Split
from bench.work import Work

_STAGE = "stage:"
_ON_CPU = ("key", "part")


def run(job: Job, inputs: Mapping[str, bytes], device: str) -> Outcome:
    """Run one job to its outcome; whatever its plugin raises becomes a failed outcome.

    Args:
        job: what to do.
        inputs: bundles by role, as bytes.
        device: set by the harness.
    """
    started = time.perf_counter()
    place = torch.device(device)
    try:
        _reset(job, place)
        result, products = getattr(work, job.kind)(_surroundings(job, inputs, place))
        packed = {channel: bundle.to_bytes() for channel, bundle in products.items()}
        # Here, and not in the next job: what cannot be stored is this plugin's fault.
        parameters.canonical(result)
        for content in packed.values():
            Bundle.from_bytes(content)
        outcome = Outcome("ok", result, packed)
    # A plugin may raise anything, sys.exit included; the cell fails, the worker lives on.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        text = "".join(traceback.format_exception(error))
        outcome = Outcome.failure(type(error).__name__, str(error), text)
    outcome.peak_memory_mb = _peak_memory(place)
    if place.type == "cuda":
        # Slots share a GPU; an idle one must not sit on memory that another needs.
        torch.cuda.empty_cache()
    outcome.device = "cpu" if place.type == "cpu" else f"cuda ({torch.cuda.get_device_name(place)})"
    outcome.threads = torch.get_num_threads()
    outcome.versions = versions()
    outcome.seconds = time.perf_counter() - started
    return outcome


@functools.cache
def warm() -> None:
    """Do once what PyTorch does at the first step of a process: it imports for seconds, and no job should pay that."""
    layer = torch.nn.Linear(1, 1)
    layer(torch.ones(1, 1)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1, fused=True).step()


@functools.cache
def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "ownbench": bench.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _surroundings(job: Job, inputs: Mapping[str, bytes], device: torch.device) -> Work:
    spec = job.spec
    bundles = {role: Bundle.from_bytes(content) for role, content in inputs.items()}
    # Keys stay on the CPU, where they were drawn: a scheme moves what it needs.
    bundles = {role: one if role in _ON_CPU else one.to(device) for role, one in bundles.items()}
    surroundings = Work(
        task=_task(spec["task"]),
        seed=spec["seed"],
        device=device,
        bundles={role: bundle for role, bundle in bundles.items() if not role.startswith(_STAGE)},
        stages={r.removeprefix(_STAGE): bundle for r, bundle in bundles.items() if r.startswith(_STAGE)},
        plugin=_plugin(spec.get("plugin")),
        scheme=_plugin(spec.get("scheme")),
        options=spec.get("options", {}),
    )
    # Copies, because a plugin may change what it is handed and the next job must not see that.
    dataset = spec["task"]["dataset"]
    if job.side == "attacker":
        inputs_only, labelled = _attacker_data(dataset)
        surroundings.inputs, surroundings.labelled = inputs_only.clone(), labelled.copy()
    elif job.kind == "measure":
        surroundings.test = _test_data(dataset).copy()
    else:
        surroundings.train, surroundings.heldout = (split.copy() for split in _owner_data(dataset))
    return surroundings


def _plugin(spec: Mapping[str, Any] | None) -> Any:
    if spec is None:
        return None
    return parameters.build(registry.load(spec["path"]), spec["params"], spec["path"])


def _task(spec: Mapping[str, Any]) -> Task:
    return Task(data.info(spec["dataset"]), spec["model"], parameters.build(Recipe, spec["recipe"], "recipe"))


# Each process keeps just the parts of its side: an attacking process never holds the owner's data or the test's.
@functools.cache
def _owner_data(dataset: str) -> tuple[Split, Split]:
    parts = data.load(dataset)
    return parts.train, parts.heldout


@functools.cache
def _attacker_data(dataset: str) -> tuple[torch.Tensor, Split]:
    parts = data.load(dataset)
    # Clones, because a view would carry the storage of the whole dataset.
    labelled = parts.attacker.take(parts.labelled)
    return parts.attacker.x.clone(), labelled.copy()


@functools.cache
def _test_data(dataset: str) -> Split:
    return data.load(dataset).test


def _reset(job: Job, device: torch.device) -> None:
    """The same state at the start of each job, however much this process has done before."""
    seed = Stream(("job", job.id)).seed
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(int(job.spec.get("threads", 1)))
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    _freeze_imports()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _restart_peak_memory()


@functools.cache
def _freeze_imports() -> None:
    # Once in a process: looking through all that PyTorch imported costs a quarter of a second each time.
    gc.collect()
    gc.freeze()
    # What is frozen is not taken down in order when the process ends, and some libraries complain of that.
    atexit.register(gc.unfreeze)


def _restart_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_memory(device: torch.device) -> float:
    """MiB: of the device on a GPU; else of this process since the job began, where the system tells."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
