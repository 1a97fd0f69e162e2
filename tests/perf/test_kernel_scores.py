"""Scores of a ticket's kernels: products of weights along paths, random walks, betweenness."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

import models
from bench.stream import Stream
from defenses.tickets.kernel_betweenness import betweenness
from defenses.tickets.kernel_paths import edge_weight_products
from defenses.tickets.kernel_walks import walks
from models.kernels import kernels, strengths
from tests.walking import looped

STREAM = Stream(("perf", "kernel scores"))
WALKS = 1_000


def ticket(name, density):
    """A net without training, a mask of random weights, and the graph between them."""
    torch.manual_seed(0)
    model = models.build(name, 10, (3, 32, 32))
    layers = [layer for layer in models.weights_of(model) if layer not in ("conv1", "head")]
    weights = models.weights_of(model, layers)
    masks = {f"{layer}.weight": torch.rand(weight.shape) < density for layer, weight in weights.items()}
    return model, masks, kernels(model, layers)


@pytest.mark.benchmark(group="kernel scores")
@pytest.mark.parametrize("density", [0.012, 0.2])
@pytest.mark.parametrize("over", ["sum", "max"])
def test_edge_weight_products_of_resnet18(benchmark, over, density):
    """From weights and masks to the score of each kernel, on 2 threads: at most 50 ms."""
    torch.set_num_threads(2)
    model, masks, graph = ticket("resnet18", density)
    scores = benchmark(lambda: edge_weight_products(graph, strengths(graph, model, masks), over))
    alive = sum(int((score > -np.inf).sum()) for score in scores.values())
    benchmark.extra_info |= {"kernels": sum(score.size for score in scores.values()), "on a path": alive}
    assert benchmark.stats.stats.min <= 0.05


@pytest.mark.benchmark(group="kernel scores")
def test_walks_on_resnet20_against_a_loop_over_walks(benchmark):
    """1,000 walks at once: at least 100 times faster than one by one, which has all strengths ready as well."""
    model, masks, graph = ticket("resnet20", 0.2)
    found = strengths(graph, model, masks)
    benchmark(lambda: walks(graph, found, WALKS, STREAM))
    started = time.perf_counter()
    looped(graph, found, WALKS, STREAM.numpy())
    ratio = (time.perf_counter() - started) / benchmark.stats.stats.mean
    benchmark.extra_info |= {"walks": WALKS, "ratio": ratio}
    assert ratio >= 100


@pytest.mark.timeout(600)
@pytest.mark.benchmark(group="kernel scores")
@pytest.mark.parametrize(("density", "pivots"), [(0.012, 0), (0.2, 0), (0.2, 256)])
def test_betweenness_of_resnet18(benchmark, density, pivots):
    """From all channels, or from some with the error told: at most a minute."""
    model, masks, graph = ticket("resnet18", density)
    found = strengths(graph, model, masks)
    result = benchmark.pedantic(betweenness, (graph, found, pivots, STREAM), rounds=1, iterations=1)
    scores = np.concatenate([score.reshape(-1) for score in result.scores.values()])
    errors = np.concatenate([error.reshape(-1) for error in result.errors.values()])
    best = np.argsort(-scores)[:1000]
    error = float(np.median(errors[best] / scores[best]))
    benchmark.extra_info |= {"kernels": int(np.isfinite(scores).sum()), "sources": result.sources, "error": error}
    assert benchmark.stats.stats.max <= 60
