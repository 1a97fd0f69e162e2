"""What each kind of job does. These functions and what they call are what a job's source digest covers."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.attack import AmbiguityAttack, Attack, DecoyAttack, InsiderAttack, RemovalAttack
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.defense import Defense
from bench.errors import NonFiniteWeights
from bench.job import Channel
from bench.key import Key
from bench.plugin import Access
from bench.stage import Stage
from bench.stream import Stream
from bench.suspect import Suspect, Target, predict
from bench.task import Task
from bench.trainer import AttackerTrainer, OwnerTrainer
from bench.training import Split

Result = tuple[dict[str, Any], dict[Channel, Bundle]]


@dataclass
class Work:
    """A job's surroundings in the worker, and nothing that its side must not see.

    Attributes:
        task: the task.
        seed: of the repetition.
        device: on which to run.
        bundles: the products of other jobs by role.
        stages: those among them that are stages, by label.
        plugin: the defense, attack or stage that runs.
        scheme: the defense as an algorithm, for attacks that know it.
        train, heldout: the owner's data; None on the attacker's side.
        inputs, labelled: the attacker's data; None on the owner's side.
        test: only for `measure`.
        options: further values of the job's spec.
    """

    task: Task
    seed: int
    device: torch.device
    bundles: Mapping[str, Bundle] = field(default_factory=dict)
    stages: Mapping[str, Bundle] = field(default_factory=dict)
    plugin: Any = None
    scheme: Any = None
    train: Split | None = None
    heldout: Split | None = None
    inputs: Tensor | None = None
    labelled: Split | None = None
    test: Split | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


# Functions and not methods of Work: a source digest follows names, and not what an object can do.
def owner(work: Work) -> OwnerTrainer:
    """The trainer of the owner's side."""
    assert work.train is not None
    assert work.heldout is not None
    stream = Stream.root(work.seed).child("owner")
    return OwnerTrainer(work.task, work.train, work.heldout, stream, work.device, work.stages)


def attacker(work: Work, target: Target, data: str) -> AttackerTrainer:
    """The trainer of the attacker's side."""
    assert work.inputs is not None
    assert work.labelled is not None
    stream = Stream.root(work.seed).child("attacker")
    return AttackerTrainer(
        work.task, work.inputs, work.labelled, stream, work.device, work.stages, target=target, data=data
    )


def target_of(work: Work, access: Access = "white-box") -> Target:
    """The protected model as an attack with this access meets it."""
    public = work.bundles.get("target")
    if public is None:
        return Target(None, access, scheme=work.scheme)
    others = {name: model for name, model in public.models.items() if name != "model"}
    release = Bundle(others, public.tensors, public.values)
    part = work.bundles["part"].tensors["part"] if "part" in work.bundles else None
    return Target(public.models["model"], access, release, work.scheme, part)


def stage(work: Work) -> Result:
    """Compute a shared stage."""
    plugin: Stage = work.plugin
    if plugin.side == "owner":
        return {}, {"secret": plugin.run(owner(work), None)}
    target = target_of(work)
    bundle = plugin.run(attacker(work, target, "inputs"), target)
    return {"queries": target.queries}, {"public": bundle}


def protect(work: Work) -> Result:
    """Draw the key, protect a model, and part what is published from what is secret."""
    defense: Defense = work.plugin
    key = defense.draw(work.task, Stream.root(work.seed).child("owner", "key", defense.name))
    model, key, release = defense.protect(owner(work), key)
    require_finite(model)
    published = Bundle({**release.models, "model": model}, release.tensors, release.values)
    return {}, {"public": published, "secret": key_to_bundle(key)}


def disclose(work: Work) -> Result:
    """Take the one part that an insider holds out of the key."""
    key = bundle_to_key(work.bundles["key"])
    return {}, {"public": Bundle(tensors={"part": key.tensor(work.options["part"])})}


def attack(work: Work) -> Result:
    """Run a removal attack and keep each surrogate that it yields."""
    plugin: RemovalAttack = work.plugin
    target = target_of(work, plugin.access)
    trainer = attacker(work, target, plugin.data_used())
    surrogates = Bundle()
    strengths: list[float] = []
    seconds: list[float] = []
    spent, resumed = 0.0, time.perf_counter()
    for strength, model in plugin.run(target, trainer):
        spent += time.perf_counter() - resumed
        require_finite(model)
        # A copy, because the attack may go on with the model that it yielded.
        surrogates.models[str(len(strengths))] = copy.deepcopy(model).cpu()
        strengths.append(float(strength))
        seconds.append(spent)
        resumed = time.perf_counter()
    if not strengths:
        raise ValueError(f"expected {plugin.label} to yield at least one surrogate, got none")
    result = {"strengths": strengths, "seconds": seconds, **_spent(work, target, trainer)}
    return result, {"public": surrogates}


