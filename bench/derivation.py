"""Keys that are derived, not chosen: their random part follows from a secret seed and the owner's name."""

from __future__ import annotations

from bench import parameters, registry
from bench.bundle import key_to_bundle
from bench.defense import Defense
from bench.key import Key
from bench.stream import Stream
from bench.task import Task

# Of a seed that nobody can guess.
SEED_BYTES = 32
# The name under which forgers of a benchmark claim; an attack has no say in it.
FORGER = "forger"


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


def is_derived(key: Key, seed: bytes, owner: str, scheme: Defense, task: Task) -> bool:
    """Whether the drawn part of a key is, bit for bit, what a seed and a name give; found by drawing again.

    Facts are not looked at: what a scheme takes from data or from a model may have been chosen all the same.

    Args:
        key: drawn or completed.
        seed, owner, scheme: as for `derived_stream`.
        task: for which the key was drawn.
    """
    again = scheme.draw(task, derived_stream(seed, owner, scheme))
    return key_to_bundle(Key(again.drawn)).to_bytes() == key_to_bundle(Key(key.drawn)).to_bytes()
