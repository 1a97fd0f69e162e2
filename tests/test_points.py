"""Every defense and attack on a task of points: it runs from end to end, or says why it does not."""

import dataclasses

import clouds
import pytest
import torch
from nets import reframed

import models
from attacks.transfer import Transfer
from bench import registry
from bench.attack import AmbiguityAttack, DecoyAttack, Insider
from bench.bundle import Bundle
from bench.running import work
from bench.running.work import Work
from bench.stream import Stream
from bench.suspect import Suspect, Target, predict
from bench.trainer import AttackerTrainer, OwnerTrainer
from bench.training import training
from defenses.constant_weight_code import ConstantWeightCode
from defenses.ticket_key import TicketKey
from defenses.uchida import Uchida, mean_filter
from defenses.weights.keyed_weights import Carrier

KNOWN = registry.discover()
CPU = torch.device("cpu")
# Parameters by name, wherever a plugin has them: a few steps are enough here.
QUICK = {
    **{"epochs": 1, "every": 1, "rounds": (2,), "retrain_epochs": 1, "decoys": 19, "own_epochs": 1, "tries": 1},
    **{"steps": 2, "trials": 5, "iterations": 1, "snapped": 1.0, "draws": 1},
}

# Which defenses refuse `pointnet-basic`, and a word of the reason.
REFUSING = {"ticket-qr": "two-dimensional", "ticket-trigger": "two-dimensional"}
# Attacks that can be tried on none of the schemes that run here.
WITHOUT_SCHEME = {"window-forgery": "'window'", "window-rewrite": "'window'"}


# Attacks that refuse points, and a word of the reason.
REFUSED = {"transfer-learn": "square images"}

# Attacks after which a layer has another number of channels, so that a reading by position finds no place for itself.
OTHER_SHAPES = {"channel-prune", "dead-channels", "net2wider"}


def quick(cls):
    plugin = cls()
    fitting = {name: value for name, value in QUICK.items() if hasattr(plugin, name)}
    return dataclasses.replace(plugin, **fitting)


DEFENSES = {name: quick(cls) for name, cls in sorted(KNOWN.defense.items())}
ATTACKS = {name: quick(cls) for name, cls in sorted(KNOWN.attack.items())}


class Bench:
    """Jobs of the harness, one by one, on the task of points."""

    def __init__(self, model="pointnet-basic"):
        self.task, self.parts, self.made = clouds.task(model), clouds.parts(), {}

    def owner(self, plugin, stages=None, **bundles):
        data = {"train": self.parts.train, "heldout": self.parts.heldout, "test": self.parts.test}
        return Work(self.task, "0", CPU, bundles, stages or {}, plugin, **data)

    def attacker(self, plugin, scheme, bundles, stages=None):
        known, attacker = self.parts.attacker.take(self.parts.labelled), self.parts.attacker.inputs
        return Work(self.task, "x", CPU, bundles, stages or {}, plugin, scheme, inputs=attacker, labelled=known)

    def stages(self, plugin, surroundings):
        found = {}
        for one in plugin.stages():
            (bundle,) = work.stage(surroundings(one, self.stages(one, surroundings)))[1].values()
            found[one.key] = Bundle.from_bytes(bundle.to_bytes())
        return found

    def protected(self, defense):
        """What is published and what stays with the owner, made once."""
        if defense not in self.made:
            products = work.protect(self.owner(defense, self.stages(defense, self.owner)))[1]
            self.made[defense] = {name: Bundle.from_bytes(bundle.to_bytes()) for name, bundle in products.items()}
        return self.made[defense]["public"], self.made[defense]["secret"]

    def judged(self, defense, surrogates):
        """Accuracies and evidence of surrogates under the owner's key."""
        judging = self.owner(defense, surrogates=surrogates, key=self.protected(defense)[1])
        judging.options = {"changes_task": False}
        return work.measure(judging)[0]["accuracy"], work.judge(judging)[0]["evidence"]


@pytest.fixture(scope="module")
def points():
    return Bench()


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_protects_and_verifies_or_says_why_not(name, points):
    defense = DEFENSES[name]
    reason = defense.applies_to(points.task)
    if name in REFUSING:
        assert REFUSING[name] in reason and len(reason.split()) > 4
        return
    assert reason is None
    public, _ = points.protected(defense)
    (accuracy,), (evidence,) = points.judged(defense, Bundle({"0": public.models["model"]}))
    assert 0 <= accuracy <= 1
    assert evidence["log10_p"] <= 0 and (evidence["reason"] is None or defense.undefended)
    stranger = points.task.new_model(Stream(("stranger",)))
    _, (independent,) = points.judged(defense, Bundle({"0": stranger}))
    assert independent["log10_p"] > -3


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_runs_or_says_why_not(name, points):
    attack = ATTACKS[name]
    reason = attack.applies_to(points.task)
    if name in REFUSED:
        assert REFUSED[name] in reason
        return
    assert reason is None
    names = ("uchida", "trigger-set", "ticket-key", "passport-aware", "passport-v2", "channel-rate")
    names += ("constant-weight-code", "hash-chain")
    schemes = [DEFENSES[one] for one in names]
    reasons = [attack.against(scheme) for scheme in schemes]
    if name in WITHOUT_SCHEME:
        assert all(WITHOUT_SCHEME[name] in reason for reason in reasons)
        others = [one for other, one in DEFENSES.items() if other not in REFUSING]
        assert all(attack.against(scheme) for scheme in others)
        return
    scheme = next(scheme for scheme, reason in zip(schemes, reasons, strict=True) if reason is None)
    if isinstance(attack, DecoyAttack):
        judging = points.owner(scheme, key=points.protected(scheme)[1], target=points.protected(scheme)[0])
        judging.options = {"decoys": attack.decoys}
        assert all(p <= 0 for p in work.decoys(judging)[0]["log10_p"])
        return
    bundles = {"target": points.protected(scheme)[0]} if attack.access_used() != "none" else {}
    if isinstance(attack, Insider):
        told = points.owner(scheme, key=points.protected(scheme)[1])
        told.options = {"part": attack.part}
        bundles["part"] = work.disclose(told)[1]["public"]

    def surroundings(plugin, stages=None):
        return points.attacker(plugin, scheme if attack.knowledge != "none" else None, bundles, stages)

    doing = work.forge if isinstance(attack, AmbiguityAttack) else work.attack
    _, products = doing(surroundings(attack, points.stages(attack, surroundings)))
    made = Bundle.from_bytes(products["public"].to_bytes())
    accuracies, evidence = points.judged(scheme, Bundle(made.models))
    assert len(accuracies) == len(evidence) >= 1
    assert all(one["log10_p"] <= 0 for one in evidence)
    assert all((one["reason"] is not None) == (name in OTHER_SHAPES) for one in evidence)


