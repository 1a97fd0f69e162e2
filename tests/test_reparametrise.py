"""The free attacks: the same function from other weights. That moves are exact is shown in test_channels.py."""

import dataclasses

import pytest
import torch
from nets import apart, difference, lived_in

import models
from attacks.reparametrise import Permute, Reparametrise, Rescale, SignFlip
from bench.suspect import Target

ALL = [Permute(), Rescale(), SignFlip(), Reparametrise()]


@pytest.fixture(scope="module")
def protected(task):
    torch.manual_seed(3)
    return lived_in(models.build(task.model, task.classes, task.shape), 3)


def attacked(attack, model, attacker_for):
    target = Target(model, "white-box")
    ((strength, made),) = attack.run(target, attacker_for(attack, target))
    return strength, made


@pytest.mark.parametrize("attack", ALL, ids=lambda a: a.name)
def test_the_function_stays_and_the_weights_do_not(attack, protected, attacker_for):
    strength, made = attacked(attack, protected, attacker_for)
    assert difference(protected, made) < 1e-5
    assert apart(protected, made)[0] > 0.5
    assert 0.1 < strength <= 1


def test_permuting_only_moves(protected, attacker_for):
    _, made = attacked(Permute(), protected, attacker_for)
    for name, value in protected.state_dict().items():
        assert torch.equal(made.state_dict()[name].flatten().sort().values, value.flatten().sort().values)
    assert not torch.equal(made.conv1.weight, protected.conv1.weight)


def test_scales_are_log_uniform_over_the_spread(protected, attacker_for):
    _, made = attacked(Rescale(spread=4.0), protected, attacker_for)
    # Nothing scales before the first layer, so that its rows show the factors.
    logs = (made.conv1.weight / protected.conv1.weight).flatten(1).mean(1).log() / torch.tensor(4.0).log()
    assert -1 <= logs.min() < -0.7
    assert 0.7 < logs.max() <= 1
    with pytest.raises(ValueError, match="spread > 1"):
        Rescale(spread=1.0)


def test_signs_change_before_normalization_alone(protected, attacker_for):
    _, made = attacked(SignFlip(), protected, attacker_for)
    flipped = (made.conv3.weight == -protected.conv3.weight).flatten(1).all(1)
    assert 16 < flipped.sum() < 48
    assert torch.equal(made.conv3.weight[~flipped], protected.conv3.weight[~flipped])
    assert torch.equal(made.norm3.weight[flipped].sign(), -protected.norm3.weight[flipped].sign())
    assert torch.equal(made.norm3.running_mean[flipped], -protected.norm3.running_mean[flipped])
    for name in ("conv1.weight", "norm3.bias", "hidden.weight", "head.weight"):
        same = torch.equal(made.state_dict()[name], protected.state_dict()[name])
        assert same is (name != "conv1.weight")


def test_a_net_without_normalization_has_no_place_for_a_sign(task):
    info = dataclasses.replace(task.info, shape=(1, 28, 28))
    plain = dataclasses.replace(task, model="lenet5", info=info)
    assert "no place for sign-flip" in SignFlip().applies_to(plain)
    assert Reparametrise().applies_to(plain) is None
    assert all(attack.applies_to(task) is None for attack in ALL)


def test_moves_are_drawn_each_by_itself(protected, attacker_for):
    _, alone = attacked(Permute(), protected, attacker_for)
    _, together = attacked(Reparametrise(moves=("sign-flip", "permute")), protected, attacker_for)
    assert torch.equal(alone.conv1.weight.abs(), together.conv1.weight.abs())
    with pytest.raises(ValueError, match="at least one move"):
        Reparametrise(moves=())
