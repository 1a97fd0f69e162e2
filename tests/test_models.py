import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models

CASES = [("vgg8", (1, 8, 8)), ("resnet8", (3, 32, 32)), ("resnet20", (3, 32, 32)), ("lenet5", (1, 28, 28))]


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [("vgg8", (1, 8, 8), 173_354), ("resnet20", (3, 32, 32), 269_722), ("lenet5", (1, 28, 28), 431_080)],
)
def test_parameter_counts_are_those_of_the_literature(name, shape, count):
    assert sum(p.numel() for p in models.build(name, 10, shape).parameters()) == count


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_model_is_rebuilt_bit_for_bit(name, shape):
    model = models.build(name, 7, shape).eval()
    rebuilt = models.rebuild(models.describe(model), model.state_dict()).eval()
    x = torch.randn(3, *shape)
    assert torch.equal(model(x), rebuilt(x))
    assert model(x).shape == (3, 7)


@given(cut=st.lists(st.integers(1, 80), min_size=2, max_size=2), fold=st.booleans(), block=st.booleans())
@settings(max_examples=15, deadline=None)
def test_a_model_of_another_shape_is_rebuilt_too(cut, fold, block):
    model = models.build("vgg8", 10, (1, 8, 8))
    first, second = cut
    model.conv1, model.norm1 = nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first)
    model.conv2, model.norm2 = nn.Conv2d(first, second, 3, padding=1, bias=False), nn.BatchNorm2d(second)
    model.conv3 = nn.Conv2d(second, 64, 3, padding=1, bias=False)
    if fold:
        model.conv4, model.norm4 = nn.Conv2d(64, 64, 3, padding=1, bias=True), nn.Identity()
    if block:
        model.act7 = nn.Sequential(nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 128))
    rebuilt = models.rebuild(models.describe(model), model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.eval()(x), rebuilt.eval()(x))


def test_a_copy_is_described_like_its_original():
    model = models.build("resnet8", 10, (1, 8, 8))
    assert models.describe(copy.deepcopy(model)) == models.describe(model)


def test_what_cannot_be_described_says_so():
    with pytest.raises(ValueError, match=r"models\.build"):
        models.describe(nn.Linear(2, 2))
    model = models.build("vgg8", 10, (1, 8, 8))
    model.act1 = nn.GELU()
    with pytest.raises(ValueError, match=r"'act1'.*GELU"):
        models.describe(model)
    model = models.build("vgg8", 10, (1, 8, 8))
    del model.act1
    with pytest.raises(ValueError, match="act1"):
        models.describe(model)


def test_unknown_names_and_shapes_are_refused():
    with pytest.raises(ValueError, match="vgg8"):
        models.build("vgg9", 10, (1, 8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        models.build("vgg8", 10, (1, 9, 9))
    with pytest.raises(ValueError, match="16x16"):
        models.build("lenet5", 10, (1, 8, 8))
    with pytest.raises(KeyError, match="conv1"):
        models.layer(models.build("vgg8", 10, (1, 8, 8)), "convl")


def test_the_shortcut_without_parameters_takes_every_second_pixel_and_pads_channels():
    block = models.build("resnet8", 10, (3, 8, 8)).layer2[0].eval()
    for module in (block.conv1, block.conv2):
        nn.init.zeros_(module.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()
