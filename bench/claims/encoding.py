"""Digests of keys, models and statements that two machines agree on, and that no two contents share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import models
from bench import parameters
from bench.key import Key

SALT_BYTES = 32
_DOMAIN = b"ownbench-commitment-1\0"


def sealed(salt: bytes, statement: Mapping[str, Any]) -> str:
    """SHA-256 over the salt and the canonical JSON of a statement, 64 hexadecimal digits.

    The salt has one length and JSON ends where it ends, so that no two pairs give the same bytes.

    Raises:
        ValueError: a salt of another length, or a number that is not finite.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"expected a salt of {SALT_BYTES} bytes, got {len(salt)}")
    return hashlib.sha256(_DOMAIN + salt + parameters.canonical(statement).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and content of tensors, 64 hexadecimal digits; devices, strides and the
    order of the mapping make no difference."""
    listed = [
        [name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(_content(tensor)).hexdigest()]
        for name, tensor in sorted(tensors.items())
    ]
    return hashlib.sha256(parameters.canonical(listed).encode()).hexdigest()


def key_digest(key: Key) -> str:
    """The same over all parts of a key, those that are no tensors included.

    Raises:
        ValueError: a number that is not finite.
    """
    sections: dict[str, Any] = {}
    for name, values in (("drawn", key.drawn), ("facts", key.facts)):
        tensors = {part: value for part, value in values.items() if isinstance(value, Tensor)}
        plain = {part: value for part, value in values.items() if part not in tensors}
        sections[name] = {"tensors": tensors_digest(tensors), "values": plain}
    return hashlib.sha256(parameters.canonical(sections).encode()).hexdigest()


def model_digest(model: nn.Module) -> str:
    """The same over a model's description and all of its state.

    Raises:
        ValueError: the model cannot be described (`models.describe`).
    """
    whole = {"architecture": models.describe(model), "state": tensors_digest(model.state_dict())}
    return hashlib.sha256(parameters.canonical(whole).encode()).hexdigest()


def _content(tensor: Tensor) -> bytes:
    # In logical order whatever the strides are; the view as bytes needs at least one dimension.
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
