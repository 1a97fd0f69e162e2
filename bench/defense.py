"""The contract of a defense: draw a key, protect a model, verify a suspect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import nn

from bench.bundle import Bundle
from bench.evidence import Evidence
from bench.key import Key
from bench.plugin import Access, Plugin
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer

KeyKind = Literal["none", "linear", "positions", "labels", "pattern", "passport", "architecture"]


class Protected(NamedTuple):
    """What protecting gives: the published model, the completed key, and what is released beside the model."""

    model: nn.Module
    key: Key
    release: Bundle = Bundle()


@dataclass(frozen=True)
class Defense(Plugin):
    """A scheme by which an owner can later recognise a model.

    Subclasses are frozen dataclasses; fields made with `bench.parameters.judged` are read by `verify` alone.

    Attributes:
        access: what `verify` needs of a suspect.
        key_kind: by which forgeries find the scheme.
        uniform: names of the drawn parts of the key that the statistic counts agreement with; they are
            uniformly distributed and independent of every model.
        parts: names of tensors in the completed key that an insider attack can hold.
        undefended: True for the defense that protects nothing, whose model is the clean one.
        sparse: whether weights of the published model are zero, and their places part of what is published.
    """

    access: ClassVar[Access] = "white-box"
    key_kind: ClassVar[KeyKind] = "none"
    uniform: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()
    undefended: ClassVar[bool] = False
    sparse: ClassVar[bool] = False

    def access_used(self) -> Access:
        """What `verify` needs with these parameters."""
        return self.access

    def capacity(self, task: Task) -> float:
        """The least `log10_p` that the scheme can reach on the task."""
        del task
        return -math.inf

    def draw(self, task: Task, stream: Stream) -> Key:
        """Everything random in the key, before training."""
        raise NotImplementedError

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """Train or change a model so that the key can later be recognised in it.

        The key comes back completed with facts; its drawn part stays as it was drawn. Keys live on the CPU.
        """
        raise NotImplementedError

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """Look for the key in a suspect; it may never have been protected.

        Returns:
            Evidence; `Evidence.unreadable(reason)` for a suspect that cannot be read. `Unreadable`, which a
            suspect raises on inputs that it does not take, may pass through and comes to the same.
        """
        raise NotImplementedError
