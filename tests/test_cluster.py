"""Weight sharing: how many values a layer has left, and that they are those of k-means."""

import copy

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

import models
from attacks.cluster import Cluster, clustered
from bench.stream import Stream
from bench.suspect import Target

CHANCE = Stream(("cluster",))


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60),
    pruned=st.integers(0, 20),
    count=st.integers(2, 12),
)
@settings(max_examples=100)
def test_a_layer_has_so_many_values_and_each_weight_the_nearest(values, pruned, count):
    weights = np.array(values + [0.0] * pruned, dtype=np.float32)
    made = clustered(weights, count, 20_000, CHANCE)
    left = np.unique(made)
    assert made.dtype == np.float32 and len(left) <= count
    # What was zero is zero, and keeps its place among the values.
    assert not made[weights == 0].any()
    alive = weights != 0
    centres = np.unique(made[alive])
    if len(np.unique(weights[alive])) <= count - int(not alive.all()):
        assert np.array_equal(made, weights)
    else:
        nearest = np.abs(weights[alive][:, None] - centres[None]).min(1)
        assert np.allclose(np.abs(made[alive] - weights[alive]), nearest, atol=1e-5)
        # Each centre is the mean of those that are nearest to it, once k-means has settled.
        means = [weights[alive][made[alive] == one].mean() for one in centres]
        assert np.allclose(means, centres, atol=0.05 * np.abs(weights).max())


def test_the_centres_are_as_good_as_those_of_another_implementation():
    weights = np.random.default_rng(0).laplace(size=5000).astype(np.float32)
    for count in (4, 8, 16):
        evenly = np.linspace(weights.min(), weights.max(), count)
        theirs, places = kmeans2(weights.astype(np.float64), evenly, iter=1000, minit="matrix")
        ours = np.square(clustered(weights, count, 5000, CHANCE) - weights).sum()
        # K-means ends a little before it has settled entirely.
        assert ours < 1.05 * np.square(theirs.ravel()[places] - weights).sum()


def test_a_sample_decides_on_the_centres_and_all_weights_move(monkeypatch):
    weights = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    seen = clustered(weights, 4, 200, CHANCE)
    assert len(np.unique(seen)) == 4
    assert np.array_equal(seen, clustered(weights, 4, 200, CHANCE))
    assert not np.array_equal(seen, clustered(weights, 4, 200, CHANCE.child("other")))
    assert np.allclose(np.unique(seen), np.unique(clustered(weights, 4, 5000, CHANCE)), atol=0.5)


def test_the_weights_of_all_layers_are_shared_and_nothing_else_moves(attacker_for):
    net = nets.lived_in(models.build("resnet8", 10, (1, 8, 8)))
    with torch.no_grad():
        net.layer2[0].conv2.weight[::2] = 0
    before = copy.deepcopy(net.state_dict())
    attack = Cluster(clusters=(8, 2))
    target = Target(net, "white-box")
    trainer = attacker_for(attack, target)
    made = [(strength, copy.deepcopy(one)) for strength, one in attack.run(target, trainer)]
    assert (trainer.inputs_used, trainer.labels_used, target.queries) == (0, 0, 0)
    assert [strength for strength, _ in made] == [8.0, 2.0] and attack.surrogates() == 2
    for count, model in made:
        weights = models.weights_of(model)
        assert all(len(weight.unique()) == count for weight in weights.values())
        pruned = model.layer2[0].conv2.weight
        assert not pruned[::2].any() and pruned[1::2].all()
        rest = {name for name in before if name.removesuffix(".weight") not in weights}
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in rest)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_more_clusters_are_nearer():
    weights = np.random.default_rng(1).normal(size=3000).astype(np.float32)
    errors = [np.square(clustered(weights, count, 3000, CHANCE) - weights).sum() for count in (32, 16, 8, 4, 2)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("clusters", [(), (1,), (4, 8), (4, 4)])
def test_clusters_are_checked(clusters):
    with pytest.raises(ValueError, match="clusters that fall"):
        Cluster(clusters=clusters)
    with pytest.raises(ValueError, match="sample of at least 16"):
        Cluster(clusters=(16,), sample=15)
