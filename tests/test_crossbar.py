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
from attacks.crossbar import Crossbar, conductances, line_mask, varied, without_unused
from bench.suspect import Target, predict
from models.channels import channels
from models.surgery import inner


def lines_of(shape, tile, lines):
    """The positions of each line of each tile, by hand."""
    rows, columns = shape
    found = []
    for top, left in itertools.product(range(0, rows, tile), range(0, columns, tile)):
        down, across = range(top, min(top + tile, rows)), range(left, min(left + tile, columns))
        if lines == "rows":
            found += [[(row, column) for column in across] for row in down]
        else:
            found += [[(row, column) for row in down] for column in across]
    return found


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    tile=st.integers(1, 4),
    fraction=st.floats(0, 0.99),
    lines=st.sampled_from(["rows", "columns"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_pruned_lines_leave_the_nearest_matrix_of_so_few_lines(rows, columns, tile, fraction, lines, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    mask = line_mask(weight, tile, fraction, lines)
    known = lines_of((rows, columns), tile, lines)
    kept = [all(mask[place] for place in line) for line in known]
    # Lines are whole or gone, and exactly as many are gone as asked for.
    assert all(not any(mask[place] for place in line) for line, whole in zip(known, kept, strict=True) if not whole)
    assert kept.count(False) == round(fraction * len(known))
    energy = [sum(float(weight[place]) ** 2 for place in line) for line in known]
    lost = float((weight * (1 - mask)).double().square().sum())
    if len(known) <= 10:
        choices = itertools.combinations(energy, kept.count(False))
        assert lost == pytest.approx(min(sum(one) for one in choices), abs=1e-6)
    assert lost == pytest.approx(sum(sorted(energy)[: kept.count(False)]), abs=1e-6)


def test_the_matrix_of_a_convolution_is_filters_by_channels_times_kernel():
    weight = torch.ones(4, 2, 3, 3)
    weight[:, 1, 2, 0] = 0.1
    mask = line_mask(weight, 4, 1 / 18, "columns")
    assert not mask[:, 1, 2, 0].any() and mask.sum() == 4 * 17
    # Equal lines go by position.
    assert not line_mask(torch.ones(4, 2, 3, 3), 2, 0.5, "rows").flatten(1)[:2].any()


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


@given(
    values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30),
    bits=st.integers(1, 6),
    on_off=st.floats(1.5, 1000),
)
@settings(max_examples=100)
def test_a_pair_of_conductances_comes_nearest_to_a_weight(values, bits, on_off):
    weight = torch.tensor(values)
    pair, lowest = conductances(weight, bits, on_off), 1 / on_off
    spacing = (1 - lowest) / (2**bits - 1)
    for one in (pair.high, pair.low):
        assert ((one - lowest) / spacing).sub(((one - lowest) / spacing).round()).abs().max() < 1e-3
        assert one.min() >= lowest - 1e-6 and one.max() <= 1 + 1e-6
    # One of the two is at its lowest, and for zero both are.
    assert torch.equal(torch.minimum(pair.high, pair.low), torch.full_like(weight, lowest))
    assert (pair.high[weight == 0] == pair.low[weight == 0]).all()
    given_back = pair.scale * (pair.high - pair.low)
    step = weight.abs().max() / (2**bits - 1)
    assert ((given_back - weight).abs() <= step * 0.501 + 1e-6).all()
    largest = weight.abs().argmax()
    assert given_back[largest] == pytest.approx(float(weight[largest]), rel=1e-4, abs=1e-6)


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


def test_a_layer_of_zeros_can_be_mapped():
    pair = conductances(torch.zeros(3, 3), 4, 10.0)
    assert torch.equal(pair.high, pair.low) and not (pair.scale * (pair.high - pair.low)).any()


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
