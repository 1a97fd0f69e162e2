"""Structured pruning: which channels go, other widths, and the attacks that take channels out."""

import copy

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from attacks.channel_prune import ChannelPrune, ChannelShift
from bench import data
from bench.recipe import Recipe
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from defenses.channel_rate import ChannelRate
from defenses.uchida import Uchida
from models.channels import channels
from models.pruning import importances, most_important, natural_widths, with_widths
from models.surgery import inner
from models.widths import widths

SHAPES = {"vgg8": (1, 8, 8), "resnet8": (1, 8, 8), "resnet18": (3, 32, 32), "vgg16-bn": (3, 32, 32)}


def chance(seed=0):
    return np.random.default_rng(seed)


@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=30), data=st.data())
def test_the_most_important_ones_stay_and_the_first_of_equals(values, data):
    count = data.draw(st.integers(1, len(values)))
    kept = most_important(torch.tensor(values, dtype=torch.float64), count)
    assert kept.tolist() == sorted(sorted(range(len(values)), key=lambda one: (-values[one], one))[:count])


def test_more_than_there_are_begin_anew_with_the_most_important():
    values = torch.tensor([1.0, 3.0, 2.0])
    assert most_important(values, 5).tolist() == [0, 1, 1, 2, 2]
    assert most_important(values, 7).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_importance_is_by_filter_or_by_scale_and_one_on_average():
    net = nets.lived_in(models.build("vgg8", 10, (1, 8, 8)))
    conv, hidden = (next(one for one in inner(channels(net)) if one.layer == name) for name in ("conv2", "hidden"))
    for importance, wanted in (("filter", net.conv2.weight.abs().sum((1, 2, 3))), ("scale", net.norm2.weight.abs())):
        found = importances(net, conv, importance)
        assert torch.allclose(found, wanted.double() / wanted.double().mean())
    # Where nothing normalizes, there is no scale.
    assert torch.equal(importances(net, hidden, "scale"), importances(net, hidden, "filter"))


@given(share=st.floats(0, 0.99))
def test_natural_widths_leave_out_that_share_of_all_channels(share):
    net = nets.vgg_like([8, 9, 10])
    layers = inner(channels(net))
    total = sum(one.width for one in layers)
    left = natural_widths(net, layers, "filter", share)
    # One channel of each layer stays in any case.
    assert 0 <= sum(left.values()) - (total - round(share * total)) <= len(layers)
    assert all(1 <= left[one.layer] <= one.width for one in layers)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_channels_of_nothing_can_go_without_a_trace(name):
    net = nets.lived_in(models.build(name, 10, SHAPES[name]))
    layers, wanted = inner(channels(net)), {}
    with torch.no_grad():
        for one in layers:
            wanted[one.layer] = one.width - 3
            gone = [0, one.width // 2, one.width - 1]
            models.layer(net, one.layer).weight[gone] = 0
            if one.norm:
                for vector in ("weight", "bias"):
                    getattr(models.layer(net, one.norm), vector)[gone] = 0
            elif models.layer(net, one.layer).bias is not None:
                models.layer(net, one.layer).bias[gone] = 0
    made = with_widths(net, wanted, "filter", chance())
    assert nets.difference(net, made) < 1e-5
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in net.parameters())


