"""What a chain of attacks and a pair of defenses have in common: several plugins that a plan treats as one."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TypeVar

from bench.effort import Effort
from bench.plugin import Plugin
from bench.task import Task

T = TypeVar("T")


def most(order: Sequence[T], values: Iterable[T]) -> T:
    """The value that stands last in an order."""
    return max(values, key=order.index)


def total_effort(parts: Iterable[Plugin], task: Task) -> Effort | None:
    """That of all parts, where each says it."""
    efforts = [part.effort(task) for part in parts]
    known = [one for one in efforts if one is not None]
    return functools.reduce(Effort.__add__, known) if len(known) == len(efforts) else None


def first_reason(parts: Iterable[Plugin], reasons: Iterable[str | None]) -> str | None:
    """The first reason against one of the parts, with its name; None where there is none."""
    found = ((part, reason) for part, reason in zip(parts, reasons, strict=True) if reason)
    return next((f"{part.name}: {reason}" for part, reason in found), None)
