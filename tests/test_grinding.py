"""Trying keys: the best of the tries is what is claimed, and each try costs what it must."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import lived_in

import models
from attacks.grinding import ChainGrind, Grind
from attacks.trigger_forgery import nothing
from bench.derivation import FORGER, SEED_BYTES, derived_stream, is_derived
from bench.stream import Stream
from bench.suspect import BATCH, Target
from bench.trainer import AttackerTrainer
from defenses.channel_rate import ChannelRate
from defenses.hash_chain import HashChain, advance, links
from defenses.passport_aware import PassportAware
from defenses.trigger_set import TriggerSet
from defenses.uchida import Uchida


def attacking(scheme, task, seed=0):
    model = lived_in(models.build(task.model, task.classes, task.shape), seed)
    target = Target(model, "white-box", scheme=scheme)
    return target, AttackerTrainer(
        task, torch.empty(0), nothing(task), Stream((str(seed),)), target=target, data="none"
    )


@pytest.mark.parametrize("scheme", [Uchida(), HashChain(triggers=8), TriggerSet(), ChannelRate()], ids=lambda s: s.name)
def test_the_best_draw_is_claimed(scheme, task):
    target, trainer = attacking(scheme, task)
    made = Grind(trials=7).forge(target, trainer)
    asked = target.queries
    seeds = [trainer.stream.child("key", scheme.name, n).bytes(SEED_BYTES) for n in range(7)]
    drawn = [scheme.draw(task, derived_stream(seed, FORGER, scheme)) for seed in seeds]
    each = [scheme.verify(target, scheme.completed(key, target.module, task), trainer).log10_p for key in drawn]
    assert made.figures == {"trials": 7.0, "log10_p": min(each)}
    assert scheme.verify(target, made.key, trainer).log10_p == min(each)
    assert made.seed == seeds[each.index(min(each))]
    assert [is_derived(made.key, seed, FORGER, scheme, task) for seed in seeds] == [seed == made.seed for seed in seeds]
    assert asked == (7 * scheme.triggers if scheme.key_kind == "labels" else 0)


@given(seed=st.binary(min_size=32, max_size=32), count=st.integers(0, 20))
def test_a_link_is_the_seed_of_those_after_it(seed, count):
    assert list(links(advance(seed, count), 3)) == list(links(seed, count + 3))[count:]


@given(seed=st.integers(0, 1000), trials=st.integers(1, 60), triggers=st.integers(1, 12))
@settings(max_examples=15)
def test_the_best_window_of_the_chain_is_claimed(task, seed, trials, triggers):
    scheme = HashChain(triggers=triggers, per_batch=1)
    target, trainer = attacking(scheme, task, seed)
    made = ChainGrind(trials=trials).forge(target, trainer)
    assert target.queries == trials + triggers - 1
    first = scheme.draw(task, trainer.stream.child("key", scheme.name))
    windows = [scheme.verify(target, scheme.advanced(first, n), trainer).statistic for n in range(trials)]
    found = scheme.verify(target, made.key, trainer)
    assert found.statistic == max(windows)
    assert made.figures == {"trials": float(trials), "answered": max(windows) / triggers}
    assert made.key.tensor("seed").shape == (32,)


def test_a_chain_longer_than_a_batch_is_one_chain(task):
    scheme = HashChain(triggers=3, per_batch=1)
    target, trainer = attacking(scheme, task)
    made = ChainGrind(trials=BATCH + 40).forge(target, trainer)
    assert target.queries == BATCH + 42
    assert scheme.verify(target, made.key, trainer).figures["trigger_accuracy"] == made.figures["answered"] == 1.0


def test_who_can_be_ground():
    assert Grind().against(HashChain()) is Grind().against(Uchida()) is ChainGrind().against(HashChain()) is None
    assert "takes triggers from data" in Grind().against(TriggerSet(inputs="patch"))
    assert "kind passport" in Grind().against(PassportAware())
    assert "link of a chain" in ChainGrind().against(TriggerSet())
    for attack in (Grind, ChainGrind):
        with pytest.raises(ValueError, match="trials >= 1"):
            attack(trials=0)
