"""Normalization is folded: nothing of it is left, and the function is the same."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import KINDS, apart, difference, inputs, lived_in, merged, put, reframed, vgg_like
from torch import nn

import models
from attacks.fold_normalization import FoldNormalization, folded
from bench.canonical import canonicalise
from bench.effort import Effort
from bench.suspect import Target
from models.blocks import NORMALIZATIONS

# A few, since each structure has to be followed once.
WIDTHS = st.sampled_from([[2, 2, 2], [9, 4, 6], [3, 8, 5, 2, 7], [5, 6, 7, 8, 9, 4, 3]])
SEEDS = st.integers(0, 2**16)
NORMALIZED = sorted(set(KINDS) - {"plain"})
CLOSE = 1e-4


def attacked(model):
    ((strength, made),) = FoldNormalization().run(Target(model, "white-box"), None)
    return strength, made


def normalizations(model):
    return sum(isinstance(module, NORMALIZATIONS) for module in model.modules())


@given(kind=st.sampled_from(NORMALIZED), widths=WIDTHS, seed=SEEDS)
@settings(max_examples=15)
def test_nothing_is_left_of_it_but_the_function(kind, widths, seed):
    # In double precision, since T-Nets make more of what rounding leaves.
    model = KINDS[kind](widths, seed).double()
    before = copy.deepcopy(model.state_dict())
    strength, made = attacked(model)
    assert (strength, normalizations(made)) == (1.0, 0)
    assert difference(model, made) < 1e-11
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert normalizations(model) > 0
    assert apart(merged(model), made) < (1e-11, "")
    assert models.describe(made) == models.describe(merged(model))


@given(kind=st.sampled_from(NORMALIZED), widths=WIDTHS, seed=SEEDS)
@settings(max_examples=15)
def test_a_verifier_with_a_reference_unfolds_it(kind, widths, seed):
    reference = KINDS[kind](widths, seed)
    _, made = attacked(reframed(reference, seed + 1))
    found = canonicalise(made, reference, {})
    assert difference(made, found) < CLOSE
    assert apart(reference, found) < (CLOSE, "")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vgg8", (1, 8, 8)), ("resnet20", (3, 32, 32)), ("resnet18", (3, 8, 8)), ("pointnet", (3, 20))],
)
def test_every_normalization_of_the_architectures_is_folded(name, shape):
    model = lived_in(models.build(name, 10, shape))
    strength, made = attacked(model)
    assert (strength, normalizations(made)) == (1.0, 0)
    assert difference(model, made) < 1e-5
    again = models.rebuild(models.describe(made), made.state_dict())
    with torch.no_grad():
        assert torch.equal(made(inputs(model)), again(inputs(model)))


def test_what_normalizes_by_groups_stays():
    model = vgg_like([4] * 7)
    for number in range(1, 7):
        put(model, f"norm{number}", nn.GroupNorm(2, 4))
    strength, made = attacked(model.eval())
    assert strength == 0
    assert models.describe(made) == models.describe(model)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_does_not_stand_behind_a_layer_stays():
    model = vgg_like([4] * 7)
    put(model, "act1", nn.BatchNorm2d(4))
    put(model, "norm5", nn.GroupNorm(2, 4))
    strength, made = attacked(lived_in(model))
    assert strength == 5 / 7
    assert isinstance(made.act1, nn.BatchNorm2d)
    assert isinstance(made.norm5, nn.GroupNorm)
    assert difference(model, made) < 2e-6


def test_statistics_of_a_batch_are_not_folded():
    model = vgg_like([4] * 7).train()
    made = copy.deepcopy(model)
    assert folded(made) == 6
    assert not any(part.training for part in made.modules())
    assert difference(model.eval(), made) < 2e-6


def test_all_that_is_left_can_be_trained():
    _, made = attacked(KINDS["points"]([4, 5, 6]))
    assert all(value.requires_grad for value in made.parameters())
    made(inputs(made)).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in made.parameters())


def test_it_says_where_there_is_nothing_to_fold(task):
    attack = FoldNormalization()
    assert attack.applies_to(task) is None
    info = dataclasses.replace(task.info, shape=(1, 28, 28))
    lenet = dataclasses.replace(task, model="lenet5", info=info)
    assert attack.applies_to(lenet) == (
        "lenet5 has no batch normalization directly behind a convolution or linear layer"
    )
    assert attack.effort(task) == Effort()
