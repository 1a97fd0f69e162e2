"""The default task: 1,797 real scans of handwritten digits, 8x8 (Alpaydin and Kaynak 1998, by scikit-learn)."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from bench.recipe import Recipe
from bench.stream import Stream
from bench.task import DatasetInfo, Parts
from bench.training import Split

OWNER, HELDOUT, ATTACKER, LABELLED = 900, 100, 300, 100

INFO = DatasetInfo(
    name="digits",
    kind="image",
    shape=(1, 8, 8),
    classes=10,
    model="vgg8",
    recipe=Recipe(shift=1),
    # Of the owner's 800 training scans; fixed, so that keys can be drawn without the data.
    mean=(0.3053,),
    std=(0.3756,),
    second=(0, 0, 1, 1, 2, 2, 3, 3, 4, 4),
    source="scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits, test part)",
)


def load() -> Parts:
    """Owner 800 and 100 held out, attacker 300 of which 100 carry labels, test 597; the same for every seed."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = Stream(("data", "digits")).numpy().permutation(len(scans.target))
    raw = torch.from_numpy(scans.images[order].astype(np.float32) / 16.0).unsqueeze(1)
    x = (raw - INFO.mean[0]) / INFO.std[0]
    y = torch.from_numpy(scans.target[order].astype(np.int64))
    ends = np.cumsum([0, OWNER - HELDOUT, HELDOUT, ATTACKER])
    train, heldout, attacker = (Split(x[a:b], y[a:b]) for a, b in itertools.pairwise(ends))
    return Parts(train, heldout, attacker, LABELLED, Split(x[ends[-1] :], y[ends[-1] :]))
