"""Errors that a user can act on: what was expected, what was got, where, and the nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Bad input from the person at the keyboard; the command line exits with code 2."""


class NonFiniteWeights(Exception):
    """A plugin returned a model whose weights or statistics hold NaN or infinity."""


class Unreadable(Exception):
    """A suspect does not take the inputs, or has not what is looked for: no evidence, and no failure either."""


class AccessError(Exception):
    """A plugin reached for something that it did not declare."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A tail for an error message: the nearest of the `known` names, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in close)}?" if close else ""
    return f"{hint} Known: {', '.join(names) if names else '(nothing)'}."


def unknown(what: str, name: str, known: Iterable[str], where: str) -> InputError:
    """The error for a name that is not known.

    Args:
        what: the kind of thing that was named, for example `defense`.
        name: what was got.
        known: the names that would have been accepted.
        where: file and key, or the option of the command line.
    """
    return InputError(f"{where}: unknown {what} {name!r}.{nearest(name, known)}")
