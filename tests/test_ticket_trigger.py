"""Marked tickets that are trained with triggers: two readings, each of which is enough."""

import math

import pytest
import torch
from scipy import stats

import models
from attacks.reparametrise import drawn as drawn_moves
from bench.contract.workshop import Made
from bench.stream import Stream
from bench.suspect import Suspect, predict
from bench.trainer import OwnerTrainer
from defenses.ticket_qr import TicketQr
from defenses.ticket_trigger import TicketTrigger
from defenses.trigger_set import TriggerSet
from models.channels import channels
from models.frames import reframe

SHORT = {"rates": (0.5,), "rounds": (3,), "round_epochs": 1, "rewind_epoch": 1}


def short(**changes):
    return TicketTrigger(**{**SHORT, **changes})


@pytest.fixture(scope="module")
def made(task, parts):
    # Before any test has said so; more threads would only wait for each other.
    torch.set_num_threads(1)
    trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))
    defense = short()
    model, key, release = defense.protect(trainer, defense.draw(task, Stream(("key",))))
    return Made(model, key, release, b"", trainer)


def test_both_are_read_and_the_stronger_one_counts_twice(made):
    found = short().verify(Suspect.of(made.model), made.key, made.trainer)
    code = short().each_code(Suspect.of(made.model), made.key, made.trainer)["raw"]
    right = round(64 * found.figures["trigger_accuracy"])
    triggers = stats.binom.logsf(right - 1, 64, 0.1) / math.log(10)
    assert found.figures["log10_p.code"] == code.log10_p == pytest.approx(TicketQr(**SHORT).capacity(made.trainer.task))
    assert found.figures["log10_p.triggers"] == pytest.approx(triggers, rel=1e-6)
    assert found.log10_p == pytest.approx(min(code.log10_p, triggers) + math.log10(2))
    assert found.figures["decoded"] == 1 and found.figures["module_error"] == 0


def test_canonical_is_a_third_reading(made):
    found = short(canonical=True).verify(Suspect.of(made.model), made.key, made.trainer)
    assert {name for name in found.figures if name.startswith("log10_p")} == {
        "log10_p.code",
        "log10_p.canonical",
        "log10_p.triggers",
    }
    assert found.log10_p == pytest.approx(found.figures["log10_p.code"] + math.log10(3))
    task = made.trainer.task
    for canonical, count in ((False, 2), (True, 3)):
        bound = short(canonical=canonical).capacity(task)
        assert bound == pytest.approx(TicketQr(**SHORT).capacity(task) + math.log10(count))
    # Where the code can prove next to nothing, the labels are what there is.
    assert short(flavour="paper").capacity(task) == pytest.approx(-64 + math.log10(2))


def test_triggers_are_read_where_the_code_cannot_be(made):
    model, key, trainer = made.model, made.key, made.trainer
    asked = Suspect(lambda x: predict(model, x), None)
    found = short(canonical=True).verify(asked, key, trainer)
    assert found.reason is None and "module_error" not in found.figures
    assert found.figures["log10_p.code"] == found.figures["log10_p.canonical"] == 0
    assert found.log10_p == pytest.approx(min(0, found.figures["log10_p.triggers"] + math.log10(3)))
    other = short().verify(Suspect.of(models.build("resnet8", 10, (1, 8, 8))), key, trainer)
    assert other.reason is None and other.log10_p > -4 and "trigger_accuracy" in other.figures
    neither = short().verify(Suspect.of(models.build("lenet5", 3, (3, 28, 28))), key, trainer)
    assert "code: " in neither.reason and "triggers: " in neither.reason and neither.log10_p == 0


def test_labels_are_learnt_and_count_where_the_code_is_gone(made):
    # Channels in another order answer alike, and the code is nowhere.
    model = models.rebuild(models.describe(made.model), made.model.state_dict())
    graph = channels(model)
    reframe(model, graph, *drawn_moves(graph, ("permute",), 1.0, Stream(("order",))))
    found = short().verify(Suspect.of(model), made.key, made.trainer)
    assert found.figures["log10_p.code"] > -6
    assert found.figures["trigger_accuracy"] > 0.5
    assert found.log10_p == pytest.approx(found.figures["log10_p.triggers"] + math.log10(2))


def test_fresh_keys_have_uniform_or_conservative_p_values(made, task):
    defense, count = short(), 200
    for suspect in (made.model, task.new_model(Stream(("stranger",)))):
        found = []
        for number in range(count):
            key = made.key.redraw(defense.draw(task, Stream(("null", str(number)))), defense.uniform)
            found.append(defense.verify(Suspect.of(suspect), key, made.trainer).log10_p)
        for level in (0.1, 0.01):
            hits = sum(log10_p <= math.log10(level) + 1e-9 for log10_p in found)
            assert stats.binom.sf(hits - 1, count, level) > 1e-4


def test_triggers_are_those_of_a_trigger_set_and_stand_in_each_batch(made, task, parts, counted):
    stream = Stream(("key",))
    alone, both = TriggerSet().draw(task, stream), short().draw(task, stream)
    assert torch.equal(alone.tensor("inputs"), both.tensor("inputs"))
    assert torch.equal(alone.tensor("labels"), both.tensor("labels"))
    assert torch.equal(TicketQr().draw(task, stream).tensor("pad"), both.tensor("pad"))
    defense = short(per_batch=3)
    counted["inputs"] = 0
    defense.protect(made.trainer, both)
    assert counted["inputs"] == defense.effort(task).trained


WRONG = [{"per_batch": 0}, {"triggers": 4, "per_batch": 5}, {"flavour": "code", "version": 1}]


@pytest.mark.parametrize("changes", WRONG)
def test_wrong_parameters_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        TicketTrigger(**changes)
