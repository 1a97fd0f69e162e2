"""An attacker in the place of an owner, and the attack that marks a model a second time."""

import dataclasses
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
from attacks.distill import Distill
from attacks.overwrite import Overwrite
from attacks.scratch import Scratch
from bench import data, parameters
from bench.bundle import Bundle, bundle_to_key
from bench.contract import secrecy
from bench.contract.workshop import Made
from bench.errors import AccessError
from bench.hooks import Hooks
from bench.key import Key
from bench.planning import cells as planning
from bench.planning import sources, suite
from bench.planning.dag import JobPlanner
from bench.running import jobs
from bench.stage import CleanModel, Stage
from bench.suspect import Target
from bench.task import Sizes, Task
from bench.trainer import LEAST_LABELLED, OwnerTrainer, held_out
from defenses.none import Undefended
from defenses.trigger_set import TriggerSet
from defenses.uchida import Uchida
from tests.planned import Runner

ROOT = Path(__file__).parent.parent


def same(first, second):
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def target(task):
    torch.manual_seed(3)
    return Target(models.build(task.model, task.classes, task.shape), "white-box")


@pytest.fixture
def pretender(target, attacker_for):
    return attacker_for(Overwrite(), target).as_owner()


# The attacker as an owner


def test_whatever_an_owner_starts_from_is_a_copy_of_the_target(pretender, target):
    for start in (pretender.new_model, pretender.clean):
        first = start()
        assert same(first, target.module)
        with torch.no_grad():
            first.head.weight.zero_()
        assert same(start(), target.module)
        assert bool(target.module.head.weight.any())


def test_the_attackers_labels_are_parted_and_all_of_them_count(target, attacker_for):
    trainer = attacker_for(Overwrite(), target)
    owner = trainer.as_owner()
    assert isinstance(owner, OwnerTrainer)
    # As the owner of digits does: 100 of 900.
    assert (len(owner.train), len(owner.heldout)) == (89, 11)
    assert (trainer.inputs_used, trainer.labels_used) == (100, 100)
    labelled = trainer.labelled
    assert torch.equal(torch.cat([owner.train.x, owner.heldout.x]), labelled.x)
    assert torch.equal(torch.cat([owner.train.y, owner.heldout.y]), labelled.y)


@pytest.mark.parametrize("attack", [Distill(), Scratch()], ids=lambda a: a.name)
def test_who_declared_less_cannot_act_as_an_owner(attack, target, attacker_for):
    given = Target(target.module, attack.access_used())
    trainer = attacker_for(attack, given)
    with pytest.raises(AccessError):
        trainer.as_owner()


def test_without_a_target_or_labels_there_is_no_owner(target, attacker_for, parts):
    with pytest.raises(ValueError, match="expected a target"):
        attacker_for(Overwrite()).as_owner()
    trainer = attacker_for(Overwrite(), target)
    trainer._labelled = trainer._labelled.take(LEAST_LABELLED - 1)
    with pytest.raises(ValueError, match="at least 3 labelled inputs, got 2"):
        trainer.as_owner()


def test_the_attackers_streams_are_its_own(target, attacker_for, owner):
    trainer = attacker_for(Overwrite(), target)
    one, other = trainer.as_owner(), trainer.as_owner()
    assert one.stream.path[: len(trainer.stream.path)] == trainer.stream.path
    assert one.stream != trainer.stream
    trained = [made.fit(made.new_model(), made.train) for made in (one, other)]
    assert same(*trained)
    again = one.fit(one.new_model(), one.train)
    # A second training of the same owner takes another order.
    assert not same(again, trained[0])


def test_what_the_attacker_fixes_holds_in_every_training(target, attacker_for):
    trainer = attacker_for(Overwrite(), target)
    fixed, free = trainer.as_owner(epochs=7, learning_rate=0.5), trainer.as_owner()
    asked = {"epochs": 2, "learning_rate": 0.1, "batch_size": 8}
    whole = trainer.recipe(batch_size=8)
    for recipe in (fixed.recipe(**asked), dataclasses.replace(fixed.task.recipe, batch_size=8)):
        assert recipe == dataclasses.replace(whole, epochs=7, learning_rate=0.5)
    assert free.recipe(**asked) == trainer.recipe(**asked)
    assert free.task == trainer.task
    epochs = []
    fixed.fit(fixed.new_model(), fixed.train, hooks=Hooks(after_epoch=lambda _, epoch: epochs.append(epoch)))
    assert epochs == [1, 2, 3, 4, 5, 6, 7]


