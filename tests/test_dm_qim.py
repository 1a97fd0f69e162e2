"""Dither modulation: the lattices, the projection onto them, the evidence; the contract is in test_contract.py."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import models
from bench.stream import Stream
from defenses.dm_qim import DmQim, lattice

KEY = Stream.root(0).child("owner", "key")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("vgg8", 10, (1, 8, 8))


BOTH = pytest.mark.parametrize("defense", [DmQim(), DmQim(transform="none")], ids=lambda d: d.label)


@given(
    values=st.lists(st.floats(-3, 3), min_size=1, max_size=20),
    dither=st.floats(0, 1, exclude_max=True),
    step=st.floats(0.01, 10),
)
def test_the_lattice_point_is_the_nearest(values, dither, step):
    values, dithers = np.array(values), np.full(len(values), dither)
    near = {bit: lattice(values, np.full(len(values), bit), dithers, step) for bit in (0, 1)}
    for bit, points in near.items():
        # Points of the lattice d_b + Delta Z, none of which is nearer.
        index = (points - step * (dither + bit / 2)) / step
        np.testing.assert_allclose(index, np.round(index), atol=1e-6)
        assert (np.abs(points - values) <= step / 2 * (1 + 1e-9)).all()
    np.testing.assert_allclose(np.abs(near[0] - near[1]), step / 2, rtol=1e-6)


@BOTH
def test_each_projection_acts_on_the_current_weights_and_moves_nothing_else(defense, task, owner, monkeypatch):
    key, seen = defense.draw(task, KEY), []

    def fit(model, data, recipe, *, hooks):
        mask = defense.counted(key)["hidden.weight"]
        assert int(mask.sum()) == 128
        for scale in (1.0, 2.0):
            torch.nn.init.normal_(model.hidden.weight, std=scale)
            before = model.hidden.weight.detach().clone()
            hooks.after_epoch(model, 1)
            moved = model.hidden.weight.detach() - before
            assert (moved[~mask] == 0).all() and (moved[mask] != 0).any()
            seen.append((copy.deepcopy(model), before))
        return model

    monkeypatch.setattr(owner, "fit", fit)
    model, completed, _ = defense.protect(owner, key)
    step = completed.facts["step"]
    assert step == pytest.approx(3 * float(owner.new_model().hidden.weight.detach().std()), rel=1e-3)
    for projected, before in seen:
        assert defense.read(projected, completed).figures["bit_error"] == 0
        # Orthonormal: what is nearest in the coefficients is nearest in the weights, at most Delta / 2 in each.
        assert float((projected.hidden.weight.detach() - before).norm()) <= step / 2 * math.sqrt(128)
    # Here the training has left it as it was projected, and once more changes no more than the last digits.
    assert completed.facts["embedding_change"] < 1e-6


@BOTH
def test_the_mark_is_read_from_the_protected_model(defense, protected, task):
    model, key = protected(defense)
    found = defense.read(model, key)
    assert found.figures["bit_error"] == 0
    assert found.log10_p == pytest.approx(defense.capacity(task), abs=1e-9)
    # Noise of a tenth of the distance to the other lattice turns no bit.
    noisy = copy.deepcopy(model)
    with torch.no_grad():
        noisy.hidden.weight.add_(torch.randn_like(noisy.hidden.weight) * key.facts["step"] / 40)
    assert defense.read(noisy, key).figures["bit_error"] == 0


@BOTH
def test_marked_weights_drawn_anew_give_no_claim(defense, protected):
    model, key = protected(defense)
    mask = defense.counted(key)["hidden.weight"]
    for seed in range(20):
        renewed, chance = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        weight = renewed.hidden.weight.data
        rest = weight[~mask]
        weight[mask] = rest[torch.randint(len(rest), (128,), generator=chance)]
        assert defense.read(renewed, key).log10_p > -4


def test_evidence_is_the_tail_of_the_agreeing_bits(task, model):
    defense = DmQim(bits=16, transform="none")
    key = defense.draw(task, KEY).complete(step=0.02)
    weights = model.hidden.weight.detach().flatten()[key.tensor("positions")].double()
    read = []
    for weight, dither in zip(weights.tolist(), key.tensor("dither").tolist(), strict=True):
        distance = [min(abs(weight - 0.02 * (n + dither + bit / 2)) for n in range(-20, 20)) for bit in (0, 1)]
        read.append(int(distance[1] < distance[0]))
    right = sum(int(a == b) for a, b in zip(read, key.tensor("message").tolist(), strict=True))
    found = defense.read(model, key)
    assert found.statistic == right
    assert found.figures["bit_error"] == 1 - right / 16
    assert found.log10_p == pytest.approx(math.log10(stats.binom.sf(right - 1, 16, 0.5)))


def test_the_transform_spreads_each_bit_over_all_weights(task, protected):
    """A single weight lost is one coefficient lost without the transform, and a little of each with it."""
    for defense, erroneous in ((DmQim(), 0), (DmQim(transform="none"), 1)):
        model, key = protected(defense)
        worst = 0.0
        for place in key.tensor("positions")[:40].tolist():
            hurt = copy.deepcopy(model)
            with torch.no_grad():
                hurt.hidden.weight.view(-1)[place] += key.facts["step"] / 2
            worst = max(worst, defense.read(hurt, key).figures["bit_error"] * 128)
        assert worst == erroneous


def test_the_key_is_uniform(task):
    key = DmQim(bits=5000).draw(task, KEY)
    assert stats.kstest(key.tensor("dither").numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(key.tensor("positions").numpy() / 32768, "uniform").pvalue > 1e-3
    assert abs(key.tensor("message").double().mean() - 0.5) < 0.03


def test_parameters_and_tasks_are_checked(task):
    for wrong in ({"bits": 0}, {"step": 0.0}, {"step": -1.0}):
        with pytest.raises(ValueError, match="bits >= 1 and step > 0"):
            DmQim(**wrong)
    assert "300 weights are needed, conv1 has 288" in DmQim(bits=300, layers=("conv1",)).applies_to(task)
    assert DmQim(bits=288, layers=("conv1",)).applies_to(task) is None


def test_every_weight_of_a_layer_can_carry_a_bit(task, owner):
    defense = DmQim(bits=288, layers=("conv1",))
    quick = dataclasses.replace(task.recipe, epochs=1)
    owner.task = dataclasses.replace(task, recipe=quick)
    model, key, _ = defense.protect(owner, defense.draw(task, KEY))
    found = defense.read(model, key)
    assert found.figures["bit_error"] == 0
    # There is no other weight in the layer to compare with.
    assert "embedding_ks" not in found.figures


def test_other_shapes_are_told(task):
    defense = DmQim()
    key = defense.draw(task, KEY).complete(step=0.1)
    found = defense.read(models.build("lenet5", 10, (1, 28, 28)), key)
    assert (found.log10_p, found.reason) == (0.0, "expected weights of shape (128, 256) in 'hidden', got (500, 800)")
