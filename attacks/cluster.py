"""Weight sharing: the weights of a layer become those of a few clusters (Han, Mao and Dally 2016)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import nn

import models
from bench.attack import AttackClass, RemovalAttack
from bench.effort import Effort
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class Cluster(RemovalAttack):
    """Replace each weight of a convolution or linear layer by the centre of its cluster; no training, no data.

    Attributes:
        clusters: how many values a layer may have, falling, each at least 2; each starts from the protected model.
        sample: at most so many weights of a layer, drawn at random, say where the centres are.
    """

    name: ClassVar[str] = "cluster"
    family: ClassVar[str] = "quantization"
    source: ClassVar[str] = "Han, Mao and Dally 2016, arXiv 1510.00149, section 3"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "clusters"

    clusters: tuple[int, ...] = (32, 16, 8, 4, 2)
    sample: int = 20_000

    def __post_init__(self) -> None:
        falling = all(first > second for first, second in itertools.pairwise(self.clusters))
        if not (self.clusters and falling and self.clusters[-1] >= 2):
            raise ValueError(f"expected clusters that fall, 2 at the least, got {list(self.clusters)}")
        if self.sample < self.clusters[0]:
            raise ValueError(f"expected a sample of at least {self.clusters[0]}, got {self.sample}")

    def effort(self, task: Task) -> Effort:
        """No training."""
        del task
        return Effort()

    def surrogates(self) -> int:
        """One per number of clusters."""
        return len(self.clusters)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Cluster the protected model's weights, layer by layer, into each number of clusters."""
        protected = target.copy()
        for count in self.clusters:
            model = copy.deepcopy(protected)
            with torch.no_grad():
                for name, weight in models.weights_of(model).items():
                    stream = trainer.stream.child("cluster", name)
                    made = clustered(weight.detach().flatten().cpu().numpy(), count, self.sample, stream)
                    weight.copy_(torch.from_numpy(made).view(weight.shape))
            yield float(count), model


def clustered(weights: np.ndarray, count: int, sample: int, stream: Stream) -> np.ndarray:
    """Weights replaced by the nearest of a few centres, which k-means finds from evenly spaced ones.

    Weights of exactly zero stay zero, and then zero is one of the centres: what was pruned stays pruned.

    Args:
        weights: float32 of shape (N,).
        count: of centres, at least 2.
        sample: at most so many weights that are not zero decide on the centres.
        stream: says which.

    Returns:
        float32 of shape (N,) with at most `count` values.
    """
    living = weights != 0
    alive, free = weights[living], count - int(not living.all())
    if len(np.unique(alive)) <= free:
        return weights.copy()
    seen = alive if len(alive) <= sample else stream.numpy().choice(alive, sample, replace=False)
    centres = _centres(seen.astype(np.float64), free)
    borders = (centres[1:] + centres[:-1]) / 2
    made = np.zeros_like(weights)
    made[living] = centres[np.searchsorted(borders, alive)]
    return made


def _centres(values: np.ndarray, count: int) -> np.ndarray:
    """Centres in rising order; fewer than asked for where fewer values are distinct."""
    count = min(count, len(np.unique(values)))
    evenly = np.linspace(values.min(), values.max(), count)
    return np.sort(KMeans(count, init=evenly[:, None], n_init=1).fit(values[:, None]).cluster_centers_[:, 0])
