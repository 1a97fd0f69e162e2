"""Every defense and attack on a task of points: it runs from end to end, or says why it does not."""

import dataclasses

import clouds
import pytest
import torch

from bench import registry
from bench.attack import AmbiguityAttack, DecoyAttack, Insider
from bench.bundle import Bundle
from bench.running import work
from bench.running.work import Work
from bench.stream import Stream

KNOWN = registry.discover()
CPU = torch.device("cpu")
# Parameters by name, wherever a plugin has them: a few steps are enough here.
QUICK = {"epochs": 1, "every": 1, "rounds": (2,), "retrain_epochs": 1, "decoys": 19}

# Which defenses refuse `pointnet-basic`, and a word of the reason.
REFUSING = {"ticket-qr": "two-dimensional", "ticket-trigger": "two-dimensional"}
# Attacks that can be tried on none of the schemes that run here.
WITHOUT_SCHEME = {"window-forgery": "'window'", "window-rewrite": "'window'"}


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
    assert attack.applies_to(points.task) is None
    schemes = [DEFENSES[one] for one in ("uchida", "trigger-set", "ticket-key")]
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
    bundles = {"target": points.protected(scheme)[0]} if attack.access != "none" else {}
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
    assert all(one["log10_p"] <= 0 and one["reason"] is None for one in evidence)
