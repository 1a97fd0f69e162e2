import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models
from models.channels import channels
from models.surgery import inner, reshaped

CASES = [
    ("vgg8", (1, 8, 8)),
    ("resnet8", (3, 32, 32)),
    ("resnet20", (3, 32, 32)),
    ("lenet5", (1, 28, 28)),
    ("alexnet", (3, 16, 24)),
    ("pointnet", (3, 20)),
    ("pointnet-basic", (3, 20)),
]


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


def deviation(name, layer, fan_in, fan_out):
    """Standard deviation of a layer's weights as its architecture draws them."""
    if name == "resnet8":
        return (2 / fan_in) ** 0.5
    if name in ("alexnet-small", "vgg16-bn") and layer != "head":
        return (2 / fan_out) ** 0.5
    return 0.0 if layer in ("align1.head", "align2.head") else (3 * fan_in) ** -0.5


class TestAFreshModel:
    """Of any description, as the architecture initialises its own layers."""

    @pytest.mark.parametrize(("name", "shape"), [*CASES, ("resnet18", (3, 16, 16)), ("vgg16-bn", (1, 32, 32))])
    def test_of_the_plain_description_it_is_the_built_one(self, name, shape):
        torch.manual_seed(4)
        built = models.build(name, 7, shape)
        torch.manual_seed(4)
        fresh = models.fresh(models.describe(built))
        assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in built.state_dict().items())
        assert models.describe(fresh) == models.describe(built)

    @pytest.mark.parametrize("name", ["vgg8", "resnet8", "alexnet-small", "vgg16-bn", "pointnet"])
    def test_narrowed_layers_are_drawn_as_the_architecture_draws_its_own(self, name):
        shape = (3, 40) if name == "pointnet" else (3, 32, 32)
        model = models.build(name, 10, shape)
        chosen = {one.layer: np.arange(one.width // 2 + 1) for one in inner(channels(model))}
        cut = reshaped(model, chosen)
        torch.manual_seed(4)
        fresh = models.fresh(models.describe(cut))
        assert models.describe(fresh) == models.describe(cut)
        assert set(chosen) < set(models.describe(cut)["layers"])
        for layer, weight in models.weights_of(fresh).items():
            assert weight.shape == cut.get_submodule(layer).weight.shape
            kernel = weight[0, 0].numel()
            expected = deviation(name, layer, weight.shape[1] * kernel, weight.shape[0] * kernel)
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.1)
        for module in fresh.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.weight.eq(1).all() and not module.bias.any() and module.running_var.eq(1).all()

    def test_layers_that_its_architecture_lacks_are_initialised_too(self):
        model = models.build("resnet8", 10, (1, 8, 8))
        model.layer1[0].norm1 = nn.Identity()
        model.head = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 9))
        fresh = models.fresh(models.describe(model))
        assert models.describe(fresh) == models.describe(model)
        assert float(fresh.head[2].weight.detach().std()) == pytest.approx((2 / 200) ** 0.5, rel=0.1)
        assert fresh(torch.randn(2, 1, 8, 8)).shape == (2, 9)


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
    for name in ("vgg8", "lenet5", "resnet8", "resnet18", "vgg16-bn", "alexnet"):
        with pytest.raises(ValueError, match=r"expects images.*\(3, 64\)"):
            models.build(name, 10, (3, 64))
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


class TestAlexNet:
    def test_parameters_are_those_of_the_layers(self):
        convolutions = 25 * (3 * 64 + 64 * 192) + 9 * (192 * 384 + 384 * 256 + 256 * 256)
        norms = 2 * (64 + 192 + 384 + 256 + 256)
        for size, width in ((32, 4096), (8, 256)):
            count = convolutions + norms + width * 10 + 10
            assert sum(p.numel() for p in models.build("alexnet", 10, (3, size, size)).parameters()) == count
        assert convolutions + norms + 40_970 == 2_493_386

    def test_the_small_one_has_a_quarter_of_the_channels(self):
        model = models.skeleton("alexnet-small", 10, (3, 32, 32))
        assert [len(weight) for weight in models.weights_of(model).values()] == [16, 48, 96, 64, 64, 10]

    def test_the_deviation_of_weights_is_that_of_their_fan_out(self):
        torch.manual_seed(0)
        model = models.build("alexnet", 10, (3, 32, 32))
        for conv in (model.conv1, model.conv2, model.conv3, model.conv4, model.conv5):
            fan_out = conv.out_channels * conv.kernel_size[0] ** 2
            assert float(conv.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)

    def test_other_sizes_are_refused(self):
        for shape in ((3, 28, 28), (3, 64)):
            with pytest.raises(ValueError, match="multiples of 8"):
                models.build("alexnet", 10, shape)


class TestPointNet:
    def cloud(self, count=20):
        return torch.randn(4, 3, count, generator=torch.Generator().manual_seed(0))

    @staticmethod
    def after_training(name):
        """With statistics and T-Nets as they are after a step."""
        torch.manual_seed(0)
        model = models.build(name, 5, (3, 20)).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(torch.randn(8, 3, 20)), torch.arange(8) % 5).backward()
        optimizer.step()
        return model.eval()

    def test_parameters_are_those_of_the_layers(self):
        features = 3 * 64 + 64 * 128 + 128 * 1024 + 2 * (64 + 128 + 1024)
        hidden = (1024 * 512 + 512) + (512 * 256 + 256) + 2 * (512 + 256)
        basic = features + hidden + (256 * 40 + 40)
        aligned = sum(features + (k - 3) * 64 + hidden + 256 * k * k + k * k for k in (3, 64))
        for name, count in (("pointnet-basic", basic), ("pointnet", basic + aligned)):
            assert sum(p.numel() for p in models.build(name, 40, (3, 1024)).parameters()) == count
        assert (basic, basic + aligned) == (809_832, 3_467_825)

    @pytest.mark.parametrize("name", ["pointnet", "pointnet-basic"])
    def test_the_order_and_the_doubles_of_points_do_not_matter(self, name):
        model, x = self.after_training(name).double(), self.cloud().double()
        order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model(x[:, :, order]), model(x))
        torch.testing.assert_close(model(torch.cat([x, x[:, :, :7]], 2)), model(x))

    def test_nothing_is_aligned_before_training(self):
        net, basic = (models.build(name, 5, (3, 20)).eval() for name in ("pointnet", "pointnet-basic"))
        basic.load_state_dict({n: v for n, v in net.state_dict().items() if not n.startswith("align")})
        assert torch.equal(net(self.cloud()), basic(self.cloud()))
        moved = self.after_training("pointnet")
        for part in (moved.align1, moved.align2):
            assert part.head.weight.abs().max() > 0

    def test_alignment_multiplies_points_by_a_matrix(self):
        align = self.after_training("pointnet").align1
        turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
        align.head.weight.data.zero_()
        align.head.bias.data = (turn - torch.eye(3)).flatten()
        torch.testing.assert_close(align(self.cloud()), turn @ self.cloud())

    def test_images_are_refused(self):
        with pytest.raises(ValueError, match="coordinates"):
            models.build("pointnet", 5, (3, 8, 8))
