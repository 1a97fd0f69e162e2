"""The default task on points: ten solids in any pose, made here and never stored."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

import numpy as np

from bench import clouds, solids
from bench.data.source import Labels, Rows, Stored
from bench.errors import InputError
from bench.recipe import Recipe
from bench.task import DatasetInfo, Sizes

_POINTS = 64
_SIZES = Sizes(train=1600, heldout=200, attacker=800, labelled=200, test=1000)
_COUNT = _SIZES.train + _SIZES.heldout + _SIZES.attacker + _SIZES.test
# Another number is another dataset.
_SEED = 21

INFO = DatasetInfo(
    name="shapes",
    kind="points",
    shape=(3, _POINTS),
    classes=len(solids.COMMON),
    model="pointnet-basic",
    recipe=Recipe(epochs=40, optimizer="adam", learning_rate=0.003, weight_decay=1e-4, rotate=True),
    sizes=_SIZES,
    mean=(0.0,) * 3,
    # Of all axes together; fixed, so that keys can be drawn without the data.
    std=(0.33,) * 3,
    top=clouds.TOP,
    second=tuple(number // 2 for number in range(len(solids.COMMON))),
    source="made by bench/solids.py: surfaces of ten solids, in any pose",
)


class Shapes:
    """All clouds, without a test split: the parts are cut from one. Each row is made from a seed of its own."""

    where = "shapes of bench/solids.py"
    classes = solids.COMMON

    def splits(self) -> tuple[str, ...]:
        """Only `train`."""
        return ("train",)

    def labels(self, split: str) -> Labels:
        """The classes in turn."""
        return np.arange(_COUNT, dtype=np.int64) % len(self.classes)

    def shape(self) -> tuple[int, ...]:
        """(axes, points)."""
        return INFO.shape

    def digests(self, split: str, rows: Rows) -> Iterator[bytes]:
        """SHA-256 of each row."""
        for row in rows:
            yield hashlib.sha256(_made(int(row)).tobytes()).digest()

    def check(self, split: str, rows: Rows, shape: tuple[int, ...]) -> None:
        """All are of one shape; it must be the expected one."""
        if self.shape() != tuple(shape):
            raise InputError(f"{self.where}: expected inputs of shape {tuple(shape)}, got {self.shape()}")

    def stored(self, split: str, rows: Rows, shape: tuple[int, ...]) -> Stored:
        """The rows' clouds, int16 of shape (len(rows), 3, points)."""
        return np.stack([_made(int(row)) for row in rows])


@functools.lru_cache(maxsize=_COUNT)
def _made(row: int) -> np.ndarray:
    chance = np.random.Generator(np.random.PCG64([_SEED, row]))
    cloud = solids.cloud(solids.COMMON[row % len(solids.COMMON)], _POINTS, chance)
    made = np.round(cloud.T * INFO.top).astype(np.int16)
    # Everybody who asks gets the same array.
    made.setflags(write=False)
    return made
