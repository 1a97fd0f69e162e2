"""A runner for tests of executors: does what `job.spec` says, with neither torch nor plugins."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.planning.job import Job, Outcome


class Unpicklable:
    """What no process can hand to another."""

    def __reduce__(self) -> str:
        raise TypeError("cannot be sent")


def run(job: Job, inputs: Mapping[str, bytes], device: str) -> Outcome:
    """Do `spec["do"]`; the result tells what the process is and was given."""
    spec = job.spec
    started = time.perf_counter()
    result: dict[str, Any] = {
        "pid": os.getpid(),
        "inputs": {role: len(data) for role, data in inputs.items()},
    }
    result["types"] = sorted({type(data).__name__ for data in inputs.values()})
    result["environment"] = dict(os.environ)
    result["niceness"] = os.nice(0)
    products = {channel: bytes([fill]) * size for channel, (fill, size) in spec.get("products", {}).items()}
    match spec.get("do", "nothing"):
        case "sleep":
            _touch(spec)
            time.sleep(spec["seconds"])
        case "spin":
            while time.perf_counter() - started < spec["seconds"]:
                pass
        case "meet" | "span":
            result |= {"meet": _meet, "span": _span}[spec["do"]](spec, job.id)
        case "join":
            products["public"] = b"".join(inputs[role] for role in sorted(inputs))
        case "raise":
            raise ZeroDivisionError("a toy error")
        case "sys.exit":
            sys.exit("a toy exit")
        case "os._exit":
            os._exit(3)
        case "crash":
            ctypes.string_at(0)
        case "unpicklable":
            result["object"] = Unpicklable()
        case "cuda error":
            return Outcome.failure("AcceleratorError", "CUDA error: device-side assert triggered")
    seconds = time.perf_counter() - started
    peak = float(os.environ.get("TOY_PEAK", "0"))
    return Outcome("ok", result, products, seconds=seconds, device=device, peak_memory_mb=peak)


def device_memory(device: str) -> float | None:
    """Made-up MiB: `TOY_MEMORY` is a list by GPU."""
    made_up = os.environ.get("TOY_MEMORY")
    return float(made_up.split(",")[int(os.environ["CUDA_VISIBLE_DEVICES"])]) if made_up and device == "cuda" else None


def _meet(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    # Only jobs that run at the same time all see each other.
    folder = Path(spec["folder"])
    (folder / name).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < spec["count"] and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"met": len(list(folder.iterdir()))}


def _span(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    # When a job ran; the clock is that of all processes of a machine.
    begun = time.monotonic()
    time.sleep(0.3)
    return {"span": [begun, time.monotonic()]}


def _touch(spec: Mapping[str, Any]) -> None:
    # Tells the test that the job runs, and where.
    if "file" in spec:
        with open(spec["file"] + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.replace(spec["file"] + ".new", spec["file"])
