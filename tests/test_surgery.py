"""Channels come and go: what is left computes what it should, and the model itself is never touched."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import KINDS, difference, inputs, lived_in, plain, residual, vgg_like
from torch import nn

import models
from models.channels import channels
from models.surgery import columns, inner, outgoing, reshaped
from models.tracing import NOTHING

# Each architecture, and the layers whose channels are nobody else's business.
INNER = {
    ("vgg8", (1, 8, 8)): [*(f"conv{number}" for number in range(1, 7)), "hidden"],
    ("lenet5", (1, 28, 28)): ["conv1", "conv2", "hidden"],
    ("resnet8", (1, 8, 8)): [f"layer{stage}.0.conv1" for stage in (1, 2, 3)],
    ("resnet20", (3, 32, 32)): [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)],
    ("resnet18", (3, 8, 8)): [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in range(2)],
    ("vgg16-bn", (3, 32, 32)): [f"features.{at}" for at in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)],
    ("alexnet", (3, 16, 16)): [f"conv{number}" for number in range(1, 6)],
    ("alexnet-small", (3, 16, 16)): [f"conv{number}" for number in range(1, 6)],
    ("pointnet-basic", (3, 20)): ["conv1", "conv2", "conv3", "hidden1", "hidden2"],
    # A T-Net multiplies what conv1 makes, so that these channels keep their number.
    ("pointnet", (3, 20)): [
        *(f"align{net}.{layer}" for net in (1, 2) for layer in ("conv1", "conv2", "conv3", "hidden1", "hidden2")),
        *("conv2", "conv3", "hidden1", "hidden2"),
    ],
}
# A few, since each structure has to be followed once.
WIDTHS = st.sampled_from([[2, 2, 2], [9, 4, 6], [3, 8, 5, 2, 7], [5, 6, 7, 8, 9, 4, 3]])
SEEDS = st.integers(0, 2**16)
# In double precision, since T-Nets make more of what rounding leaves.
CLOSE = 1e-11


def made_of(kind, widths, seed):
    model = KINDS[kind](widths, seed).double()
    return model, inner(channels(model)), np.random.default_rng(seed)


def some_of(layers, chance):
    """Of each layer some channels, in their order and at least one."""
    return {
        one.layer: np.sort(chance.choice(one.width, size=chance.integers(1, one.width + 1), replace=False))
        for one in layers
    }


def without(model, layers, kept):
    """A copy in which what is not kept is read with zeros."""
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for one in layers:
            gone = np.setdiff1d(np.arange(one.width), kept[one.layer])
            for reader in one.readers:
                zeroed.get_submodule(reader).weight[:, columns(model, reader, one.layer)[gone].ravel()] = 0.0
    return zeroed


def test_these_are_all_architectures():
    assert {name for name, _ in INNER} == set(models.names())


@pytest.mark.parametrize(("name", "shape"), INNER)
def test_inner_channels_of_every_architecture_can_be_cut_moved_and_added(name, shape):
    model = lived_in(models.build(name, 10, shape)).double()
    layers, chance = inner(channels(model)), np.random.default_rng(1)
    assert [one.layer for one in layers] == INNER[name, shape]
    kept = some_of(layers, chance)
    cut = reshaped(model, kept)
    assert difference(without(model, layers, kept), cut) < CLOSE
    assert [one.width for one in inner(channels(cut))] == [len(kept[one.layer]) for one in layers]
    places = {one.layer: chance.permutation(np.append(np.arange(one.width), [NOTHING] * 3)) for one in layers}
    assert difference(model, reshaped(model, places)) < CLOSE


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS)
@settings(max_examples=15)
def test_cutting_what_is_read_with_zeros_leaves_the_outputs(kind, widths, seed):
    model, layers, chance = made_of(kind, widths, seed)
    kept = some_of(layers, chance)
    zeroed = without(model, layers, kept)
    cut = reshaped(zeroed, kept)
    assert difference(zeroed, cut) < CLOSE
    # What was in the columns that go makes no difference.
    for one, other in zip(cut.parameters(), reshaped(model, kept).parameters(), strict=True):
        assert torch.equal(one, other)


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS)
@settings(max_examples=15)
def test_an_order_keeps_the_outputs_and_is_undone_bit_for_bit(kind, widths, seed):
    model, layers, chance = made_of(kind, widths, seed)
    order = {one.layer: chance.permutation(one.width) for one in layers}
    moved = reshaped(model, order)
    assert difference(model, moved) < CLOSE
    back = reshaped(moved, {name: np.argsort(places) for name, places in order.items()})
    assert models.describe(back) == models.describe(model)
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
        assert torch.equal(moved.state_dict()[name].flatten().sort().values, value.flatten().sort().values)


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS, more=st.integers(1, 4))
@settings(max_examples=15)
def test_new_channels_are_zeros_that_nothing_reads(kind, widths, seed, more):
    model, layers, _ = made_of(kind, widths, seed)
    wide = reshaped(model, {one.layer: np.append(np.arange(one.width), [NOTHING] * more) for one in layers})
    assert difference(model, wide) < CLOSE
    for one in layers:
        made = [*wide.get_submodule(one.layer).parameters()]
        if one.norm:
            made += [*wide.get_submodule(one.norm).parameters(), wide.get_submodule(one.norm).running_mean]
            assert torch.equal(wide.get_submodule(one.norm).running_var[one.width :], torch.ones(more).double())
        assert all(len(value) == one.width + more for value in made)
        assert not any(value[one.width :].any() for value in made)
        for reader in one.readers:
            assert not outgoing(wide, reader, one.layer)[one.width :].any()
    back = reshaped(wide, {one.layer: np.arange(one.width) for one in layers})
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


def whole(model):
    """Weights, biases and inputs that are small whole numbers, which add up exactly in any order."""
    chance = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data = torch.randint(-2, 3, value.shape, generator=chance).float()
    return model


def test_new_channels_leave_the_outputs_bit_for_bit():
    model = whole(plain([4, 5, 6]))
    wide = reshaped(model, {name: np.array([NOTHING, 2, 0, NOTHING, 1, 3]) for name in ("conv1",)})
    x = torch.randint(-3, 4, (16, 1, 16, 16), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        assert torch.equal(model(x), wide(x))
        assert model(x).std() > 1


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS)
@settings(max_examples=15)
def test_a_channel_chosen_twice_is_read_twice(kind, widths, seed):
    model, layers, chance = made_of(kind, widths, seed)
    twice = {one.layer: np.append(np.arange(one.width), chance.integers(one.width, size=2)) for one in layers}
    wide = reshaped(model, twice)
    with torch.no_grad():
        for one in layers:
            counts = np.bincount(twice[one.layer])[twice[one.layer]]
            for reader in one.readers:
                read = outgoing(wide, reader, one.layer)
                read /= torch.from_numpy(counts).view(-1, *[1] * (read.dim() - 1))
    assert difference(model, wide) < CLOSE


def test_rows_normalization_and_columns_are_those_chosen():
    model, chosen = vgg_like([4, 5, 6, 4, 5, 6, 7]), np.array([3, 0, 5])
    cut = reshaped(model, {"conv6": chosen})
    for name in ("conv6", "norm6"):
        for key, value in model.get_submodule(name).state_dict().items():
            assert torch.equal(cut.get_submodule(name).state_dict()[key], value[chosen] if value.dim() else value)
    # Flattened: each channel is read at its four pixels.
    read = model.hidden.weight.reshape(7, 6, 4)
    assert torch.equal(cut.hidden.weight, read[:, chosen].reshape(7, 12))
    assert torch.equal(cut.hidden.bias, model.hidden.bias)
    assert columns(model, "hidden", "conv6").tolist() == np.arange(24).reshape(6, 4).tolist()
    assert columns(model, "conv2", "conv1").tolist() == [[place] for place in range(4)]
    for name in ("conv1", "norm1", "conv5", "head"):
        for key, value in model.get_submodule(name).state_dict().items():
            assert torch.equal(cut.get_submodule(name).state_dict()[key], value)


def test_what_is_read_of_a_channel_is_a_view():
    model = vgg_like([4, 5, 6, 4, 5, 6, 7])
    for reader, layer, shape in (("hidden", "conv6", (6, 7, 4)), ("conv3", "conv2", (5, 6, 1, 3, 3))):
        read, weight = outgoing(model, reader, layer), model.get_submodule(reader).weight
        assert read.shape == shape
        assert torch.equal(read[2].flatten(1), weight[:, columns(model, reader, layer)[2]].flatten(1))
        with torch.no_grad():
            read[2] = 0.0
        assert not weight[:, columns(model, reader, layer)[2]].any()
        assert weight.any()


def test_shortcuts_keep_their_widths():
    model = residual([4, 6, 9])
    cut = reshaped(model, {one.layer: np.arange(2) for one in inner(channels(model))})
    for name, value in model.state_dict().items():
        inside = name.endswith(("conv1.weight", "norm1.weight", "norm1.bias")) and name.startswith("layer")
        if "norm2" in name or name.startswith(("conv1", "norm1", "head")):
            assert torch.equal(cut.state_dict()[name], value)
        elif inside:
            assert len(cut.state_dict()[name]) == 2


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS)
@settings(max_examples=15)
def test_it_is_described_and_rebuilt(kind, widths, seed):
    _, layers, chance = made_of(kind, widths, seed)
    model = KINDS[kind](widths, seed)
    cut = reshaped(model, some_of(layers, chance))
    again = models.rebuild(models.describe(cut), cut.state_dict())
    with torch.no_grad():
        assert torch.equal(cut(inputs(model)), again(inputs(model)))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_model_itself_is_neither_changed_nor_shared(kind):
    model, layers, chance = made_of(kind, [4, 5, 6], 0)
    model.train()
    before, described = copy.deepcopy(model.state_dict()), models.describe(model)
    for chosen in ({}, some_of(layers, chance), {one.layer: np.arange(one.width) for one in layers}):
        made = reshaped(model, chosen)
        assert not any(part.training for part in made.modules())
        with torch.no_grad():
            for value in made.state_dict().values():
                value.add_(1)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert models.describe(model) == described
    assert all(part.training for part in model.modules())


def test_other_precisions_stay():
    model = reshaped(vgg_like([4, 5, 6, 4, 5, 6, 7]).double(), {"conv3": np.array([1, NOTHING])})
    assert {value.dtype for value in model.state_dict().values()} == {torch.float64, torch.int64}


@pytest.mark.parametrize("name", ["head", "nowhere", "conv1", "layer1.0.conv2"])
def test_what_is_not_inner_is_refused(name):
    with pytest.raises(ValueError, match=f"whose channels may come and go .*got .*{name}"):
        reshaped(residual([4, 5, 6]), {name: np.arange(2)})


def test_other_uses_are_refused():
    model = plain([4, 5, 6])
    with pytest.raises(ValueError, match=r"at least one channel of each layer, got none of \['conv2'\]"):
        reshaped(model, {"conv1": np.arange(2), "conv2": np.arange(0)})
    with pytest.raises(ValueError, match=r"models\.build"):
        reshaped(nn.Linear(2, 2), {})
    for reader in ("conv1", "hidden", "head"):
        with pytest.raises(ValueError, match=f"reads all channels of 'conv1', got '{reader}'"):
            columns(model, reader, "conv1")
