"""One run of an attack as the harness makes it, and on what it is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.attack import AmbiguityAttack, Attack, Insider, require_modest_stages
from bench.bundle import Bundle
from bench.contract.rule import demand
from bench.contract.workshop import OTHER_OWNER, OWNER, Made, Skip, Workshop, contents, difference, disturb
from bench.defense import Defense
from bench.running import work
from bench.running.work import Work
from bench.split import Inputs, Split
from bench.stage import Stage
from bench.stream import Stream
from bench.suspect import predict
from bench.task import Task

# The attacker's seed is a name from which no owner's stream follows.
_SEED = Stream(("contract", "attacker")).bytes(16).hex()
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """What an attack is tried on.

    Attributes:
        name: for messages.
        task: of the model.
        public: what everybody gets, as bytes.
        scheme: by which it is protected, handed to attacks that know it; None for a plain net.
        part: for insiders.
        made: what protecting gave, where a scheme was.
        owner: who protected it.
    """

    name: str
    task: Task
    public: bytes
    scheme: Defense | None = None
    part: Tensor | None = None
    made: Made | None = None
    owner: int = OWNER


@dataclass(frozen=True)
class Bout:
    """What a run of an attack came to.

    Attributes:
        strengths: of the surrogates; empty for a forgery.
        made: the surrogates, or the forged key with the model `0`.
        queries, inputs_used, labels_used: what it took, its stages included.
        touched: what of the target or the attacker's data was changed in place; empty where nothing was.
    """

    strengths: list[float]
    made: Bundle
    queries: int
    inputs_used: int
    labels_used: int
    touched: str


def cases(attack: Attack, workshop: Workshop) -> list[Case]:
    """What the attack can be tried on.

    A plain net; or one scheme of each kind of key, where it knows the scheme or cannot be tried on what no scheme has
    touched. Schemes are trained briefly, if they allow that.

    Raises:
        Skip: it can be tried on none of them.
    """
    if attack.knowledge == "none" and attack.against(workshop.undefended) is None:
        plain = Bundle({"model": workshop.net(2, workshop.quick)})
        return [Case("a plain model", workshop.quick, plain.to_bytes())]
    chosen: dict[str, Case] = {}
    reasons = []
    for scheme in workshop.schemes:
        # Those whose models the rules for defenses make as well.
        task, owner = (workshop.quick, OTHER_OWNER)
        if scheme.applies_to(workshop.quick):
            task, owner = workshop.task, OWNER
        reason = attack.against(scheme) or scheme.applies_to(task)
        if reason:
            reasons.append(f"{scheme.label}: {reason}")
        elif scheme.key_kind not in chosen:
            made = workshop.protected(scheme, task, owner)
            part = made.key.tensor(attack.part) if isinstance(attack, Insider) else None
            chosen[scheme.key_kind] = Case(scheme.label, task, made.published.to_bytes(), scheme, part, made, owner)
    if not chosen:
        raise Skip(f"no scheme that it can be tried on ({'; '.join(reasons) or 'none is known'})")
    return list(chosen.values())


def attempt(attack: Attack, workshop: Workshop, case: Case) -> Bout:
    """The first run on a case, which is kept; raises whatever the attack raises."""

    def make() -> Bout | Exception:
        disturb(9)
        try:
            return run(attack, workshop, case)
        except Exception as error:  # noqa: BLE001 - kept, to be raised to each who asks.
            return error

    found = workshop.once((repr(attack), case.name), make)
    if isinstance(found, Exception):
        raise found
    return found


def first(attack: Attack, workshop: Workshop, case: Case) -> Bout:
    """As `attempt`, for rules that look at what it came to: Skip where the attack raises."""
    try:
        return attempt(attack, workshop, case)
    except Exception as error:
        raise Skip("attacking failed, see the rule 'attacks'") from error


def run(attack: Attack, workshop: Workshop, case: Case, closed: bool = False) -> Bout:
    """Run an attack by the harness's own code, with a target and data of its own.

    Args:
        attack: removal or ambiguity.
        workshop: where its data is.
        case: what it is tried on; not handed over where it declares access `none`.
        closed: hand over a model that answers and has no weights.

    Raises:
        AccessError: a stage takes more than the attack declares.
    """
    require_modest_stages(attack)
    parts = workshop.parts
    inputs, labelled = parts.attacker.x.clone(), parts.attacker.take(parts.labelled).copy()
    target = Bundle.from_bytes(case.public)
    before = contents(target.models["model"]), {n: t.clone() for n, t in target.tensors.items()}
    bundles = {"target": target} if attack.access_used() != "none" else {}
    if closed:
        bundles["target"] = Bundle({"model": _Answers(target.models["model"])}, target.tensors, target.values)
    if case.part is not None:
        bundles["part"] = Bundle(tensors={"part": case.part.clone()})
    scheme = case.scheme if attack.knowledge != "none" else None

    def surroundings(plugin: Any, stages: dict[str, Bundle]) -> Work:
        return Work(case.task, _SEED, _CPU, bundles, stages, plugin, scheme, inputs=Inputs(inputs), labelled=labelled)

    doing = work.forge if isinstance(attack, AmbiguityAttack) else work.attack
    result, products = doing(surroundings(attack, _stages(attack.stages(), surroundings)))
    touched = _touched(workshop, target, before, inputs, labelled)
    spent = {name: int(result[name]) for name in ("queries", "inputs_used", "labels_used")}
    return Bout(list(result.get("strengths", [])), products["public"], touched=touched, **spent)


def require_untouched(bout: Bout) -> str:
    """Demand that target and data are as they were."""
    demand(not bout.touched, f"expected {bout.touched} as it was, got it changed in place; work on target.copy()")
    return "target and data are as they were"


class _Answers(nn.Module):
    """Answers as another model does, and has nothing in it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # In a function, because a module would be registered as a part of this one.
        self._ask = lambda x: predict(model, x)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs to logits."""
        return self._ask(x)


def _stages(stages: tuple[Stage, ...], surroundings: Callable[[Any, dict[str, Bundle]], Work]) -> dict[str, Bundle]:
    found = {}
    for one in stages:
        _, products = work.stage(surroundings(one, _stages(one.stages(), surroundings)))
        demand("public" in products, f"expected stages of the attacker's side, got {one.label!r} of the owner's")
        found[one.key] = Bundle.from_bytes(products["public"].to_bytes())
    return found


def _touched(
    workshop: Workshop,
    target: Bundle,
    before: tuple[dict[str, Tensor], dict[str, Tensor]],
    inputs: Tensor,
    labelled: Split,
) -> str:
    changed = difference(before[0], contents(target.models["model"]))
    if changed:
        return f"the protected model ({changed})"
    if changed := difference(before[1], target.tensors):
        return f"the release ({changed})"
    attacker = workshop.parts.attacker
    known = attacker.take(workshop.parts.labelled)
    same = torch.equal(inputs, attacker.x) and torch.equal(labelled.x, known.x) and torch.equal(labelled.y, known.y)
    return "" if same else "the attacker's data"