@dataclass(frozen=True)
class Headless(Stage):
    """A stage of an owner that rests on the clean model."""

    name: ClassVar[str] = "headless"

    def stages(self):
        return (CleanModel(),)

    def run(self, trainer, target):
        model = trainer.clean()
        torch.nn.init.zeros_(model.head.weight)
        return Bundle(
            models={"model": model}, values={"trained": len(trainer.train), "epochs": trainer.recipe().epochs}
        )


def test_stages_of_an_owner_start_from_the_target_too(target, attacker_for):
    pretender = attacker_for(Overwrite(), target).as_owner(epochs=9)
    made = pretender.stage(Headless())
    assert made.values == {"trained": 89, "epochs": 9}
    with torch.no_grad():
        target.module.head.weight.zero_()
    assert same(made.models["model"], target.module)
    assert pretender.stage(Headless()) is made


@given(labelled=st.integers(LEAST_LABELLED, 5000), train=st.integers(1, 5000), heldout=st.integers(1, 5000))
def test_at_least_one_input_is_held_out_and_two_are_trained_on(labelled, train, heldout):
    info = data.info("digits")
    task = Task(info, info.model, info.recipe, Sizes(train, heldout, labelled, labelled, 1))
    count = held_out(task, labelled)
    assert 1 <= count <= labelled - 2
    exact = labelled * heldout / (train + heldout)
    assert abs(count - exact) <= 0.5 or count in (1, labelled - 2)


# The attack, as the harness runs it

TEXT = {
    "name": "small",
    "tasks": [{"dataset": "digits", "recipe": {"epochs": 6}}],
    "defenses": [
        {"name": "uchida", "bits": 48, "strength": 0.1},
        {"name": "trigger-set", "triggers": 32, "old_head": [False, True]},
        {"name": "trigger-set", "triggers": 32, "mode": "fine-tune", "epochs": 4},
    ],
    "attacks": [{"name": "overwrite", "epochs": 30}],
}


@pytest.fixture(scope="module")
def plan():
    return planning.make(suite.parse(TEXT, "here", "here"))


@pytest.fixture(scope="module")
def done(plan):
    return Runner(plan.jobs)


def disputes(plan):
    """The cells of each defense by the key that is judged."""
    found = {}
    for cell in plan.cells:
        if cell.attack == "overwrite":
            found.setdefault(cell.defense_label, {})[cell.judged_key] = cell
    return found


def test_the_forgers_key_verifies_on_the_overwritten_model_and_both_are_judged(plan, done):
    found = disputes(plan)
    assert len(found) == 4
    for label, cells in found.items():
        evidence = {key: done(cell.jobs["judge"]).result["evidence"][0] for key, cell in cells.items()}
        assert set(evidence) == {"forger", "owner"}
        assert evidence["forger"]["log10_p"] <= -6, label
        assert evidence["forger"]["reason"] is evidence["owner"]["reason"] is None
        assert cells["forger"].jobs["forge"] == cells["owner"].jobs["forge"]
        forged = done(cells["forger"].jobs["forge"]).result
        assert (forged["inputs_used"], forged["labels_used"], forged["queries"]) == (100, 100, 0)
    # One forgery for both readings of a trigger set.
    assert len({cells["forger"].jobs["forge"] for cells in found.values()}) == 3


def test_a_second_mark_in_the_projection_leaves_the_first(plan, done):
    (cells,) = [cells for label, cells in disputes(plan).items() if label.startswith("uchida")]
    own = done(cells["owner"].jobs["judge"]).result["evidence"][0]
    assert own["log10_p"] <= -6


