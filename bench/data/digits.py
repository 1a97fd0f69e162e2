"""The default task: 1,797 real scans of handwritten digits, 8x8 (Alpaydin and Kaynak 1998, by scikit-learn)."""

from __future__ import annotations

import numpy as np

from bench.data.source import Arrays, Source
from bench.recipe import Recipe
from bench.task import DatasetInfo, Sizes

INFO = DatasetInfo(
    name="digits",
    kind="image",
    shape=(1, 8, 8),
    classes=10,
    model="vgg8",
    recipe=Recipe(shift=1),
    sizes=Sizes(train=800, heldout=100, attacker=300, labelled=100, test=597),
    # Of the owner's 800 training scans; fixed, so that keys can be drawn without the data.
    mean=(0.3053,),
    std=(0.3756,),
    top=16.0,
    second=(0, 0, 1, 1, 2, 2, 3, 3, 4, 4),
    source="scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits, test part)",
)


def source() -> Source:
    """All scans; there is no test split, the parts are cut from one."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    inputs = scans.images.astype(np.uint8)[:, None]
    classes = tuple(str(number) for number in range(10))
    return Arrays("digits of scikit-learn", {"train": (inputs, scans.target.astype(np.int64))}, classes)
