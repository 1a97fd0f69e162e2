"""A model under examination, and the protected model as an attacker meets it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bench.bundle import Bundle
from bench.errors import AccessError, Unreadable, is_ours
from bench.plugin import Access
from bench.split import Inputs

Answer = Literal["labels", "probabilities", "logits"]
# From the least telling to the most.
ANSWERS: tuple[Answer, ...] = get_args(Answer)
BATCH = 1024


def predict(module: nn.Module, x: Tensor | Inputs, batch: int = BATCH) -> Tensor:
    """The module's outputs in evaluation mode, batch by batch.

    Args:
        module: left in the modes in which its parts were.
        x: inputs, first dimension N; on the module's device, or on the host and moved there batch by batch.
        batch: inputs per forward pass.

    Returns:
        Outputs of shape (N, …).
    """
    training = [part for part in module.modules() if part.training]
    inputs = Inputs(x) if isinstance(x, Tensor) else x
    place = next((parameter.device for parameter in module.parameters()), inputs.place)
    module.eval()
    try:
        with torch.inference_mode():
            parts = [module(inputs.batch(chosen).to(place)) for chosen in torch.arange(len(inputs)).split(batch)]
    finally:
        # Each part by itself: training may have frozen some of them.
        for part in training:
            part.training = True
    # Out of inference mode again, so that the caller may use the answers as training targets.
    return torch.cat(parts).clone()


def reduced(logits: Tensor, kind: Answer) -> Tensor:
    """What an answer of a kind tells: logits of shape (N, K) as they are, or less.

    Returns:
        int64 labels of shape (N,), the first of equal logits; or float probabilities or logits of shape (N, K).
    """
    if kind == "labels":
        return logits.argmax(1)
    return logits.softmax(1) if kind == "probabilities" else logits


class Suspect:
    """A model that can be queried and, by white-box readers only, opened.

    Args:
        answer: gives logits for a batch of inputs; a callable, so that answers can be changed at query time.
        module: the model itself, where there is one.
        access: what the reader declared; `module` raises AccessError below `white-box`.
    """

    def __init__(
        self, answer: Callable[[Tensor], Tensor], module: nn.Module | None = None, access: Access = "white-box"
    ) -> None:
        self._answer = answer
        self._module = module
        self._access = access
        self.queries = 0

    @classmethod
    def of(cls, module: nn.Module, access: Access = "white-box") -> Suspect:
        """A suspect that answers as the module does."""
        return cls(lambda x: predict(module, x), module, access)

    def answers(self, x: Tensor, kind: Answer = "labels") -> Tensor:
        """Answers to the inputs; each input counts as one query.

        Returns:
            int64 labels of shape (N,), or float probabilities or logits of shape (N, K).

        Raises:
            AccessError: the reader declared no access at all.
            Unreadable: the suspect does not take such inputs.
        """
        if self._access == "none":
            raise AccessError("queried a model with declared access 'none'")
        self.queries += len(x)
        try:
            logits = self._answer(x)
        except RuntimeError as error:
            # Errors of the machine are ours; those of shapes are the suspect's.
            if is_ours(str(error)):
                raise
            raise Unreadable(f"the suspect does not take these inputs: {error}") from error
        return reduced(logits, kind)

    @property
    def module(self) -> nn.Module:
        """The model itself.

        Raises:
            AccessError: the reader declared black-box access.
            Unreadable: the suspect can only be queried.
        """
        if self._access != "white-box":
            raise AccessError(f"opened a model with declared access {self._access!r}")
        if self._module is None:
            raise Unreadable("this suspect can only be queried")
        return self._module


class Target(Suspect):
    """The protected model as a removal or ambiguity attack gets it.

    Args:
        module: the model; None for attacks that declare access `none`.
        access: what the attack declared.
        release, scheme, part: as below.
        most: the most telling answers that the attack declared.

    Attributes:
        release: what an honest user gets besides the model.
        scheme: the defense as an algorithm with its parameters, for attacks that declare to know it.
        part: the one part of the key that an insider attack declared; None for everyone else.
    """

    def __init__(
        self,
        module: nn.Module | None,
        access: Access,
        release: Bundle | None = None,
        scheme: Any = None,
        part: Tensor | None = None,
        most: Answer = "logits",
    ) -> None:
        super().__init__(self._predict, module, access)
        self._most = most
        self.release = release if release is not None else Bundle()
        self.scheme = scheme
        self.part = part

    def answers(self, x: Tensor, kind: Answer = "labels") -> Tensor:
        """As of any suspect; AccessError also for answers that tell more than the attack declared."""
        if ANSWERS.index(kind) > ANSWERS.index(self._most):
            raise AccessError(f"asked for {kind} with declared answers {self._most!r}")
        return super().answers(x, kind)

    def copy(self) -> nn.Module:
        """A copy of the model that the attacker may change; AccessError below white-box."""
        return copy.deepcopy(self.module)

    def _predict(self, x: Tensor) -> Tensor:
        if self._module is None:
            raise AccessError("this attack declared that it does not use the protected model")
        return predict(self._module, x)
