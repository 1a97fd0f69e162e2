"""Digests of the sources that a job runs: definitions, not files, so that an edit redoes just what it touches.

A job's roots (a function, or some methods of a plugin) are followed through the names that they use, over
all modules of the project. Comments, docstrings and annotations do not count; what cannot be resolved
statically (a module passed as a value) counts whole.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = frozenset({"bench", "defenses", "attacks", "models", "ownbench_plugins"})

# Methods that only the forecast of a run calls: of a class taken whole they do not count.
_DECLARED = frozenset({"effort", "surrogates"})

# (module, name); a name is `function`, `CONSTANT`, `Class`, `Class.method`, `Class#header`, `#body` or `*`.
Node = tuple[str, str]


@dataclass
class _Module:
    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    methods: dict[str, dict[str, ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    body: list[ast.stmt] = field(default_factory=list)


def digest(roots: Iterable[Node]) -> str:
    """SHA-256 over every definition that the roots reach, 16 hexadecimal digits.

    Args:
        roots: pairs of module and name; names that do not exist (an inherited method) are passed over.
    """
    total = hashlib.sha256()
    for node in sorted(_reachable(frozenset(roots))):
        total.update(f"{node[0]}:{node[1]}\n{_text(node)}\n".encode())
    return total.hexdigest()[:16]


def plugin_roots(cls: type, methods: Iterable[str]) -> list[Node]:
    """The roots of a plugin's class: the fields of it and its bases, the named methods, and those that they call.

    A method called on `self` is every definition of that name among the class and its bases: a base's
    `protect` may call what a subclass overrides.
    """
    lineage = _lineage(cls)
    roots = [(one.__module__, f"{one.__qualname__}#header") for one in lineage]
    seen: set[str] = set()
    waiting = list(methods)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for one in lineage:
            node = (one.__module__, f"{one.__qualname__}.{name}")
            for statement in _statements(node):
                roots.append(node)
                waiting += [path[1] for path in _names_used(statement) if path[0] in ("self", "cls") and len(path) > 1]
    return roots


def declared_roots(cls: type) -> list[Node]:
    """What a plugin declares for forecasts, where its own methods call it and it does count."""
    lineage = _lineage(cls)
    used: set[str] = set()
    for one in lineage:
        module = _module(one.__module__)
        for method in _counted(module, one.__qualname__) if module and one.__qualname__ in module.methods else []:
            for statement in _statements((one.__module__, f"{one.__qualname__}.{method}")):
                used |= {path[1] for path in _names_used(statement) if path[0] in ("self", "cls") and len(path) > 1}
    return [(one.__module__, f"{one.__qualname__}.{name}") for one in lineage for name in sorted(used & _DECLARED)]


def _lineage(cls: type) -> list[type]:
    return [one for one in cls.__mro__ if one.__module__.split(".")[0] in PACKAGES | {cls.__module__.split(".")[0]}]


def whole_module(name: str) -> Node:
    """The root that stands for everything in a module."""
    return (name, "*")


def forget() -> None:
    """Read all sources anew at the next digest."""
    for cached in (_module, _edges, _text, _reachable, _bare):
        cached.cache_clear()


@functools.cache
def _reachable(roots: frozenset[Node]) -> frozenset[Node]:
    seen: set[Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(_edges(node))
    return frozenset(seen)


@functools.cache
def _edges(node: Node) -> tuple[Node, ...]:
    name, what = node
    module = _module(name)
    if module is None:
        return ()
    found: list[Node] = [(name, "#body")] if module.body and what != "#body" else []
    if what == "*":
        return (*found, *((name, definition) for definition in module.definitions))
    if what in module.methods:
        found += [(name, f"{what}#header"), *((name, f"{what}.{method}") for method in _counted(module, what))]
        cls = module.definitions[what][0]
        for base in cls.bases if isinstance(cls, ast.ClassDef) else []:
            for path in _names_used(ast.Expr(base)):
                found.extend(_resolve(module, path, ""))
        return tuple(found)
    owner = what.split("#")[0].split(".")[0] if ("." in what or "#" in what) else ""
    for statement in _statements(node):
        # The bases of a class are followed with the whole class, or with its lineage where it is a plugin's.
        bare = _baseless(statement) if what.endswith("#header") else statement
        for path in _names_used(bare):
            found.extend(_resolve(module, path, owner))
    return tuple(found)


def _counted(module: _Module, cls: str) -> list[str]:
    return [method for method in module.methods[cls] if method not in _DECLARED]


def _statements(node: Node) -> list[ast.stmt]:
    name, what = node
    module = _module(name)
    if module is None or what == "*":
        return []
    if what == "#body":
        return module.body
    if what.endswith("#header"):
        cls = module.definitions[what.removesuffix("#header")][0]
        return [_header(cls)] if isinstance(cls, ast.ClassDef) else []
    if "." in what:
        cls_name, method = what.split(".", 1)
        found = module.methods.get(cls_name, {}).get(method)
        return [found] if found is not None else []
    return [] if what in module.methods else module.definitions.get(what, [])


@functools.cache
def _text(node: Node) -> str:
    return "\n".join(ast.unparse(_bare(statement)) for statement in _statements(node))


@functools.cache
def _module(name: str) -> _Module | None:
    path = _file(name)
    if path is None:
        return None
    module = _Module(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for statement in ast.walk(tree):
        module.imports.update(_imported(statement, package))
    for statement in tree.body:
        _file_under(module, statement)
    return module


def _file_under(module: _Module, statement: ast.stmt) -> None:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        module.definitions.setdefault(statement.name, []).append(statement)
    elif isinstance(statement, ast.ClassDef):
        module.definitions.setdefault(statement.name, []).append(statement)
        module.methods[statement.name] = {
            one.name: one for one in statement.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        }
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    module.definitions.setdefault(name.id, []).append(statement)
    elif not isinstance(statement, ast.Import | ast.ImportFrom) and not _is_docstring(statement):
        module.body.append(statement)


def _file(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if origin is None and loaded is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def _imported(statement: ast.AST, package: str) -> Iterator[tuple[str, tuple[str, str | None]]]:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            bound = alias.asname or alias.name.split(".")[0]
            yield bound, (alias.name if alias.asname else bound, None)
    elif isinstance(statement, ast.ImportFrom):
        base = statement.module or ""
        if statement.level:
            above = package.split(".")[: len(package.split(".")) - statement.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in statement.names:
            yield alias.asname or alias.name, (base, alias.name)


def _resolve(module: _Module, path: tuple[str, ...], owner: str) -> list[Node]:
    """The nodes that a dotted name means in a module; nothing for names from outside the project."""
    first, rest = path[0], path[1:]
    if owner and first in ("self", "cls", owner) and rest:
        return [(module.name, f"{owner}.{rest[0]}")] if rest[0] in module.methods.get(owner, {}) else []
    if first in module.definitions:
        return [(module.name, first)]
    if first not in module.imports:
        return []
    target, attribute = module.imports[first]
    if target.split(".")[0] not in PACKAGES | {module.name.split(".")[0]}:
        return []
    return _follow(target, ((attribute,) if attribute else ()) + rest)


def _follow(name: str, path: tuple[str, ...]) -> list[Node]:
    while path and _file(f"{name}.{path[0]}") is not None:
        name, path = f"{name}.{path[0]}", path[1:]
    found = _module(name)
    if found is None:
        return []
    if not path:
        return [whole_module(name)]
    return _resolve(found, path, "")


def _names_used(statement: ast.stmt) -> Iterator[tuple[str, ...]]:
    skipped: set[ast.AST] = set()
    for node in ast.walk(_bare(statement)):
        if node in skipped:
            continue
        if isinstance(node, ast.Attribute):
            chain: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                chain.insert(0, inner.attr)
                skipped.add(inner)
                inner = inner.value
            if isinstance(inner, ast.Name):
                skipped.add(inner)
                yield (inner.id, *chain)
        elif isinstance(node, ast.Name):
            yield (node.id,)


def _header(cls: ast.ClassDef) -> ast.ClassDef:
    kept = [one for one in cls.body if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return ast.ClassDef(cls.name, cls.bases, cls.keywords, kept or [ast.Pass()], cls.decorator_list)


def _baseless(statement: ast.stmt) -> ast.stmt:
    if not isinstance(statement, ast.ClassDef):
        return statement
    return ast.ClassDef(statement.name, [], [], statement.body, statement.decorator_list)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


class _Stripper(ast.NodeTransformer):
    """Drops docstrings and annotations, which nothing runs."""

    def visit(self, node: ast.AST) -> Any:
        self.generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.body = [one for one in node.body if not _is_docstring(one)] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(...)
        return node


@functools.cache
def _bare(statement: ast.stmt) -> ast.stmt:
    bare: ast.stmt = _Stripper().visit(copy.deepcopy(statement))
    return ast.fix_missing_locations(bare)
