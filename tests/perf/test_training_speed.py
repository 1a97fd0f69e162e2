"""The training loop against a plain PyTorch loop over a DataLoader; bars of 1.2 times on a CPU, 3 times on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.perf import training

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BAR = 3.0 if DEVICE == "cuda" else 1.2
CASES = {case.model: case for case in (training.CUDA if DEVICE == "cuda" else training.CPU)}
# Larger nets are reported: on a CPU they spend their time in the same convolutions whoever calls them.
HELD = ("lenet5", "resnet8") if DEVICE == "cpu" else tuple(CASES)


@pytest.mark.timeout(900)
@pytest.mark.benchmark(group="training")
@pytest.mark.parametrize("model", CASES)
def test_images_per_second_against_a_plain_loop(benchmark, model):
    rows = []
    benchmark.pedantic(lambda: rows.append(training.compare(CASES[model], DEVICE)), rounds=1, iterations=1)
    (row,) = rows
    benchmark.extra_info.update({name: row[name] for name in ("images_per_second", "ratio", "share_of_peak")})
    assert model not in HELD or row["ratio"] >= BAR
