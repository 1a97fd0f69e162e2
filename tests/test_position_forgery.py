"""Positions that are chosen after the fact: what they hold, and what they look like."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import lived_in

import models
from attacks.position_forgery import ChosenPositions
from attacks.trigger_forgery import nothing
from bench.stream import Stream
from bench.suspect import Target
from bench.trainer import AttackerTrainer
from defenses.constant_weight_code import ConstantWeightCode, UncodedThreshold
from defenses.dm_qim import DmQim
from defenses.ticket_key import TicketKey

SCHEMES = [
    ConstantWeightCode(),
    ConstantWeightCode(bits=40, weight=8, length=2000, layers=("conv5", "conv6"), canonical=True),
    UncodedThreshold(),
    UncodedThreshold(bits=30, layers=("conv4",)),
]


def forged(attack, scheme, task, seed):
    model = lived_in(models.build(task.model, task.classes, task.shape), seed)
    target = Target(model, "white-box", scheme=scheme)
    trainer = AttackerTrainer(task, torch.empty(0), nothing(task), Stream((str(seed),)), target=target, data="none")
    return attack.forge(target, trainer), target, trainer


@given(seed=st.integers(0, 10_000), scheme=st.sampled_from(SCHEMES), spread=st.floats(1.0, 20.0))
@settings(max_examples=20)
def test_ones_are_among_the_largest_and_zeros_below_the_median(task, seed, scheme, spread):
    made, target, trainer = forged(ChosenPositions(spread=spread), scheme, task, seed)
    key, drawn = made.key, scheme.draw(task, trainer.stream.child("key", scheme.name))
    evidence = scheme.verify(target, key, trainer)
    assert evidence.log10_p == pytest.approx(scheme.capacity(task))
    assert evidence.figures["bit_error"] == 0.0
    positions, ones = key.tensor("positions"), scheme.ones(key)
    assert torch.equal(ones, scheme.ones(drawn))
    assert (positions.dtype, positions.shape) == (drawn.tensor("positions").dtype, drawn.tensor("positions").shape)
    assert len(positions.unique()) == len(positions)
    magnitudes = scheme.carried(key, target.module).abs()
    ranks = magnitudes.argsort(descending=True, stable=True).argsort()[positions]
    assert int(ranks[ones].max()) < max(round(spread * int(ones.sum())), int(ones.sum()))
    assert int(ranks[~ones].min()) >= len(magnitudes) // 2
    assert made.figures["gap"] == pytest.approx(key.facts["t1"] / key.facts["t0"])
    assert made.figures["gap"] > 1


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[2]], ids=lambda one: one.label)
def test_the_key_has_the_facts_of_a_real_one(scheme, task, protected):
    model, owned = protected(scheme)
    target = Target(model, "white-box", scheme=scheme)
    trainer = AttackerTrainer(task, torch.empty(0), nothing(task), Stream(("f",)), target=target, data="none")
    key = ChosenPositions().forge(target, trainer).key
    assert {n: type(v) for n, v in key.facts.items()} == {n: type(v) for n, v in owned.facts.items()}
    assert {n: type(v) for n, v in key.drawn.items()} == {n: type(v) for n, v in owned.drawn.items()}
    assert scheme.verify(target, key, trainer).log10_p == pytest.approx(scheme.capacity(task))


def test_positions_are_chosen_only_where_large_weights_are_ones():
    assert ChosenPositions().against(UncodedThreshold()) is None
    for scheme in (DmQim(), TicketKey()):
        assert "kind positions" in ChosenPositions().against(scheme)
    with pytest.raises(ValueError, match="spread >= 1"):
        ChosenPositions(spread=0.5)


def test_a_word_as_long_as_the_layer_is_refused(task):
    scheme = ConstantWeightCode(bits=4, weight=2, length=2304, layers=("head",))
    assert scheme.applies_to(task) is not None
    scheme = UncodedThreshold(bits=288, layers=("conv1",), rate=0.5)
    with pytest.raises(ValueError, match="expected at most 144"):
        forged(ChosenPositions(), scheme, task, 11)