def forge(work: Work) -> Result:
    """Run an ambiguity attack: a forged key and the model on which it is claimed."""
    plugin: AmbiguityAttack = work.plugin
    target = target_of(work, plugin.access)
    trainer = attacker(work, target, plugin.data_used())
    started = time.perf_counter()
    key, model, figures = plugin.forge(target, trainer)
    seconds = time.perf_counter() - started
    require_finite(model)
    bundle = key_to_bundle(key)
    bundle.models["0"] = model
    return {"seconds": [seconds], "figures": dict(figures), **_spent(work, target, trainer)}, {"public": bundle}


def measure(work: Work) -> Result:
    """Accuracy of each surrogate on the test split, which nothing else sees."""
    assert work.test is not None
    labels = work.test.y
    if work.options["changes_task"]:
        labels = torch.tensor(work.task.info.second)[labels]
    x, labels = work.test.x.to(work.device), labels.to(work.device)
    accuracy = []
    for model in _in_order(work.bundles["surrogates"]):
        right = predict(model.to(work.device), x).argmax(1) == labels
        accuracy.append(float(right.double().mean()))
    return {"accuracy": accuracy}, {}


def judge(work: Work) -> Result:
    """Verify a key on each surrogate."""
    defense: Defense = work.plugin
    key, trainer = bundle_to_key(work.bundles["key"]), owner(work)
    evidence = []
    for model in _in_order(work.bundles["surrogates"]):
        evidence.append(_verify(defense, model.to(work.device), key, trainer))
    return {"evidence": evidence}, {}


def decoys(work: Work) -> Result:
    """Verify fresh keys, completed with the owner's facts, on the protected model."""
    defense: Defense = work.plugin
    key, trainer = bundle_to_key(work.bundles["key"]), owner(work)
    model = work.bundles["target"].models["model"].to(work.device)
    statistics, log10_p = [], []
    for number in range(work.options["decoys"]):
        fresh = defense.draw(work.task, Stream.root(work.seed).child("decoys", defense.name, number))
        judged = _verify(defense, model, fresh.with_facts_of(key), trainer)
        statistics.append(judged["statistic"])
        log10_p.append(judged["log10_p"])
    return {"statistic": statistics, "log10_p": log10_p}, {}


def kind_of(plugin: Attack) -> str:
    """The kind of job that runs an attack."""
    if isinstance(plugin, DecoyAttack):
        return "decoys"
    return "forge" if isinstance(plugin, AmbiguityAttack) else "attack"


def part_of(plugin: Attack) -> str | None:
    """The part of the key that an insider attack declares."""
    return plugin.part if isinstance(plugin, InsiderAttack) else None


def require_finite(model: nn.Module) -> None:
    """Refuse a model with NaN or infinity in its weights or statistics.

    Raises:
        NonFiniteWeights: naming the first such tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteWeights(f"{name} of the returned model holds NaN or infinity")


def _verify(defense: Defense, model: nn.Module, key: Key, trainer: OwnerTrainer) -> dict[str, Any]:
    suspect = Suspect.of(model, defense.access_used())
    started = time.perf_counter()
    evidence = defense.verify(suspect, key, trainer)
    return {
        "statistic": float(evidence.statistic),
        "log10_p": float(evidence.log10_p),
        "figures": {name: float(value) for name, value in evidence.figures.items()},
        "reason": evidence.reason,
        "queries": suspect.queries,
        "seconds": time.perf_counter() - started,
    }


def _in_order(bundle: Bundle) -> list[nn.Module]:
    return [bundle.models[str(number)] for number in range(len(bundle.models))]


def _spent(work: Work, target: Target, trainer: AttackerTrainer) -> dict[str, int]:
    asked = sum(int(bundle.values.get("queries", 0)) for bundle in work.stages.values())
    return {
        "queries": target.queries + asked,
        "inputs_used": trainer.inputs_used,
        "labels_used": trainer.labels_used,
    }
