"""What a rule of the contract is, and the verdict on one plugin."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.contract.workshop import Skip, Workshop
from bench.plugin import Plugin

Status = Literal["ok", "violated", "skipped"]


class Violation(Exception):
    """A plugin does not hold to a rule; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Rule:
    """One demand of the contract.

    Attributes:
        id: in kebab-case.
        demand: what it demands, in one line.
        check: (plugin, workshop) to a short detail; raises `Violation`, or `Skip` with the reason.
    """

    id: str
    demand: str
    check: Callable[[Any, Workshop], str]


@dataclass(frozen=True)
class Verdict:
    """What a rule came to.

    Attributes:
        rule: the rule.
        status: `ok`, `violated` or `skipped`.
        detail: what was found, or the reason.
        seconds: that the rule took.
    """

    rule: Rule
    status: Status
    detail: str
    seconds: float


def judge(rule: Rule, plugin: Plugin, workshop: Workshop) -> Verdict:
    """Check one rule; whatever the plugin raises violates it."""
    started = time.perf_counter()
    status: Status = "ok"
    try:
        detail = rule.check(plugin, workshop)
    except Skip as reason:
        status, detail = "skipped", str(reason)
    except Violation as violation:
        status, detail = "violated", str(violation)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything, sys.exit included.
        status, detail = "violated", told(error, plugin)
    return Verdict(rule, status, detail, time.perf_counter() - started)


def told(error: BaseException, plugin: Plugin) -> str:
    """An exception in one line, with the place in the plugin's file from which it came."""
    file = getattr(sys.modules.get(type(plugin).__module__), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file]
    at = (own or frames)[-1] if frames else None
    place = f" ({Path(at.filename).name}, line {at.lineno}, in {at.name})" if at else ""
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}{place}"


def rule(id: str, demand: str) -> Callable[[Callable[[Any, Workshop], str]], Rule]:
    """Make a rule of a function."""
    return lambda check: Rule(id, demand, check)


def demand(holds: bool, message: str) -> None:
    """Raise a Violation with the message where it does not hold."""
    if not holds:
        raise Violation(message)
