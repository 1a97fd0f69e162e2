"""Files of claims: safetensors and JSON. What somebody else wrote is read with care, and no pickle ever."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

import models
from bench.bundle import Bundle
from bench.claims.opening import Commitment, Opening
from bench.errors import InputError, unknown
from bench.storage.store import write_whole

MODEL, KEY, COMMITMENT = "model.safetensors", "key.safetensors", "commitment.json"
# torch.save writes an archive, and before that plain pickles of protocol 2 to 5.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save_model(model: nn.Module, path: Path) -> None:
    """Write a model with its description.

    Raises:
        InputError: a model that cannot be described.
    """
    try:
        content = Bundle(models={"model": model}).to_bytes()
    except ValueError as error:
        raise InputError(f"model: {error}") from error
    write_whole(path, content)


def read_model(path: Path, architecture: Mapping[str, Any], name: str = "") -> nn.Module:
    """The model of a file, on the CPU.

    Args:
        path: of a bundle (what `save_model` writes, or a product of a run), or of the state dict alone.
        architecture: description of the model that a state dict without one is taken for.
        name: which model of a bundle that holds several; empty for `model`, or the only one.

    Raises:
        InputError: no such file, no safetensors file, no model in it, or several and no name.
    """
    data = _read(path)
    tensors = _tensors(data, path)
    where = str(path)
    if not _is_bundle(data):
        if name:
            raise InputError(f"--which: {where} holds one model without names, got {name!r}")
        return _built(architecture, tensors, where, "which does not say its architecture; as that of the claim")
    described = _description(data, where)
    if not described:
        raise InputError(f"{where}: expected a model, got a file of tensors and values without any")
    chosen = name or ("model" if "model" in described else next(iter(described)) if len(described) == 1 else "")
    if not chosen:
        raise InputError(f"{where}: holds the models {', '.join(sorted(described))}; choose one by --which")
    if chosen not in described:
        raise unknown("model", chosen, described, f"--which, {where}")
    prefix = f"model/{chosen}/"
    state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return _built(described[chosen], state, where, "by its own description")


def read_opening(path: Path) -> Opening:
    """The opening of a key file.

    Raises:
        InputError: no such file, or not a whole key file.
    """
    data = _read(path)
    tensors = _tensors(data, path)
    if not _is_bundle(data):
        raise InputError(f"{path}: expected a key file of `ownbench claim`, got other tensors")
    if _description(data, str(path)) or not all(name.startswith("tensor/") for name in tensors):
        raise InputError(f"{path}: expected a key file, got a file with models")
    return Opening.from_bundle(Bundle.from_bytes(data), str(path))


def read_commitment(path: Path) -> Commitment:
    """The commitment of a file; InputError as for `read_opening`."""
    return Commitment.from_bytes(_read(path), str(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be read: {error.strerror or error}") from error


def _tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_tensors(data))
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError) as error:
        if data.startswith(_PICKLES):
            raise InputError(
                f"{path}: is a pickle, which is refused: reading one runs whatever its writer put there. Whoever has "
                "it can save the state dict by safetensors.torch.save_file"
            ) from error
        raise InputError(f"{path}: expected a whole safetensors file, got something else or a part: {error}") from error


def _metadata(data: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", data[:8])
    found: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return found


def _is_bundle(data: bytes) -> bool:
    return any(name.startswith("ownbench-bundle-") for name in _metadata(data))


def _description(data: bytes, where: str) -> dict[str, Any]:
    """The architectures of a bundle by the names of its models."""
    try:
        (text,) = _metadata(data).values()
        found = json.loads(text)
        described = found["architectures"]
        if not isinstance(described, dict) or not isinstance(found["values"], dict):
            raise TypeError("architectures and values are no tables")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: expected a bundle of models and values, got a broken one: {error}") from error
    return described


def _built(architecture: Mapping[str, Any], state: Mapping[str, Tensor], where: str, how: str) -> nn.Module:
    try:
        shape = architecture["shape"]
        if architecture["name"] not in models.names() or math.prod(shape) < 1:
            raise ValueError(f"no architecture {architecture['name']!r} for inputs of {shape}")
        # Without storage first: a description that promises more than the file holds must not take memory.
        wanted = models.outline(architecture).state_dict()
        for name in sorted(wanted.keys() ^ state.keys()):
            raise ValueError(f"tensor {name!r} is {'missing' if name in wanted else 'not of this architecture'}")
        for name, tensor in wanted.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"tensor {name!r} has shape {list(state[name].shape)}, not {list(tensor.shape)}")
        return models.rebuild(architecture, state)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{where}: expected a model, got a file {how} cannot be built: {error}") from error
