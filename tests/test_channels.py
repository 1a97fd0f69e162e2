"""The channel graph: what moves as one, what scales as one, and that nothing else may."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import KINDS, MOVES, difference, lived_in, merged, put, reframed
from torch import nn

import models
from models.channels import channels, follow
from models.frames import reframe
from models.tracing import NOTHING

REGISTERED = [
    ("vgg8", (1, 8, 8)),
    ("lenet5", (1, 28, 28)),
    ("resnet8", (1, 8, 8)),
    ("resnet20", (3, 32, 32)),
    ("resnet18", (3, 8, 8)),
    ("vgg16-bn", (3, 32, 32)),
    ("alexnet", (3, 16, 16)),
    ("alexnet-small", (3, 16, 16)),
    ("pointnet", (3, 20)),
    ("pointnet-basic", (3, 20)),
]
# What a T-Net reads a matrix for, which mixes its channels; the head of a T-Net gives the matrix.
MIXED = {"pointnet": {"conv1", "norm1", "align1.head", "align2.head"}}


@pytest.mark.parametrize(("name", "shape"), REGISTERED)
def test_every_inner_channel_of_every_architecture_can_move(name, shape):
    graph, fixed = channels(models.skeleton(name, 10, shape)), {"head"} | MIXED.get(name, set())
    for layer in graph.layers:
        rows = graph.classes[layer.outputs.atoms]
        assert (rows == NOTHING).all() if layer.name in fixed else (rows != NOTHING).all()
        # A normalization takes away any scale and sign before it.
        assert graph.scalable[layer.outputs.gauges].all() == (layer.name not in fixed or layer.norm is not None)
        if layer.norm:
            assert graph.signable[layer.outputs.gauges].all()


def test_these_are_all_architectures():
    assert {name for name, _ in REGISTERED} == set(models.names())


@pytest.mark.parametrize(("name", "shape"), REGISTERED)
def test_moves_keep_the_function_of_every_architecture(name, shape):
    model = lived_in(models.build(name, 10, shape))
    assert difference(model, reframed(model, 1)) < 1e-5
    model = model.double()
    assert difference(model, reframed(model, 1)) < 1e-12


@given(
    kind=st.sampled_from(sorted(KINDS)),
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=7),
    moves=st.sets(st.sampled_from(MOVES), min_size=1),
    seed=st.integers(0, 2**16),
    fold=st.booleans(),
)
@settings(max_examples=60)
def test_moves_keep_the_function_at_any_width(kind, widths, moves, seed, fold):
    model = KINDS[kind](widths, seed).double()
    model = merged(model) if fold else model
    assert difference(model, reframed(model, seed, tuple(moves))) < 1e-9


def test_a_flattened_channel_has_a_column_for_each_pixel():
    graph = channels(models.build("vgg8", 10, (1, 8, 8)))
    made, read = graph.by_name["conv6"].outputs, graph.by_name["hidden"].inputs
    assert np.array_equal(read.atoms, np.repeat(made.atoms, 4))
    assert np.array_equal(read.gauges, np.repeat(graph.by_name["norm6"].outputs.gauges, 4))
    assert np.array_equal(read.tags, np.tile(np.arange(4), 64))
    assert read.find(made.atoms[3:4], np.array([2])) == [14]
    assert graph.by_name["conv6"].norm == "norm6"


def test_a_shortcut_without_parameters_ties_the_channels_of_a_stage_to_the_middle_of_the_next():
    graph = channels(models.build("resnet20", 10, (3, 32, 32)))
    first, second, third = (graph.by_name[f"layer{n}.2.conv2"].outputs.atoms for n in (1, 2, 3))
    assert np.array_equal(graph.by_name["conv1"].outputs.atoms, first)
    assert np.array_equal(second[8:24], first)
    assert np.array_equal(third[16:48], second)
    new = np.concatenate([second[:8], second[24:]])
    assert len(set(graph.classes[new])) == len(set(graph.classes[first])) == 1
    assert graph.classes[new[0]] != graph.classes[first[0]]


def test_behind_a_maximum_over_points_scales_are_free_and_signs_are_not():
    graph = channels(models.build("pointnet-basic", 10, (3, 20)))
    made, read = graph.by_name["norm3"].outputs, graph.by_name["hidden1"].inputs
    assert np.array_equal(made.atoms, read.atoms) and np.array_equal(made.gauges, read.gauges)
    assert graph.scalable[made.gauges].all() and not graph.signable[made.gauges].any()
    # The dropout between them does nothing once the model is trained.
    assert graph.by_name["hidden2"].norm == "norm5"


def test_a_t_net_holds_what_it_multiplies_and_nothing_of_its_own():
    graph = channels(models.build("pointnet", 10, (3, 20)))
    assert (graph.classes[graph.by_name["conv1"].outputs.atoms] == NOTHING).all()
    assert not graph.scalable[graph.by_name["norm1"].outputs.gauges].any()
    for name in ("align1.conv1", "align2.hidden2", "conv2"):
        assert len(set(graph.classes[graph.by_name[name].outputs.atoms]) - {NOTHING}) == 1


def test_a_merged_normalization_leaves_the_classes_as_they_are():
    model = KINDS["residual"]([3, 4, 6])
    before, behind = channels(model), channels(merged(model))
    assert before.signatures == behind.signatures
    assert not behind.signable.any()


class Net(nn.Module):
    """A convolution, something, and a convolution that reads it."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
        self.middle = middle

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


