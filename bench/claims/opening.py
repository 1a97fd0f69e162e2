"""A commitment, which is published, and its opening, which the owner keeps until a dispute."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import models
from bench import parameters, registry, specs
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.claims.encoding import key_digest, sealed
from bench.defense import Defense
from bench.derivation import is_derived
from bench.errors import InputError, unknown
from bench.key import Key
from bench.task import Task

_COMMITMENT = "ownbench-commitment-1"
_OPENING = "ownbench-key-1"


@dataclass(frozen=True)
class Commitment:
    """What an owner publishes: it binds and tells nothing.

    Attributes:
        digest: of the opening, 64 hexadecimal digits.
        time: when it was made by its maker's clock, UTC, ISO 8601; a proof only where somebody else stamped the file.
        tool: the version of ownbench that made it.
    """

    digest: str
    time: str
    tool: str

    @property
    def moment(self) -> datetime.datetime:
        """The time, aware of its zone."""
        return moment_of(self.time, "commitment, time")

    def to_bytes(self) -> bytes:
        """A JSON file."""
        values = {"format": _COMMITMENT, "digest": self.digest, "time": self.time, "tool": self.tool}
        return json.dumps(values, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Commitment:
        """The commitment of such a file.

        Raises:
            InputError: not one.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: expected a commitment as JSON: {error}") from error
        if not isinstance(values, dict) or values.get("format") != _COMMITMENT:
            raise InputError(f"{where}: expected a commitment of format {_COMMITMENT!r}, got other JSON")
        texts = {name: str(value) for name, value in values.items() if name != "format" and isinstance(value, str)}
        if set(texts) != {"digest", "time", "tool"} or len(values) != 4:
            raise InputError(f"{where}: expected the texts digest, time and tool in a commitment, got {sorted(values)}")
        if len(values["digest"]) != 64 or set(values["digest"]) - set("0123456789abcdef"):
            raise InputError(f"{where}: expected a digest of 64 hexadecimal digits, got {values['digest']!r}")
        made = cls(**texts)
        _ = made.moment
        return made


@dataclass(frozen=True)
class Opening:
    """All that a commitment binds, with the salt that hides it: the owner's secret.

    Attributes:
        salt: random bytes.
        statement: as plain JSON values: `owner`; `scheme` (name, import path, parameters); `task`
            (`bench.specs.task_spec`) and `data`, digests of the owner's parts by name; `architecture`
            (`models.describe`) and `model`, the digest of the protected model; `seed` of a derived key in hexadecimal
            digits, or None.
        key: completed.
        at: path of somebody's own data; not bound, since data may be moved.
    """

    salt: bytes
    statement: Mapping[str, Any]
    key: Key
    at: str = ""

    @property
    def digest(self) -> str:
        """What the commitment to this opening says."""
        return sealed(self.salt, {**self.statement, "key": key_digest(self.key)})

    @property
    def owner(self) -> str:
        """Who claims."""
        return str(self.statement["owner"])

    @functools.cached_property
    def scheme(self) -> Defense:
        """The defense.

        Raises:
            InputError: it is not installed here, or does not take these parameters.
        """
        spec = self.statement["scheme"]
        known = registry.discover().defense
        # By name among the plugins, because a key file that somebody else wrote must not choose what is imported.
        found = known.get(spec["name"])
        if found is None:
            raise unknown("defense", str(spec["name"]), known, "key file, scheme")
        if registry.path_of(found) != spec["path"]:
            raise InputError(
                f"key file, scheme: expected {spec['name']!r} from {spec['path']}, here it is {registry.path_of(found)}"
            )
        return parameters.build(found, spec["params"], "key file, scheme")

    @functools.cached_property
    def task(self) -> Task:
        """What the protected model is for."""
        return specs.task_of(self.statement["task"], {"at": self.at})

    @property
    def derived(self) -> bool | None:
        """Whether the drawn part of the key follows from seed and owner; None where there is no seed."""
        if self.statement["seed"] is None:
            return None
        return is_derived(self.key, bytes.fromhex(self.statement["seed"]), self.owner, self.scheme, self.task)

    def to_bytes(self) -> bytes:
        """A safetensors file; everything but the tensors of the key stands in its metadata."""
        bundle = key_to_bundle(self.key)
        values = {"format": _OPENING, "salt": self.salt.hex(), "at": self.at, "digest": self.digest}
        return Bundle(
            tensors=bundle.tensors, values={**bundle.values, **values, "statement": self.statement}
        ).to_bytes()

    @classmethod
    def from_bundle(cls, bundle: Bundle, where: str) -> Opening:
        """The opening of such a file.

        Raises:
            InputError: not one, one that has another digest than it says, or one that names what is not here.
        """
        if bundle.values.get("format") != _OPENING:
            raise InputError(f"{where}: expected a key file of format {_OPENING!r}, got another bundle")
        try:
            values = bundle.values
            opening = cls(bytes.fromhex(values["salt"]), values["statement"], bundle_to_key(bundle), values["at"])
            found = opening.digest
            if found != values["digest"]:
                raise InputError(
                    f"{where}: damaged or changed: the key file says that its digest is {values['digest']}, "
                    f"it is {found}"
                )
            _ = opening.scheme
            _require_task(opening.task)
            bytes.fromhex(opening.statement["seed"] or "")
            if not isinstance(opening.owner, str) or not isinstance(opening.statement["data"], dict):
                raise TypeError("owner or data")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: expected a whole key file, got one that cannot be used: {error}") from error
        return opening


def moment_of(text: str, where: str) -> datetime.datetime:
    """A time of ISO 8601 with its zone.

    Raises:
        InputError: another form, or no zone.
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{where}: expected a time of ISO 8601 with its zone, got {text!r}") from error
    if moment.tzinfo is None:
        raise InputError(f"{where}: expected a time with its zone, such as +00:00, got {text!r}")
    return moment


def _require_task(task: Task) -> None:
    if task.model not in models.names():
        raise unknown("model", task.model, models.names(), "key file, task")
    _ = task.skeleton
