"""What schemes share whose mark is in the mask of a lottery ticket: the ticket, its training, how a mask is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import models
from bench.defense import Defense
from bench.effort import Effort, of_training
from bench.errors import Unreadable
from bench.parameters import judged
from bench.plugin import Access
from bench.stage import Stage
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.tickets.lottery_ticket import (
    Masks,
    PruningRound,
    RewindPoint,
    TicketSearch,
    masks_of,
    prunable,
    remaining,
)


class Ticket(NamedTuple):
    """A ticket before it is trained.

    Attributes:
        masks: bool by parameter name, on the trainer's device.
        rewound: a model of its own with the weights and statistics that each training starts from, not masked.
    """

    masks: Masks
    rewound: nn.Module


@dataclass(frozen=True)
class SparseMask(Defense):
    """What schemes share that mark the mask of a lottery ticket.

    Attributes:
        rates: shares of the weights left that a round of pruning drops.
        rounds: number of rounds at each rate, in this order.
        search: 0 for the rounds as given; else at most so many steps down the rates to the extreme ticket.
        tolerance: accuracy on the held-out inputs that the extreme ticket may lack, in [0, 1).
        rewind_epoch: of the clean model's training, whose weights each training of a ticket starts from.
        round_epochs: of the training between two rounds; 0 for the recipe's.
        layers: names of convolutions and linear layers to prune; empty for all but the first and the classifier.
        canonical: verify a second time with the order, scale and sign of the suspect's channels undone by the
            published model's. The weights that the key counts are left out of comparing channels.
    """

    family: ClassVar[str] = "sparse-mask"
    access: ClassVar[Access] = "white-box"
    sparse: ClassVar[bool] = True

    rates: tuple[float, ...] = (0.2,)
    rounds: tuple[int, ...] = (8,)
    search: int = 0
    tolerance: float = 0.01
    rewind_epoch: int = 1
    round_epochs: int = 0
    layers: tuple[str, ...] = ()
    canonical: bool = judged(False)

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.rounds) or not self.rates or not all(0 < rate < 1 for rate in self.rates):
            raise ValueError(f"expected rates in (0, 1) and as many rounds, got {self.rates} and {self.rounds}")
        if min(self.rounds) < 0 or min(self.search, self.rewind_epoch, self.round_epochs) < 0:
            raise ValueError(
                "expected rounds, search, rewind_epoch and round_epochs >= 0, "
                f"got {self.rounds}, {self.search}, {self.rewind_epoch} and {self.round_epochs}"
            )
        if not (self.search or sum(self.rounds)):
            raise ValueError("expected at least one round, or a search, got neither")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"expected a tolerance in [0, 1), got {self.tolerance}")

    def applies_to(self, task: Task) -> str | None:
        """Needs the named layers, and a training as long as what is rewound to."""
        try:
            prunable(task.skeleton, self.layers)
        except KeyError as error:
            return str(error.args[0])
        if self.rewind_epoch > task.recipe.epochs:
            return f"rewinds to epoch {self.rewind_epoch} of a training of {task.recipe.epochs}"
        return None

    def stages(self) -> tuple[Stage, ...]:
        """The rewind point and the last round of pruning."""
        return (RewindPoint(self.rewind_epoch), self.pruning())

    def pruning(self) -> Stage:
        """The stage that gives the mask."""
        shared = {"rewind_epoch": self.rewind_epoch, "round_epochs": self.round_epochs, "layers": self.layers}
        if self.search:
            return TicketSearch(self.rates, step=self.search, tolerance=self.tolerance, **shared)  # type: ignore[arg-type]
        return PruningRound(self.rates, rounds=self.rounds, **shared)  # type: ignore[arg-type]

    def effort(self, task: Task) -> Effort:
        """The ticket's own training; the rounds are stages."""
        return of_training(task, task.sizes.train, task.recipe.epochs)

    def weights(self, task: Task) -> int:
        """How many weights may be pruned."""
        return sum(weight.numel() for weight in prunable(task.skeleton, self.layers).values())

    def size(self, task: Task) -> int:
        """How many of them the ticket has, at most where it is searched for."""
        return self.weights(task) if self.search else remaining(self.weights(task), self.rates, self.rounds)

    def ticket(self, trainer: OwnerTrainer) -> Ticket:
        """The ticket that the stages give."""
        rewound = trainer.stage(RewindPoint(self.rewind_epoch)).models["model"]
        masks = masks_of(trainer.stage(self.pruning()), trainer.device)
        return Ticket(masks, copy.deepcopy(rewound).to(trainer.device))

    def read(self, module: nn.Module, task: Task, size: int) -> Masks:
        """Which weights of a suspect live: not zero, and among the `size` largest of the prunable layers.

        Weights that equal the first one too many are none of them, so that a constant net has no mask. Each is
        compared with all, so the mask of a suspect is the same whoever asks.

        Args:
            module: the suspect.
            task: whose architecture it should have.
            size: of the ticket, so that added weights are left out where they are the smallest.

        Raises:
            Unreadable: it has other layers.
        """
        expected = prunable(task.skeleton, self.layers)
        weights: dict[str, Tensor] = {}
        for name, whole in expected.items():
            layer = name.removesuffix(".weight")
            try:
                weight = models.weights_of(module, (layer,))[layer].detach()
            except KeyError as error:
                raise Unreadable(str(error.args[0])) from error
            if weight.shape != whole.shape:
                raise Unreadable(
                    f"expected weights of shape {tuple(whole.shape)} in {layer!r}, got {tuple(weight.shape)}"
                )
            weights[name] = weight.abs().float().nan_to_num(0.0)
        flat = torch.cat([weight.flatten() for weight in weights.values()])
        least = flat.kthvalue(len(flat) - size).values if size < len(flat) else flat.new_zeros(())
        return {name: (weight > least).cpu() for name, weight in weights.items()}


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """The model itself, with zeros where the masks are False."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model
