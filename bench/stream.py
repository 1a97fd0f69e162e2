"""Named random streams: each random choice has a name, so that changing one leaves the others alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """A source of randomness named by a path, for example `("0", "owner", "init")`.

    Everything it gives is a function of the path alone and the same on every machine: bytes come from
    SHAKE-256 over the path. A stream has no state: asked twice, it gives the same numbers twice, so that
    each use takes a child of its own.
    """

    path: tuple[str, ...]

    @classmethod
    def root(cls, seed: int) -> Stream:
        """The stream from which everything random of one seed descends."""
        return cls((str(seed),))

    def child(self, *names: str | int) -> Stream:
        """The stream of that name below this one."""
        return Stream(self.path + tuple(str(name) for name in names))

    def bytes(self, count: int) -> bytes:
        """`count` uniform bytes."""
        # JSON keeps ("a", "b") and ("ab",) apart, which a plain join would not.
        return hashlib.shake_256(json.dumps(self.path).encode()).digest(count)

    @property
    def seed(self) -> int:
        """A seed in [0, 2**63)."""
        return int.from_bytes(self.bytes(8), "big") >> 1

    def torch(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh torch generator."""
        return torch.Generator(device=device).manual_seed(self.seed)

    def numpy(self) -> np.random.Generator:
        """A fresh numpy generator."""
        return np.random.Generator(np.random.PCG64(int.from_bytes(self.bytes(16), "big")))

    def bits(self, count: int) -> Tensor:
        """`count` fair bits, int64 in {0, 1}."""
        packed = np.frombuffer(self.bytes((count + 7) // 8), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(packed)[:count].astype(np.int64))
