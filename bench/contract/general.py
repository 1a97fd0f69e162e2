"""The rules for every plugin, whatever it does."""

from __future__ import annotations

import re
from typing import Any

from bench import parameters
from bench.contract.rule import Rule, demand, rule
from bench.contract.workshop import Workshop
from bench.errors import InputError
from bench.plugin import Plugin

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def introduce(plugin: Plugin, workshop: Workshop) -> str:
    """Demand what every plugin declares."""
    cls = type(plugin)
    demand(NAME.fullmatch(plugin.name) is not None, f"expected a name in kebab-case, got {plugin.name!r}")
    demand(bool(plugin.family), "expected a family (a class attribute), got none")
    # A dataclass without a docstring is given its signature as one.
    written = bool(cls.__doc__) and not str(cls.__doc__).startswith(f"{cls.__name__}(")
    demand(written, f"expected a docstring of the class {cls.__name__}, whose first line `list` shows; got none")
    reason = plugin.applies_to(workshop.task)
    task = f"{workshop.task.info.name}/{workshop.task.model}"
    demand(reason is None, f"expected it to apply to {task}, on which this check runs; applies_to gave: {reason}")
    return f"family {plugin.family}"


@rule("parameters-can-be-recorded", "Parameters are plain values that build the same plugin again")
def _recorded(plugin: Plugin, workshop: Workshop) -> str:
    del workshop
    try:
        parameters.canonical(plugin.params)
        again: Any = parameters.build(type(plugin), plugin.params, plugin.name)
    except (TypeError, ValueError, InputError) as error:
        names = ", ".join(parameters.types_of(type(plugin)))
        demand(False, f"expected fields of type int, float, bool, str, Literal or tuple, got {names}: {error}")
    demand(again == plugin, f"expected the same plugin from its recorded parameters, got {again} for {plugin}")
    return f"{len(plugin.params)} parameter(s)"


RULES: tuple[Rule, ...] = (_recorded,)
