"""What each kind of job does. These functions and what they call are what a job's source digest covers."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bench.attack import AmbiguityAttack, RemovalAttack
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.defense import Defense
from bench.derivation import FORGER, SEED_BYTES, derived_stream, is_derived
from bench.errors import NonFiniteWeights, Unreadable
from bench.evidence import Evidence
from bench.key import Key
from bench.pair import keeping_zeros
from bench.planning.job import Channel
from bench.plugin import Access
from bench.question import Question
from bench.split import Inputs, Split
from bench.stage import Stage
from bench.stream import Stream
from bench.suspect import Answer, Suspect, Target, predict
from bench.task import Task
from bench.trainer import AttackerTrainer, OwnerTrainer, Successor
from models.compression import compression

# Where a stage keeps what it took, for those that rest on it.
_SPENT = "spent"
# Where a forgery keeps the seed from which its key follows.
_SEED = "seed"
# How many fresh keys in a row share what is random in them beside the uniform part: most that is asked depends on it.
_SHARED = 8

Result = tuple[dict[str, Any], dict[Channel, Bundle]]


@dataclass
class Work:
    """A job's surroundings in the worker, and nothing that its side must not see.

    Attributes:
        task: the task.
        seed: of the repetition; on the attacker's side a name from which the owner's streams do not follow.
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
    seed: str
    device: torch.device
    bundles: Mapping[str, Bundle] = field(default_factory=dict)
    stages: Mapping[str, Bundle] = field(default_factory=dict)
    plugin: Any = None
    scheme: Any = None
    train: Split | None = None
    heldout: Split | None = None
    inputs: Inputs | None = None
    labelled: Split | None = None
    test: Split | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


# Functions and not methods of Work: a source digest follows names, and not what an object can do.
def owner(work: Work) -> OwnerTrainer:
    """The trainer of the owner's side."""
    assert work.train is not None
    assert work.heldout is not None
    stream = Stream((work.seed, "owner"))
    return OwnerTrainer(work.task, work.train, work.heldout, stream, work.device, work.stages)


def attacker(work: Work, target: Target, data: str) -> AttackerTrainer:
    """The trainer of the attacker's side."""
    assert work.inputs is not None
    assert work.labelled is not None
    link = work.options.get("link", 0)
    stream = Stream((work.seed,)).child("link", link) if link else Stream((work.seed,))
    return AttackerTrainer(
        work.task, work.inputs, work.labelled, stream, work.device, work.stages, target=target, data=data
    )


def target_of(work: Work, access: Access = "white-box", most: Answer = "logits") -> Target:
    """The protected model as an attack with this access, and these answers at the most, meets it."""
    public = work.bundles.get("target")
    if public is None:
        return Target(None, access, scheme=work.scheme, most=most)
    part = work.bundles["part"].tensors["part"] if "part" in work.bundles else None
    if "model" not in public.models:
        # What another attack left; what was released belongs to the model that was published.
        return Target(_in_order(public)[-1], access, None, work.scheme, part, most)
    others = {name: model for name, model in public.models.items() if name != "model"}
    release = Bundle(others, public.tensors, public.values)
    return Target(public.models["model"], access, release, work.scheme, part, most)


def stage(work: Work) -> Result:
    """Compute a shared stage."""
    plugin: Stage = work.plugin
    if plugin.side == "owner":
        return {}, {"secret": plugin.run(owner(work), None)}
    target = target_of(work, plugin.access)
    trainer = attacker(work, target, plugin.data)
    bundle = plugin.run(trainer, target)
    bundle.values[_SPENT] = _spent(work, target, trainer)
    return {}, {"public": bundle}


def protect(work: Work) -> Result:
    """Draw the key, protect a model, and part what is published from what is secret."""
    defense: Defense = work.plugin
    drawn = defense.draw(work.task, Stream((work.seed, "owner", "key", defense.name)))
    before = key_to_bundle(drawn).to_bytes()
    model, key, release = defense.protect(_second_owner(work) if "before" in work.bundles else owner(work), drawn)
    # A key that was picked after looking at the model would make every p-value a lie.
    if key_to_bundle(Key(key.drawn)).to_bytes() != before:
        raise ValueError(f"expected {defense.label} to keep the drawn part of its key, got another one")
    require_finite(model)
    earlier = work.bundles.get("before", Bundle())
    published = Bundle(
        {**earlier.models, **release.models, "model": model},
        {**earlier.tensors, **release.tensors},
        {**earlier.values, **release.values},
    )
    return {}, {"public": published, "secret": key_to_bundle(key)}


def _second_owner(work: Work) -> Successor:
    """Whoever embeds a second mark, into a model that has one; what is zero there stays so."""
    assert work.train is not None
    assert work.heldout is not None
    model = work.bundles["before"].models["model"]
    stream, hooks = Stream((work.seed, "owner", "second")), keeping_zeros(model)
    return Successor(work.task, work.train, work.heldout, stream, work.device, model, hooks=hooks)


