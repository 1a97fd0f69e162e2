"""A sparse scheme for tests: a lottery ticket of one round with a withheld key and a code in one window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.bundle import Bundle
from bench.defense import Defense, Protected
from bench.errors import Unreadable
from bench.evidence import Evidence
from bench.key import Key
from bench.statistics import binomial_tail
from defenses.tickets.lottery_ticket import prunable, prune


@dataclass(frozen=True)
class ToyTicket(Defense):
    """Prunes a briefly trained net, writes bits into a window of kernels, and withholds some of the ticket.

    Evidence is the agreement of the bits with the kernels that live.
    """

    name: ClassVar[str] = "toy-ticket"
    family: ClassVar[str] = "test"
    uniform: ClassVar[tuple[str, ...]] = ("bits",)
    parts: ClassVar[tuple[str, ...]] = ("withheld", "window")
    key_kind = "pattern"
    sparse: ClassVar[bool] = True

    density: float = 0.25
    share: float = 0.1
    size: int = 12
    layer: int = 3
    layers: tuple[str, ...] = ()

    def draw(self, task, stream):
        return Key({"bits": stream.child("bits").bits(self.size**2).view(self.size, self.size)})

    def protect(self, trainer, key):
        model = trainer.fit(trainer.new_model(), trainer.train, trainer.recipe(epochs=1))
        weights = prunable(model, self.layers)
        masks = prune(
            weights, {name: torch.ones_like(one, dtype=torch.bool) for name, one in weights.items()}, 1 - self.density
        )
        row, column = 5, 7
        chosen = list(masks)[self.layer]
        mask = masks[chosen][row : row + self.size, column : column + self.size]
        bits = key.tensor("bits").bool()
        mask &= bits[:, :, None, None]
        mask[:, :, 1, 1] = bits
        whole = torch.cat([one.flatten() for one in masks.values()])
        # A part of the ticket outside the window.
        outside = {name: one.clone() for name, one in masks.items()}
        outside[chosen][row : row + self.size, column : column + self.size] = False
        places = torch.cat([one.flatten() for one in outside.values()]).nonzero().flatten()
        count = round(self.share * int(whole.sum()))
        places = places[torch.randperm(len(places), generator=trainer.stream.child("key").torch())[:count]]
        rewound = torch.cat([weights[name].flatten() for name in masks])
        withheld = torch.stack([places.double(), rewound[places].double()])
        whole[places] = False
        locked = dict(zip(masks, whole.split([one.numel() for one in masks.values()]), strict=True))
        locked = {name: one.view_as(masks[name]) for name, one in locked.items()}
        with torch.no_grad():
            for name, one in locked.items():
                model.get_parameter(name).mul_(one)
        published = trainer.new_model()
        published.load_state_dict(model.state_dict())
        trainer.fit(published, trainer.train, trainer.recipe(epochs=1), masks=locked)
        facts = {"withheld": withheld, "window": torch.tensor([self.layer, row, column, self.size])}
        return Protected(published, key.complete(**facts), Bundle(models={"rewind": model.eval()}))

    def pattern(self, key):
        return key.tensor("bits")

    def claimed(self, key, model, window, task):
        return key.complete(window=window, withheld=torch.zeros(2, 0, dtype=torch.float64))

    def verify(self, suspect, key, trainer):
        layer, row, column, size = key.tensor("window").tolist()
        weights = prunable(suspect.module, self.layers)
        if layer >= len(weights):
            raise Unreadable("too few layers")
        weight = list(weights.values())[layer]
        if weight.dim() != 4 or row + size > weight.shape[0] or column + size > weight.shape[1]:
            raise Unreadable("too few kernels")
        alive = weight[row : row + size, column : column + size].ne(0).flatten(2).any(2)
        right = int((alive.cpu() == key.tensor("bits").bool()).sum())
        return Evidence(right, binomial_tail(right, size**2, 0.5))