@given(factor=st.floats(1.0, 3.0), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_a_wider_net_does_nearly_the_same(factor, seed):
    net = nets.vgg_like([5, 6, 7], seed)
    wanted = {one.layer: round(factor * one.width) for one in inner(channels(net))}
    made = with_widths(net, wanted, "filter", chance(seed))
    assert dict(zip(wanted, widths(made), strict=False)) == wanted
    assert nets.difference(net, made) < 0.5
    if factor >= 2:
        rows = made.conv1.weight.detach().flatten(1)
        # Doubled, and not the same.
        assert len(torch.unique(rows, dim=0)) == len(rows)


def test_the_same_as_another_implementation():
    pruning = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    for name, shape in SHAPES.items():
        net = nets.lived_in(models.build(name, 10, shape))
        layers = inner(channels(net))
        theirs = copy.deepcopy(net)
        graph = pruning.DependencyGraph().build_dependency(theirs, example_inputs=torch.zeros(1, *shape))
        wanted = {}
        for place, one in enumerate(layers):
            wanted[one.layer] = one.width - 1 - place % 5
            stay = most_important(importances(net, one, "filter"), wanted[one.layer])
            layer = models.layer(theirs, one.layer)
            linear = isinstance(layer, torch.nn.Linear)
            cut = pruning.prune_linear_out_channels if linear else pruning.prune_conv_out_channels
            graph.get_pruning_group(layer, cut, sorted(set(range(one.width)) - set(stay.tolist()))).prune()
        ours = with_widths(net, wanted, "filter", chance())
        assert {n: tuple(p.shape) for n, p in ours.named_parameters()} == {
            n: tuple(p.shape) for n, p in theirs.named_parameters()
        }
        x = nets.inputs(net, 4)
        with torch.no_grad():
            assert torch.allclose(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-5), name


class FakeTrainer:
    """What an attack without retraining needs."""

    task = Task(data.info("digits"), "vgg8", Recipe())

    def __init__(self, seed=0):
        self.stream = Stream.root(seed)


@pytest.mark.parametrize("choice", ["least", "random"])
def test_channel_pruning_takes_the_same_share_of_each_layer(choice):
    net = nets.lived_in(models.build("vgg8", 10, (1, 8, 8)))
    before = copy.deepcopy(net.state_dict())
    attack = ChannelPrune(fractions=(0.25, 0.5), choice=choice, retrain_epochs=0)
    found = list(attack.run(Target(net, "white-box"), FakeTrainer()))
    assert [strength for strength, _ in found] == [0.25, 0.5]
    assert widths(found[0][1]) == (24, 24, 48, 48, 48, 48, 96, 10)
    assert widths(found[1][1]) == (16, 16, 32, 32, 32, 32, 64, 10)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    rows = {tuple(row) for row in net.conv1.weight.detach().flatten(1).tolist()}
    assert {tuple(row) for row in found[1][1].conv1.weight.detach().flatten(1).tolist()} <= rows
    other = next(attack.run(Target(net, "white-box"), FakeTrainer(1)))[1]
    same = torch.equal(other.conv1.weight, found[0][1].conv1.weight)
    assert same == (choice == "least")


def test_who_knows_the_cells_turns_one_layer_after_another_with_the_fewest_channels():
    scheme, trainer = ChannelRate(cell=2), FakeTrainer()
    key = scheme.draw(trainer.task, Stream.root(5))
    plain = nets.lived_in(models.build("vgg8", 10, (1, 8, 8)))
    marked = with_widths(plain, scheme.wanted(key, trainer.task, plain), "filter", chance())
    target = Target(marked, "white-box", scheme=scheme)
    lost = []
    for strength, model in ChannelShift().run(target, trainer):
        found = scheme.judge(widths(model), key, trainer.task)
        assert found.figures["layers_wrong"] == strength
        lost.append(sum(widths(marked)) - sum(widths(model)))
        # Neighbouring cells differ in one bit.
        assert found.statistic == 22 - strength
    assert len(lost) == 6
    cells = scheme.cells(trainer.task)
    assert lost[-1] == sum(
        width - cells[layer].fewer(width) for layer, width in zip(cells, widths(marked), strict=False)
    )


def test_an_adaptive_attack_needs_a_scheme_of_widths():
    assert ChannelShift().against(ChannelRate()) is None
    assert ChannelShift().against(Uchida()) == "needs a message in widths, uchida has none there"


@pytest.mark.parametrize("wrong", [{"fractions": ()}, {"fractions": (1.0,)}, {"retrain_epochs": -1}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        ChannelPrune(**wrong)
    with pytest.raises(ValueError, match="expected most"):
        ChannelShift(most=0)
