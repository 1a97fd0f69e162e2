"""The kernel graph: which kernels follow each other, whatever shortcuts there are."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_nets import NETS, masked, routes
from nets import KINDS, put
from torch import nn

import models
from models.kernel_tracing import follow
from models.kernels import kernels, network, strengths
from models.tracing import NOTHING


def linear_of(model):
    """A copy in which only the middles of kernels act, all weights are positive and normalizations do nothing."""
    made = copy.deepcopy(model).double().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.running_var -= module.eps
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.abs_()
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv2d) and module.padding[0]:
            kept = module.weight.data[:, :, 1:2, 1:2].clone()
            module.weight.data.zero_()[:, :, 1:2, 1:2] = kept
    return made


@given(kind=st.sampled_from(sorted(NETS)), widths=st.lists(st.integers(1, 3), min_size=3, max_size=3))
@settings(max_examples=12)
def test_paths_carry_what_the_net_itself_does(kind, widths):
    """On an even picture such a net is linear: what comes out of one channel is the sum over paths from another."""
    model = linear_of(NETS[kind][0](widths))
    layers = NETS["residual"][1] if kind == "residual" else NETS[kind][1]
    seen = {}
    graph = kernels(model, layers)
    first, last = graph.values[graph.starts[0]], graph.values[graph.ends[0]]

    # The graph begins at what the first layer reads, and ends at what is read behind the last one.
    def reads(name):
        return model.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.setdefault(name, x[0]))

    behind = {"plain": None, "vgg_like": "head", "residual": "pool", "parallel": "layer2.1.conv1"}[kind]
    reads(layers[0])
    if behind:
        reads(behind)
    out = model(torch.rand(1, model.architecture["shape"][0], 1, 1).double().expand(1, *model.architecture["shape"]))
    begun, ended = seen[layers[0]], seen[behind] if behind else out
    begun, ended = (x.detach().reshape(1, x.shape[1], -1)[0, :, 0].numpy() for x in (begun, ended))
    assert (len(begun), len(ended)) == (first.width, last.width)
    net = network(graph, strengths(graph, model, {}))
    reached = {(graph.starts[0], channel): amount for channel, amount in enumerate(begun)}
    for number, value in enumerate(graph.values[1:], start=1):
        for channel in range(value.width):
            incoming = net.in_edges((number, channel), data="strength")
            reached[number, channel] = sum(reached[node] * strength for node, _, strength in incoming)
    expected = [reached[graph.ends[0], channel] for channel in range(last.width)]
    np.testing.assert_allclose(ended, expected, rtol=1e-9)


@given(kind=st.sampled_from(sorted(NETS)), density=st.floats(0.05, 1), seed=st.integers(0, 999))
@settings(max_examples=20)
def test_an_edge_is_a_live_kernel_with_the_sum_of_its_weights(kind, density, seed):
    make, layers = NETS[kind]
    model = make([2, 3, 4], seed)
    masks = masked(model, layers, density, seed)
    graph = kernels(model, layers)
    net = network(graph, strengths(graph, model, masks))
    edges = {(e["layer"], e["kernel"]): e["strength"] for _, _, e in net.edges(data=True) if "layer" in e}
    expected = {}
    for name in layers:
        weight, mask = model.get_submodule(name).weight.detach().double(), masks[f"{name}.weight"]
        alive = (weight * mask).abs().flatten(2) if weight.dim() > 2 else (weight * mask).abs()[:, :, None]
        if name == "hidden":
            pixels = weight.shape[1] // graph.values[graph.by_name["hidden"].reads[0].value].width
            alive = alive.reshape(len(weight), -1, pixels)
        sums = alive.sum(2)
        expected |= {(name, (o, c)): float(sums[o, c]) for o, c in sums.nonzero().tolist()}
    assert {key for key in edges if key[0] in layers} == set(expected)
    assert all(edges[key] == pytest.approx(value, rel=1e-12) for key, value in expected.items())
    # A layer on the way for which nobody asked is in the graph, with all of its kernels.
    others = {"conv5"} if kind == "vgg_like" else set()
    assert {name for name, _ in edges} - set(layers) == others


def test_kernels_of_weights_are_those_of_their_channels():
    model = KINDS["vgg_like"]([3, 2, 5])
    graph = kernels(model, ["conv6", "hidden"])
    for name, pixels in (("conv6", 9), ("hidden", 4)):
        weight, value = model.get_submodule(name).weight, graph.by_name[name]
        expected = np.repeat(np.arange(value.width * value.inputs), pixels)
        assert np.array_equal(value.kernels_of(np.arange(weight.numel()), weight.shape), expected)


def test_a_padded_shortcut_leads_past_the_zeros_into_the_middle():
    graph = kernels(models.build("resnet20", 10, (3, 32, 32)), ["layer1.0.conv1", "layer3.2.conv2"])
    sums = [value for value in graph.values if value.kind == "sum"]
    widening = [value for value in sums if any((read.channels == NOTHING).any() for read in value.reads)]
    assert len(sums) == 9
    for value, low, high in zip(widening, (8, 16), (24, 48), strict=True):
        (shortcut,) = (read.channels for read in value.reads if (read.channels == NOTHING).any())
        assert (shortcut[:low] == NOTHING).all() and (shortcut[high:] == NOTHING).all()
        assert np.array_equal(shortcut[low:high], np.arange(high - low))


def test_a_convolution_in_a_shortcut_stands_beside_the_others():
    make, layers = NETS["parallel"]
    model = make([1, 2, 2])
    graph = kernels(model, layers)
    seen = [{name for name, _ in path} for path, _ in routes(network(graph, strengths(graph, model, {})))]
    beside, branch = "layer2.0.downsample.0", {"layer2.0.conv1", "layer2.0.conv2"}
    assert {frozenset(path & {beside, *branch}) for path in seen} == {frozenset({beside}), frozenset(branch)}
    # Around the block before, and through it.
    assert {frozenset(path) - {beside, *branch} for path in seen} == {frozenset(), frozenset(layers[:2])}


@pytest.mark.parametrize(
    ("name", "shape", "left_out"),
    [
        ("resnet20", (3, 32, 32), ("conv1", "head")),
        ("resnet18", (3, 8, 8), ("conv1", "head")),
        ("vgg16-bn", (3, 32, 32), ("head",)),
        ("lenet5", (1, 28, 28), ()),
    ],
)
def test_the_graph_holds_the_layers_asked_for_and_no_other(name, shape, left_out):
    model = models.build(name, 10, shape)
    layers = [layer for layer in models.weights_of(model) if layer not in left_out]
    graph = kernels(model, layers)
    assert set(graph.by_name) == set(layers)
    assert len(graph.starts) == len(graph.ends) == 1
    assert graph.starts == (0,) and graph.ends == (len(graph.values) - 1,)
    for layer, value in graph.by_name.items():
        weight = model.get_submodule(layer).weight
        assert value.width == weight.shape[0] and len(value.columns) == weight.shape[1]


def test_where_paths_begin_twice_the_graph_has_two_starts():
    model = NETS["parallel"][0]([2, 3, 4])
    graph = kernels(model, ["layer2.0.conv2", "layer2.0.downsample.0"])
    assert len(graph.starts) == 2 and len(graph.ends) == 1
    assert set(graph.by_name) == {"layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"}


def test_a_structure_is_followed_once():
    first, second = (KINDS["residual"]([2, 3, 4], seed) for seed in (0, 1))
    layers = NETS["residual"][1]
    assert kernels(first, layers) is kernels(second, layers)
    assert kernels(first, layers[1:]) is not kernels(first, layers)
    put(second, "head", nn.Linear(4, 3))
    assert kernels(first, layers) is not kernels(second, layers)


class Net(nn.Module):
    """Three convolutions with something between the first two."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.middle = middle

    def forward(self, x):
        return self.third(self.second(self.middle(self.first(x)))).softmax(1)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


