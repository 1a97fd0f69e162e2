"""A key made up after the fact for a ticket that lacks one (fake_1 of Chen et al. 2021, arXiv 2111.00162, table 7)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from bench.attack import AmbiguityAttack, Forgery
from bench.canonical import reference_of
from bench.defense import Defense
from bench.suspect import Target
from bench.trainer import AttackerTrainer
from defenses.tickets.lottery_ticket import prunable
from defenses.tickets.sparse_mask import masked
from models import joined, parted


@dataclass(frozen=True)
class FakeKey(AmbiguityAttack):
    """Call weights that the published model lacks a withheld key, with random values, as fake_1 does.

    The forger draws the random part of its key as an owner would and then picks the candidates to suit it: those
    of its half from what was pruned, the others from what lives. Nothing is trained and the claim is on the
    protected model itself. What accuracy such a key brings is another matter: see `regrow`.

    Attributes:
        scale: standard deviation of the made-up weights.
    """

    name: ClassVar[str] = "fake-key"
    family: ClassVar[str] = "forging"
    source: ClassVar[str] = "Chen et al. 2021, arXiv 2111.00162, section 4 and table 7"

    scale: float = 0.01

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"expected scale > 0, got {self.scale}")

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose key is the places of pruned weights."""
        if scheme.sparse and scheme.key_kind == "positions":
            return None
        return f"needs a key of pruned weights' places, {scheme.name} has {scheme.key_kind} in a " + (
            "sparse model" if scheme.sparse else "dense model"
        )

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Candidates that fit the drawn half, on the protected model.

        Raises:
            ValueError: too few weights are pruned or left for a key of the scheme's length.
        """
        scheme, model = target.scheme, target.copy()
        chance = trainer.stream.child("candidates").numpy()
        drawn = scheme.draw(trainer.task, trainer.stream.child("key", scheme.name))
        n = len(drawn.tensor("order")) // 2
        weights = prunable(model, scheme.layers)
        alive = joined({name: weight != 0 for name, weight in weights.items()})
        there, lacking = (torch.from_numpy(np.flatnonzero(one)) for one in (alive.numpy(), ~alive.numpy()))
        if min(len(there), len(lacking)) < n:
            raise ValueError(
                f"expected at least {n} pruned weights and {n} living ones, got {len(lacking)} and {len(there)}"
            )
        chosen = scheme.chosen(drawn, n)
        candidates = torch.empty(2 * n, dtype=torch.int64)
        candidates[chosen] = lacking[chance.permutation(len(lacking))[:n]]
        candidates[~chosen] = there[chance.permutation(len(there))[:n]]
        ticket = alive.clone()
        ticket[candidates] = True
        made_up = copy.deepcopy(model)
        values = torch.from_numpy(chance.normal(0.0, self.scale, len(alive)))
        with torch.no_grad():
            for name, part in parted(values, weights).items():
                weight = made_up.get_parameter(name)
                weight.copy_(torch.where(weight == 0, part.to(weight), weight))
        rewound = masked(made_up, parted(ticket, weights))
        facts = scheme.facts(candidates, chosen, ticket, rewound)
        return Forgery(drawn.complete(**facts, **reference_of(model)), model)
