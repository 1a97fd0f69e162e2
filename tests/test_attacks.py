"""The exact algorithm of each attack; the contract that they share is in test_contract.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from attacks.distill import Distill
from attacks.fine_tune import FineTune
from attacks.magnitude_prune import MagnitudePrune, magnitude_masks
from attacks.scratch import Scratch
from bench.suspect import Target, predict


@pytest.fixture(scope="module")
def protected(task):
    torch.manual_seed(3)
    return models.build(task.model, task.classes, task.shape)


def surrogates(attack, model, attacker_for):
    target = Target(model if attack.access != "none" else None, attack.access_used())
    trainer = attacker_for(attack, target)
    return [(strength, copy.deepcopy(one)) for strength, one in attack.run(target, trainer)], target, trainer


@pytest.mark.parametrize(("variant", "head_only", "renewed"), [
    ("FTLL", True, False), ("FTAL", False, False), ("RTLL", True, True), ("RTAL", False, True)
])  # fmt: skip
def test_the_four_forms_of_fine_tuning(variant, head_only, renewed, protected, attacker_for, monkeypatch):
    attack = FineTune(variant=variant, epochs=1)
    target = Target(protected, "white-box")
    trainer = attacker_for(attack, target)
    started = {}
    whole = trainer.training

    def training(model, *args, **options):
        started["head"] = model.head.weight.detach().clone()
        return whole(model, *args, **options)

    monkeypatch.setattr(trainer, "training", training)
    ((_, after),) = attack.run(target, trainer)
    assert torch.equal(started["head"], protected.head.weight) is not renewed
    assert torch.equal(after.conv1.weight, protected.conv1.weight) is head_only
    assert torch.equal(after.norm3.running_mean, protected.norm3.running_mean) is head_only
    assert not torch.equal(after.head.weight, started["head"])


@given(fraction=st.floats(0, 0.99), scope=st.sampled_from(["global", "layer"]), ties=st.booleans())
@settings(max_examples=20, deadline=None)
def test_pruning_drops_exactly_the_smallest(fraction, scope, ties):
    torch.manual_seed(5)
    model = models.build("resnet8", 10, (1, 8, 8))
    if ties:
        for parameter in model.parameters():
            parameter.data = parameter.data.round(decimals=1)
    masks = magnitude_masks(model, fraction, scope)
    assert set(masks) == {n for n, p in model.named_parameters() if p.dim() > 1}
    groups = [list(masks)] if scope == "global" else [[name] for name in masks]
    for group in groups:
        weights = torch.cat([model.get_parameter(name).detach().abs().flatten() for name in group])
        mask = torch.cat([masks[name].flatten() for name in group])
        assert int((mask == 0).sum()) == round(fraction * len(weights))
        if 0 < int(mask.sum()) < len(mask):
            assert weights[mask == 0].max() <= weights[mask == 1].min()


def test_zeros_stay_zero_through_retraining(protected, attacker_for):
    attack = MagnitudePrune(fractions=(0.3, 0.9), retrain_epochs=2)
    made, _, _ = surrogates(attack, protected, attacker_for)
    for fraction, model in made:
        masks = magnitude_masks(protected, fraction, "global")
        for name, mask in masks.items():
            weights = model.get_parameter(name)
            assert not weights[mask == 0].any()
        kept = torch.cat([model.get_parameter(name)[mask == 1] for name, mask in masks.items()])
        assert not torch.equal(kept, torch.cat([protected.get_parameter(n)[m == 1] for n, m in masks.items()]))


@pytest.mark.parametrize("fractions", [(), (1.0,), (-0.1,)])
def test_fractions_are_checked(fractions):
    with pytest.raises(ValueError, match="fractions"):
        MagnitudePrune(fractions=fractions)


def test_the_distillation_loss_is_the_tempered_divergence(task, attacker_for, monkeypatch, protected):
    attack = Distill(temperature=4.0, epochs=1)
    student, x = models.build("vgg8", 10, (1, 8, 8)).eval(), torch.randn(6, 1, 8, 8)
    answers = torch.randn(6, 10)
    p = (answers / 4).softmax(1)
    q = (student(x) / 4).softmax(1)
    by_hand = 16 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(attack._loss(student, x, answers), by_hand)


def test_a_student_of_the_models_answers_comes_close_to_them(full_clean, attacker_for):
    attack = Distill(epochs=20, every=20)
    made, target, trainer = surrogates(attack, full_clean, attacker_for)
    ((_, student),) = made
    x = trainer.inputs
    agreement = (predict(student, x).argmax(1) == predict(full_clean, x).argmax(1)).float().mean()
    assert agreement > 0.9
    assert target.queries == 300


def test_scratch_never_sees_the_model(attacker_for):
    attack = Scratch(epochs=30)
    trainer = attacker_for(attack)
    ((_, model),) = attack.run(Target(None, "none"), trainer)
    labelled = trainer.labelled
    assert (predict(model, labelled.x).argmax(1) == labelled.y).float().mean() > 0.95
    assert F.cross_entropy(predict(model, labelled.x), labelled.y) < 0.5