def disclose(work: Work) -> Result:
    """Take the one part that an insider holds out of the key."""
    key = bundle_to_key(work.bundles["key"])
    return {}, {"public": Bundle(tensors={"part": key.tensor(work.options["part"])})}


def attack(work: Work) -> Result:
    """Run a removal attack and keep each surrogate that it yields."""
    plugin: RemovalAttack = work.plugin
    target = target_of(work, plugin.access_used(), plugin.answers)
    trainer = attacker(work, target, plugin.data_used())
    surrogates = Bundle()
    strengths: list[float] = []
    seconds: list[float] = []
    figures: list[dict[str, float]] = []
    spent, resumed = 0.0, _clock(work)
    for strength, model in plugin.run(target, trainer):
        spent += _clock(work) - resumed
        require_finite(model)
        # A copy, because the attack may go on with the model that it yielded.
        surrogates.models[str(len(strengths))] = copy.deepcopy(model).cpu()
        strengths.append(float(strength))
        seconds.append(spent)
        figures.append(trainer.noted())
        resumed = _clock(work)
    if not strengths:
        raise ValueError(f"expected {plugin.label} to yield at least one surrogate, got none")
    result = {"strengths": strengths, "seconds": seconds, "figures": figures, **_spent(work, target, trainer)}
    return result, {"public": surrogates}


def forge(work: Work) -> Result:
    """Run an ambiguity attack: a forged key and the model on which it is claimed."""
    plugin: AmbiguityAttack = work.plugin
    target = target_of(work, plugin.access_used(), plugin.answers)
    trainer = attacker(work, target, plugin.data_used())
    started = _clock(work)
    key, model, figures, seed = plugin.forge(target, trainer)
    seconds = _clock(work) - started
    require_finite(model)
    if seed is not None and len(seed) != SEED_BYTES:
        raise ValueError(f"expected {plugin.label} to hand over a seed of {SEED_BYTES} bytes, got {len(seed)}")
    bundle = key_to_bundle(key)
    bundle.models["0"] = model
    bundle.values[_SEED] = None if seed is None else seed.hex()
    return {
        "seconds": [seconds],
        "figures": {name: float(value) for name, value in figures.items()},
        **_spent(work, target, trainer),
    }, {"public": bundle}


def measure(work: Work) -> Result:
    """Accuracy of each surrogate on the test split, which nothing else sees; and what it takes to store and to run."""
    assert work.test is not None
    labels = work.test.y
    if work.options["changes_task"]:
        labels = torch.tensor(work.task.info.second)[labels]
    test, labels = work.test.to(work.device), labels.to(work.device)
    accuracy, figures = [], []
    for model in _in_order(work.bundles["surrogates"]):
        right = predict(model.to(work.device), test.inputs).argmax(1) == labels
        accuracy.append(float(right.double().mean()))
        figures.append(compression(model, work.task.shape))
    return {"accuracy": accuracy, "figures": figures}, {}


def judge(work: Work) -> Result:
    """Verify a key on each surrogate; a forged one is also compared with the owner's, and drawn again by its seed."""
    key, trainer = bundle_to_key(work.bundles["key"]), owner(work)
    forged = "owner" in work.bundles
    alike = _agreement(work.plugin, key, bundle_to_key(work.bundles["owner"])) if forged else {}
    evidence = []
    for model in _in_order(work.bundles["surrogates"]):
        found = _verify(work, model.to(work.device), key, trainer)
        evidence.append({**found, "figures": {**found["figures"], **alike}})
    return {"evidence": evidence, **({"derived": _derived(work, key)} if forged else {})}, {}


def decoys(work: Work) -> Result:
    """Verify fresh keys, each derived from a seed and completed with the owner's facts, on the protected model."""
    defense: Defense = work.plugin
    key, trainer = bundle_to_key(work.bundles["key"]), owner(work)
    model = work.bundles["target"].models["model"].to(work.device)
    statistics, log10_p = [], []
    for number in range(work.options["decoys"]):
        seed = Stream((work.seed, "decoys", defense.name, str(number))).bytes(SEED_BYTES)
        fresh = defense.draw(work.task, derived_stream(seed, FORGER, defense))
        judged = _verify(work, model, fresh.with_facts_of(key), trainer)
        statistics.append(judged["statistic"])
        log10_p.append(judged["log10_p"])
    return {"statistic": statistics, "log10_p": log10_p, "derived": True}, {}


