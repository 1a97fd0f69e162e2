"""The rules for removal attacks, insiders among them."""

from __future__ import annotations

import math

import torch

from bench.attack import Attack, Insider, RemovalAttack
from bench.bundle import Bundle
from bench.contract import general
from bench.contract.bout import Case, attempt, cases, first, require_untouched, run
from bench.contract.rule import Rule, demand, rule
from bench.contract.workshop import Skip, Workshop, contents, difference, disturb, other_architecture
from bench.plugin import ACCESSES
from bench.suspect import ANSWERS, predict


def introduce(attack: Attack, workshop: Workshop) -> str:
    """Demand what every attack declares."""
    detail = general.introduce(attack, workshop)
    access = attack.access_used()
    demand(access in ACCESSES, f"expected an access, got {access!r}")
    demand(attack.answers in ANSWERS, f"expected answers among {', '.join(ANSWERS)}, got {attack.answers!r}")
    demand(attack.data_used() in ("none", "inputs", "labels"), f"expected data declared, got {attack.data_used()!r}")
    known = attack.knowledge in ("none", "scheme", "insider")
    demand(known, f"expected knowledge none, scheme or insider, got {attack.knowledge!r}")
    insider = isinstance(attack, Insider)
    if isinstance(attack, Insider):
        demand(bool(attack.part), "expected `part`, the name of the part that the insider holds; got none")
    demand(
        insider == (attack.knowledge == "insider"),
        "expected knowledge 'insider' on InsiderAttack and InsiderForgery, and only there: nobody else is handed a "
        "part of a key",
    )
    return f"{detail}, access {access}, data {attack.data_used()}"


@rule(
    "says-what-it-is", "Name, family, docstring, class, unit of strength are declared; it applies to the default task"
)
def _says_what_it_is(attack: RemovalAttack, workshop: Workshop) -> str:
    detail = introduce(attack, workshop)
    demand(attack.kind == "none" or bool(attack.strength_unit), "expected a strength_unit, got none")
    classes = ("none", "in-place", "reparametrisation", "extraction")
    demand(attack.attack_class in classes, f"expected a class among {', '.join(classes)}, got {attack.attack_class!r}")
    return detail


@rule("attacks", "It yields at least one finite surrogate on a protected model, without an error")
def _attacks(attack: RemovalAttack, workshop: Workshop) -> str:
    bout = attempt(attack, workshop, cases(attack, workshop)[0])
    return f"{len(bout.strengths)} surrogate(s)"


@rule("same-surrogates-from-the-same-stream", "Once more, in a process that has done other work, gives the same bits")
def _same(attack: RemovalAttack, workshop: Workshop) -> str:
    case = cases(attack, workshop)[0]
    bout = first(attack, workshop, case)
    disturb(8)
    again = run(attack, workshop, case)
    demand(bout.strengths == again.strengths, f"expected the strengths {bout.strengths}, got {again.strengths}")
    for number, strength in enumerate(bout.strengths):
        changed = difference(*(contents(one.made.models[str(number)]) for one in (bout, again)))
        demand(
            changed is None,
            f"expected the same surrogate at strength {strength:g} twice, got another {changed}; "
            "draw from trainer.stream alone",
        )
    return f"{len(bout.strengths)} surrogate(s)"


@rule("leaves-the-target-alone", "Neither the protected model nor the attacker's data is changed in place")
def _untouched(attack: Attack, workshop: Workshop) -> str:
    return require_untouched(first(attack, workshop, cases(attack, workshop)[0]))


@rule("uses-what-it-declares", "Data, access and queries are those that it declares")
def _uses(attack: Attack, workshop: Workshop) -> str:
    # Reaching for more has raised an AccessError.
    bout, declared = first(attack, workshop, cases(attack, workshop)[0]), attack.data_used()
    took = "labels" if bout.labels_used else "inputs" if bout.inputs_used else "none"
    demand(took == declared, f"expected to use the declared data {declared!r}, used {took!r}")
    may_ask = attack.access_used() != "none"
    demand(may_ask or bout.queries == 0, f"expected no query with access 'none', got {bout.queries}")
    return f"{bout.inputs_used} inputs, {bout.labels_used} labels, {bout.queries} queries"


# Those that hold for forgeries as well.
TAKING: tuple[Rule, ...] = (_untouched, _uses)


@rule("strengths-go-one-way", "Strengths are finite numbers that rise, or fall, from one to the next")
def _strengths(attack: RemovalAttack, workshop: Workshop) -> str:
    strengths = first(attack, workshop, cases(attack, workshop)[0]).strengths
    demand(all(math.isfinite(one) for one in strengths), f"expected finite strengths, got {strengths}")
    ordered = sorted(set(strengths))
    demand(strengths in (ordered, ordered[::-1]), f"expected strengths that rise, or fall, got {strengths}")
    return f"{', '.join(f'{one:g}' for one in strengths)} {attack.strength_unit}".strip()


@rule("surrogates-can-be-stored", "Every surrogate can be stored, and answers alike when rebuilt")
def _stored(attack: RemovalAttack, workshop: Workshop) -> str:
    made = first(attack, workshop, cases(attack, workshop)[0]).made
    content = made.to_bytes()
    rebuilt = Bundle.from_bytes(content)
    x = workshop.parts.attacker.x[:8]
    for name, model in made.models.items():
        same = torch.equal(predict(model, x), predict(rebuilt.models[name], x))
        demand(same, f"expected surrogate {name} to answer alike after storage; it does not")
    return f"{len(content)} bytes"


@rule("attacks-other-models", "It runs on a protected model of another kind too, or says why not")
def _other_models(attack: RemovalAttack, workshop: Workshop) -> str:
    tried = cases(attack, workshop)
    if tried[0].scheme is not None:
        others = tried[1:]
        if not others:
            raise Skip("no other scheme that it can be tried on")
        for case in others:
            run(attack, workshop, case)
        return ", ".join(case.name for case in others)
    task = other_architecture(workshop.quick)
    if reason := attack.applies_to(task):
        raise Skip(f"{task.model}: {reason}")
    model = workshop.net(2, task)
    release = Bundle(tensors={"extra": torch.ones(3)}, values={"note": "released"})
    public = Bundle({"model": model, "another": model}, release.tensors, release.values)
    run(attack, workshop, Case(task.model, task, public.to_bytes()))
    return f"{task.model} with a release"


@rule("asks-only", "A black-box attack works with nothing but answers")
def _asks_only(attack: RemovalAttack, workshop: Workshop) -> str:
    if attack.access_used() != "black-box":
        raise Skip(f"it declares access {attack.access_used()}")
    case = cases(attack, workshop)[0]
    opened, closed = first(attack, workshop, case), run(attack, workshop, case, closed=True)
    same = opened.strengths == closed.strengths
    demand(same, f"expected the strengths {opened.strengths} from answers alone, got {closed.strengths}")
    for name, model in opened.made.models.items():
        odd = difference(contents(model), contents(closed.made.models[name]))
        demand(odd is None, f"expected surrogate {name} to rest on answers alone; without weights, {odd} is another")
    return f"{closed.queries} queries"


RULES: tuple[Rule, ...] = (
    _says_what_it_is,
    *general.RULES,
    _attacks,
    _same,
    *TAKING,
    _strengths,
    _stored,
    _other_models,
    _asks_only,
)
