"""Cutting a source into the disjoint parts of a task: who gets which rows, their digests, and the rows themselves."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable

import numpy as np
import torch

from bench.data.source import Labels, Rows, Source
from bench.errors import InputError
from bench.split import Inputs, Scale, Split
from bench.stream import Stream
from bench.task import DatasetInfo, PartName, Sizes

PARTS: tuple[PartName, ...] = ("train", "heldout", "attacker", "test")


def cut(source: Source, info: DatasetInfo, sizes: Sizes) -> dict[PartName, tuple[str, Rows]]:
    """For each part the split and the rows that it takes; the same for every seed and on every machine.

    Raises:
        InputError: fewer rows than the sizes ask for.
    """
    wanted = {"train": sizes.train, "heldout": sizes.heldout, "attacker": sizes.attacker}
    tested = "test" in source.splits()
    if not tested:
        wanted["test"] = sizes.test
    rows = _taken(source, info, "train", wanted)
    if tested:
        rows |= _taken(source, info, "test", {"test": sizes.test})
    return {part: ("test" if tested and part == "test" else "train", rows[part]) for part in PARTS}


def _taken(source: Source, info: DatasetInfo, split: str, wanted: dict[str, int]) -> dict[str, Rows]:
    there, asked = len(source.labels(split)), sum(wanted.values())
    if asked > there:
        sizes = ", ".join(f"{part} {count}" for part, count in wanted.items())
        raise InputError(
            f"{source.where}, split {split!r}: the parts ask for {asked} rows ({sizes}), there are {there}; "
            "set other sizes by `parts` in the suite's [[tasks]]"
        )
    stream = Stream(("data", info.order))
    order = (stream if split == "train" else stream.child(split)).numpy().permutation(there)
    ends = np.cumsum([0, *wanted.values()])
    return {part: order[a:b] for part, (a, b) in zip(wanted, itertools.pairwise(ends), strict=True)}


def check(source: Source, info: DatasetInfo, sizes: Sizes) -> None:
    """Refuse what a job would stumble over.

    Raises:
        InputError: a class missing in a part, another number of classes or shape than the task's, mixed sizes.
    """
    if len(source.classes) != info.classes:
        raise InputError(f"{source.where}: expected {info.classes} classes, got {len(source.classes)}")
    for part, (split, rows) in cut(source, info, sizes).items():
        source.check(split, rows, info.shape)
        labels = source.labels(split)[rows]
        _require_classes(source, part, labels)
        if part == "attacker":
            _require_classes(source, "attacker's labelled", labels[: sizes.labelled])


def _require_classes(source: Source, part: str, labels: Labels) -> None:
    missing = sorted(set(range(len(source.classes))) - set(labels.tolist()))
    if missing:
        names = ", ".join(repr(source.classes[number]) for number in missing[:5])
        more = " and more" if len(missing) > 5 else ""
        raise InputError(
            f"{source.where}: expected each of {len(source.classes)} classes in the {part} part of {len(labels)} "
            f"inputs, missing: {names}{more}; enlarge it by `parts` in the suite's [[tasks]], or bring more data"
        )


def digests(source: Source, info: DatasetInfo, sizes: Sizes, parts: Iterable[PartName] = PARTS) -> dict[PartName, str]:
    """For each part SHA-256 over labels and stored content of its rows in order, 16 hexadecimal digits."""
    found: dict[PartName, str] = {}
    for part, (split, rows) in cut(source, info, sizes).items():
        if part in parts:
            total = hashlib.sha256(f"{len(rows)} {sizes.labelled}".encode())
            labels = source.labels(split)
            for row, one in zip(rows, source.digests(split, rows), strict=True):
                total.update(int(labels[row]).to_bytes(8, "little") + one)
            found[part] = total.hexdigest()[:16]
    return found


def read(source: Source, info: DatasetInfo, sizes: Sizes, part: PartName) -> Split:
    """The inputs and labels of a part, on the CPU.

    Raises:
        InputError: an input that cannot be decoded.
    """
    split, rows = cut(source, info, sizes)[part]
    stored = torch.from_numpy(np.ascontiguousarray(source.stored(split, rows, info.shape)))
    labels = torch.from_numpy(source.labels(split)[rows])
    return Split(Inputs(stored, Scale(info.mean, info.std, info.top)), labels)