def null(work: Work) -> Result:
    """Verify owners' completed keys, and fresh ones with the facts of each in turn, on a model without their mark.

    Fresh keys are drawn anew for each such model, so that no two of their p-values hang together through a key.
    """
    defense: Defense = work.plugin
    public = work.bundles["target"]
    model = public.models["model"] if "model" in public.models else _in_order(public)[-1]
    suspect, owners = remembering(model.to(work.device), defense.access_used()), work.options["owners"]
    found: dict[str, list[Evidence]] = {"owners": [], "decoys": []}
    # Owner by owner: what all keys with the same facts ask of the model is asked once.
    for place, seed in enumerate(owners):
        key, trainer = bundle_to_key(work.bundles[f"key:{seed}"]), owner(dataclasses.replace(work, seed=seed))
        found["owners"].append(evidence_on(defense, suspect(), key, trainer))
        for fresh in _fresh(work, range(place, work.options["decoys"], len(owners))):
            found["decoys"].append(evidence_on(defense, suspect(), fresh.with_facts_of(key), trainer))
    unread = {f"unreadable_{name}": sum(one.reason is not None for one in judged) for name, judged in found.items()}
    reason = next((str(one.reason) for judged in found.values() for one in judged if one.reason), None)
    told = {name: [float(one.log10_p) for one in judged] for name, judged in found.items()}
    return {**told, **unread, "reason": reason}, {}


def _fresh(work: Work, numbers: Iterable[int]) -> Iterator[Key]:
    """Keys whose uniform part is fresh each time, and what is random beside it every eighth time."""
    defense: Defense = work.plugin
    for turn, number in enumerate(numbers):
        drawn = defense.draw(work.task, Stream((work.seed, "null", defense.name, str(number))))
        if turn % _SHARED == 0 or not defense.uniform:
            whole = drawn
        yield whole.redraw(drawn, defense.uniform)


def remembering(model: nn.Module, access: Access) -> Callable[[], Suspect]:
    """Makes suspects that answer the same inputs once, since many keys ask them."""
    about = Question.about((), model.state_dict().values(), lambda: None).digest

    def answer(x: torch.Tensor) -> torch.Tensor:
        return Question.about(("answers", about), (x,), lambda: predict(model, x)).answer().clone()

    return lambda: Suspect(answer, model, access)


def evidence_on(defense: Defense, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
    """What the defense says of a suspect; `Unreadable` comes to no evidence."""
    try:
        return defense.verify(suspect, key, trainer)
    except Unreadable as error:
        return Evidence.unreadable(str(error))


def require_finite(model: nn.Module) -> None:
    """Refuse a model with NaN or infinity in its weights or statistics.

    Raises:
        NonFiniteWeights: naming the first such tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteWeights(f"{name} of the returned model holds NaN or infinity")


def _verify(work: Work, model: nn.Module, key: Key, trainer: OwnerTrainer) -> dict[str, Any]:
    defense: Defense = work.plugin
    suspect = Suspect.of(model, defense.access_used())
    started = _clock(work)
    evidence = evidence_on(defense, suspect, key, trainer)
    return {
        "statistic": float(evidence.statistic),
        "log10_p": float(evidence.log10_p),
        "figures": {name: float(value) for name, value in evidence.figures.items()},
        "texts": {name: str(value) for name, value in evidence.texts.items()},
        "reason": None if evidence.reason is None else str(evidence.reason),
        "queries": suspect.queries,
        "seconds": _clock(work) - started,
    }


def _derived(work: Work, key: Key) -> bool:
    """Whether a forged key follows from the seed that was handed over with it."""
    seed = work.bundles["key"].values.get(_SEED)
    return seed is not None and is_derived(key, bytes.fromhex(seed), FORGER, work.plugin, work.task)


def _agreement(defense: Defense, forged: Key, owned: Key) -> dict[str, float]:
    """For each uniform part the share of symbols in which a forged key is the owner's."""
    pairs = {name: (forged.drawn.get(name), owned.drawn.get(name)) for name in defense.uniform}
    return {
        f"agreement.{name}": float((first == second).double().mean())
        for name, (first, second) in pairs.items()
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and first.shape == second.shape
    }


def _in_order(bundle: Bundle) -> list[nn.Module]:
    return [bundle.models[str(number)] for number in range(len(bundle.models))]


def _spent(work: Work, target: Target, trainer: AttackerTrainer) -> dict[str, int]:
    """What an attack or a stage took, with the stages that it rests on: queries add up, data is the same data."""
    stages = [bundle.values[_SPENT] for bundle in work.stages.values() if _SPENT in bundle.values]
    return {
        "queries": target.queries + sum(one["queries"] for one in stages),
        "inputs_used": max([trainer.inputs_used, *(one["inputs_used"] for one in stages)]),
        "labels_used": max([trainer.labels_used, *(one["labels_used"] for one in stages)]),
    }


def _clock(work: Work) -> float:
    # Kernels run behind Python's back on a GPU; their time belongs to whoever queued them.
    if work.device.type == "cuda":
        torch.cuda.synchronize(work.device)
    return time.perf_counter()
