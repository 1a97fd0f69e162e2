"""ModelNet10 and ModelNet40: meshes or sampled points that the user has brought."""

from __future__ import annotations

import os
from pathlib import Path

from bench import clouds
from bench.data.place import labelled_at
from bench.data.points import POINTS
from bench.data.source import Source
from bench.data.vision import root
from bench.errors import InputError
from bench.recipe import Recipe
from bench.task import DatasetInfo, Sizes

# Of clouds in the unit ball; not measured, since keys are drawn without the data.
STD = 0.33
MODEL = "pointnet"
# Augmented as in the released code of passport-aware normalization, whose clouds are moved by up to 0.1.
RECIPE = Recipe(
    epochs=60,
    batch_size=32,
    optimizer="adam",
    learning_rate=0.001,
    weight_decay=1e-4,
    rescale=0.25,
    offset=0.1 / STD,
    drop=0.875,
)


def _info(name: str, classes: int, sizes: Sizes, source: str) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        kind="points",
        shape=(3, POINTS),
        classes=classes,
        model=MODEL,
        recipe=RECIPE,
        sizes=sizes,
        mean=(0.0,) * 3,
        std=(STD,) * 3,
        top=clouds.TOP,
        second=tuple(number // 2 for number in range(classes)),
        source=source,
    )


# With so many labels the rarest class is in the attacker's part too.
INFOS = {
    info.name: info
    for info in (
        _info("modelnet10", 10, Sizes(2_900, 291, 800, 200, 908), "Wu et al. 2015: 4,899 meshes of furniture"),
        _info("modelnet40", 40, Sizes(7_000, 843, 2_000, 1_000, 2_468), "Wu et al. 2015: 12,311 meshes in 40 classes"),
    )
}

# What the publishers' archives unpack to.
_FOLDERS = {
    "modelnet10": ("modelnet10", "ModelNet10"),
    "modelnet40": ("modelnet40", "ModelNet40", "modelnet40_ply_hdf5_2048"),
}


def source(name: str) -> Source:
    """The set from a folder of its name below the one that OWNBENCH_DATA names.

    Raises:
        InputError: it is not there; the message says what was looked for.
    """
    folder = place(name)
    if not folder.is_dir():
        tried = ", ".join(str(root() / one) for one in _FOLDERS[name])
        said = "" if os.environ.get("OWNBENCH_DATA") else " (OWNBENCH_DATA is not set)"
        raise InputError(
            f"dataset {name!r}: expected a folder, looked at {tried}{said}. Nothing is downloaded: get the meshes from "
            "the ModelNet page of Princeton (modelnet.cs.princeton.edu), or the clouds in HDF5 of PointNet's authors, "
            "and unpack them below the folder that OWNBENCH_DATA names"
        )
    found = labelled_at(folder)
    if len(found.shape()) != 2:
        raise InputError(f"{folder}: expected meshes or clouds of points, got images")
    return found


def place(name: str) -> Path:
    """The folder that the set is read from, or would be."""
    there = (folder for one in _FOLDERS[name] if (folder := root() / one).is_dir())
    return next(there, root() / name)
