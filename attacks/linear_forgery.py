"""Projections that read a message chosen beforehand in any model: rows turned over, and rows shifted least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from attacks.forging.offers import Projects, Rows, refusal
from bench.attack import AmbiguityAttack, Forgery
from bench.defense import Defense
from bench.effort import Effort
from bench.key import Key
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer


@dataclass(frozen=True)
class _LinearForgery(AmbiguityAttack):
    """What those share that keep the drawn message and make the projection suit it, on the protected model itself."""

    family: ClassVar[str] = "linear-forging"
    rows: ClassVar[tuple[Rows, ...]] = ("any",)

    def against(self, scheme: Defense) -> str | None:
        """Needs a linear mark whose rows may be what it makes of them."""
        if reason := refusal(scheme, Projects, "a message in the signs of a projection"):
            return reason
        assert isinstance(scheme, Projects)
        if scheme.rows in self.rows:
            return None
        return f"the rows of {scheme.label} are of a form that {self.name} would break ({scheme.rows})"

    def effort(self, task: Task) -> Effort:
        """A product of a matrix and a vector."""
        del task
        return Effort()

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """The key, and what of its projection a judge could see.

        Figures: `margin`, the mean of |X w| over the norm of w; `bit_error` as the forger reads it; `row_norm_z`, by
        how many standard errors the mean square of a row lies above M; `log10_p_normal`, of a Kolmogorov-Smirnov test
        of all entries against N(0, 1). The last two are told where entries are drawn from it.
        """
        scheme, task, model = target.scheme, trainer.task, target.copy()
        drawn = scheme.completed(scheme.draw(task, trainer.stream.child("key", scheme.name)), model, task)
        vector = scheme.carried(drawn, model)
        made = self._made(drawn.tensor("projection"), drawn.tensor("message"), vector)
        key = drawn.redraw(Key({"projection": made}), ("projection",))
        return Forgery(key, model, _told(made, drawn.tensor("message"), vector, normal=scheme.rows == "any"))

    def _made(self, projection: Tensor, message: Tensor, vector: Tensor) -> Tensor:
        """The forged projection, float32 of the drawn one's shape (T, M)."""
        raise NotImplementedError


@dataclass(frozen=True)
class RowSignFlip(_LinearForgery):
    """Turn over each drawn row of the projection that does not say its bit; nothing tells the result from a draw."""

    name: ClassVar[str] = "row-sign-flip"
    rows: ClassVar[tuple[Rows, ...]] = ("any", "either-sign")

    def _made(self, projection: Tensor, message: Tensor, vector: Tensor) -> Tensor:
        right = (projection @ vector >= 0).long() == message
        return torch.where(right[:, None], projection, -projection)


@dataclass(frozen=True)
class LeastNorm(_LinearForgery):
    """Shift each drawn row of the projection by the least that gives its bit with a wanted margin.

    X = G + (y - G w) w^T / |w|^2 with y = (2 b - 1) margin |w|, for verifiers who ask for large projections.

    Attributes:
        margin: |X w| over the norm of w, for each row; above 0. Honest rows have a standard normal one.
    """

    name: ClassVar[str] = "least-norm"

    margin: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise ValueError(f"expected margin > 0, got {self.margin}")

    def _made(self, projection: Tensor, message: Tensor, vector: Tensor) -> Tensor:
        x, w = projection.double(), vector.double()
        if not float(w.norm()) > 0:
            raise ValueError("expected a model whose vector is not zero: no projection of zero has a margin")
        wanted = (2.0 * message.double() - 1.0) * self.margin * w.norm()
        return (x + torch.outer(wanted - x @ w, w) / w.square().sum()).float()


def _told(projection: Tensor, message: Tensor, vector: Tensor, *, normal: bool) -> dict[str, float]:
    x, w = projection.double(), vector.double()
    read, (rows, length) = x @ w, projection.shape
    found = {
        "margin": float(read.abs().mean() / w.norm()) if bool(w.any()) else 0.0,
        "bit_error": float(((read >= 0).long() != message).double().mean()),
    }
    if normal:
        p = float(stats.kstest(x.flatten().numpy(), "norm").pvalue)
        found["row_norm_z"] = float((x.square().sum(1).mean() - length) / math.sqrt(2.0 * length / rows))
        found["log10_p_normal"] = math.log10(max(p, np.finfo(float).tiny))
    return found
