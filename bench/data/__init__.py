"""The datasets: one module each, found by name."""

from __future__ import annotations

import importlib

from bench.errors import unknown
from bench.task import DatasetInfo, Parts

# Dataset name -> module with INFO and load().
_MODULES = {"digits": "bench.data.digits"}


def names() -> tuple[str, ...]:
    """The names of all datasets."""
    return tuple(_MODULES)


def info(name: str, where: str = "dataset") -> DatasetInfo:
    """What is known of a dataset without loading it.

    Raises:
        InputError: no dataset of that name.
    """
    if name not in _MODULES:
        raise unknown("dataset", name, _MODULES, where)
    found: DatasetInfo = importlib.import_module(_MODULES[name]).INFO
    return found


def load(name: str) -> Parts:
    """The parts of a dataset, on the CPU, read anew."""
    info(name)
    parts: Parts = importlib.import_module(_MODULES[name]).load()
    return parts
