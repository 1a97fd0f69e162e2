"""The architectures: plain PyTorch modules, built by name and rebuilt from their description."""

from __future__ import annotations

from models.architecture import (
    build,
    describe,
    holding,
    layer,
    module_of,
    names,
    outline,
    rebuild,
    skeleton,
    weights_of,
)

__all__ = [
    "build",
    "describe",
    "holding",
    "layer",
    "module_of",
    "names",
    "outline",
    "rebuild",
    "skeleton",
    "weights_of",
]
