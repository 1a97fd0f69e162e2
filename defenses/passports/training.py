"""How a net with passports is trained: both branches at each step or in turn, and the sign loss (Fan et al. 2019)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bench.hooks import Hooks
from defenses.passports.branches import Branches

Schedule = Literal["together", "alternate"]
# Weight of the squared raw scales in the sign loss; the source's code has it, its paper does not.
DECAY = 1e-5


def sign_loss(raw: Tensor, signature: Tensor, strength: float, margin: float) -> Tensor:
    """`strength * sum relu(margin - b * raw) + 1e-5 * sum raw ** 2` over all channels (Fan et al. 2019, eq. 4).

    Args:
        raw: raw scales of all passport layers, laid end to end, of shape (n,).
        signature: b in {-1, 1}, of shape (n,).
        strength: weight of the hinge.
        margin: in the units of the raw scales.
    """
    return strength * F.relu(margin - signature * raw).sum() + DECAY * raw.square().sum()


class Objective:
    """The loss of a step, for `Hooks.objective`; counts the steps itself.

    Args:
        signature: in {-1, 1}, of shape (n,), on the device.
        strength, margin: of the sign loss.
        share: of the steps that train the private branch, in (0, 1].
        public: whether the public branch is trained: at every step where `together`, else where the private one rests.
        together: whether both are trained at one step.
        smoothing: of labels.
        extra: inputs at the end of each batch whose loss has a weight of its own.
        weight: of that loss.
    """

    def __init__(
        self,
        signature: Tensor,
        strength: float,
        margin: float,
        *,
        schedule: Schedule = "together",
        ratio: float = 1.0,
        public: bool = True,
        smoothing: float = 0.0,
        extra: int = 0,
        weight: float = 1.0,
    ) -> None:
        self._signature, self._strength, self._margin = signature, strength, margin
        self._schedule, self._ratio, self._public = schedule, ratio, public
        self._smoothing, self._extra, self._weight = smoothing, extra, weight
        self._step = 0

    def hooks(self) -> Hooks:
        """For the training."""
        return Hooks(objective=self, after_step=self._count)

    def turns(self, step: int) -> tuple[bool, bool]:
        """Whether a step, from 0 on, trains the public and the private branch."""
        if self._schedule == "together" or not self._public:
            return self._public, True
        private = int((step + 1) * self._ratio) > int(step * self._ratio)
        return not private, private

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The loss on a batch."""
        assert isinstance(net, Branches)
        public, private = self.turns(self._step)
        loss = x.new_zeros(())
        if public:
            loss = loss + self._fit(net.public(x), y)
        if private:
            loss = loss + self._fit(net.private(x), y)
            loss = loss + sign_loss(net.raw_scales(), self._signature, self._strength, self._margin)
        return loss

    def _fit(self, logits: Tensor, y: Tensor) -> Tensor:
        count = len(y) - self._extra
        loss = F.cross_entropy(logits[:count].float(), y[:count], label_smoothing=self._smoothing)
        if self._extra:
            loss = loss + self._weight * F.cross_entropy(logits[count:].float(), y[count:])
        return loss

    def _count(self, net: nn.Module, step: int) -> None:
        del net
        self._step = step + 1
