"""Random keys: the ambiguity attack that every defense supports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attack import DecoyAttack


@dataclass(frozen=True)
class RandomKey(DecoyAttack):
    """Thousands of fresh keys, completed with the owner's facts; the best of them is the claim."""

    name: ClassVar[str] = "random-key"
    family: ClassVar[str] = "random-key"
