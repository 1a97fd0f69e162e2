"""Making a claim: a commitment to a completed key and the model that it protects."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn

import bench
import models
from bench import data, registry, specs
from bench.claims.encoding import SALT_BYTES, model_digest
from bench.claims.files import COMMITMENT, KEY, MODEL, save_model
from bench.claims.opening import Commitment, Opening
from bench.data import parts
from bench.defense import Defense
from bench.derivation import SEED_BYTES
from bench.errors import InputError
from bench.key import Key
from bench.storage.store import now, write_whole
from bench.task import PartName, Task

OWNED: tuple[PartName, ...] = ("train", "heldout")


class Claim(NamedTuple):
    """What committing gives: the secret opening, and the commitment to be published."""

    opening: Opening
    commitment: Commitment


def commit(
    model: nn.Module,
    key: Key,
    scheme: Defense,
    task: Task,
    owner: str,
    seed: bytes | None = None,
    digests: Mapping[PartName, str] | None = None,
) -> Claim:
    """Commit to a protected model and its completed key; to be done before the model is shown to anybody.

    Args:
        model: as it will be published.
        key: completed, as `scheme.protect` gave it.
        scheme: the defense with its parameters.
        task: what the model is for.
        owner: who claims, by a name that stands for one owner alone.
        seed: of a key that was drawn from `bench.derivation.derived_stream`; None for any other.
        digests: of the owner's parts of the data; None to take them from the data now.

    Raises:
        InputError: no owner; a seed of another length than `SEED_BYTES`, or one that does not give this key; a model
            that cannot be described.
    """
    if not owner.strip():
        raise InputError("owner: expected a name, got an empty text")
    if seed is not None and len(seed) != SEED_BYTES:
        raise InputError(f"seed: expected {SEED_BYTES} bytes, got {len(seed)}")
    if digests is None:
        digests = parts.digests(data.source(task.info), task.info, task.sizes, OWNED)
    try:
        architecture, digest = models.describe(model), model_digest(model)
    except ValueError as error:
        raise InputError(f"model: {error}") from error
    statement = {
        "owner": owner,
        "scheme": {"name": scheme.name, "path": registry.path_of(type(scheme)), "params": scheme.params},
        "task": specs.task_spec(task),
        "data": {part: digests[part] for part in OWNED if part in digests},
        "architecture": architecture,
        "model": digest,
        "seed": None if seed is None else seed.hex(),
    }
    opening = Opening(secrets.token_bytes(SALT_BYTES), statement, key, task.info.at)
    try:
        sealed = opening.digest
    except ValueError as error:
        raise InputError(f"key: expected finite numbers: {error}") from error
    if opening.derived is False:
        raise InputError("seed: expected the one that the key was derived from with this owner and scheme")
    return Claim(opening, Commitment(sealed, now(), bench.__version__))


def write(claim: Claim, model: nn.Module, folder: Path) -> tuple[Path, Path, Path]:
    """Write model, key and commitment into a folder, made where it is missing; nothing is overwritten.

    Returns:
        Their paths in this order; of the three only the key is secret, and only its owner can read it.

    Raises:
        InputError: a claim lies there already, the folder cannot be written, or it is not the model of the claim.
    """
    if model_digest(model) != claim.opening.statement["model"]:
        raise InputError("model: expected the model of this claim, got another one")
    paths = (folder / MODEL, folder / KEY, folder / COMMITMENT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if there := [path.name for path in paths if path.exists()]:
            raise InputError(f"{folder}: expected a folder without a claim, got one with {', '.join(there)}")
        save_model(model, paths[0])
        write_whole(paths[1], claim.opening.to_bytes(), mode=0o600)
        write_whole(paths[2], claim.commitment.to_bytes())
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written: {error}") from error
    return paths
