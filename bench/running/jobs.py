"""Running one job in a worker: a clean state, the right side's data, products as bytes, failures as outcomes."""

from __future__ import annotations

import atexit
import functools
import gc
import json
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
from bench import data, parameters, registry, specs
from bench.bundle import Bundle
from bench.planning.job import Job, Outcome
from bench.running import work
from bench.running.work import Work
from bench.split import Split
from bench.stream import Stream
from bench.task import PartName

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
        # Reading data, once in a process, is no part of what a method takes.
        _load(job)
        started = time.perf_counter()
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
    outcome.device = device_name(place)
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


def device_memory(device: str) -> float | None:
    """MiB that are free on a GPU; the call makes this process's CUDA context. None on a CPU."""
    if device == "cpu":
        return None
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return free / 2**20


def device_name(place: torch.device) -> str:
    """Its kind and its model; a CPU's with the instructions that PyTorch takes, by which sums are rounded."""
    if place.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(place)})"
    return f"cpu ({_processor()}, {torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def _processor() -> str:
    # Python itself knows no more than the architecture on Linux.
    told = Path("/proc/cpuinfo")
    lines = told.read_text(errors="replace").splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), "") or platform.processor() or platform.machine()


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
    bundles = {role: one if role.partition(":")[0] in _ON_CPU else one.to(device) for role, one in bundles.items()}
    surroundings = Work(
        task=specs.task_of(spec["task"], spec["data"]),
        seed=spec["seed"],
        device=device,
        bundles={role: bundle for role, bundle in bundles.items() if not role.startswith(_STAGE)},
        stages={r.removeprefix(_STAGE): bundle for r, bundle in bundles.items() if r.startswith(_STAGE)},
        plugin=plugin_of(spec.get("plugin")),
        scheme=plugin_of(spec.get("scheme")),
        options=spec.get("options", {}),
    )
    # Copies, because a plugin may change what it is handed and the next job must not see that.
    parts = _load(job)
    if "attacker" in parts:
        inputs_only, labels = parts["attacker"].inputs, parts["attacker"].y
        surroundings.inputs = inputs_only.copy()
        surroundings.labelled = Split(inputs_only.take(len(labels)), labels).copy()
    elif job.kind == "measure":
        surroundings.test = parts["test"].copy()
    else:
        surroundings.train, surroundings.heldout = parts["train"].copy(), parts["heldout"].copy()
    return surroundings


def plugin_of(spec: Mapping[str, Any] | None) -> Any:
    """The defense, attack or stage of a job's spec."""
    if spec is None:
        return None
    return parameters.build(registry.load(spec["path"]), spec["params"], spec["path"])


# Each process keeps just the parts of its side: an attacking process never holds the owner's data or the test's.
_PARTS: dict[str, tuple[PartName, ...]] = {"owner": ("train", "heldout"), "attacker": ("attacker",)}


def _load(job: Job) -> dict[PartName, Split]:
    """The parts of the data that the job may see, read once in a process."""
    parts: tuple[PartName, ...] = ("test",) if job.kind == "measure" else _PARTS[job.side]
    if job.kind == "attack":
        # A control runs on the owner's side, since it takes the labels that the attacker lacks.
        parts = ("attacker",)
    # Models and recipes differ on the same data.
    task = {**job.spec["task"], "model": "", "recipe": {}}
    labels = "all" if job.side == "owner" else "attacker's"
    return _cached(parameters.canonical(task), parameters.canonical(job.spec["data"]), parts, labels)


@functools.lru_cache(maxsize=8)
def _cached(task: str, where: str, parts: tuple[PartName, ...], labels: str) -> dict[PartName, Split]:
    place = json.loads(where)
    loaded = data.load(specs.task_of(json.loads(task), place), parts, place["digests"])
    if "attacker" in loaded and labels != "all":
        # In storage of their own: the labels that the attacker lacks must not be in its process.
        attacker, count = loaded["attacker"], json.loads(task)["parts"]["labelled"]
        loaded["attacker"] = Split(attacker.inputs, attacker.y[:count].clone())
    return loaded


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
    # Shapes repeat batch after batch, so that looking for the fastest kernel once pays.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    torch.backends.cudnn.deterministic = False
    if job.spec["task"]["recipe"]["compile"]:
        # What was compiled for earlier jobs changes how this one is.
        torch.compiler.reset()
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
