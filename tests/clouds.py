"""A task on points, small enough to train in a second: each class is a box of its own proportions."""

import dataclasses

import torch

from bench.recipe import Recipe
from bench.split import Split
from bench.stream import Stream
from bench.task import DatasetInfo, Parts, Sizes, Task

SIZES = Sizes(train=48, heldout=16, attacker=32, labelled=16, test=32)
INFO = DatasetInfo(
    name="boxes",
    kind="points",
    shape=(3, 64),
    classes=5,
    model="pointnet-basic",
    recipe=Recipe(epochs=2, batch_size=16, optimizer="adam", learning_rate=2e-3, weight_decay=1e-4),
    sizes=SIZES,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    second=(0, 1, 0, 1, 0),
)


def task(model="pointnet-basic", **recipe):
    return Task(INFO, model, dataclasses.replace(INFO.recipe, **recipe))


def parts(sizes=SIZES):
    """Points drawn uniformly in the box of their class, somewhat larger or smaller each time."""
    chance = Stream(("boxes",)).torch()
    sides = torch.rand(INFO.classes, 3, generator=chance) * 0.8 + 0.2

    def split(count):
        labels = torch.arange(count) % INFO.classes
        size = sides[labels] * (0.9 + 0.2 * torch.rand(count, 1, generator=chance))
        raw = 0.5 + (torch.rand(count, *INFO.shape, generator=chance) - 0.5) * size[:, :, None]
        return Split(task().normalised(raw), labels)

    train, heldout, attacker, test = (split(n) for n in (sizes.train, sizes.heldout, sizes.attacker, sizes.test))
    return Parts(train, heldout, attacker, sizes.labelled, test)
