"""Transfer: the protected model is trained for another task (Chen et al. 2021, table 4)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import models
from attacks.tickets.pruned import Start, live, started
from bench.attack import AttackClass, Data, RemovalAttack
from bench.effort import Effort, of_training
from bench.parameters import require_training
from bench.split import Split
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer

HEAD = "head"


@dataclass(frozen=True)
class Transfer(RemovalAttack):
    """Train on the attacker's inputs with labels of the dataset's second task, zeros held.

    Classifier and first convolution are initialised anew, as in the source, which takes a locked ticket of CIFAR-10
    with its rewound weights to CIFAR-100. The classifier keeps its outputs; the second task uses the first of them.
    Weights that are exactly zero stay so: of a sparse model this trains the ticket.

    Attributes:
        start: from the rewound weights where the scheme releases such, else from the published ones; or from these
            in any case.
        first: whether the first layer is initialised anew, too.
        epochs: how long; many, since the labelled inputs are few.
        learning_rate: the peak of the task's schedule.
        every: a surrogate is taken every so many epochs, and at the end.
    """

    name: ClassVar[str] = "transfer"
    family: ClassVar[str] = "transfer"
    source: ClassVar[str] = "Chen et al. 2021, arXiv 2111.00162, table 4"
    data: ClassVar[Data] = "labels"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "epochs"
    changes_task: ClassVar[bool] = True

    start: Start = "rewound"
    first: bool = True
    epochs: int = 100
    learning_rate: float = 0.05
    every: int = 50

    def __post_init__(self) -> None:
        require_training(self.epochs, self.learning_rate)
        if self.every < 1:
            raise ValueError(f"expected every >= 1, got {self.every}")

    def applies_to(self, task: Task) -> str | None:
        """Needs a second task."""
        return None if task.info.second else f"{task.info.name} has no second task"

    def effort(self, task: Task) -> Effort:
        """One training on the labelled inputs."""
        return of_training(task, task.sizes.labelled, self.epochs)

    def surrogates(self) -> int:
        """One every so many epochs, and one at the end."""
        return math.ceil(self.epochs / self.every)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Train for the second task, and yield the model along the way."""
        model = started(target, trainer, self.start)
        masks = live(model)
        first = next(iter(models.weights_of(model)))
        for name in (HEAD, first) if self.first else (HEAD,):
            _renew(models.layer(model, name), trainer.stream.child("renewed", name).seed)
        labelled = trainer.labelled
        second = torch.tensor(trainer.task.info.second, device=labelled.y.device)
        recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate)
        data = Split(labelled.inputs, second[labelled.y])
        for epoch in trainer.training(model, data, recipe, masks=masks, every=self.every):
            yield float(epoch), model


def _renew(layer: Any, seed: int) -> None:
    """Initialise a convolution or a linear layer as PyTorch does, on the CPU whatever the device."""
    fresh = copy.deepcopy(layer).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.reset_parameters()
    layer.load_state_dict(fresh.state_dict())
