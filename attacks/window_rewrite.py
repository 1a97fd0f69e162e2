"""Writing another code where the owner's stands, by one who knows the window (Chen et al. 2021, fake_3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attacks.tickets.pruned import live, put
from bench.attack import Attack, AttackClass, Data, Forgery, InsiderAttack, InsiderForgery
from bench.defense import Defense
from bench.effort import Effort, of_training
from bench.key import Key
from bench.parameters import require_training
from bench.stream import Stream
from bench.suspect import Target
from bench.task import Task
from bench.trainer import AttackerTrainer
from defenses.tickets.lottery_ticket import prunable

WINDOW = "window"
# Of the weights in the source's forgery.
SOURCE_SCALE = 0.1


@runtime_checkable
class WritesWindows(Protocol):
    """What a scheme offers whose code an attacker can write."""

    def pattern(self, key: Key) -> Tensor:
        """The code of a drawn key: for each kernel of the window 1 if it lives, 0 if it is all zero, -1 for neither."""

    def claimed(self, key: Key, model: nn.Module, window: Tensor, task: Task) -> Key:
        """A drawn key completed with all facts for a model in whose window its code stands."""


class Window(NamedTuple):
    """Which kernels carry the code.

    Attributes:
        name: of the parameter.
        row, column: of the first kernel; output channels are rows, input channels columns.
        size: kernels each way.
    """

    name: str
    row: int
    column: int
    size: int

    def kernels(self, weight: Tensor) -> Tensor:
        """A view of the window's kernels, shape (size, size, height, width)."""
        return weight[self.row : self.row + self.size, self.column : self.column + self.size]


@dataclass(frozen=True)
class _Rewriting(Attack):
    """What those share that write a code into a window.

    Attributes:
        careful: False as in the source: weights are switched on until as many live as before, where there is room
            among the living kernels, and all that live in the window are drawn anew from N(0, 0.1^2). True: kernels
            that should not live are switched off, those that should are given one weight each, of the median
            magnitude of the layer's live weights; whatever else lives stays as it is.
        retrain_epochs: epochs of training with the new mask held, on the attacker's labels; 0, as in the source, for
            none.
        learning_rate: of that training.
    """

    family: ClassVar[str] = "window-rewrite"
    source: ClassVar[str] = "Chen et al. 2021, arXiv 2111.00162, table 7 (fake_3)"
    part: ClassVar[str] = WINDOW

    careful: bool = True
    retrain_epochs: int = 0
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        require_training(self.retrain_epochs, self.learning_rate, least=0)

    def data_used(self) -> Data:
        """Labels, where it retrains."""
        return "labels" if self.retrain_epochs else "none"

    def effort(self, task: Task) -> Effort:
        """One training, where it retrains."""
        return of_training(task, task.sizes.labelled, self.retrain_epochs)

    def _trained(self, model: nn.Module, trainer: AttackerTrainer) -> nn.Module:
        recipe = trainer.recipe(epochs=self.retrain_epochs, learning_rate=self.learning_rate)
        return trainer.fit(model, trainer.labelled, recipe, masks=live(model))


@dataclass(frozen=True)
class WindowRewrite(_Rewriting, InsiderAttack):
    """Write fair bits into the window that carries the owner's code: one for each kernel, whether it lives."""

    name: ClassVar[str] = "window-rewrite"
    attack_class: ClassVar[AttackClass] = "in-place"
    strength_unit: ClassVar[str] = "epochs"

    def surrogates(self) -> int:
        """One, and another where it retrains."""
        return 1 + bool(self.retrain_epochs)

    def run(self, target: Target, trainer: AttackerTrainer) -> Iterator[tuple[float, nn.Module]]:
        """Rewrite, and train what came of it."""
        model = target.copy()
        window = window_of(model, target)
        code = trainer.stream.child("code").bits(window.size**2).view(window.size, window.size)
        rewrite(model, window, code, trainer.stream, careful=self.careful)
        yield 0.0, model
        if self.retrain_epochs:
            yield float(self.retrain_epochs), self._trained(model, trainer)


@dataclass(frozen=True)
class WindowForgery(_Rewriting, InsiderForgery):
    """Write the code of a key of its own into the window that carries the owner's, and claim it.

    Both keys are judged on the rewritten model: whether the forger claims, and whether the owner still does.
    """

    name: ClassVar[str] = "window-forgery"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme whose key has that part, and whose codes can be written by anyone."""
        if reason := super().against(scheme):
            return reason
        if isinstance(scheme, WritesWindows):
            return None
        return f"{scheme.name} does not say what the code of a key is"

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Draw a key, write its code, train what came of it where that is wanted."""
        scheme = target.scheme
        model = target.copy()
        drawn = scheme.draw(trainer.task, trainer.stream.child("key", scheme.name))
        rewrite(model, window_of(model, target), scheme.pattern(drawn), trainer.stream, careful=self.careful)
        if self.retrain_epochs:
            self._trained(model, trainer)
        return Forgery(scheme.claimed(drawn, model, target.part, trainer.task), model)


def window_of(model: nn.Module, target: Target) -> Window:
    """The window that an insider's part of the key names: layer, row, column, size.

    Raises:
        ValueError: the model has no such kernels.
    """
    assert target.part is not None
    layer, row, column, size = (int(value) for value in target.part.flatten())
    found = prunable(model, target.scheme.layers)
    name = list(found)[layer]
    shape = found[name].shape
    if len(shape) != 4 or row + size > shape[0] or column + size > shape[1]:
        raise ValueError(f"expected {size}x{size} kernels from ({row}, {column}) on, got {name} of {tuple(shape)}")
    return Window(name, row, column, size)


def rewrite(model: nn.Module, window: Window, code: Tensor, stream: Stream, *, careful: bool) -> None:
    """Make the kernels of a window live as a code says, in place; nothing outside the window changes.

    Args:
        model: what to change.
        window: where.
        code: shape (size, size); 1 for a kernel that lives, 0 for one that is all zero, -1 where the one there stays
            whichever it is.
        stream: for places and values.
        careful: see `WindowRewrite`.
    """
    weight = model.get_parameter(window.name).detach().cpu().clone(memory_format=torch.contiguous_format)
    typical = weight[weight != 0].abs().median() if bool(weight.any()) else torch.tensor(SOURCE_SCALE)
    kernels = window.kernels(weight)
    before = kernels != 0
    lived = before.flatten(2).any(2)
    lives = torch.where(code < 0, lived, code == 1)
    chance = stream.child("rewrite").numpy()
    mask = (before & lives[:, :, None, None]).contiguous()
    flat = mask.view(window.size, window.size, -1)
    for row, column in (lives & ~lived).nonzero().tolist():
        flat[row, column, int(chance.integers(flat.shape[2]))] = True
    if careful:
        signs = torch.from_numpy(chance.choice([-1.0, 1.0], size=tuple(mask.shape))).to(weight)
        kernels.copy_(torch.where(before, kernels, signs * typical) * mask)
    else:
        room = (~flat & lives[:, :, None]).flatten().nonzero().flatten()
        missing = min(max(0, int(before.sum()) - int(mask.sum())), len(room))
        mask.view(-1)[room[torch.from_numpy(chance.permutation(len(room))[:missing])]] = True
        drawn = chance.standard_normal(tuple(mask.shape), dtype="float32")
        kernels.copy_(SOURCE_SCALE * torch.from_numpy(drawn) * mask)
    put(model, {window.name: weight})
