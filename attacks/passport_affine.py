"""Training scales and shifts anew where passports were: what a model without them lacks (Chen et al. 2023, CVPR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from attacks.passports import forging as passport_forging
from attacks.passports.forging import Affine, ForgedBranch
from bench.attack import AmbiguityAttack, Data, Forgery
from bench.defense import Defense
from bench.effort import Effort, of_training
from bench.parameters import require_training
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from models.blocks import sharing

Method = Literal["plain", "individual", "collective"]
# Hidden units for each channel, and channels for each hidden unit of all channels together (both of the source).
HIDDEN, REDUCTION = 10, 8
# Of the leaky ReLU; the source does not say, and this is PyTorch's default.
SLOPE = 0.01
# Of the gradient's norm, as owners of passports clip it: without, training may diverge.
CLIP = 1.0
# A batch normalization of one position cannot be trained on less.
LEAST = 2


@dataclass(frozen=True)
class PassportAffine(AmbiguityAttack):
    """Put plain normalizations where passports were, train their scales and shifts, and forge passports for them.

    All weights are frozen. Scales start at 1 and shifts at 0, as if the published ones were not there: the source's
    attacker has a model without them. What was learnt becomes the private branch by `ForgedBranch.bring`, and the
    signs of its raw scales the signature.

    Attributes:
        method: `plain` trains scales and shifts; `individual` sends each scale through a residual block of its own,
            `collective` all scales of a layer through one (IERB and CERB in the source).
        share: how many labelled inputs, as a share of the owner's training set, in (0, 1]; never more than there are.
        epochs: of training.
        learning_rate: the peak of the task's schedule.
    """

    name: ClassVar[str] = "passport-affine"
    family: ClassVar[str] = "passport-forging"
    source: ClassVar[str] = "Chen et al. 2023, CVPR, sections 3 and 4"
    data: ClassVar[Data] = "labels"

    method: Method = "collective"
    share: float = 0.1
    epochs: int = 200
    learning_rate: float = 0.3

    def __post_init__(self) -> None:
        require_training(self.epochs, self.learning_rate)
        if not 0 < self.share <= 1:
            raise ValueError(f"expected a share in (0, 1], got {self.share}")

    def applies_to(self, task: Task) -> str | None:
        """Needs labelled inputs."""
        if task.sizes.labelled < LEAST:
            return f"needs at least {LEAST} labelled inputs, the attacker has {task.sizes.labelled}"
        return None

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with passports."""
        return passport_forging.against(scheme)

    def effort(self, task: Task) -> Effort:
        """One training."""
        return of_training(task, self._labels(task), self.epochs)

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Train, and forge passports for what was learnt."""
        forged = ForgedBranch(target, trainer.task, trainer.stream)
        learnt = self._learnt(forged, trainer)
        for name, affine in learnt.items():
            forged.bring(name, affine)
        if forged.released is not None:
            self._write(forged)
        bits = forged.signs()
        figures = {**forged.figures(bits), "labels": float(self._labels(trainer.task))}
        return Forgery(forged.key(bits), forged.model, figures)

    def _labels(self, task: Task) -> int:
        return min(max(LEAST, round(self.share * task.sizes.train)), task.sizes.labelled)

    def _learnt(self, forged: ForgedBranch, trainer: AttackerTrainer) -> Mapping[str, Affine]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trainer.stream.child("blocks").seed)
            free = {name: self._free(forged, name).to(trainer.device) for name in forged.form.layers}
        # A layer without a normalization is followed by its passport layer.
        places = {name: forged.plan.norm_of[name] or f"{name}.1" for name in free}
        student = sharing(forged.net.private, {places[name]: module for name, module in free.items()})
        # Where passports are released there is no other branch, and the model's statistics are the forger's to move.
        moved = [] if forged.released is None else [forged.model.get_submodule(place) for place in places.values()]
        for norm in moved:
            norm.train()
        recipe = trainer.recipe(epochs=self.epochs, learning_rate=self.learning_rate, clip_norm=CLIP)
        data = trainer.labelled.take(self._labels(trainer.task))
        trainer.fit(student, data, recipe, trainable=tuple(places.values())).eval()
        for norm in moved:
            norm.eval()
        return {name: module.affine() for name, module in free.items()}

    def _free(self, forged: ForgedBranch, name: str) -> FreeAffine:
        channels = len(forged.published(name).scale)
        blocks: dict[Method, nn.Module | None] = {
            "plain": None,
            "individual": IndividualBlocks(channels),
            "collective": CollectiveBlock(channels),
        }
        return FreeAffine(forged.layer(name).norm, channels, blocks[self.method])

    def _write(self, forged: ForgedBranch) -> None:
        """Publish the scales and shifts that the forged passports come to, as an owner of one branch does."""
        for name in forged.form.layers:
            norm: Any = models.layer(forged.model, str(forged.plan.norm_of[name]))
            with torch.no_grad():
                for parameter, value in zip((norm.weight, norm.bias), forged.layer(name).raw(), strict=True):
                    parameter.copy_(value)


class FreeAffine(nn.Module):
    """A normalization with a scale and a shift that are trained.

    Args:
        norm: without scale and shift of its own; None for no normalization.
        channels: C.
        block: what the scale is sent through, (C,) to (C,); None for nothing.
    """

    def __init__(self, norm: nn.Module | None, channels: int, block: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.block = norm, block
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def scales(self) -> Tensor:
        """What normalized channels are multiplied by, of shape (C,)."""
        return self.scale if self.block is None else self.block(self.scale)

    def affine(self) -> Affine:
        """What was learnt, float64 on the CPU."""
        return Affine(self.scales().detach().cpu().double(), self.shift.detach().cpu().double())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same shape."""
        wide = (1, -1) + (1,) * (x.dim() - 2)
        y = x if self.norm is None else self.norm(x)
        moved: Tensor = y * self.scales().view(wide) + self.shift.view(wide)
        return moved


class CollectiveBlock(nn.Module):
    """`W2 lrelu(W1 s + b1) + b2 + s` over all scales of a layer, with C / 8 hidden units (CERB)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // REDUCTION)
        self.first, self.second = nn.Linear(channels, narrow), nn.Linear(narrow, channels)

    def forward(self, scale: Tensor) -> Tensor:
        """(C,) to (C,)."""
        moved: Tensor = self.second(F.leaky_relu(self.first(scale), SLOPE)) + scale
        return moved


class IndividualBlocks(nn.Module):
    """`w2 lrelu(w1 s + b1) + b2 + s` for each scale by itself, with ten hidden units each (IERB)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        units = [(nn.Linear(1, HIDDEN), nn.Linear(HIDDEN, 1)) for _ in range(channels)]
        self.first = nn.Parameter(torch.stack([one.weight.detach()[:, 0] for one, _ in units]))
        self.first_bias = nn.Parameter(torch.stack([one.bias.detach() for one, _ in units]))
        self.second = nn.Parameter(torch.stack([two.weight.detach()[0] for _, two in units]))
        self.second_bias = nn.Parameter(torch.cat([two.bias.detach() for _, two in units]))

    def forward(self, scale: Tensor) -> Tensor:
        """(C,) to (C,)."""
        hidden = F.leaky_relu(self.first * scale.unsqueeze(1) + self.first_bias, SLOPE)
        moved: Tensor = (hidden * self.second).sum(1) + self.second_bias + scale
        return moved
