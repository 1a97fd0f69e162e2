"""The owner's key: what was drawn before training, and the facts learnt while protecting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

Value = torch.Tensor | str | int | float | bool


@dataclass(frozen=True)
class Key:
    """Everything secret that the owner keeps.

    Attributes:
        drawn: what came from the stream, before training. The names that a defense lists as `uniform` are
            uniformly distributed and independent of every model; the rest is random but never counted.
        facts: what protecting added (a mask, a chosen layer, the owner's head, reference weights).
    """

    drawn: Mapping[str, Value]
    facts: Mapping[str, Value] = field(default_factory=dict)

    def complete(self, **facts: Value) -> Key:
        """The key with further facts."""
        return replace(self, facts={**self.facts, **facts})

    def with_facts_of(self, other: Key) -> Key:
        """This draw with the facts of another key: a decoy, which costs no training."""
        return replace(self, facts=dict(other.facts))

    def redraw(self, fresh: Key, names: tuple[str, ...]) -> Key:
        """This key with the named drawn parts replaced by those of a fresh draw."""
        return replace(self, drawn={**self.drawn, **{name: fresh.drawn[name] for name in names}})

    def tensor(self, name: str) -> torch.Tensor:
        """A part that is a tensor.

        Raises:
            KeyError: no such part, or not a tensor.
        """
        value = self.drawn[name] if name in self.drawn else self.facts.get(name)
        if not isinstance(value, torch.Tensor):
            raise KeyError(f"expected a tensor {name!r} in the key, got {type(value).__name__}")
        return value

    def text(self, name: str) -> str:
        """A part that is a string; KeyError as for `tensor`."""
        value = self.drawn[name] if name in self.drawn else self.facts.get(name)
        if not isinstance(value, str):
            raise KeyError(f"expected a string {name!r} in the key, got {type(value).__name__}")
        return value