MIDDLES = {
    # name: what stands in the middle, whether channels may move, scale, change sign
    "nothing": (nn.Identity(), True, True, True),
    "relu": (nn.ReLU(), True, True, False),
    "a maximum": (nn.MaxPool2d(2), True, True, False),
    "an average": (nn.AvgPool2d(2), True, True, True),
    "tanh": (nn.Tanh(), True, False, False),
    "sigmoid": (Call(torch.sigmoid), True, False, False),
    "a grouped convolution": (nn.Conv2d(8, 8, 1, groups=2), False, False, False),
    "group normalization": (nn.GroupNorm(2, 8), False, False, False),
    "a sum over channels": (Call(lambda x: x.cumsum(1)), False, False, False),
    "a shift over channels": (Call(lambda x: x.roll(1, 1)), False, False, False),
    "a gate": (Call(lambda x: x * x.mean((2, 3), keepdim=True)), False, False, False),
    "a constant": (Call(lambda x: x + 1), False, False, False),
    # Which of the two is which is not followed.
    "the sum of two halves": (Call(lambda x: x[:, :4] + x[:, 4:]), False, True, True),
    "statistics of the batch": (nn.BatchNorm2d(8, track_running_stats=False), True, False, False),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_what_is_not_understood_is_frozen(name):
    middle, moves, scales, flips = MIDDLES[name]
    torch.manual_seed(0)
    net = Net(middle).eval().double()
    if name == "the sum of two halves":
        net.last = nn.Conv2d(4, 3, 1).double()
    graph = follow(net_on_meta(net), (2, 6, 6))
    side = graph.by_name["first"].outputs
    assert (graph.classes[side.atoms] != NOTHING).all() == moves
    assert graph.scalable[side.gauges].all() == scales
    assert graph.signable[side.gauges].all() == flips
    # And whatever is left to move may be moved.
    x, chance = torch.randn(4, 2, 6, 6).double(), np.random.default_rng(0)
    before = net(x)
    order, factors = np.arange(len(graph.classes)), np.ones(len(graph.scalable))
    for members in graph.members:
        order[members] = chance.permutation(members)
    factors[graph.scalable] = chance.uniform(0.1, 10, graph.scalable.sum())
    factors[graph.signable] *= chance.choice([-1, 1], graph.signable.sum())
    reframe(net, graph, order, factors)
    torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)


def net_on_meta(net):
    return copy.deepcopy(net).float().to("meta")


def test_channels_that_go_different_ways_are_not_exchangeable():
    """Half of the channels passes a ReLU: both halves stand at the same layers, and yet are no equals."""

    def halves(x):
        return F.pad(F.relu(x[:, :4]), (0, 0, 0, 0, 0, 4)) + F.pad(x[:, 4:], (0, 0, 0, 0, 4, 0))

    graph = follow(net_on_meta(Net(Call(halves))), (2, 6, 6))
    classes = graph.classes[graph.by_name["first"].outputs.atoms]
    assert len(set(classes[:4])) == len(set(classes[4:])) == 1
    assert classes[0] != classes[4]
    assert graph.signable[graph.by_name["first"].outputs.gauges].tolist() == [False] * 4 + [True] * 4


def test_a_channel_that_stands_twice_in_one_place_stays():
    """Left and right are added over two shifts, so that nothing says which of them is which."""

    def shifted(x):
        return F.pad(x[:, :-1], (0, 0, 0, 0, 1, 0)) + x

    graph = follow(net_on_meta(Net(Call(shifted))), (2, 6, 6))
    assert (graph.classes[graph.by_name["first"].outputs.atoms] == NOTHING).all()


def test_a_normalization_is_directly_behind_only_where_nothing_else_reads():
    class Two(Net):
        def forward(self, x):
            y = self.first(x)
            return self.last(F.relu(self.norm(y)) + y)

    assert follow(net_on_meta(Two(nn.Identity())).eval(), (2, 6, 6)).by_name["first"].norm is None


def test_a_layer_that_is_called_twice_has_one_order():
    class Twice(Net):
        def __init__(self):
            super().__init__(nn.Conv2d(8, 8, 3, padding=1))

        def forward(self, x):
            y = F.relu(self.first(x))
            return self.last(F.relu(self.middle(F.relu(self.middle(y)))))

    graph = follow(net_on_meta(Twice()), (2, 6, 6))
    middle = graph.by_name["middle"]
    assert np.array_equal(middle.inputs.atoms, middle.outputs.atoms)
    assert np.array_equal(middle.inputs.gauges, middle.outputs.gauges)
    assert np.array_equal(graph.by_name["first"].outputs.atoms, middle.outputs.atoms)


def test_a_structure_is_followed_once():
    first, second = models.build("vgg8", 10, (1, 8, 8)), models.build("vgg8", 10, (1, 8, 8))
    assert channels(first) is channels(second)
    put(second, "act7", nn.Identity())
    assert channels(first) is not channels(second)


def test_what_cannot_be_followed_says_so():
    class Branching(Net):
        def forward(self, x):
            return self.first(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="cannot be followed"):
        follow(Branching(nn.Identity()), (2, 6, 6))
    with pytest.raises(ValueError, match=r"models\.build"):
        channels(nn.Linear(2, 2))
    tied = models.build("vgg8", 10, (1, 8, 8))
    tied.conv6.weight = tied.conv5.weight
    with pytest.raises(ValueError, match="share a parameter"):
        channels(tied)