def test_all_four_pairs_of_a_key_and_a_model_are_judged(plan, done):
    """Whoever marks a copy has not marked the original."""
    for label, cells in disputes(plan).items():
        job = plan.jobs[cells["forger"].jobs["original"]]
        assert job.inputs["key"] == plan.jobs[cells["forger"].jobs["judge"]].inputs["key"]
        surrogates = plan.jobs[job.inputs["surrogates"].job]
        assert surrogates.inputs["target"].job == cells["owner"].jobs["protect"], label
        (found,) = done(job.id).result["evidence"]
        assert found["log10_p"] > -6, label
        assert "original" not in cells["owner"].jobs


def test_nothing_that_the_attacker_held_has_the_owners_key(plan, done):
    for label, cells in disputes(plan).items():
        job = plan.jobs[cells["owner"].jobs["forge"]]
        protect = cells["owner"].jobs["protect"]
        products = done(protect).products
        key, published = (Bundle.from_bytes(products[channel]) for channel in ("secret", "public"))
        scheme = jobs.plugin_of(plan.jobs[protect].spec["plugin"])
        made = Made(published.models["model"], bundle_to_key(key), Bundle(), b"", None)
        secrets, names = secrecy.secrets_of(scheme, made, published)
        assert set(scheme.uniform) <= set(names), label
        inputs, outcome = done.inputs(job.id), done(job.id)
        assert {one.channel for one in job.inputs.values()} == {"public"}
        held = [*inputs.values(), *outcome.products.values(), json.dumps([job.spec, outcome.result]).encode()]
        # The same search does find it where it is.
        uniform = [one for one in secrets if one.part in scheme.uniform and one.form == "as it is"]
        assert all(one.content in products["secret"] for one in uniform)
        assert not [one.name for one in secrets if any(one.content in where for where in held)]
        forged = bundle_to_key(Bundle.from_bytes(outcome.products["public"]))
        for name in scheme.uniform:
            assert not torch.equal(forged.tensor(name), bundle_to_key(key).tensor(name))


def test_it_is_not_tried_where_it_makes_no_sense(task, tmp_path):
    assert "protects nothing" in Overwrite().against(Undefended())
    assert "made of the owner's files" in Overwrite().against(TriggerSet(images=str(tmp_path)))
    assert Overwrite().against(Uchida()) is None
    few = dataclasses.replace(task, parts=dataclasses.replace(task.sizes, labelled=2))
    assert Overwrite().applies_to(few) == "needs at least 3 labelled inputs, the attacker has 2"
    assert Overwrite().applies_to(task) is None
    for wrong in ({"epochs": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match="expected epochs"):
            Overwrite(**wrong)


def test_its_effort_is_what_it_trains_on(task, target, attacker_for, counted):
    scheme = Uchida(bits=16)
    attack = Overwrite(epochs=2)
    given = Target(target.module, "white-box", scheme=scheme)
    forged = attack.forge(given, attacker_for(attack, given))
    assert isinstance(forged.key, Key)
    assert counted["inputs"] == attack.effort(task).trained


# The scheme is a part of the job

EDITS = [
    # An edit of the defense's file; whether another protected model, and another forgery, follow.
    ("self.strength * F.binary", "2 * self.strength * F.binary", True, True),
    ("float().mean(0)", "float().sum(0)", True, True),
    ("# ", "# Another comment. ", False, False),
]


@pytest.mark.parametrize(("old", "new", "protected", "forged"), EDITS)
def test_an_edit_of_what_protects_redoes_the_forgery(old, new, protected, forged, task, tmp_path, monkeypatch):
    path = tmp_path / "mine_mark.py"
    text = "# A comment.\n" + (ROOT / "defenses" / "uchida.py").read_text().replace('"uchida"', '"mine-mark"')
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine_mark", None)
    scheme = importlib.import_module("mine_mark").Uchida(bits=16)
    digests = data.prepare(task.info, task.sizes)

    def ids():
        sources.forget()
        dag = JobPlanner(task, 0, 1, "cpu", digests, {})
        job = dag.jobs[dag.attack(scheme, Overwrite())]
        # Without what it takes from its parents, whose own change would show as well.
        return dag.protect(scheme), parameters.canonical([job.source_digest, job.spec])

    try:
        before = ids()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        after = ids()
    finally:
        sources.forget()
    assert (before[0] != after[0], before[1] != after[1]) == (protected, forged)