UNKNOWN = {
    "a gate": Call(lambda x: x * x.mean((2, 3), keepdim=True)),
    "a grouped convolution": nn.Conv2d(4, 4, 1, groups=2),
    "a channel that is added to itself": Call(lambda x: x + x),
    "a sum over channels": Call(lambda x: x.cumsum(1)),
    "channels that are taken apart": Call(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_must_not_lie_on_the_way(name):
    net = Net(UNKNOWN[name]).to("meta").eval()
    with pytest.raises(ValueError, match="expected kernels that can be followed"):
        follow(net, (2, 6, 6), ["first", "third"])
    # Before and behind the layers asked for anything may stand, such as the softmax of this net.
    assert set(follow(net, (2, 6, 6), ["second", "third"]).by_name) == {"second", "third"}


def test_a_layer_must_not_be_used_twice_on_the_way():
    net = Net(nn.Identity()).to("meta").eval()
    net.middle = net.second
    with pytest.raises(ValueError, match="expected kernels that can be followed, got 'second'"):
        follow(net, (2, 6, 6), ["first", "third"])


def test_slices_and_padding_are_followed_into_a_layer():
    """The first two channels move up by one, the others end; the layer's own columns keep their numbers."""
    net = Net(Call(lambda x: F.pad(F.relu(x)[:, :2], (0, 0, 0, 0, 1, 1)))).to("meta").eval()
    graph = follow(net, (2, 6, 6), ["first", "second"])
    value = graph.by_name["second"]
    assert value.reads[0].channels.tolist() == [NOTHING, 0, 1, NOTHING]
    assert value.columns.tolist() == [0, 1, 2, 3]
    edges = network(graph, {"first": np.ones((4, 2)), "second": np.ones((4, 4))}).edges(data=True)
    assert {e["kernel"][1] for _, _, e in edges if e["layer"] == "second"} == {1, 2}


def test_wrong_layers_and_masks_are_named():
    model = KINDS["vgg_like"]([2, 3, 4])
    with pytest.raises(KeyError, match="conv9"):
        kernels(model, ["conv9"])
    with pytest.raises(ValueError, match="got 'norm1'"):
        kernels(model, ["norm1"])
    with pytest.raises(ValueError, match="at least one layer"):
        kernels(model, [])
    graph = kernels(model, ["conv1"])
    with pytest.raises(ValueError, match="expected a bool mask of shape"):
        strengths(graph, model, {"conv1.weight": torch.ones(2, 1, 3, 3)})
    with pytest.raises(ValueError, match="expected a bool mask of shape"):
        strengths(graph, model, {"conv1.weight": torch.ones(2, 1, 3, dtype=torch.bool)})
