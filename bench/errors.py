"""Errors that a user can act on: what was expected, what was got, where, and the nearest names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class InputError(Exception):
    """Bad input from the person at the keyboard; the command line exits with code 2."""


class NoWorkers(Exception):
    """All workers of a run are gone for good; the command line exits with code 1."""


class NonFiniteWeights(Exception):
    """A plugin returned a model whose weights or statistics hold NaN or infinity."""


class Unreadable(Exception):
    """A suspect does not take the inputs, or has not what is looked for: no evidence, and no failure either."""


class AccessError(Exception):
    """A plugin reached for something that it did not declare."""


# How a device's, a library's or the system's want of memory reads; not all of them have a type of their own.
_SHORTAGE = re.compile(r"out of memory|can't allocate|cannot allocate|alloc_failed|allocation failed|bad_alloc", re.I)
_DEVICE = re.compile(r"CUDA|cuDNN|CUBLAS", re.I)


def is_shortage(error_type: str, message: str) -> bool:
    """Whether an error means that memory ran out."""
    return error_type in ("OutOfMemoryError", "MemoryError") or bool(_SHORTAGE.search(message))


def is_ours(message: str) -> bool:
    """Whether an error is that of the machine, and says nothing of the model that was asked."""
    return bool(_SHORTAGE.search(message) or _DEVICE.search(message))


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