class TestPointNetWithAlignment:
    """What its T-Nets change for those that look into a model."""

    def test_the_same_schemes_refuse_it_and_those_that_score_kernels(self):
        task = clouds.task("pointnet")
        refused = {name: reason for name, one in DEFENSES.items() if (reason := one.applies_to(task))}
        assert refused.keys() == {*REFUSING, "ticket-key"}
        assert "cannot be scored" in refused["ticket-key"]
        assert TicketKey(layers=("conv2", "conv3", "hidden1")).applies_to(task) is None
        assert [name for name, one in ATTACKS.items() if one.applies_to(task)] == [*REFUSED]

    def test_a_code_goes_into_the_largest_hidden_layer_and_not_into_a_matrix(self):
        assert Carrier.of(models.skeleton("pointnet", 5, (3, 64)), ()).names == ("hidden1",)
        assert Uchida().draw(clouds.task("pointnet"), Stream(("key",))).text("layer") == "conv3"


@pytest.mark.parametrize("model", ["pointnet-basic", "pointnet"])
@pytest.mark.parametrize("defense", [Uchida(strength=0.3, canonical=True), ConstantWeightCode(canonical=True)])
def test_free_moves_hide_a_mark_from_the_raw_reading_alone(defense, model):
    task, parts = clouds.task(model, epochs=4), clouds.parts()
    trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream(("owner",)))
    marked, key, _ = defense.protect(trainer, defense.draw(task, Stream(("key",))))
    moved = reframed(marked, 1)
    torch.testing.assert_close(predict(moved, parts.test.x), predict(marked, parts.test.x), rtol=1e-3, atol=1e-3)
    before, behind = (defense.verify(Suspect.of(one), key, trainer) for one in (marked, moved))
    assert before.log10_p < -6
    assert behind.log10_p == pytest.approx(before.log10_p)
    assert behind.figures["log10_p.raw"] > -3


def test_the_mean_filter_of_a_convolution_of_points_has_a_weight_for_each_input():
    conv = torch.nn.Conv1d(4, 3, 1)
    torch.testing.assert_close(mean_filter(conv), sum(conv.weight[o, :, 0] for o in range(3)) / 3)
    assert "mean filter has 64" in Uchida(layer="conv2", bits=65).applies_to(clouds.task())


def test_a_second_task_renews_the_first_convolution_and_the_classifier():
    task, parts = clouds.task(), clouds.parts()
    net = task.new_model(Stream(("net",)))
    trainer = AttackerTrainer(task, parts.attacker.inputs, parts.attacker.take(16), Stream(("attacker",)))
    trainer.training = lambda model, data, *args, **options: iter([1]) if set(data.y.tolist()) == {0, 1} else None
    ((_, model),) = Transfer(epochs=1).run(Target(net, "white-box"), trainer)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"conv1.weight", "head.weight", "head.bias"}


class TestTraining:
    def trained(self, epochs=1, seed=0, **recipe):
        task, parts = clouds.task(epochs=epochs, **recipe), clouds.parts()
        model = task.new_model(Stream(("net",)))
        # As some earlier work might have left it.
        torch.manual_seed(seed)
        for _ in training(model, parts.train, task.recipe, Stream(("training",))):
            pass
        return model, parts

    def test_classes_are_learnt(self):
        model, parts = self.trained(epochs=20)
        assert float((predict(model, parts.test.x).argmax(1) == parts.test.y).double().mean()) > 0.9

    def test_dropout_comes_from_the_stream_and_leaves_the_global_generator_alone(self):
        first = self.trained(seed=1)[0].state_dict()
        after = torch.rand(3)
        second = self.trained(seed=2)[0].state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
        torch.manual_seed(1)
        assert torch.equal(after, torch.rand(3))

    def test_every_epoch_drops_others(self, monkeypatch):
        seen = []
        drop = torch.nn.Dropout.forward

        def dropping(self, x):
            y = drop(self, x)
            seen.append((y == 0)[:, :40])
            return y

        monkeypatch.setattr(torch.nn.Dropout, "forward", dropping)
        self.trained(epochs=2)
        assert len(seen) == 6
        assert not any(torch.equal(seen[0], other) for other in seen[1:])
        assert 0.3 < torch.cat(seen).double().mean() < 0.5

    def test_what_is_meant_for_images_leaves_points_as_they_are(self):
        plain, images = self.trained()[0], self.trained(shift=2, flip=True)[0]
        for name, value in plain.state_dict().items():
            assert torch.equal(value, images.state_dict()[name])
            assert value.is_contiguous()
