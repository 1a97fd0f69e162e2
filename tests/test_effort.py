"""What plugins declare of their work is what they do; forecasts rest on it."""

import pytest
import torch

import models
from attacks.admm_prune import AdmmPrune
from attacks.admm_quantize import AdmmPruneQuantize, AdmmQuantize
from attacks.distill import Distill
from attacks.extract_hard import ExtractHard, Retrain
from attacks.fine_tune import FineTune
from attacks.magnitude_prune import MagnitudePrune
from attacks.perturbation import Clip, Noise
from attacks.scratch import Scratch
from bench.attack import RemovalAttack
from bench.registry import discover
from bench.stream import Stream
from bench.suspect import Target
from defenses.constant_weight_code import ConstantWeightCode
from defenses.hash_chain import HashChain
from defenses.ingrain import Ingrain
from defenses.none import Undefended
from defenses.trigger_set import TriggerSet
from defenses.uchida import Uchida

ATTACKS = [
    Clip(),
    Noise(),
    Scratch(epochs=2),
    Distill(epochs=5, every=2),
    Distill(epochs=2, alpha=0.5, share=0.3),
    ExtractHard(epochs=2, share=0.1),
    Retrain(epochs=3, every=1),
    MagnitudePrune(),
    MagnitudePrune(fractions=(0.5, 0.6), retrain_epochs=1),
    AdmmPrune(fractions=(0.5, 0.6), iterations=2, epochs=1, retrain_epochs=1),
    AdmmQuantize(bits=(2, 1), iterations=2, epochs=1, snapped=1.0),
    AdmmPruneQuantize(fractions=(0.9,), iterations=2, epochs=1, retrain_epochs=1, snapped=1.0),
    *(FineTune(variant=variant, epochs=3, every=2) for variant in ("FTLL", "FTAL", "RTLL", "RTAL")),
]
DEFENSES = [
    Undefended(),
    Uchida(),
    TriggerSet(),
    TriggerSet(mode="fine-tune", epochs=2, per_batch=3),
    HashChain(per_batch=2),
    Ingrain(),
    Ingrain(shown=False),
    ConstantWeightCode(),
    ConstantWeightCode(mode="fine-tune", epochs=2, every=7),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_an_attack_trains_and_yields_as_much_as_it_declares(attack, task, attacker_for, counted):
    torch.manual_seed(3)
    model = models.build(task.model, task.classes, task.shape)
    target = Target(model if attack.access != "none" else None, attack.access_used())
    yielded = sum(1 for _ in attack.run(target, attacker_for(attack, target)))
    effort = attack.effort(task)
    assert yielded == attack.surrogates()
    assert effort.trained + effort.answered == counted["inputs"]


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda defense: defense.label)
def test_a_defense_trains_as_much_as_it_declares(defense, task, owner, counted):
    for stage in defense.stages():
        owner.stage(stage)
    before = counted["inputs"]
    defense.protect(owner, defense.draw(task, Stream.root(0)))
    assert defense.effort(task).trained == counted["inputs"] - before


def test_every_plugin_declares_its_effort(task):
    known = discover()
    removals = [cls() for cls in known.attack.values() if issubclass(cls, RemovalAttack)]
    for plugin in (*removals, *(cls() for cls in known.defense.values())):
        assert plugin.effort(task) is not None, plugin.label
