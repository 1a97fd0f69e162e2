"""What the attacks by ADMM have in common: pruning and quantizing in phases, one after another on one model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

import models
from attacks.admm.allocation import Scope, grouped, kept_by_rates, kept_by_share, prunable
from attacks.admm.core import Course, Minimise, Projection, Schedule, admm
from attacks.admm.projections import Grid, Kind, largest
from attacks.admm.snapping import snap, trainings
from bench.attack import AttackClass, Data, RemovalAttack
from bench.effort import Effort, of_training
from bench.hooks import Hooks
from bench.parameters import require_training
from bench.task import Task
from bench.trainer import AttackerTrainer


class Phase(NamedTuple):
    """A phase that is done.

    Attributes:
        name: `prune` and `quantize` end with a hard projection; `retrain` and `snap` train what that left.
        epochs: that it trained.
        course: rho and residuals of the iterations, where it has some.
    """

    name: Literal["prune", "retrain", "quantize", "snap"]
    epochs: int
    course: Course | None = None


@dataclass(frozen=True)
class Compression(RemovalAttack):
    """What those share that go by ADMM, on the attacker's labels.

    Each iteration is a training by the task's recipe with a fresh optimiser and the learning rate from the beginning
    of its schedule.

    Attributes:
        iterations: of ADMM.
        epochs: of each iteration.
        learning_rate: the peak of every training.
        rho: of the first iteration; the penalty is rho / 2 times the squared distance.
        growth: of rho from one iteration to the next.
    """

    family: ClassVar[str] = "compression"
    attack_class: ClassVar[AttackClass] = "in-place"
    data: ClassVar[Data] = "labels"

    iterations: int = 10
    epochs: int = 5
    learning_rate: float = 0.02
    rho: float = 0.3
    growth: float = 1.3

    def __post_init__(self) -> None:
        require_training(self.epochs, self.learning_rate)
        _ = self.schedule

    @property
    def schedule(self) -> Schedule:
        """The iterations."""
        return Schedule(self.iterations, self.rho, self.growth)

    def done(self, phases: Iterable[Phase], trainer: AttackerTrainer) -> None:
        """Go through all phases, and note how far each layer was from its set at the end of the iterations."""
        for phase in phases:
            if phase.course is not None:
                last = phase.course.residuals[-1]
                trainer.note({f"residual.{phase.name}.{name}": value for name, value in last.items()})

    def minimiser(self, trainer: AttackerTrainer, epochs: int, masks: Mapping[str, Tensor] | None = None) -> Minimise:
        """A training of so many epochs; each call starts with a fresh optimiser and from the schedule's beginning."""

        def minimise(model: nn.Module, hooks: Hooks) -> None:
            recipe = trainer.recipe(epochs=epochs, learning_rate=self.learning_rate)
            trainer.fit(model, trainer.labelled, recipe, hooks=hooks, masks=masks)

        return minimise


@dataclass(frozen=True)
class Pruning(Compression):
    """What those share that prune.

    Attributes:
        fractions: pruned fractions of all prunable weights, each in [0, 1); each starts from the protected model.
        scope: where the zeros fall: `global` by one layer-adaptive threshold, `layer` the same fraction of each.
        rates: pruned fraction of each prunable layer, in their order, instead of `fractions`; empty for none.
        retrain_epochs: epochs of training after pruning, with the zeros held; 0 for none.
    """

    strength_unit: ClassVar[str] = "fraction pruned"

    fractions: tuple[float, ...] = (0.9, 0.95, 0.98)
    scope: Scope = "global"
    rates: tuple[float, ...] = ()
    retrain_epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_training(self.retrain_epochs, self.learning_rate, least=0)
        for name, shares in (("fractions", self.fractions), ("rates", self.rates)):
            if not all(0 <= share < 1 for share in shares):
                raise ValueError(f"expected {name} in [0, 1), got {list(shares)}")
        if not (self.fractions or self.rates):
            raise ValueError("expected fractions or rates, got none")

    @property
    def whole(self) -> Kind:
        """What goes as one."""
        return "weight"

    def applies_to(self, task: Task) -> str | None:
        """Needs as many layers as rates are given, and at least one."""
        count = len(prunable(task.skeleton, self.whole, task.shape[0]))
        if self.rates and len(self.rates) != count:
            return f"needs {len(self.rates)} layers to prune, one for each rate; {task.model} has {count}"
        return None if count else f"needs a layer with {self.whole}s that can go"

    def surrogates(self) -> int:
        """One per fraction, or one for the rates."""
        return 1 if self.rates else len(self.fractions)

    def effort(self, task: Task) -> Effort:
        """The iterations and the training afterwards, for each surrogate."""
        epochs = self.iterations * self.epochs + self.retrain_epochs
        return of_training(task, task.sizes.labelled, epochs * self.surrogates())

    def kept(self, model: nn.Module, fraction: float | None, task: Task) -> dict[str, Projection]:
        """The projection of each layer.

        Args:
            model: whose weights say what each layer keeps under scope `global`.
            fraction: of `fractions`; None for the rates.
            task: what the model is for.
        """
        weights = prunable(model, self.whole, task.shape[0])
        groups = grouped(weights, self.whole)
        if fraction is None:
            counts = kept_by_rates(groups, self.rates)
        else:
            counts = kept_by_share(weights, groups, fraction, self.scope)
        return {name: functools.partial(largest, groups=groups[name], count=counts[name]) for name in weights}

    def plans(self, model: nn.Module, task: Task) -> list[tuple[float, dict[str, Projection]]]:
        """Strength and projections of each surrogate; of rates the strength is the share of weights that go."""
        if not self.rates:
            return [(fraction, self.kept(model, fraction, task)) for fraction in self.fractions]
        projections = self.kept(model, None, task)
        weights = {name: model.get_parameter(name).detach() for name in projections}
        zeros = sum(int((projections[name](weight) == 0).sum()) for name, weight in weights.items())
        return [(zeros / sum(weight.numel() for weight in weights.values()), projections)]

    def pruned(
        self, model: nn.Module, projections: Mapping[str, Projection], trainer: AttackerTrainer
    ) -> Iterator[Phase]:
        """Prune in place by ADMM, then train with the zeros held; the phases as they are done."""
        course = admm(model, projections, self.minimiser(trainer, self.epochs), self.schedule)
        yield Phase("prune", self.iterations * self.epochs, course)
        if self.retrain_epochs:
            self.minimiser(trainer, self.retrain_epochs, zeros_of(model, projections))(model, Hooks())
        yield Phase("retrain", self.retrain_epochs)


