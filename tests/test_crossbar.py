"""Crossbars: lines of tiles, unused paths, conductances and their variation."""

import copy
import itertools

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models
from attacks.crossbar import Crossbar, varied, without_unused
from bench.suspect import Target, predict
from models.channels import channels
from models.surgery import inner


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    tile=st.integers(1, 4),
    fraction=st.floats(0, 0.99),
    lines=st.sampled_from(["rows", "columns"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_as_many_lines_of_tiles_are_pruned_as_asked_for_and_those_of_the_smallest_norm(
    rows, columns, tile, fraction, lines, seed
):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    mask = Crossbar(tile=tile, fraction=fraction, lines=lines)._kept(weight)
    along = weight if lines == "rows" else weight.T
    energy = [float(piece.double().square().sum()) for line in along for piece in line.split(tile)]
    kept = [bool(piece.any()) for line in (mask if lines == "rows" else mask.T) for piece in line.split(tile)]
    gone = round(fraction * len(energy))
    assert kept.count(False) == gone
    lost = float((weight * (1 - mask)).double().square().sum())
    assert lost == pytest.approx(sum(sorted(energy)[:gone]), abs=1e-6)


def test_the_matrix_of_a_convolution_is_filters_by_channels_times_kernel():
    weight = torch.ones(4, 2, 3, 3)
    weight[:, 1, 2, 0] = 0.1
    mask = Crossbar(tile=4, fraction=1 / 18, lines="columns")._kept(weight)
    assert not mask[:, 1, 2, 0].any() and mask.sum() == 4 * 17


def test_what_is_not_used_goes_from_both_sides_until_nothing_more_does():
    net = nets.vgg_like([8, 8, 8])
    masks = {name: torch.ones_like(weight) for name, weight in models.weights_of(net).items()}
    masks["conv2"][[0, 5]] = 0  # nothing makes them
    masks["conv4"][:, [1, 2, 3]] = 0  # nothing reads what conv3 makes of them
    masks["conv3"][:, 6] = 0
    # Once conv5 has lost its first channel, this filter of conv6 has nothing to read.
    masks["conv5"][0] = 0
    masks["conv6"][4, 1:] = 0
    masks["head"][0, 3] = 0
    made, left = without_unused(copy.deepcopy(net), masks, 0.0)
    widths = {name: len(weight) for name, weight in models.weights_of(made).items()}
    assert widths == {"conv1": 8, "conv2": 5, "conv3": 5, "conv4": 8, "conv5": 7, "conv6": 7, "hidden": 8, "head": 10}
    weights, before = models.weights_of(made), models.weights_of(net)
    stay2, stay3 = [1, 2, 3, 4, 7], [0, 4, 5, 6, 7]
    expected = (before["conv3"] * masks["conv3"])[stay3][:, stay2]
    assert torch.equal(weights["conv3"], expected)
    assert torch.equal(left["conv3"], masks["conv3"][stay3][:, stay2])
    assert {name: mask.shape for name, mask in left.items()} == {name: one.shape for name, one in weights.items()}
    assert all(not weights[name][mask == 0].any() for name, mask in left.items())


def test_without_constants_nothing_is_lost_with_unused_paths():
    net = nets.vgg_like([8, 8, 8])
    masks = {name: torch.ones_like(weight) for name, weight in models.weights_of(net).items()}
    masks["conv2"][[0, 5]] = 0
    masks["conv5"][:, 3] = 0
    with torch.no_grad():
        net.norm2.bias[[0, 5]] = -1.0
        net.norm2.running_mean[[0, 5]] = 0.0
        net.conv2.weight.mul_(masks["conv2"])
        net.conv5.weight.mul_(masks["conv5"])
    made, _ = without_unused(copy.deepcopy(net), masks, 0.0)
    assert (made.conv2.out_channels, made.conv4.out_channels) == (6, 7)
    assert nets.difference(net, made) < 1e-5


def test_a_channel_that_hardly_matters_is_purified_away_and_one_always_stays():
    net = nets.vgg_like([8, 8, 8])
    masks = {name: torch.ones_like(weight) for name, weight in models.weights_of(net).items()}
    with torch.no_grad():
        net.conv1.weight[2] *= 1e-3
        net.conv4.weight[:, 6] *= 1e-3
    made, _ = without_unused(copy.deepcopy(net), masks, 0.05)
    assert (made.conv1.out_channels, made.conv3.out_channels, made.conv2.out_channels) == (7, 7, 8)
    assert torch.equal(made.conv1.weight, net.conv1.weight[[0, 1, 3, 4, 5, 6, 7]])
    for mask in masks.values():
        mask.zero_()
    made, _ = without_unused(copy.deepcopy(net), masks, 0.05)
    assert all(one.width == 1 for one in inner(channels(made)))


def test_devices_vary_in_proportion_and_never_below_zero():
    conductance = torch.full((200, 200), 0.3)
    found = varied(conductance, 0.1, np.random.default_rng(0))
    assert abs(found.mean() / 0.3 - 1) < 5 * 0.1 / 200
    assert abs(found.std() / 0.03 - 1) < 5 / (2 * 200**2) ** 0.5
    assert torch.equal(varied(conductance, 0.0, np.random.default_rng(0)), conductance)
    assert varied(conductance, 5.0, np.random.default_rng(0)).min() == 0


def attacked(attack, model, attacker_for):
    target = Target(model, "white-box")
    trainer = attacker_for(attack, target)
    return [(strength, copy.deepcopy(one)) for strength, one in attack.run(target, trainer)], trainer


def test_the_net_as_it_was_meant_then_readings_of_devices_of_their_own(full_clean, attacker_for):
    attack = Crossbar(retrain_epochs=3, draws=3, fraction=0.4)
    before = copy.deepcopy(full_clean.state_dict())
    made, trainer = attacked(attack, full_clean, attacker_for)
    assert (trainer.inputs_used, trainer.labels_used) == (100, 100)
    assert [strength for strength, _ in made] == [0.0, 1.0, 2.0, 3.0] and attack.surrogates() == 4
    assert all(torch.equal(value, before[name]) for name, value in full_clean.state_dict().items())
    (_, meant), *read = made
    without_devices = 0
    for name, weight in models.weights_of(meant).items():
        # 15 levels to either side, and zero.
        step = weight.detach().abs().max() / 15
        assert (weight / step - (weight / step).round()).abs().max() < 1e-3
        others = [models.weights_of(one)[name].detach() for _, one in read]
        gone = weight == 0
        for other in others:
            # Twice the variation of 10 % of the highest conductance, of normal numbers within six deviations.
            assert (other - weight).abs().max() < 6 * 0.15 * weight.abs().max()
            assert not torch.equal(other, weight)
            gone &= other == 0
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(others, 2))
        without_devices += int(gone.sum())
    # Lines that were pruned have none; a zero within a line that is there does vary.
    assert without_devices > 0
    described = models.describe(meant)
    again = models.rebuild(described, meant.state_dict())
    x = nets.inputs(meant)
    assert torch.equal(predict(again, x), predict(meant, x))


def test_masks_hold_through_retraining_to_the_last_weight(full_clean, attacker_for):
    attack = Crossbar(retrain_epochs=2, draws=1, fraction=0.5, purify=0.0)
    model = copy.deepcopy(full_clean)
    masks = {name: attack._kept(weight) for name, weight in models.weights_of(model).items()}
    _, left = without_unused(model, masks, 0.0)
    made, _ = attacked(attack, full_clean, attacker_for)
    for _, one in made:
        weights = models.weights_of(one)
        assert all(not weights[name][mask == 0].any() for name, mask in left.items())
    # What was left has been trained: read without variation it differs from the protected weights.
    assert not torch.equal(made[0][1].norm1.weight, full_clean.norm1.weight)
    reading = models.weights_of(made[1][1])
    assert all(reading[name][mask == 1].count_nonzero() == mask.sum() for name, mask in left.items())


def test_without_variation_and_with_many_levels_the_net_stays(full_clean, attacker_for):
    attack = Crossbar(fraction=0.0, purify=0.0, retrain_epochs=0, bits=16, sigma=0.0, draws=1)
    assert attack.data_used() == "none"
    ((_, meant), (_, read)), trainer = attacked(attack, full_clean, attacker_for)
    assert trainer.inputs_used == 0
    assert nets.difference(full_clean.eval(), meant.eval()) < 1e-2
    assert all(torch.equal(a, b) for a, b in zip(meant.parameters(), read.parameters(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"fraction": 1.0}, "fraction"),
        ({"purify": -0.1}, "purify"),
        ({"tile": 0}, "tile"),
        ({"bits": 0}, "bits"),
        ({"draws": -1}, "draws"),
        ({"on_off": 1.0}, "on_off"),
        ({"sigma": float("nan")}, "sigma"),
        ({"retrain_epochs": -1}, "epochs"),
    ],
)
def test_parameters_are_checked(wrong, word):
    with pytest.raises(ValueError, match=word):
        Crossbar(**wrong)


def test_a_net_that_cannot_be_followed_is_refused(task):
    assert Crossbar().applies_to(task) is None
    with pytest.raises(ValueError, match="without architecture"):
        without_unused(nn.Sequential(nn.Linear(3, 3)), {"0": torch.ones(3, 3)}, 0.0)
