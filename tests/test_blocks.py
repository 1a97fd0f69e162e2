"""Models as blocks of a layer and its normalization, and models that share layers."""

import nets
import pytest
import torch
from torch import nn

import models
from models.blocks import Block, blocks, sharing


def weighted(module):
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [
        ("vgg8", (1, 8, 8), {"conv1": "norm1", "conv6": "norm6", "hidden": None, "head": None}),
        ("resnet20", (3, 32, 32), {"conv1": "norm1", "layer2.0.conv2": "layer2.0.norm2", "head": None}),
        ("resnet18", (3, 32, 32), {"conv1": "bn1", "layer3.0.downsample.0": "layer3.0.downsample.1"}),
        ("vgg16-bn", (3, 32, 32), {"features.0": "features.1", "features.40": "features.41", "head": None}),
        ("lenet5", (1, 28, 28), {"conv1": None, "head": None}),
        # Dropout stands between a layer and its normalization.
        ("pointnet-basic", (3, 64), {"conv3": "norm3", "hidden2": "norm5", "head": None}),
    ],
)
def test_each_layer_has_the_normalization_that_alone_reads_it(name, shape, found):
    norm_of = blocks(models.skeleton(name, 10, shape)).norm_of
    assert {layer: norm_of[layer] for layer in found} == found
    layers = [n for n, m in models.skeleton(name, 10, shape).named_modules() if weighted(m)]
    assert sorted(norm_of) == sorted(layers)


def test_inputs_are_those_that_the_layers_get():
    model, shapes = models.build("resnet8", 10, (1, 8, 8)).eval(), {}
    for name, module in model.named_modules():
        if weighted(module):
            module.register_forward_hook(lambda _, args, __, name=name: shapes.update({name: tuple(args[0].shape[1:])}))
    model(torch.zeros(2, 1, 8, 8))
    assert shapes == dict(blocks(models.skeleton("resnet8", 10, (1, 8, 8))).inputs)


def test_behind_a_layer_stand_the_normalizations_that_run_later():
    found = blocks(models.skeleton("vgg8", 10, (1, 8, 8)))
    assert found.blocks[0] == Block("conv1", "norm1")
    assert found.behind("conv1") == found.norms == tuple(f"norm{n}" for n in range(1, 7))
    assert found.behind("conv4") == ("norm4", "norm5", "norm6")
    assert found.behind("hidden") == ()


def test_what_does_not_descend_from_an_architecture_has_no_blocks():
    with pytest.raises(ValueError, match=r"models\.build"):
        blocks(nn.Sequential(nn.Linear(2, 2)))


class TestSharing:
    def test_all_but_the_replaced_is_the_same_object(self):
        model = nets.vgg_like((4, 4, 4))
        other = sharing(model, {"norm3": nn.Identity()})
        assert isinstance(other.norm3, nn.Identity)
        assert isinstance(model.norm3, nn.BatchNorm2d)
        assert all(getattr(other, n) is getattr(model, n) for n in ("conv1", "norm1", "conv3", "head"))

    def test_it_reaches_into_blocks_and_leaves_the_others_alone(self):
        model = models.build("resnet8", 10, (1, 8, 8)).eval()
        other = sharing(model, {"layer2.0.norm1": nn.Identity()})
        assert other.layer1 is model.layer1
        assert other.layer2[0].conv1 is model.layer2[0].conv1
        assert isinstance(model.layer2[0].norm1, nn.BatchNorm2d)
        x = torch.rand(2, 1, 8, 8)
        assert not torch.equal(other(x), model(x))
        assert torch.equal(sharing(model, {})(x), model(x))

    def test_an_unknown_place_is_an_error(self):
        with pytest.raises(KeyError, match="nowhere"):
            sharing(models.build("vgg8", 10, (1, 8, 8)), {"nowhere": nn.Identity()})
