"""Finding plugins: every module of `defenses/` and `attacks/`, of OWNBENCH_PLUGINS, and entry points."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
from dataclasses import dataclass, field, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from bench.attack import Attack
from bench.defense import Defense
from bench.errors import InputError
from bench.plugin import Plugin

Role = Literal["defense", "attack"]
_BASES: dict[Role, type[Plugin]] = {"defense": Defense, "attack": Attack}
_FOLDER_PACKAGE = "ownbench_plugins"


@dataclass(frozen=True)
class Broken:
    """A plugin file that could not be used.

    Attributes:
        names: those that its file suggests, and those that it would have defined.
        where: module or file.
        error_type: class name of the error.
        error: its message.
        traceback: where it came from.
    """

    names: tuple[str, ...]
    where: str
    error_type: str
    error: str
    traceback: str


@dataclass
class Registry:
    """The plugins by name, and the files that could not be used."""

    defense: dict[str, type[Defense]] = field(default_factory=dict)
    attack: dict[str, type[Attack]] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def of(self, role: Role) -> dict[str, type[Any]]:
        """The plugins of a role by name."""
        return self.defense if role == "defense" else self.attack  # type: ignore[return-value]

    def broken_named(self, name: str) -> Broken | None:
        """The broken file that suggests this name."""
        return next((one for one in self.broken if name in one.names), None)


@functools.cache
def discover() -> Registry:
    """Import every plugin module once. A module that fails is listed as broken and disturbs no other."""
    registry = Registry()
    for role in _BASES:
        package = importlib.import_module(f"{role}s")
        for found in pkgutil.iter_modules(package.__path__):
            # A folder holds what several plugins share.
            if found.ispkg:
                continue
            _collect(
                registry, f"{role}s.{found.name}", functools.partial(importlib.import_module, f"{role}s.{found.name}")
            )
    for file in _extra_files():
        _collect(registry, str(file), functools.partial(_import_file, file))
    for role in _BASES:
        for entry in entry_points(group=f"ownbench.{role}s"):
            _collect_entry(registry, entry)
    return registry


def load(path: str) -> type[Any]:
    """The class behind `module:Class`, in this process or in a worker.

    Raises:
        ImportError, AttributeError: it cannot be found.
    """
    module, _, name = path.partition(":")
    if module.startswith(f"{_FOLDER_PACKAGE}.") and module not in sys.modules:
        stem = module.rpartition(".")[2]
        file = next((f for f in _extra_files() if f.stem == stem), None)
        if file is None:
            raise ImportError(f"no plugin file {stem}.py in OWNBENCH_PLUGINS")
        _import_file(file)
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def path_of(cls: type) -> str:
    """The import path of a plugin's class, for `load`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _extra_files() -> list[Path]:
    chosen: list[Path] = []
    for part in filter(None, os.environ.get("OWNBENCH_PLUGINS", "").split(os.pathsep)):
        path = Path(part)
        chosen += sorted(path.glob("*.py")) if path.is_dir() else [path]
    return chosen


def _import_file(file: Path) -> ModuleType:
    name = f"{_FOLDER_PACKAGE}.{file.stem}"
    if name in sys.modules:
        loaded = sys.modules[name]
        if Path(str(loaded.__file__)) != file:
            raise ImportError(f"another plugin file of the same name was loaded: {loaded.__file__}")
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"expected a Python file, got {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(_FOLDER_PACKAGE, ModuleType(_FOLDER_PACKAGE))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _collect(registry: Registry, where: str, import_module: functools.partial[ModuleType]) -> None:
    stem = Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]
    try:
        module = import_module()
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__:
                _register(registry, cls)
    # Whatever a stranger's file does at import, the other plugins must stay usable.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        names = (stem.replace("_", "-"), *_names_in(where))
        registry.broken.append(_broken(names, where, error))


def _collect_entry(registry: Registry, entry: Any) -> None:
    try:
        _register(registry, entry.load())
    except (Exception, SystemExit) as error:  # noqa: BLE001
        registry.broken.append(_broken((entry.name,), f"{entry.value} (entry point)", error))


def _names_in(where: str) -> list[str]:
    """The names that a file would have given to its plugins; it could not be imported to ask."""
    try:
        path = Path(where) if where.endswith(".py") else Path(str(importlib.util.find_spec(where).origin))  # type: ignore[union-attr]
        text = path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ImportError, AttributeError):
        return []
    return re.findall(r"""^\s+name\b[^=\n]*=\s*["']([^"']+)["']""", text, re.MULTILINE)


def _broken(names: tuple[str, ...], where: str, error: BaseException) -> Broken:
    text = "".join(traceback.format_exception(error))
    return Broken(names, where, type(error).__name__, str(error), text)


def _register(registry: Registry, cls: type) -> None:
    for role, base in _BASES.items():
        if not issubclass(cls, base) or not cls.name:
            continue
        if not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise InputError(f"{path_of(cls)}: expected a frozen dataclass, @dataclass(frozen=True)")
        known = registry.of(role)
        if cls.name in known and known[cls.name] is not cls:
            raise InputError(f"{role} {cls.name!r} is defined twice: {path_of(known[cls.name])} and {path_of(cls)}")
        known[cls.name] = cls
