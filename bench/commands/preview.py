"""The `run --plan` command: what a run would do, how long it takes and how much disk, with nothing started."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Literal

import torch

from bench import data
from bench.commands.run import cores, device_of, folder_of, narrowed
from bench.errors import InputError
from bench.forecast import estimate, speed
from bench.forecast.estimate import Devices
from bench.forecast.schedule import disk, schedule
from bench.planning import cells, suite
from bench.planning.options import Options
from bench.running import ranking
from bench.storage.store import RunFolder
from bench.text.preview import Preview, render
from bench.workers import seats


def text(options: Options, devices: Devices | None = None) -> str:
    """What `run` with these options would do.

    Args:
        options: as for `bench.commands.run.run`.
        devices: instead of those that the options mean on this machine.

    Raises:
        InputError: bad input, as for a run.
    """
    return render(preview(options, devices), options)


def preview(options: Options, devices: Devices | None = None) -> Preview:
    """The numbers of `text`; nothing is started, written or locked."""
    chosen = narrowed(suite.read(options.suite), options.only)
    for task in chosen.tasks:
        data.require_here(task.info)
    devices = devices or devices_of(options, chosen.header.threads)
    plan = cells.make(chosen, devices.kind, options.seeds)
    out = folder_of(options, chosen)
    folder = RunFolder.open_for_reading(out) if (out / "run.json").exists() else RunFolder(out, "")
    todo = set(plan.jobs) if options.fresh else ranking.left(plan, folder)[0]
    tasks = estimate.tasks(plan)
    probed_on: Literal["cpu", "cuda"] = "cuda" if devices.kind == "cuda" and torch.cuda.is_available() else "cpu"
    speeds = {key: speed.probe(task, probed_on, devices.threads) for key, task in tasks.items()}
    cost = estimate.costs(plan, folder.entries, speeds, devices)
    seconds = {job: one.seconds for job, one in cost.items()}
    made = schedule(plan, todo, seconds, len(devices.names))
    size = {job: estimate.product_bytes(plan.jobs[job], tasks[estimate.task_key(plan.jobs[job])]) for job in todo}
    there = 0 if options.fresh else sum(path.stat().st_size for path in (out / "artifacts").glob("*.safetensors"))
    return Preview(
        suite=chosen,
        plan=plan,
        todo=frozenset(todo),
        devices=devices,
        cost=cost,
        speeds={key: (task, speeds[key]) for key, task in tasks.items()},
        schedule=made,
        disk=disk(plan, made.ended, size),
        there=there,
        free=shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists())).free,
        out=out,
        probed_on=probed_on,
    )


def devices_of(options: Options, threads: int) -> Devices:
    """The slots that a run with these options has.

    Raises:
        InputError: a GPU is wanted and there is none, or a cluster is named without saying what it has.
    """
    if options.address:
        # Looking at a cluster is joining it.
        if options.device == "auto" or not options.workers:
            raise InputError("--plan: looks at no cluster; with --address, say --device and --workers too")
        cluster: Literal["cpu", "cuda"] = "cuda" if options.device == "cuda" else "cpu"
        return Devices(cluster, tuple(f"{cluster}:{slot}" for slot in range(options.workers)), threads, at_hand=False)
    kind = device_of(options)
    if options.local:
        return Devices(kind, (kind,), threads)
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    per_gpu = int(1 / options.gpus_per_job + 1e-9) if options.gpus_per_job else None
    workers = options.workers or (max(1, cores() // threads) if kind == "cpu" else None)
    here = [seats.Node("here", "this machine", max(cores(), (workers or 1) * threads), gpus)]
    places = Counter(seat.bundle for seat in seats.layout(here, kind, threads, workers, per_gpu=per_gpu)[1])
    if kind == "cpu":
        return Devices(kind, ("cpu",) * places.total(), threads)
    if not (options.workers or per_gpu):
        places = Counter({gpu: seats.slots_for(torch.cuda.mem_get_info(gpu)[0] / 2**20, places[gpu]) for gpu in places})
    return Devices(kind, tuple(f"cuda:{gpu}" for gpu, slots in sorted(places.items()) for _ in range(slots)), threads)
