"""What a scheme may offer to forgeries: each is found by what its schemes have, and by nobody's name.

A scheme needs none of this to be attacked otherwise, and imports nothing of it: methods of these names are enough. All
of it is knowledge of the scheme as an algorithm; no key of the owner's enters.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from bench.defense import Defense
from bench.key import Key
from bench.split import Split
from bench.suspect import Suspect
from bench.task import Task

Rows = Literal["any", "either-sign", "fixed"]


@runtime_checkable
class Completes(Protocol):
    """A scheme whose facts anybody can learn from a finished model."""

    def withheld(self) -> str | None:
        """Why a drawn key cannot be completed by just anybody, or None where it can."""

    def completed(self, key: Key, model: nn.Module, task: Task) -> Key:
        """A drawn key with the facts that `protect` would have added, had it given this model."""


@runtime_checkable
class ReadsOff(Completes, Protocol):
    """A scheme whose uniform part can be set to what a finished model says under the rest of the key."""

    def illegible(self) -> str | None:
        """Why what a model says cannot stand in the place of the uniform part, or None where it can."""

    def read_off(self, key: Key, suspect: Suspect, task: Task) -> Key:
        """A completed key with its uniform part replaced by what the suspect says; raises Unreadable as `verify`."""


@runtime_checkable
class Projects(Completes, Protocol):
    """A linear mark: message bits in the signs of `projection` (T, M), drawn, times a vector of the model."""

    @property
    def rows(self) -> Rows:
        """Of the projection: `any` real numbers, drawn from N(0, 1); or only of one form, with `either-sign` or not."""

    def carried(self, key: Key, model: nn.Module) -> Tensor:
        """The vector, float32 of shape (M,), on the CPU."""


@runtime_checkable
class RanksPositions(Completes, Protocol):
    """A mark whose ones are large weights at drawn `positions` (L,), and whose zeros are small ones."""

    def carried(self, key: Key, model: nn.Module) -> Tensor:
        """All weights that positions count, float32 of shape (N,), on the CPU."""

    def ones(self, key: Key) -> Tensor:
        """Which positions are to hold a one, bool (L,)."""


@runtime_checkable
class TakesTriggers(Completes, Protocol):
    """A scheme with trigger inputs and labels that stand in its key."""

    triggers: int

    @property
    def taken(self) -> bool:
        """Whether triggers are taken from data, with wrong labels."""

    def started(self, key: Key, known: Split, task: Task) -> tuple[Tensor, Tensor]:
        """Triggers that a drawn key asks for, where the data is not its owner's: inputs (n, …) and labels int64 (n,).

        Args:
            key: as it was drawn.
            known: what triggers are made of where they are taken from data, of which the first n; else not looked at.
            task: of the model.
        """

    def with_triggers(self, key: Key, inputs: Tensor, labels: Tensor, known: Split, task: Task) -> Key:
        """The drawn key with other triggers: inputs (n, …) and labels int64 (n,); `known` as for `started`."""


@runtime_checkable
class Chained(Completes, Protocol):
    """A scheme whose triggers follow from a seed, each from a link that is itself the seed of those after it."""

    triggers: int

    def derived(self, key: Key, task: Task) -> Key:
        """The triggers of a key: `inputs` (T, …) and `labels` (T,)."""

    def advanced(self, key: Key, links: int) -> Key:
        """The key whose triggers begin so many links later."""


def refusal(scheme: Defense, offer: type, needed: str) -> str | None:
    """Why a forgery that needs an offer cannot be tried on a scheme, or None.

    Args:
        scheme: any.
        offer: one of the protocols.
        needed: what the forgery needs, for the message.
    """
    if isinstance(scheme, offer) and isinstance(scheme, Completes):
        return scheme.withheld()
    return f"needs {needed}, the key of {scheme.name} is of the kind {scheme.key_kind}"
