"""Forged triggers: of the attacker's own inputs, fitted to the model, and fitted to models of the forger's alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import lived_in

import models
from attacks.forging.gradient import bounds, fitted
from attacks.transferable_triggers import OwnModels, TransferableTriggers
from attacks.trigger_forgery import FittedTriggers, OwnTriggers
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.derivation import FORGER, is_derived
from bench.stream import Stream
from bench.suspect import Suspect, Target, predict
from bench.trainer import AttackerTrainer
from defenses.hash_chain import HashChain
from defenses.ingrain import Ingrain
from defenses.ticket_trigger import TicketTrigger
from defenses.trigger_set import TriggerSet
from defenses.triggers.answers import TRUE, targets
from defenses.triggers.kinds import cut, pasted
from defenses.uchida import Uchida

TAKEN = [TriggerSet(inputs="relabelled"), TriggerSet(inputs="patch")]
DRAWN = [TriggerSet(), Ingrain(triggers=20), TriggerSet(old_head=True)]


def untrained(task, seed=0):
    torch.manual_seed(seed)
    return lived_in(models.build(task.model, task.classes, task.shape), seed)


def forged(attack, model, scheme, attacker_for, owner):
    """Key as it comes back from storage, figures, evidence, target and trainer."""
    target = Target(model, attack.access_used(), scheme=scheme)
    trainer = attacker_for(attack, target)
    made = attack.forge(target, trainer)
    key = bundle_to_key(Bundle.from_bytes(key_to_bundle(made.key).to_bytes()))
    evidence = scheme.verify(Suspect.of(made.model, scheme.access_used()), key, owner)
    return key, made.figures, evidence, target, trainer


def draw(scheme, task, trainer):
    return scheme.draw(task, trainer.stream.child("key", scheme.name))


@pytest.mark.parametrize("scheme", DRAWN, ids=lambda one: one.label)
def test_answers_to_own_inputs_are_as_good_as_any(scheme, task, attacker_for, owner):
    key, figures, evidence, target, trainer = forged(OwnTriggers(), untrained(task), scheme, attacker_for, owner)
    assert evidence.log10_p == pytest.approx(scheme.capacity(task))
    assert figures == {"answered": 1.0}
    assert torch.equal(key.tensor("inputs"), trainer.labelled.x[: scheme.triggers])
    assert target.queries == scheme.triggers


@pytest.mark.parametrize("scheme", TAKEN, ids=lambda one: one.label)
def test_of_own_inputs_with_wrong_labels_there_are_as_many_as_errors(scheme, task, attacker_for, owner, full_clean):
    key, figures, evidence, target, trainer = forged(OwnTriggers(), full_clean, scheme, attacker_for, owner)
    assert (targets(key, task) != key.tensor(TRUE)).all()
    assert figures["answered"] == evidence.figures["trigger_accuracy"] < 0.3
    assert evidence.log10_p > -6
    labelled = trainer.labelled
    wrong = int((predict(full_clean, labelled.x).argmax(1) != labelled.y).sum())
    if scheme.inputs == "relabelled":
        assert evidence.statistic == min(wrong, scheme.triggers)
    # Of a model that is always wrong all of them are.
    awful = untrained(task, 5)
    _, figures, evidence, _, _ = forged(OwnTriggers(), awful, scheme, attacker_for, owner)
    assert figures["answered"] > 0.8
    assert evidence.log10_p < -6


@pytest.mark.parametrize(
    ("scheme", "start"),
    [*((one, start) for one in DRAWN for start in ("drawn", "own")), *((one, "own") for one in TAKEN)],
    ids=str,
)
def test_fitted_triggers_get_the_labels_that_were_drawn(scheme, start, task, attacker_for, owner, full_clean):
    attack = FittedTriggers(start=start, budget=0.5, steps=25)
    key, figures, evidence, target, trainer = forged(attack, full_clean, scheme, attacker_for, owner)
    drawn = draw(scheme, task, trainer)
    assert torch.equal(key.tensor("labels"), drawn.tensor("labels"))
    assert figures["answered"] == evidence.figures["trigger_accuracy"] > 0.8
    assert evidence.log10_p < -6
    assert target.queries == scheme.triggers
    assert (trainer.labels_used > 0) == (start == "own")
    if scheme.taken:
        assert (targets(key, task) != key.tensor(TRUE)).all()
        assert torch.equal(key.tensor(TRUE), trainer.labelled.y[: scheme.triggers])
    if scheme.taken and scheme.inputs == "patch":
        found = cut(key.tensor("inputs"), key.tensor("patches"), key.tensor("places"))
        assert torch.equal(found, key.tensor("patches"))


def test_a_patch_is_cut_out_where_it_was_pasted():
    images, patches, places = torch.randn(4, 1, 8, 8), torch.randn(6, 1, 3, 3), torch.randint(0, 6, (6, 2))
    found = cut(pasted(images, patches, places), torch.zeros_like(patches), places)
    assert torch.equal(found[:4], patches[:4])
    assert not found[4:].any()


@given(seed=st.integers(0, 1000), budget=st.floats(0.01, 1.0), steps=st.integers(1, 4))
@settings(max_examples=15)
def test_fitting_keeps_to_budget_and_range(task, seed, budget, steps):
    model, stream = untrained(task, seed), Stream((str(seed),))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = task.noise(6, stream)
    made = fitted([model], inputs, torch.arange(6), task, budget=budget, steps=steps, stream=stream.child("f"))
    low, high = bounds(task)
    slack = 1e-5
    assert bool(((made - inputs).abs() <= budget * (high - low) + slack).all())
    assert bool(((made >= low - slack) & (made <= high + slack)).all())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


FALSE = TransferableTriggers(start="own", models=3, held_out=1, own_epochs=20, budget=0.5, steps=20, tries=2)


@pytest.fixture(scope="module")
def claimed(task, parts, full_clean):
    """A key that was made beside two different models, with both forgeries."""
    scheme, made, stages = TriggerSet(inputs="relabelled"), [], {}
    known, (stage,) = parts.attacker.take(parts.labelled), FALSE.stages()
    stages[stage.key] = stage.run(AttackerTrainer(task, parts.attacker.inputs, known, Stream(("f",))), None)
    for model in (full_clean, untrained(task, 8)):
        target = Target(model, "white-box", scheme=scheme)
        trainer = AttackerTrainer(task, parts.attacker.inputs, known, Stream(("f",)), stages=stages, target=target)
        made.append((FALSE.forge(target, trainer), target, trainer))
    return scheme, made


def test_a_false_claim_holds_on_a_model_that_the_forger_has_not_seen(claimed, owner, full_clean):
    scheme, ((made, target, trainer), _) = claimed
    evidence = scheme.verify(Suspect.of(full_clean, "black-box"), made.key, owner)
    assert evidence.log10_p < -6
    assert target.queries == 0
    assert trainer.labels_used == 100
    assert made.figures["accepted"] > 0.3
    assert (targets(made.key, owner.task) != made.key.tensor(TRUE)).all()


def test_its_key_is_the_same_whatever_the_model_is(claimed):
    _, ((one, *_), (other, *_)) = claimed
    assert key_to_bundle(one.key).to_bytes() == key_to_bundle(other.key).to_bytes()
    assert not torch.equal(one.model.head.weight, other.model.head.weight)


def test_triggers_that_are_facts_are_fitted_beside_a_key_that_follows_from_a_seed(claimed, task):
    scheme, ((made, *_), _) = claimed
    assert is_derived(made.key, made.seed, FORGER, scheme, task)


def test_own_models_differ_and_touch_no_target(task, attacker_for):
    trainer = attacker_for(FALSE)
    first, second = OwnModels(models=2, epochs=1).run(trainer, None).models.values()
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


def test_who_takes_triggers_and_who_starts_where():
    for attack in (OwnTriggers(), FittedTriggers(), TransferableTriggers()):
        assert attack.against(TriggerSet()) is attack.against(TicketTrigger()) is None
        assert "kind linear" in attack.against(Uchida())
        assert "kind labels" in attack.against(HashChain())
        assert "owner's files" in attack.against(TriggerSet(images="somewhere"))
    for attack in (FittedTriggers, TransferableTriggers):
        assert "start = own" in attack().against(TAKEN[0])
        assert attack(start="own").against(TAKEN[0]) is None


@pytest.mark.parametrize(
    "wrong", [{"budget": 0.0}, {"budget": 1.5}, {"steps": 0}, {"models": 2, "held_out": 2}, {"tries": 0}]
)
def test_parameters_are_checked(wrong):
    with pytest.raises(ValueError, match="expected"):
        TransferableTriggers(**wrong)
