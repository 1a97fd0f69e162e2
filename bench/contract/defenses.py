"""The rules for defenses, apart from those about p-values and spies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn

import models
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.contract import evidence, general, secrecy
from bench.contract.rule import Rule, Violation, demand, rule
from bench.contract.workshop import OTHER_OWNER, Skip, Workshop, contents, difference, disturb
from bench.defense import Defense
from bench.errors import Unreadable
from bench.evidence import Evidence
from bench.key import Key
from bench.suspect import Suspect, predict
from bench.trainer import OwnerTrainer

# No key agrees so well by chance, in one try of ten thousand.
CHANCE = -4.0


@rule("says-what-it-is", "Name, family, docstring and uniform parts are declared; it applies to the default task")
def _says_what_it_is(defense: Defense, workshop: Workshop) -> str:
    detail = general.introduce(defense, workshop)
    demand(
        defense.undefended or bool(defense.uniform),
        "expected in `uniform` the names of the drawn parts that the statistic counts, got none",
    )
    demand(defense.capacity(workshop.task) <= 0, f"expected a capacity <= 0, got {defense.capacity(workshop.task)}")
    access = defense.access_used()
    demand(access in ("none", "black-box", "white-box"), f"expected none, black-box or white-box, got {access!r}")
    return f"{detail}, access {access}"


@rule("draws-from-the-stream", "The same stream draws the same key, another stream another one, in each uniform part")
def _draws(defense: Defense, workshop: Workshop) -> str:
    stream, task = workshop.key_stream(defense), workshop.task
    disturb(1)
    first = defense.draw(task, stream)
    disturb(2)
    second, other = defense.draw(task, stream), defense.draw(task, stream.child("another"))
    changed = _changed(first.drawn, second.drawn)
    demand(not changed, f"expected the same key from the same stream twice, got another {', '.join(changed)}")
    demand(not first.facts, f"expected no facts before training, got {', '.join(first.facts)}")
    missing = [name for name in defense.uniform if name not in first.drawn]
    demand(not missing, f"expected the uniform part {missing[:1]} in the drawn key, got {list(first.drawn)}")
    fixed = [name for name in defense.uniform if name not in _changed(first.drawn, other.drawn)]
    demand(not fixed, f"expected another stream to draw another {', '.join(fixed)}, got the same")
    return f"draws {', '.join(first.drawn) or 'nothing'}"


@rule("protects", "It gives back a model, the key and a release, without an error and without NaN")
def _protects(defense: Defense, workshop: Workshop) -> str:
    made = workshop.protect(defense)
    demand(isinstance(made.model, nn.Module), f"expected a model, got a {type(made.model).__name__}")
    demand(isinstance(made.key, Key), f"expected the key, got a {type(made.key).__name__}")
    demand(isinstance(made.release, Bundle), f"expected a Bundle as release, got a {type(made.release).__name__}")
    missing = [name for name in defense.parts if not isinstance(_part(made.key, name), torch.Tensor)]
    demand(not missing, f"expected tensors of these names in the key, since `parts` lists them: {', '.join(missing)}")
    # Of a whole model among the facts, its name alone.
    facts = dict.fromkeys(name.split(".")[0] for name in made.key.facts)
    return f"{workshop.task.recipe.epochs} epochs; facts {', '.join(facts) or 'none'}"


@rule("keeps-the-drawn-key", "The drawn part of the key comes back as it was before training")
def _keeps_the_drawn_key(defense: Defense, workshop: Workshop) -> str:
    made = workshop.protected(defense)
    drawn = bundle_to_key(Bundle.from_bytes(made.drawn)).drawn
    changed = _changed(drawn, made.key.drawn)
    demand(not changed, f"expected the key as it was drawn, got another {', '.join(changed)} after protecting")
    again = defense.draw(workshop.task, workshop.key_stream(defense)).drawn
    changed = _changed(again, made.key.drawn)
    demand(not changed, f"expected the key that the stream draws, got another {', '.join(changed)} after protecting")
    return f"{len(drawn)} part(s)"


@rule("same-bits-from-the-same-seed", "Protecting again, in a process that has done other work, gives the same bits")
def _same_bits(defense: Defense, workshop: Workshop) -> str:
    disturb(3)
    first = workshop.protected(defense, workshop.quick, OTHER_OWNER)
    disturb(4)
    second = workshop.protect_anew(defense, workshop.quick, OTHER_OWNER)
    changed = difference(contents(first.model), contents(second.model))
    demand(changed is None, f"expected the same model bit for bit, got another {changed}; draw from streams alone")
    changed_facts = _changed(first.key.facts, second.key.facts)
    demand(not changed_facts, f"expected the same key, got another {', '.join(changed_facts)}")
    same = first.published.to_bytes() == second.published.to_bytes()
    demand(same, "expected the same release bit for bit, got another one")
    return f"model, key and release after {workshop.quick.recipe.epochs} epochs"


@rule("leaves-the-data-alone", "Neither protecting nor verifying changes the owner's data")
def _leaves_the_data_alone(defense: Defense, workshop: Workshop) -> str:
    made, trainer = workshop.protected(defense), workshop.judging()
    _require_data(made.trainer, workshop, "protecting")
    defense.verify(Suspect.of(made.model, defense.access_used()), made.key, trainer)
    _require_data(trainer, workshop, "verifying")
    return "training and held-out data are as they were"


@rule("survives-storage", "Key and published model can be stored, and give the same evidence when read again")
def _survives_storage(defense: Defense, workshop: Workshop) -> str:
    made = workshop.protected(defense)
    content = key_to_bundle(made.key).to_bytes()
    key = bundle_to_key(Bundle.from_bytes(content))
    demand(key_to_bundle(key).to_bytes() == content, "expected the stored key to read as it was, got another one")
    published = Bundle.from_bytes(made.published.to_bytes())
    first = workshop.verify(defense, made.model, made.key)
    second = workshop.verify(defense, published.models["model"], key)
    demand(first == second, f"expected the same evidence after storage, {first}, got {second}")
    return f"{len(content)} bytes of key"


@rule("publishes-a-plain-model", "What is published is a model of the task that any process can rebuild")
def _publishes_a_plain_model(defense: Defense, workshop: Workshop) -> str:
    made = workshop.protected(defense)
    try:
        rebuilt = models.rebuild(models.describe(made.model), made.model.state_dict())
    except (ValueError, RuntimeError) as error:
        raise Violation(f"expected layers that models.describe knows: {error}") from error
    x = workshop.parts.heldout.x[:4]
    answers = predict(rebuilt, x)
    expected = (4, workshop.task.classes)
    demand(answers.shape == expected, f"expected answers of shape {expected}, got {tuple(answers.shape)}")
    demand(torch.equal(answers, predict(made.model, x)), "expected the rebuilt model to answer alike; it does not")
    return f"{sum(p.numel() for p in rebuilt.parameters())} parameters"


@rule("verifies-the-protected-model", "The owner's key verifies on the protected model")
def _verifies(defense: Defense, workshop: Workshop) -> str:
    _needs_a_scheme(defense)
    made = workshop.protected(defense)
    found = workshop.verify(defense, made.model, made.key)
    asked = f"expected log10_p <= {workshop.claim:g} after {workshop.task.recipe.epochs} epochs"
    demand(found.log10_p <= workshop.claim, f"{asked}, got {found.log10_p:.1f}{_because(found)}")
    return f"log10_p {found.log10_p:.1f}"


@rule("stays-above-its-capacity", "No evidence is stronger than the capacity that it declares")
def _stays_above_its_capacity(defense: Defense, workshop: Workshop) -> str:
    made, declared = workshop.protected(defense), defense.capacity(workshop.task)
    found = workshop.verify(defense, made.model, made.key).log10_p
    demand(found >= declared - 1e-9, f"expected log10_p >= {declared:.2f}, as declared by capacity(), got {found:.2f}")
    return "none declared" if math.isinf(declared) else f"{found:.1f} of at most {declared:.1f}"


@rule("a-fresh-key-does-not-verify", "A fresh key, completed with the owner's facts, is not found in the model")
def _fresh_key(defense: Defense, workshop: Workshop) -> str:
    _needs_a_scheme(defense)
    made = workshop.protected(defense)
    best = 0.0
    for name in ("decoy", "another decoy"):
        fresh = defense.draw(workshop.task, workshop.key_stream(defense).child(name)).with_facts_of(made.key)
        best = min(best, workshop.verify(defense, made.model, fresh).log10_p)
    demand(best > CHANCE, f"expected log10_p > {CHANCE:g} for a key that was never embedded, got {best:.1f}")
    return f"log10_p {best:.1f} at best"


@rule("reads-foreign-models", "Any other model gives a reason or no more than chance, and never an exception")
def _reads_foreign_models(defense: Defense, workshop: Workshop) -> str:
    made, reasons = workshop.protected(defense), 0
    for name, suspect in _foreign(defense, workshop, made.model):
        try:
            found = defense.verify(suspect, made.key, workshop.judging())
        except Unreadable:
            reasons += 1
            continue
        except Exception as error:
            raise Violation(f"expected a reason for {name}, got {type(error).__name__}: {error}") from error
        demand(isinstance(found, Evidence), f"expected evidence on {name}, got a {type(found).__name__}")
        if found.reason is not None:
            reasons += 1
            demand(bool(found.reason), f"expected a reason for {name} that can be read, got an empty one")
            demand(found.log10_p == 0.0, f"expected log10_p = 0 with the reason on {name}, got {found.log10_p:.1f}")
        queried = name == "a copy that can only be queried"
        demand(queried or found.log10_p > CHANCE, f"expected no claim on {name}, got log10_p {found.log10_p:.1f}")
    return f"{reasons} could not be read, each with its reason"


@rule("verifying-changes-nothing", "Verifying leaves suspect and key as they are, and says the same twice")
def _verifying_changes_nothing(defense: Defense, workshop: Workshop) -> str:
    made = workshop.protected(defense)
    before, key = contents(made.model), key_to_bundle(made.key).to_bytes()
    disturb(5)
    first = workshop.verify(defense, made.model, made.key)
    changed = difference(before, contents(made.model))
    demand(changed is None, f"expected the suspect as it was, got another {changed}")
    demand(key_to_bundle(made.key).to_bytes() == key, "expected the key as it was, got another one after verifying")
    disturb(6)
    second = workshop.verify(defense, made.model, made.key)
    demand(first == second, f"expected the same evidence twice, got {first} and {second}")
    return f"log10_p {first.log10_p:.1f} twice"


@rule("reads-as-it-declares", "Verifying opens or queries a suspect no further than `access_used()` declares")
def _reads_as_it_declares(defense: Defense, workshop: Workshop) -> str:
    made, access = workshop.protected(defense), defense.access_used()
    suspect = Suspect.of(made.model, access)
    found = defense.verify(suspect, made.key, workshop.judging())
    if access == "black-box":
        # Nothing but a function: not even a private way to the weights.
        asked = Suspect(lambda x: predict(made.model, x), None, access)
        again = defense.verify(asked, made.key, workshop.judging())
        demand(again == found, f"expected the same evidence from answers alone, {found}, got {again}")
    return f"access {access}, {suspect.queries} queries"


RULES: tuple[Rule, ...] = (
    _says_what_it_is,
    *general.RULES,
    _draws,
    _protects,
    _keeps_the_drawn_key,
    _same_bits,
    _leaves_the_data_alone,
    _survives_storage,
    _publishes_a_plain_model,
    _verifies,
    _stays_above_its_capacity,
    _fresh_key,
    _reads_foreign_models,
    _verifying_changes_nothing,
    _reads_as_it_declares,
    *evidence.RULES,
    *secrecy.RULES,
)


def _needs_a_scheme(defense: Defense) -> None:
    if defense.undefended:
        raise Skip("it protects nothing")


def _foreign(defense: Defense, workshop: Workshop, own: nn.Module) -> Iterator[tuple[str, Suspect]]:
    access, task = defense.access_used(), workshop.task
    shapes = [
        ("resnet8", task.classes, task.shape),
        ("lenet5", 3, (3, 28, 28)),
        (task.model, 3, task.shape),
        (task.model, task.classes, (task.shape[0] + 2, *task.shape[1:])),
    ]
    for name, classes, shape in shapes:
        disturb(7)
        model = models.build(name, classes, shape)
        yield f"a {name} of {classes} classes on inputs {tuple(shape)}", Suspect.of(model, access)
    yield "a net of zeros", Suspect.of(workshop.constant(0.0), access)
    if access != "none":
        yield "a copy that can only be queried", Suspect(lambda x: predict(own, x), None, access)


def _require_data(trainer: OwnerTrainer, workshop: Workshop, doing: str) -> None:
    for name in ("train", "heldout"):
        now, before = getattr(trainer, name), getattr(workshop.parts, name)
        same = torch.equal(now.x, before.x) and torch.equal(now.y, before.y)
        demand(same, f"expected {doing} to leave trainer.{name} as it is, got other inputs or labels in it")


def _changed(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """The names under which two halves of a key differ."""
    names = [*first, *(name for name in second if name not in first)]
    return [name for name in names if not _same(first.get(name), second.get(name))]


def _same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    return type(first) is type(second) and first == second


def _part(key: Key, name: str) -> object:
    return key.drawn.get(name, key.facts.get(name))


def _because(found: Evidence) -> str:
    return f" ({found.reason})" if found.reason else ""