@dataclass(frozen=True)
class Quantizing(Compression):
    """What those share that quantize: ADMM onto levels that are found once, then snapping.

    Attributes:
        levels: levels on either side of zero of each convolution and linear layer, in their order, instead of as many
            as the bits have room for; empty for none.
        snap_epochs: epochs of training after each round of snapping.
        snapped: share of each level's free weights that a round fixes, in (0, 1].
    """

    levels: tuple[int, ...] = ()
    snap_epochs: int = 1
    snapped: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(count >= 1 for count in self.levels):
            raise ValueError(f"expected levels >= 1, got {list(self.levels)}")
        if self.snap_epochs < 1 or not 0 < self.snapped <= 1:
            raise ValueError(
                f"expected snap_epochs >= 1 and snapped in (0, 1], got {self.snap_epochs} and {self.snapped}"
            )

    def fits(self, task: Task) -> str | None:
        """Why the levels do not fit the task's layers, or None."""
        count = len(models.weights_of(task.skeleton))
        if self.levels and len(self.levels) != count:
            return f"needs {len(self.levels)} layers, one for each number of levels; {task.model} has {count}"
        return None

    def quantizing_epochs(self, task: Task, left: float) -> int:
        """Epochs of both phases at most, where a share of the weights is left to quantize."""
        most = max(weight.numel() for weight in models.weights_of(task.skeleton).values())
        return self.iterations * self.epochs + trainings(math.ceil(left * most), self.snapped) * self.snap_epochs

    def counts(self, model: nn.Module, bits: int | None) -> dict[str, int]:
        """Levels on either side of zero by the parameter's name: 2^(bits - 1), or those given where bits is None."""
        names = [f"{name}.weight" for name in models.weights_of(model)]
        given: Sequence[int] = self.levels if bits is None else [2 ** (bits - 1)] * len(names)
        return dict(zip(names, given, strict=True))

    def quantized(self, model: nn.Module, counts: Mapping[str, int], trainer: AttackerTrainer) -> Iterator[Phase]:
        """Quantize in place by ADMM, then snap; zeros stay. The phases as they are done."""
        grids = {name: Grid.fitted(model.get_parameter(name), count) for name, count in counts.items()}
        masks = zeros_of(model, counts)
        course = admm(model, grids, self.minimiser(trainer, self.epochs, masks), self.schedule)
        yield Phase("quantize", self.iterations * self.epochs, course)
        trained = snap(model, grids, self.minimiser(trainer, self.snap_epochs), self.snapped)
        yield Phase("snap", trained * self.snap_epochs)


@torch.no_grad()
def zeros_of(model: nn.Module, names: Mapping[str, object]) -> dict[str, Tensor]:
    """Masks of the named parameters: 0 where the weight is exactly zero, 1 elsewhere."""
    return {name: (model.get_parameter(name) != 0).to(model.get_parameter(name).dtype) for name in names}
