"""False claims: triggers that models which their maker has never seen answer as committed (Liu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.forging.gradient import fitted
from attacks.forging.offers import TakesTriggers, refusal
from attacks.trigger_forgery import NEEDED, Start, material, nothing, require_steps, share, unstarted
from bench.attack import AmbiguityAttack, Data, Forgery, TimeModel
from bench.bundle import Bundle
from bench.defense import Defense
from bench.derivation import FORGER, SEED_BYTES, derived_stream, is_derived
from bench.effort import Effort, of_training
from bench.plugin import Access
from bench.stage import Stage
from bench.suspect import Answer, Target, predict
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class OwnModels(Stage):
    """Models of the task that the attacker trains on its labelled inputs, called "0", "1", …

    Attributes:
        models: their number.
        epochs: of each training.
    """

    name: ClassVar[str] = "own-models"
    side: ClassVar[Literal["owner", "attacker"]] = "attacker"
    access: ClassVar[Access] = "none"
    data: ClassVar[str] = "labels"

    models: int = 6
    epochs: int = 60

    def answers_given(self) -> Answer:
        """It asks nothing."""
        return "labels"

    def effort(self, task: Task) -> Effort:
        """All trainings."""
        return of_training(task, task.sizes.labelled, self.epochs * self.models)

    def run(self, trainer: Any, target: Any) -> Bundle:
        """Train them, each from an initialisation of its own."""
        del target
        made: dict[str, nn.Module] = {}
        for number in range(self.models):
            fresh = trainer.task.new_model(trainer.stream.child("own-models", number)).to(trainer.device)
            made[str(number)] = trainer.fit(fresh, trainer.labelled, trainer.recipe(epochs=self.epochs))
        return Bundle(models=made)


@dataclass(frozen=True)
class TransferableTriggers(AmbiguityAttack):
    """Fit triggers to models of one's own until others agree, commit, and claim a model that was not seen before.

    Labels are drawn first and stay uniform. Each trigger is tried several times; kept is the one of which the models
    that gave no gradient are most certain. The claim is on the protected model, of which the forger takes nothing: for
    the forger it is an independent model, and a commitment that was made before it was published stops nothing. Access
    is declared because a claim hands over the model on which it is made. Where triggers are taken from data, they are
    facts and the drawn part stays as it was: it follows from a seed, and that is shown.

    Attributes:
        start: as for `fitted-triggers`.
        models: that the forger trains, at least 2; 10 in the source.
        held_out: of them, how many give no gradient and judge instead, at least 1 and fewer than all; 3 in the source.
        own_epochs: of each of their trainings.
        budget: most that a raw number may change, as a share of its range, in (0, 1]; 16/255 in the source.
        steps: down the gradient; 100 in the source.
        tries: for each trigger.
    """

    name: ClassVar[str] = "transferable-triggers"
    family: ClassVar[str] = "trigger-forging"
    source: ClassVar[str] = "Liu et al. 2024, USENIX Security, arXiv 2304.06607"
    data: ClassVar[Data] = "labels"
    time_model: ClassVar[TimeModel] = "committed before"

    start: Start = "drawn"
    models: int = 6
    held_out: int = 2
    own_epochs: int = 60
    budget: float = 0.3
    steps: int = 100
    tries: int = 2

    def __post_init__(self) -> None:
        require_steps(self.budget, self.steps)
        if not 1 <= self.held_out < self.models or min(self.own_epochs, self.tries) < 1:
            raise ValueError(
                "expected 1 <= held_out < models, own_epochs >= 1 and tries >= 1, "
                f"got {self.held_out}, {self.models}, {self.own_epochs} and {self.tries}"
            )

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with trigger inputs and labels in its key; own inputs where these are taken from data."""
        return refusal(scheme, TakesTriggers, NEEDED) or unstarted(scheme, self.start)

    def stages(self) -> tuple[Stage, ...]:
        """The forger's own models."""
        return (OwnModels(self.models, self.own_epochs),)

    def effort(self, task: Task) -> Effort:
        """One pass of all triggers through each model that gives a gradient, for each step and try."""
        return Effort(trained=64.0 * self.steps * self.tries * (self.models - self.held_out))

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """The key, on the protected model; `accepted` is the share of triggers on which all judging models agree."""
        scheme, task = target.scheme, trainer.task
        (stage,) = self.stages()
        mine = [model.to(trainer.device) for _, model in sorted(trainer.stage(stage).models.items())]
        seed = trainer.stream.child("key", scheme.name).bytes(SEED_BYTES)
        drawn = scheme.draw(task, derived_stream(seed, FORGER, scheme))
        # The models have seen the labels in any case.
        known = trainer.labelled if scheme.taken or self.start == "own" else nothing(task)
        inputs, labels = material(scheme, drawn, known, task, own=self.start == "own")
        made, accepted = self._fitted(mine, inputs.to(trainer.device), labels.to(trainer.device), trainer)
        key = scheme.with_triggers(drawn, made.cpu(), labels.cpu(), known, task)
        # Complete before there is a model to claim: whatever else the key holds is of the forger's own.
        whole = scheme.completed(key, mine[0], task)
        # A seed that does not give the key would speak against it.
        shown = seed if is_derived(whole, seed, FORGER, scheme, task) else None
        return Forgery(whole, target.copy(), {"accepted": accepted}, shown)

    def _fitted(
        self, mine: list[nn.Module], inputs: Tensor, labels: Tensor, trainer: AttackerTrainer
    ) -> tuple[Tensor, float]:
        judging, giving = mine[: self.held_out], mine[self.held_out :]
        tried, certain = [], []
        for number in range(self.tries):
            stream = trainer.stream.child("fitted", number)
            made = fitted(giving, inputs, labels, trainer.task, budget=self.budget, steps=self.steps, stream=stream)
            logits = torch.stack([predict(model, made).float() for model in judging])
            every = labels.expand(len(judging), -1)
            losses = F.cross_entropy(logits.transpose(1, 2), every, reduction="none")
            tried.append(made)
            certain.append(-losses.mean(0))
        best = torch.stack(certain).argmax(0)
        chosen = torch.stack(tried)[best, torch.arange(len(labels), device=best.device)]
        agreed = torch.stack([predict(model, chosen).argmax(1) == labels for model in judging]).all(0)
        return chosen, share(agreed, torch.ones_like(agreed))
