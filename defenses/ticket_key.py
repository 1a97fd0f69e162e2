"""A lottery ticket that lacks what its owner keeps: the key mask (Chen et al. 2021, arXiv 2111.00162, scheme 1)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

import models
from bench.bundle import Bundle
from bench.canonical import readings, reference_of
from bench.defense import KeyKind, Protected
from bench.evidence import Evidence
from bench.key import Key
from bench.parameters import judged
from bench.statistics import hypergeometric_tail
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.tickets.kernel_scores import Score, ranked
from defenses.tickets.lottery_ticket import Masks, heldout_accuracy, prunable
from defenses.tickets.sparse_mask import SparseMask, masked
from models import joined, parted
from models.kernels import kernels

REWOUND = "rewound."


@dataclass(frozen=True)
class TicketKey(SparseMask):
    """Weights of the ticket that the owner withholds, mask and values: published is the locked ticket, without them.

    The score gives 2n candidates of the ticket, and the owner's random order the half of them that is the key. A
    suspect lacks more of the key than of the other half, as the locked ticket does, by hypergeometric chance alone
    unless it comes from it. In an unlocked copy all candidates live, and there is no evidence.

    Attributes:
        score: by which the ticket's weights are ranked; see `kernel_scores`.
        share: of the ticket that is the key, in (0, 0.5].
        flavour: `half` as above; `top` takes the n best by score as the source does. Nothing in that key is
            uniform, so that its evidence is a rank among random sets of n weights of the ticket.
        publish: `locked`, or `unlocked` for the whole ticket, as a user who holds the key has it.
        pivots: sources from which betweenness is counted; 0 for all.
        decoys: random sets that the flavour `top` is ranked among.
        retrain: verify by training as well, as the source does: the suspect's mask with the key and without it,
            from the rewound weights. The held-out accuracies are figures, no evidence.
    """

    name: ClassVar[str] = "ticket-key"
    source: ClassVar[str] = "Chen et al. 2021, arXiv 2111.00162, section 3 and algorithm 1"
    key_kind: ClassVar[KeyKind] = "positions"
    uniform: ClassVar[tuple[str, ...]] = ("order",)
    parts: ClassVar[tuple[str, ...]] = ("withheld",)

    score: Score = "ewp-max"
    share: float = 0.05
    flavour: Literal["half", "top"] = "half"
    publish: Literal["locked", "unlocked"] = "locked"
    pivots: int = 0
    decoys: int = judged(9999)
    retrain: bool = judged(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 0.5 or self.pivots < 0 or self.decoys < 1:
            raise ValueError(
                "expected a share in (0, 0.5], pivots >= 0 and decoys >= 1, "
                f"got {self.share}, {self.pivots} and {self.decoys}"
            )

    def applies_to(self, task: Task) -> str | None:
        """Also needs a ticket with weights enough for a key, and layers whose kernels can be followed."""
        if reason := super().applies_to(task):
            return reason
        if self.length(self.size(task)) < 1:
            return f"a share of {self.share} of {self.size(task)} weights is none"
        try:
            kernels(task.skeleton, [name.removesuffix(".weight") for name in prunable(task.skeleton, self.layers)])
        except ValueError as error:
            return f"the kernels of {task.model} cannot be scored: {error}"
        return None

    def length(self, size: int) -> int:
        """The key's length n, for a ticket of so many weights."""
        return min(round(self.share * size), size // 2)

    def capacity(self, task: Task) -> float:
        """All of the key lacking and nothing else, or better than all decoys; one reading more costs a factor of 2."""
        readings_taken = math.log10(2) if self.canonical else 0.0
        if self.flavour == "top":
            return min(0.0, readings_taken - math.log10(1 + self.decoys))
        n = self.length(self.size(task))
        return min(0.0, hypergeometric_tail(n, 2 * n, n, n) + readings_taken)

    def draw(self, task: Task, stream: Stream) -> Key:
        """An order of all candidates that there may be, int32; the seed of the decoys."""
        order = stream.child("order").numpy().permutation(2 * self.length(self.size(task)))
        return Key({"order": torch.from_numpy(order.astype(np.int32)), "decoys": stream.child("decoys").seed})

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Rank the ticket, take the key out, train what is left from the rewound weights."""
        ticket = self.ticket(trainer)
        size = sum(int(mask.sum()) for mask in ticket.masks.values())
        n = self.length(size)
        ranking = ranked(
            self.score, ticket.rewound, ticket.masks, 2 * n, trainer.stream.child("ranking"), pivots=self.pivots
        )
        chosen = self.chosen(key, n)
        lacking = torch.ones(self.weights(trainer.task), dtype=torch.bool)
        lacking[ranking.positions[chosen]] = False
        locked = {name: ticket.masks[name] & one for name, one in parted(lacking, ticket.masks).items()}
        published = locked if self.publish == "locked" else ticket.masks
        model = trainer.fit(masked(copy.deepcopy(ticket.rewound), published), trainer.train, masks=published)
        facts = self.facts(ranking.positions, chosen, joined(ticket.masks), ticket.rewound)
        told = {f"score_{name}": float(value) for name, value in ranking.figures.items()}
        release = Bundle(models={"rewind": masked(copy.deepcopy(ticket.rewound), locked)})
        return Protected(model, key.complete(**facts, **told, **reference_of(model)), release)

    def chosen(self, key: Key, n: int) -> Tensor:
        """Which of the 2n candidates are the key, bool (2n,): the order's half, or the first with the flavour `top`."""
        if self.flavour == "top":
            return torch.arange(2 * n) < n
        # Of a search's ticket there are fewer candidates than there may be; their order among themselves counts.
        order = key.tensor("order")[: 2 * n]
        return order.argsort().argsort() < n

    def facts(
        self, candidates: Tensor, chosen: Tensor, ticket: Tensor, rewound: nn.Module
    ) -> Mapping[str, Tensor | int]:
        """What completes a key.

        Args:
            candidates: flat places in the prunable layers, int64 (2n,).
            chosen: which of them are the key, bool (2n,).
            ticket: the whole mask, flat.
            rewound: the weights that trainings of the ticket start from.
        """
        values = joined({name: weight.double() for name, weight in prunable(rewound, self.layers).items()})
        held = candidates[chosen]
        state = {f"{REWOUND}{name}": value.detach().cpu().clone() for name, value in rewound.state_dict().items()}
        return {
            "candidates": candidates,
            "withheld": torch.stack([held.double(), values[held]]),
            "ticket": ticket,
            "size": int(ticket.sum()),
            **state,
        }

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Candidates that live in the suspect outside the key and in it: hypergeometric, since the half is uniform."""
        read = functools.partial(self._read, key=key, trainer=trainer)
        return readings(suspect, key, read, self._counted(key, trainer.task), canonical=self.canonical)

    def _read(self, module: nn.Module, key: Key, trainer: OwnerTrainer) -> Evidence:
        candidates, ticket = key.tensor("candidates"), key.tensor("ticket")
        masks = self.read(module, trainer.task, int(ticket.sum()))
        alive, n = joined(masks), len(candidates) // 2
        live = alive[candidates]
        chosen = self.chosen(key, n)
        figures = {
            "candidates_live": float(live.double().mean()),
            "key_live": float(live[chosen].double().mean()),
            "ticket_overlap": float(alive[ticket].double().mean()),
            **{n: v for n, v in key.facts.items() if n.startswith("score_") and isinstance(v, float)},
        }
        if self.retrain:
            figures |= self._retrained(masks, key, trainer)
        if self.flavour == "top":
            return self._among_decoys(int(live[chosen].sum()), n, alive[ticket], key, figures)
        left = int(live[~chosen].sum())
        return Evidence(left, hypergeometric_tail(left, 2 * n, n, int(live.sum())), figures)

    def _among_decoys(self, live: int, n: int, ticket: Tensor, key: Key, figures: dict[str, float]) -> Evidence:
        """How many random sets of n weights of the ticket have as few living ones; the key is not one of them."""
        chance = np.random.default_rng(int(key.drawn["decoys"]))  # type: ignore[arg-type]
        there = int(ticket.sum())
        drawn = chance.hypergeometric(there, len(ticket) - there, n, self.decoys)
        log10_p = math.log10((1 + int((drawn <= live).sum())) / (1 + self.decoys))
        return Evidence(n - live, log10_p, {**figures, "log10_p_floor": -math.log10(1 + self.decoys)})

    def _retrained(self, masks: Masks, key: Key, trainer: OwnerTrainer) -> dict[str, float]:
        state = {name.removeprefix(REWOUND): v for name, v in key.facts.items() if name.startswith(REWOUND)}
        rewound = models.holding(trainer.new_model(), state).to(trainer.device)  # type: ignore[arg-type]
        unlocked = joined(masks)
        unlocked[key.tensor("withheld")[0].long()] = True
        accuracies = {}
        for name, one in {"without_key": masks, "with_key": parted(unlocked, masks)}.items():
            held = {layer: mask.to(trainer.device) for layer, mask in one.items()}
            model = trainer.fit(masked(copy.deepcopy(rewound), held), trainer.train, masks=held)
            accuracies[f"retrained_{name}"] = heldout_accuracy(model, trainer)
        return accuracies

    def _counted(self, key: Key, task: Task) -> Masks:
        shapes = prunable(task.skeleton, self.layers)
        counted = torch.zeros(sum(weight.numel() for weight in shapes.values()), dtype=torch.bool)
        counted[key.tensor("candidates")] = True
        sizes = [weight.numel() for weight in shapes.values()]
        return {
            name: part.view(weight.shape)
            for (name, weight), part in zip(shapes.items(), counted.split(sizes), strict=True)
        }
