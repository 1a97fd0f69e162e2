"""The `check` command: the contract's rules on one plugin, with a readable verdict for each."""

from __future__ import annotations

import contextlib
import os
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import contract, parameters, registry
from bench.contract import Rule, Verdict, Workshop
from bench.defense import Defense
from bench.errors import InputError, unknown
from bench.plugin import Plugin
from bench.registry import Broken, Registry

Echo = Callable[[str], None]
_WORDS = {"ok": "ok", "violated": "VIOLATED", "skipped": "skipped"}
_TRACEBACK_LINES = 8


def check(names: Sequence[str], settings: Sequence[str], echo: Echo, workshop: Workshop | None = None) -> int:
    """Check plugins and print a verdict for each rule.

    Args:
        names: of plugins, or of Python files, all of whose plugins are checked.
        settings: parameters as `key=value`, values in TOML.
        echo: prints a line.
        workshop: what the rules work with; None for the task's whole recipe and claims at 1e-6.

    Returns:
        The exit code: 0 where every rule holds or is skipped, 1 where some is violated.

    Raises:
        InputError: no such plugin, a file that does not import, or wrong parameters.
    """
    torch.set_num_threads(1)
    with _known([Path(name) for name in names if _is_file(name)]) as known:
        classes = [cls for name in names for cls in _classes(name, known)]
        values = _values(settings)
        plugins = [parameters.build(cls, values, f"check {cls.name}, --set") for cls in dict.fromkeys(classes)]
        if workshop is not None:
            return _check_all(plugins, workshop, echo)
        with Workshop() as made:
            return _check_all(plugins, made, echo)


def _check_all(plugins: Sequence[Plugin], workshop: Workshop, echo: Echo) -> int:
    counts: Counter[str] = Counter()
    if any(isinstance(plugin, Defense) for plugin in plugins):
        # It starts beside the first rules.
        _ = workshop.spy
    for number, plugin in enumerate(plugins):
        rules = contract.rules_for(plugin)
        echo(("\n" if number else "") + _heading(plugin, workshop))
        width = max(len(rule.id) for rule in rules)
        for rule in rules:
            verdict = contract.judge(rule, plugin, workshop)
            counts[verdict.status] += 1
            for line in _lines(rule, verdict, width):
                echo(line)
    echo(f"\n{counts['ok']} ok, {counts['violated']} violated, {counts['skipped']} skipped")
    return 1 if counts["violated"] else 0


def _heading(plugin: Plugin, workshop: Workshop) -> str:
    role = "defense" if isinstance(plugin, Defense) else "attack"
    module = sys.modules.get(type(plugin).__module__)
    task = f"{workshop.task.info.name}/{workshop.task.model}, {workshop.task.recipe.epochs} epochs"
    return f"{role} {plugin.label} ({getattr(module, '__file__', type(plugin).__module__)}) on {task}"


def _lines(rule: Rule, verdict: Verdict, width: int) -> Iterator[str]:
    head = f"  {_WORDS[verdict.status]:<8}  {rule.id:<{width}}  {verdict.seconds:5.1f} s"
    if verdict.status != "violated":
        yield f"{head}  {verdict.detail}"
        return
    # A violation is read by someone who has to mend it: what was demanded stands with it.
    yield f"{head}  {rule.demand}"
    yield f"{'':<12}{verdict.detail}"


def _is_file(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


@contextlib.contextmanager
def _known(files: Sequence[Path]) -> Iterator[Registry]:
    """All plugins, those of the files among them; processes started meanwhile know them too."""
    for file in files:
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise InputError(f"check: expected a plugin's name or a Python file, {str(file)!r} {what}")
    before = os.environ.get("OWNBENCH_PLUGINS")
    strangers = [file.resolve() for file in files if not _is_known(file, registry.discover())]
    if strangers:
        parts = [before, *map(str, strangers)]
        os.environ["OWNBENCH_PLUGINS"] = os.pathsep.join(part for part in parts if part)
        registry.discover.cache_clear()
    try:
        yield registry.discover()
    finally:
        if strangers:
            os.environ.pop("OWNBENCH_PLUGINS")
            if before is not None:
                os.environ["OWNBENCH_PLUGINS"] = before
            registry.discover.cache_clear()


def _is_known(file: Path, known: Registry) -> bool:
    return bool(_defined_in(file, known)) or _broken_at(file, known) is not None


def _classes(name: str, known: Registry) -> list[type[Any]]:
    if _is_file(name):
        file = Path(name)
        if broken := _broken_at(file, known):
            raise InputError(_told(broken))
        found = _defined_in(file, known)
        if not found:
            raise InputError(f"check: expected a plugin in {name} (a defense or an attack with a name), found none")
        return found
    found = [plugins[name] for plugins in (known.defense, known.attack) if name in plugins]
    if not found:
        if broken := known.broken_named(name):
            raise InputError(_told(broken))
        raise unknown("plugin", name, {*known.defense, *known.attack}, "check")
    return found


def _defined_in(file: Path, known: Registry) -> list[type[Any]]:
    return [
        cls for plugins in (known.defense, known.attack) for cls in plugins.values() if _file_of(cls) == file.resolve()
    ]


def _file_of(cls: type) -> Path | None:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return Path(file).resolve() if file else None


def _broken_at(file: Path, known: Registry) -> Broken | None:
    resolved = file.resolve()
    package = f"{resolved.parent.name}.{resolved.stem}"
    here = {"defenses", "attacks"}
    for one in known.broken:
        if one.where.endswith(".py") and Path(one.where).resolve() == resolved:
            return one
        if one.where == package and resolved.parent.name in here:
            return one
    return None


def _told(broken: Broken) -> str:
    lines = broken.traceback.rstrip().splitlines()[-_TRACEBACK_LINES:]
    return "\n".join([f"check: {broken.where} cannot be used: {broken.error_type}: {broken.error}", *lines])


def _values(settings: Sequence[str]) -> Mapping[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found:
            raise InputError(f"--set: expected key=value, got {setting!r}")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            # Shells eat quotes, and a bare word can only be meant as text.
            if not text.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise InputError(
                    f'--set {key}: expected a TOML value such as 3, 0.5, true, [1, 2] or "text", got {text!r}'
                ) from None
            values[key.strip()] = text
    return values
