"""What jobs hand to each other: models with their architecture, tensors and plain values, without pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import models
from bench.key import Key

_FORMAT = "ownbench-bundle-1"


@dataclass
class Bundle:
    """Named models, tensors and plain JSON values."""

    models: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """One safetensors file; architectures and values stand in its metadata as JSON."""
        tensors = {f"tensor/{name}": _stored(tensor) for name, tensor in self.tensors.items()}
        architectures = {}
        for name, model in self.models.items():
            architectures[name] = models.describe(model)
            for key, tensor in model.state_dict().items():
                tensors[f"model/{name}/{key}"] = _stored(tensor)
        # One entry, because the library writes several in random order and the bytes must be reproducible.
        meta = json.dumps({"architectures": architectures, "values": self.values}, sort_keys=True)
        return save_tensors(tensors, metadata={_FORMAT: meta})

    @classmethod
    def from_bytes(cls, data: bytes) -> Bundle:
        """The bundle of such a file, on the CPU.

        Raises:
            ValueError: not a bundle.
        """
        meta = _metadata(data)
        bundle = cls(values=meta["values"])
        states: dict[str, dict[str, Tensor]] = {}
        for name, tensor in load_tensors(data).items():
            kind, rest = name.split("/", 1)
            if kind == "tensor":
                bundle.tensors[rest] = tensor
            else:
                model, _, key = rest.rpartition("/")
                states.setdefault(model, {})[key] = tensor
        for name, architecture in meta["architectures"].items():
            bundle.models[name] = models.rebuild(architecture, states.get(name, {}))
        return bundle

    def to(self, device: torch.device) -> Bundle:
        """The same bundle with models and tensors on the device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Bundle({n: m.to(device) for n, m in self.models.items()}, moved, self.values)


def key_to_bundle(key: Key) -> Bundle:
    """A key as a bundle."""
    bundle = Bundle(values={"drawn": {}, "facts": {}})
    for section, values in (("drawn", key.drawn), ("facts", key.facts)):
        for name, value in values.items():
            if isinstance(value, Tensor):
                bundle.tensors[f"{section}/{name}"] = value
            else:
                bundle.values[section][name] = value
    return bundle


def bundle_to_key(bundle: Bundle) -> Key:
    """The key of a bundle that `key_to_bundle` made."""
    sections: dict[str, dict[str, Any]] = {n: dict(bundle.values[n]) for n in ("drawn", "facts")}
    for name, tensor in bundle.tensors.items():
        section, rest = name.split("/", 1)
        sections[section][rest] = tensor
    return Key(sections["drawn"], sections["facts"])


def _stored(tensor: Tensor) -> Tensor:
    # contiguous_format, because safetensors keeps no strides and refuses channels_last.
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _metadata(data: bytes) -> dict[str, Any]:
    # The header of a safetensors file: its length as a little-endian u64, then JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    meta = header.get("__metadata__", {})
    if _FORMAT not in meta:
        raise ValueError(f"expected a file of format {_FORMAT!r}, got {', '.join(meta) or 'no metadata'}")
    found: dict[str, Any] = json.loads(meta[_FORMAT])
    return found
