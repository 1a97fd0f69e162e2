"""A task as plain JSON values for a job, and back: what it is, and apart from that where its data lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import parameters
from bench.recipe import Recipe
from bench.task import DatasetInfo, PartName, Sizes, Task


def task_spec(task: Task) -> dict[str, Any]:
    """Everything that a job depends on; no path."""
    info = task.info
    return {
        "dataset": info.order,
        "kind": info.kind,
        "shape": list(info.shape),
        "classes": info.classes,
        "mean": list(info.mean),
        "std": list(info.std),
        "top": info.top,
        "second": list(info.second),
        "model": task.model,
        "recipe": parameters.values_of(task.recipe),
        "parts": parameters.values_of(task.sizes),
    }


def data_spec(task: Task, digests: Mapping[PartName, str]) -> dict[str, Any]:
    """Where the data lies and the digests of its parts; a job's identity has the digests alone."""
    return {"at": task.info.at, "digests": dict(digests)}


def task_of(spec: Mapping[str, Any], data: Mapping[str, Any]) -> Task:
    """The task of both specs."""
    recipe = parameters.build(Recipe, spec["recipe"], "recipe")
    sizes = parameters.build(Sizes, spec["parts"], "parts")
    info = DatasetInfo(
        name=spec["dataset"],
        kind=spec["kind"],
        shape=tuple(spec["shape"]),
        classes=spec["classes"],
        model=spec["model"],
        recipe=recipe,
        sizes=sizes,
        mean=tuple(spec["mean"]),
        std=tuple(spec["std"]),
        top=spec["top"],
        second=tuple(spec["second"]),
        at=data["at"],
    )
    return Task(info, spec["model"], recipe, sizes)
