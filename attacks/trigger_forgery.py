"""Triggers after the fact: a model's own answers to the attacker's inputs, and inputs fitted to drawn labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.forging.gradient import fitted
from attacks.forging.offers import TakesTriggers, refusal
from bench.attack import AmbiguityAttack, Data, Forgery
from bench.defense import Defense
from bench.effort import Effort
from bench.key import Key
from bench.split import Split
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer

NEEDED = "triggers with labels of their own in the key"
Start = Literal["drawn", "own"]


@dataclass(frozen=True)
class OwnTriggers(AmbiguityAttack):
    """Claim the model's answers to the attacker's own inputs.

    Where triggers are drawn this agrees with any model, as `read-off` does; a judge may ask whether the labels are not
    simply true. Where they are taken from data and labels must be wrong, those inputs come first that the model gets
    wrong; the others keep the label that was drawn, which is wrong as well and is not given.
    """

    name: ClassVar[str] = "own-triggers"
    family: ClassVar[str] = "trigger-forging"
    data: ClassVar[Data] = "labels"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with trigger inputs and labels in its key."""
        return refusal(scheme, TakesTriggers, NEEDED)

    def effort(self, task: Task) -> Effort:
        """Each labelled input is asked twice at most."""
        return Effort(answered=2.0 * task.sizes.labelled)

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """The key, on a copy of the protected model; `answered` is the share of triggers that get their label."""
        scheme, task, model = target.scheme, trainer.task, target.copy()
        drawn = scheme.draw(task, trainer.stream.child("key", scheme.name))
        known = trainer.labelled
        if scheme.taken:
            wrong = target.answers(known.x) != known.y
            known = known.at(wrong.int().argsort(descending=True, stable=True))
            inputs, labels = (one.to(known.y.device) for one in scheme.started(drawn, known, task))
            answers = target.answers(inputs)
            given = torch.where(answers != known.y[: len(answers)], answers, labels)
        else:
            inputs = known.x[: scheme.triggers]
            given = answers = target.answers(inputs)
        key = scheme.with_triggers(drawn, inputs.cpu(), given.cpu(), known, task)
        return Forgery(scheme.completed(key, model, task), model, {"answered": share(answers, given)})


@dataclass(frozen=True)
class FittedTriggers(AmbiguityAttack):
    """Change inputs by steps down the gradient until the protected model gives them the labels that were drawn.

    Labels stay uniform; the inputs are adversarial examples of the model itself.

    Attributes:
        start: from the `drawn` triggers, or from the attacker's `own` labelled inputs; triggers that are taken from
            data are always such.
        budget: most that a raw number may change, as a share of its range, in (0, 1]; 16/255 in Liu et al. 2024.
        steps: down the gradient.
    """

    name: ClassVar[str] = "fitted-triggers"
    family: ClassVar[str] = "trigger-forging"
    source: ClassVar[str] = "Liu et al. 2024, USENIX Security, arXiv 2304.06607 (their steps, on the model itself)"

    start: Start = "drawn"
    budget: float = 0.3
    steps: int = 100

    def __post_init__(self) -> None:
        require_steps(self.budget, self.steps)

    def data_used(self) -> Data:
        """Labels for own inputs."""
        return "labels" if self.start == "own" else "none"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with trigger inputs and labels in its key; own inputs where these are taken from data."""
        return refusal(scheme, TakesTriggers, NEEDED) or unstarted(scheme, self.start)

    def effort(self, task: Task) -> Effort:
        """One pass of all triggers for each step, if there are as many as by default."""
        return Effort(trained=64.0 * self.steps)

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """The key, on a copy of the protected model; `answered` is the share of triggers that get their label."""
        scheme, task, model = target.scheme, trainer.task, target.copy()
        drawn = scheme.draw(task, trainer.stream.child("key", scheme.name))
        known = trainer.labelled if self.start == "own" else nothing(task)
        inputs, labels = material(scheme, drawn, known, task, own=self.start == "own")
        inputs, labels = inputs.to(trainer.device), labels.to(trainer.device)
        stream = trainer.stream.child("fitted")
        made = fitted([model], inputs, labels, task, budget=self.budget, steps=self.steps, stream=stream)
        answers = target.answers(made)
        key = scheme.with_triggers(drawn, made.cpu(), labels.cpu(), known, task)
        return Forgery(scheme.completed(key, model, task), model, {"answered": share(answers, labels)})


def require_steps(budget: float, steps: int) -> None:
    """Refuse what is no fitting; ValueError with what was given."""
    if not (0 < budget <= 1 and math.isfinite(budget)) or steps < 1:
        raise ValueError(f"expected budget in (0, 1] and steps >= 1, got {budget} and {steps}")


def unstarted(scheme: Defense, start: Start) -> str | None:
    """Why triggers of a scheme cannot be started so, or None."""
    if isinstance(scheme, TakesTriggers) and scheme.taken and start == "drawn":
        return f"{scheme.label} takes its triggers from data, of which none is drawn: see start = own"
    return None


def material(scheme: TakesTriggers, drawn: Key, known: Split, task: Task, *, own: bool) -> tuple[Tensor, Tensor]:
    """Inputs (n, …) and the labels int64 (n,) that they are to get, as drawn or on the attacker's own inputs."""
    inputs, labels = scheme.started(drawn, known, task)
    if own and not scheme.taken:
        inputs = known.take(min(len(labels), len(known))).x
        labels = labels[: len(inputs)]
    return inputs, labels


def nothing(task: Task) -> Split:
    """No data."""
    return Split(torch.empty(0, *task.shape), torch.empty(0, dtype=torch.int64))


def share(answers: Tensor, labels: Tensor) -> float:
    """Of the answers, the share that are the labels."""
    return float((answers.cpu() == labels.cpu()).double().mean())
