"""The architectures: plain PyTorch modules, built by name and rebuilt from their description."""

from __future__ import annotations

from models.architecture import (
    build,
    describe,
    fresh,
    holding,
    layer,
    module_of,
    names,
    outline,
    rebuild,
    refusal,
    skeleton,
    weights_of,
)
from models.laid import joined, parted

__all__ = [
    "build",
    "describe",
    "fresh",
    "holding",
    "joined",
    "layer",
    "module_of",
    "names",
    "outline",
    "parted",
    "rebuild",
    "refusal",
    "skeleton",
    "weights_of",
]
