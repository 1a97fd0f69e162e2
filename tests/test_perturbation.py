"""Noise and clipping: what exactly is done to which weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from attacks.perturbation import Clip, Noise
from bench import data
from bench.split import Split
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer

NET = ("resnet8", 10, (1, 8, 8))


@pytest.fixture(scope="module")
def protected():
    torch.manual_seed(3)
    return models.build(*NET)


def attacked(attack, model, attacker_for):
    target = Target(model, "white-box")
    trainer = attacker_for(attack, target)
    made = [(strength, copy.deepcopy(one)) for strength, one in attack.run(target, trainer)]
    assert (trainer.inputs_used, trainer.labels_used, target.queries) == (0, 0, 0)
    return made


def others(model):
    """All that is neither the weight of a convolution nor of a linear layer."""
    chosen = {f"{name}.weight" for name in models.weights_of(model)}
    return {name: value for name, value in model.state_dict().items() if name not in chosen}


@pytest.mark.parametrize("attack", [Noise(), Clip()], ids=lambda a: a.name)
def test_just_the_weights_of_convolutions_and_linear_layers_change(attack, protected, attacker_for):
    before = copy.deepcopy(protected.state_dict())
    made = attacked(attack, protected, attacker_for)
    assert tuple(strength for strength, _ in made) == attack.levels
    assert len(made) == attack.surrogates()
    for _, model in made:
        assert all(torch.equal(value, before[name]) for name, value in others(model).items())
        assert all(not torch.equal(one, before[f"{name}.weight"]) for name, one in models.weights_of(model).items())
    assert all(torch.equal(value, before[name]) for name, value in protected.state_dict().items())


def test_noise_has_the_level_of_each_layer_and_one_direction(protected, attacker_for):
    (small, low), (large, high) = attacked(Noise(levels=(0.25, 2.0)), protected, attacker_for)
    weights = models.weights_of(protected)
    for name, weight in weights.items():
        first, second = (models.weights_of(one)[name] - weight for one in (low, high))
        torch.testing.assert_close(first / small, second / large, atol=1e-5, rtol=1e-3)
        drawn = second / (large * weight.std(correction=0))
        # Of n normal numbers, mean and variance within five standard errors.
        assert abs(drawn.mean()) < 5 / len(drawn.flatten()) ** 0.5
        assert abs(drawn.var() - 1) < 5 * (2 / len(drawn.flatten())) ** 0.5


def test_layers_have_noise_of_their_own(protected, attacker_for):
    ((_, model),) = attacked(Noise(levels=(1.0,)), protected, attacker_for)
    moved = [
        (models.weights_of(model)[name] - weight).detach().flatten() / weight.std(correction=0)
        for name, weight in models.weights_of(protected).items()
    ]
    same = [(a, b) for a in moved for b in moved if a is not b and len(a) == len(b)]
    assert same
    assert all(abs(torch.corrcoef(torch.stack(pair))[0, 1]) < 0.2 for pair in same)


@given(level=st.floats(0.001, 0.999), ties=st.booleans())
@settings(max_examples=20)
def test_clipping_bounds_the_largest_by_the_largest_of_the_rest(level, ties):
    torch.manual_seed(5)
    model = models.build(*NET)
    if ties:
        for parameter in model.parameters():
            parameter.data = parameter.data.round(decimals=1)
    info = data.info("digits")
    nothing = torch.zeros(0)
    trainer = AttackerTrainer(
        Task(info, info.model, info.recipe), nothing, Split(nothing, nothing), Stream(("a",)), data="none"
    )
    ((_, clipped),) = Clip(levels=(level,)).run(Target(model, "white-box"), trainer)
    for name, weight in models.weights_of(model).items():
        before, after = weight.detach().flatten(), models.weights_of(clipped)[name].detach().flatten()
        order = before.abs().argsort(stable=True)
        cut = round(level * len(order))
        rest, largest = order[: len(order) - cut], order[len(order) - cut :]
        bound = before[rest[-1]].abs() if len(rest) else before.abs().min()
        assert torch.equal(after[rest], before[rest])
        assert torch.equal(after[largest], before[largest].sign() * bound)


def test_named_layers_alone_change(protected, attacker_for):
    for attack in (Noise(levels=(1.0,), layers=("head",)), Clip(levels=(0.5,), layers=("head",))):
        ((_, model),) = attacked(attack, protected, attacker_for)
        changed = [n for n, value in model.state_dict().items() if not torch.equal(value, protected.state_dict()[n])]
        assert changed == ["head.weight"]


def test_layers_that_are_not_there_are_told_before(task):
    assert Noise().applies_to(task) is None
    assert "no layer 'conv66'. Did you mean 'conv6'" in Noise(layers=("conv66",)).applies_to(task)
    assert "neither a convolution nor linear" in Clip(layers=("conv1", "act1")).applies_to(task)


@pytest.mark.parametrize("levels", [(), (0.0,), (-1.0, 1.0), (0.5, 0.25), (0.5, 0.5), (float("nan"),), (float("inf"),)])
def test_levels_are_checked(levels):
    for attack in (Noise, Clip):
        with pytest.raises(ValueError, match="levels"):
            attack(levels=levels)
    with pytest.raises(ValueError, match="below 1"):
        Clip(levels=(0.5, 1.0))
