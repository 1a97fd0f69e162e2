"""What `list` prints: everything that a suite can name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from bench import data, parameters
from bench.attack import AmbiguityAttack, Attack, DecoyAttack, RemovalAttack
from bench.defense import Defense
from bench.errors import unknown
from bench.planning import suite
from bench.registry import Registry, discover


def everything(names: Sequence[str] = ()) -> str:
    """Plugins, tasks and suites as text.

    Args:
        names: only these plugins; empty for all, tasks and suites included.

    Raises:
        InputError: a name that is no plugin.
    """
    registry = discover()
    known = {**registry.defense, **registry.attack}
    for name in names:
        if name not in known and not registry.broken_named(name):
            raise unknown("plugin", name, known, "list")
    sections = [_plugins("defenses", registry.defense, names), _plugins("attacks", registry.attack, names)]
    sections.append(_broken(registry, names))
    if not names:
        sections += [_tasks(), _suites()]
    return "\n".join(section for section in sections if section)


def _plugins(title: str, plugins: dict[str, type[Any]], names: Sequence[str]) -> str:
    lines: list[str] = []
    for name, cls in sorted(plugins.items()):
        if not names or name in names:
            lines += _plugin(name, cls)
    return "\n".join([f"{title}:", *lines, ""]) if lines else ""


def _plugin(name: str, cls: type[Any]) -> Iterable[str]:
    summary = (inspect.getdoc(cls) or "").split("\n")[0]
    yield f"  {name:<16} {summary}"
    yield f"  {'':<16} {'; '.join(_traits(cls))}"
    types = parameters.types_of(cls)
    for field in fields(cls):
        default = parameters.values_of(cls())[field.name]
        yield f"  {'':<16}   {field.name} = {default!r}  ({parameters.spelled(types[field.name])})"


def _traits(cls: type[Any]) -> Iterable[str]:
    yield f"family {cls.family or '-'}"
    if issubclass(cls, Defense):
        yield f"access {cls().access_used()}"
        yield f"key {cls.key_kind}"
    if issubclass(cls, Attack):
        kind = cls.attack_class if issubclass(cls, RemovalAttack) and cls.kind == "removal" else cls.kind
        yield f"{kind}, access {cls().access_used()}, data {cls().data_used()}, knowledge {cls.knowledge}"
    if issubclass(cls, AmbiguityAttack | DecoyAttack):
        yield f"key {cls.time_model}"
    if cls.source:
        yield cls.source


def _broken(registry: Registry, names: Sequence[str]) -> str:
    lines = [
        f"  {one.names[0]:<16} {one.where}: {one.error_type}: {one.error}"
        for one in registry.broken
        if not names or set(one.names) & set(names)
    ]
    return "\n".join(["not usable:", *lines, ""]) if lines else ""


def _tasks() -> str:
    lines = ["tasks:"]
    for name in data.names():
        info = data.info(name)
        shape = "x".join(str(size) for size in info.shape)
        lines.append(f"  {name:<16} {info.classes} classes, inputs {shape}, default model {info.model}")
        lines.append(f"  {'':<16} {info.source}")
    lines.append(f"  {'PATH':<16} any Parquet file or folder in the Hugging Face image layout, any image folder,")
    lines.append(f"  {'':<16} any folder of point lists or meshes, ShapeNetPart, ModelNet in HDF5")
    return "\n".join([*lines, ""])


def _suites() -> str:
    lines = ["suites:"]
    ran = {
        "never": "never run whole yet",
        "older": "published is a whole run of an older suite",
        "whole": "whole run published",
    }
    for name in suite.shipped():
        chosen = suite.read(name)
        size = f"{len(chosen.defenses)} defenses, {len(chosen.attacks)} attacks, {len(chosen.header.seeds)} seed(s)"
        lines.append(f"  {name:<16} {chosen.header.description}")
        lines.append(f"  {'':<16} {size}; {ran[suite.published(chosen)]}")
    return "\n".join([*lines, ""])
