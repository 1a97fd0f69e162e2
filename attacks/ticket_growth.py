"""Growing a ticket: pruned weights are switched on, with training or without it (Chen et al. 2021, and beyond)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.tickets.pruned import (
    Masks,
    OnPruned,
    Start,
    live,
    put,
    started,
    weights,
)
from bench.attack import AttackClass, Data
from bench.effort import Effort, of_training
from bench.parameters import require_shares, require_training
from bench.stream import Stream
from bench.suspect import BATCH, Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models import joined, parted


@dataclass(frozen=True)
class AddOn(OnPruned):
    """Switch each pruned weight on by chance, at a random value, without training.

    Places and values are drawn once, so that a larger share adds to a smaller one.

    Attributes:
        shares: the chance of each pruned weight, in (0, 1], rising.
        scale: standard deviation of the new weights, whose mean is 0, in the units of the weights themselves. The
            default is the source's. At 1e-4 the model answers as before, and its mask is another for nothing.
    """

    name: ClassVar[str] = "add-on"
    family: ClassVar[str] = "ticket-growth"
    source: ClassVar[str] = "Chen et al. 2021, arXiv 2111.00162, table 8 (fake_2)"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "share of the pruned weights"

    shares: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    scale: float = 0.1

    def __post_init__(self) -> None:
        require_shares("shares", self.shares, 1.0)
        if not 0 < self.scale < math.inf:
            raise ValueError(f"expected scale > 0, got {self.scale}")

    def effort(self, task: Task) -> Effort:
        """No training."""
        del task
        return Effort()

    def surrogates(self) -> int:
        """One per share."""
        return len(self.shares)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Add to the protected model at each share."""
        protected = target.copy()
        alive = live(protected)
        chances = {name: _uniform(trainer.stream.child("places", name), mask) for name, mask in alive.items()}
        for share in self.shares:
            model = copy.deepcopy(protected)
            chosen = {name: ~mask & (chances[name] < share) for name, mask in alive.items()}
            _switch_on(model, chosen, self.scale, trainer.stream.child("values"))
            yield share, model


