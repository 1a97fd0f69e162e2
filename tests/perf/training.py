"""The training loop against a plain PyTorch loop, on the same machine and net; run whole it writes a table.

    python -m tests.perf.training --to results/speed

Both loops train the same net with the same batch size, optimiser, learning rate and augmentation. The plain one is
what one writes first: a Dataset of images, torchvision's transforms, a DataLoader (with the number of workers that is
fastest here), float32 in PyTorch's own layout, on CUDA with pinned memory.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import models
from bench.recipe import Recipe
from bench.split import Inputs, Scale, Split
from bench.stream import Stream
from bench.training import training

MEAN, STD = 0.45, 0.25
ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """A net, its inputs and how many of them an epoch has."""

    model: str
    shape: tuple[int, int, int]
    images: int
    batch: int = 128
    shift: int = 4
    flip: bool = True


CPU = (
    Case("lenet5", (1, 28, 28), 12_800, 64, 2, False),
    Case("resnet8", (3, 32, 32), 2_560),
    Case("resnet20", (3, 32, 32), 1_280),
    Case("vgg8", (3, 32, 32), 1_280),
    Case("resnet18", (3, 32, 32), 128),
)
CUDA = (
    Case("lenet5", (1, 28, 28), 51_200, 64, 2, False),
    Case("resnet8", (3, 32, 32), 51_200),
    Case("resnet20", (3, 32, 32), 51_200),
    Case("resnet18", (3, 32, 32), 51_200),
    Case("vgg16-bn", (3, 32, 32), 51_200),
)


class Images(Dataset):
    """Images one by one, as a folder or a downloaded set gives them."""

    def __init__(self, pixels, labels, transform):
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, number):
        pixels = self.pixels[number]
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        return self.transform(image), int(self.labels[number])


def data_of(case):
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (case.images, *case.shape), dtype=np.uint8)
    return pixels, chance.integers(0, 10, case.images)


def plain(case, device, workers):
    """Seconds of one epoch of the plain loop; its loader's processes are started before."""
    from torchvision import transforms

    pixels, labels = data_of(case)
    steps = [transforms.RandomCrop(case.shape[1], padding=case.shift, padding_mode="edge")]
    steps += [transforms.RandomHorizontalFlip()] if case.flip else []
    steps += [transforms.ToTensor(), transforms.Normalize([MEAN] * case.shape[0], [STD] * case.shape[0])]
    loader = DataLoader(
        Images(pixels, labels, transforms.Compose(steps)),
        case.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device == "cuda",
    )
    model = models.build(case.model, 10, case.shape).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def epoch():
        for x, y in loader:
            loss = F.cross_entropy(model(x.to(device, non_blocking=True)), y.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return _best(epoch, device)


def ours(case, device):
    """Seconds of one epoch of the project's loop."""
    pixels, labels = data_of(case)
    scale = Scale((MEAN,) * case.shape[0], (STD,) * case.shape[0])
    split = Split(Inputs(torch.from_numpy(pixels), scale), torch.from_numpy(labels)).to(torch.device(device))
    model = models.build(case.model, 10, case.shape).to(device)
    recipe = Recipe(
        epochs=ROUNDS + 1,
        batch_size=case.batch,
        learning_rate=0.01,
        schedule="constant",
        shift=case.shift,
        flip=case.flip,
    )
    running = training(model, split, recipe, Stream(("perf",)))
    return _best(lambda: next(running), device)


def _best(epoch, device):
    """The fastest of three epochs after one that warms up."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        epoch()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def flops_per_image(case):
    """Of a step, forward and backward, counted by PyTorch."""
    model, x = models.build(case.model, 10, case.shape), torch.randn(2, *case.shape)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops() / 2


def peak(device):
    """FLOP/s of a large matrix product in the precision that training takes: the device's measured peak.

    Convolutions can be above it, since libraries compute 3x3 ones with fewer products than they are counted with.
    """
    size, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a = torch.randn(size, size, device=device, dtype=kind)
    repeats = 20 if device == "cuda" else 2
    seconds = _best(lambda: [a @ a for _ in range(repeats)], device)
    return 2 * size**3 * repeats / seconds


def compare(case, device, top=None):
    """One row: images a second of both loops, and the share of the device's peak."""
    cores = len(os.sched_getaffinity(0))
    choices = (0, cores) if device == "cpu" else (min(cores, 8), min(cores, 16))
    # Just before, with the same threads and neighbours.
    top = top or peak(device)
    mine = ours(case, device)
    theirs = {workers: plain(case, device, workers) for workers in dict.fromkeys(choices)}
    workers = min(theirs, key=theirs.get)
    rate = case.images / mine
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "model": case.model,
        "batch": case.batch,
        "images_per_second": rate,
        "plain_images_per_second": case.images / theirs[workers],
        "plain_workers": workers,
        "ratio": theirs[workers] / mine,
        "flops_per_image": flops_per_image(case),
        "share_of_peak": rate * flops_per_image(case) / top,
        "peak_flops": top,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--to", type=Path, default=Path("results/speed"))
    chosen = parser.parse_args()
    import pandas as pd

    top = peak(chosen.device)
    rows = [compare(case, chosen.device, top) for case in (CUDA if chosen.device == "cuda" else CPU)]
    table = pd.DataFrame(rows)
    chosen.to.mkdir(parents=True, exist_ok=True)
    table.to_parquet(chosen.to / f"training-{chosen.device}.parquet", index=False)
    print(table.drop(columns=["device", "torch"]).round(3).to_string(index=False))
    print(*itertools.chain(table.device.unique(), table.torch.unique()), f"peak {top / 1e12:.2f} TFLOP/s", sep="; ")


if __name__ == "__main__":
    main()
