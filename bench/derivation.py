"""Keys that are derived, not chosen: their random part follows from a secret seed and the owner's name."""

from __future__ import annotations

from bench import parameters, registry
from bench.defense import Defense
from bench.stream import Stream

# Of a seed that nobody can guess.
SEED_BYTES = 32


def derived_stream(seed: bytes, owner: str, scheme: Defense) -> Stream:
    """The stream from which an owner draws a key: `scheme.draw(task, derived_stream(seed, owner, scheme))`.

    Whoever wants another key for the same owner and scheme has to try seeds, one draw for each.

    Args:
        seed: secret; an owner takes `SEED_BYTES` bytes from `secrets`.
        owner: a name that stands for one owner alone.
        scheme: with its parameters; those that only `verify` reads make no difference.
    """
    fixed = parameters.values_of(scheme, judged_too=False)
    return Stream(("derived key", seed.hex(), owner, registry.path_of(type(scheme)), parameters.canonical(fixed)))