@dataclass(frozen=True)
class Regrow(OnPruned):
    """Switch on as many pruned weights as a share of those that live, and train with the larger mask held.

    The attack of one who knows that a part of a ticket is withheld, and puts another in its place.

    Attributes:
        shares: of the number of live weights, above 0, rising; at most all that are pruned.
        criterion: places drawn uniformly, as in the source, or those where the loss on the attacker's labelled inputs
            has the largest gradient, ties by position (Evci et al. 2020, RigL). Larger shares add to smaller ones.
        scale: standard deviation of the new weights; 0 lets them start at zero, as RigL does.
        start: from the published weights, or from the rewound ones that the source's fake_1 trains, where the
            scheme releases such; else from the published ones too.
        epochs: of the training for each share.
        learning_rate: the peak of the task's schedule.
    """

    name: ClassVar[str] = "regrow"
    family: ClassVar[str] = "ticket-growth"
    source: ClassVar[str] = "Chen et al. 2021, arXiv 2111.00162, table 7 (fake_1)"
    data: ClassVar[Data] = "labels"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "share of the live weights"

    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    criterion: Literal["random", "gradient"] = "random"
    scale: float = 0.01
    start: Start = "published"
    epochs: int = 40
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        require_shares("shares", self.shares, math.inf)
        require_training(self.epochs, self.learning_rate)
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"expected scale >= 0, got {self.scale}")

    def effort(self, task: Task) -> Effort:
        """A training per share; the gradient is one more pass."""
        labelled = task.sizes.labelled
        passes = Effort(trained=float(labelled)) if self.criterion == "gradient" else Effort()
        return of_training(task, labelled, self.epochs * len(self.shares)) + passes

    def surrogates(self) -> int:
        """One per share."""
        return len(self.shares)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Grow and train for each share."""
        begun = started(target, trainer, self.start)
        alive = live(begun)
        pruned = (~joined(alive).bool()).nonzero().flatten()
        order = pruned[self._order(begun, alive, len(pruned), trainer)]
        for share in self.shares:
            model = copy.deepcopy(begun)
            count = round(share * int(joined(alive).sum()))
            chosen = parted(_at(order[:count], len(joined(alive))), alive)
            _switch_on(model, chosen, self.scale, trainer.stream.child("values"))
            masks = {name: mask | chosen[name] for name, mask in alive.items()}
            recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
            yield share, trainer.fit(model, trainer.labelled, recipe, masks=masks)

    def _order(self, model: nn.Module, alive: Masks, count: int, trainer: AttackerTrainer) -> Tensor:
        """In which order of their places the pruned weights are switched on."""
        if self.criterion == "random":
            return torch.randperm(count, generator=trainer.stream.child("places").torch())
        slopes = joined(gradients(copy.deepcopy(model), list(alive), trainer)).abs()
        return slopes[~joined(alive).bool()].argsort(descending=True, stable=True)


@dataclass(frozen=True)
class DenseRetrain(OnPruned):
    """Fine-tune with all weights free, then prune the smallest until as many live as before.

    The mask becomes one of the attacker's own training, and the model is as sparse as it was.

    Attributes:
        epochs: of the dense training.
        learning_rate: the peak of the task's schedule.
        every: a surrogate is pruned every so many epochs, and at the end.
        retrain_epochs: of a training of each surrogate with its new mask held; 0 for none.
    """

    name: ClassVar[str] = "dense-retrain"
    family: ClassVar[str] = "ticket-growth"
    data: ClassVar[Data] = "labels"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "epochs"

    epochs: int = 40
    learning_rate: float = 0.05
    every: int = 10
    retrain_epochs: int = 10

    def __post_init__(self) -> None:
        require_training(self.epochs, self.learning_rate)
        if self.every < 1 or self.retrain_epochs < 0:
            raise ValueError(f"expected every >= 1 and retrain_epochs >= 0, got {self.every} and {self.retrain_epochs}")

    def effort(self, task: Task) -> Effort:
        """The dense training, and one for each surrogate."""
        return of_training(task, task.sizes.labelled, self.epochs + self.retrain_epochs * self.surrogates())

    def surrogates(self) -> int:
        """One every so many epochs, and one at the end."""
        return math.ceil(self.epochs / self.every)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Train densely, and yield what pruning leaves along the way."""
        model = target.copy()
        alive = live(model)
        recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
        after = trainer.recipe(epochs=self.retrain_epochs, learning_rate=self.learning_rate)
        for epoch in trainer.training(model, trainer.labelled, recipe, every=self.every):
            surrogate = copy.deepcopy(model)
            masks = pruned_back(weights(surrogate, alive), int(joined(alive).sum()))
            put(surrogate, {name: weight * masks[name] for name, weight in weights(surrogate, alive).items()})
            if self.retrain_epochs:
                trainer.fit(surrogate, trainer.labelled, after, masks=masks)
            yield float(epoch), surrogate


def pruned_back(pool: Mapping[str, Tensor], count: int) -> Masks:
    """Masks of exactly the `count` largest magnitudes of all these weights, ties by position."""
    magnitudes = joined(pool).abs()
    return parted(_at(magnitudes.argsort(descending=True, stable=True)[:count], len(magnitudes)), pool)


def gradients(model: nn.Module, names: list[str], trainer: AttackerTrainer) -> dict[str, Tensor]:
    """The gradient of the mean loss on the attacker's labelled inputs, by parameter name.

    Args:
        model: is put in evaluation mode, so that no batch's statistics enter.
        names: of parameters.
        trainer: has the inputs.
    """
    model.eval()
    labelled = trainer.labelled
    chosen = [model.get_parameter(name).requires_grad_(True) for name in names]
    total = [torch.zeros_like(one) for one in chosen]
    for rows in torch.arange(len(labelled)).split(BATCH):
        x, y = labelled.inputs.batch(rows), labelled.y[rows.to(labelled.y.device)]
        loss = F.cross_entropy(model(x).float(), y, reduction="sum") / len(labelled)
        total = [before + more for before, more in zip(total, torch.autograd.grad(loss, chosen), strict=True)]
    return dict(zip(names, total, strict=True))


def _uniform(stream: Stream, like: Tensor) -> Tensor:
    return torch.from_numpy(stream.numpy().random(tuple(like.shape))).to(like.device)


def _at(places: Tensor, size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[places] = True
    return mask


def _switch_on(model: nn.Module, chosen: Mapping[str, Tensor], scale: float, stream: Stream) -> None:
    """Give the chosen weights normal values, the same at each call."""
    for name, mask in chosen.items():
        drawn = stream.child(name).numpy().standard_normal(tuple(mask.shape), dtype="float32")
        weight = model.get_parameter(name)
        put(model, {name: torch.where(mask, scale * torch.from_numpy(drawn).to(weight), weight.detach())})
