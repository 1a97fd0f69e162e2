"""Parameters are dataclass fields: checking what a suite says against them, crossing lists, naming variants."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from bench.errors import InputError, unknown

T = TypeVar("T")

# What stands between the labels of plugins that a suite composes: of a chain of attacks, of a pair of defenses.
THEN, AND = " then ", " & "


def judged(default: Any) -> Any:
    """A field that only `verify` reads: its settings share one protected model and its attacks."""
    return dataclasses.field(default=default, metadata={"judged": True})


def types_of(cls: Any) -> dict[str, Any]:
    """The field names of a dataclass with their types, in order of definition."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def spelled(annotation: Any) -> str:
    """How a type is written for people."""
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(annotation))
    if _is_union(annotation):
        return " | ".join(spelled(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return f"list of {spelled(typing.get_args(annotation)[0])}"
    if annotation is type(None):
        return "none"
    return getattr(annotation, "__name__", str(annotation))


def convert(value: Any, annotation: Any, where: str) -> Any:
    """The value as the annotated type.

    An integer is taken for a float; nothing else is converted, a bool least of all.

    Raises:
        InputError: the value has another type, or is none of the literals.
    """
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        choices = typing.get_args(annotation)
        if value in choices and type(value) in {type(choice) for choice in choices}:
            return value
        if isinstance(value, str):
            raise unknown("value", value, [str(choice) for choice in choices], where)
        raise InputError(f"{where}: expected {spelled(annotation)}, got {value!r}")
    if _is_union(annotation):
        for part in typing.get_args(annotation):
            try:
                return convert(value, part, where)
            except InputError:
                continue
        raise InputError(f"{where}: expected {spelled(annotation)}, got {value!r}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: expected {spelled(annotation)}, got {value!r}")
        item = typing.get_args(annotation)[0]
        return tuple(convert(entry, item, f"{where}[{i}]") for i, entry in enumerate(value))
    if annotation is float and type(value) is int:
        return float(value)
    if annotation in (int, float, bool, str) and type(value) is annotation:
        return value
    if annotation is type(None) and value is None:
        return None
    raise InputError(f"{where}: expected {spelled(annotation)}, got {value!r} ({type(value).__name__})")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """One instance of a parameter dataclass.

    Raises:
        InputError: an unknown name, a wrong type, or a value that the class itself refuses.
    """
    known = types_of(cls)
    for name in values:
        if name not in known:
            raise unknown("parameter", name, known, where)
    checked = {name: convert(value, known[name], f"{where}, key {name!r}") for name, value in values.items()}
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.name not in checked
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: missing key {missing[0]!r} ({spelled(known[missing[0]])})")
    try:
        return cls(**checked)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def crossed(cls: type[T], table: Mapping[str, Any], where: str) -> Iterator[T]:
    """Every instance that the table describes: a list is crossed, unless its field is itself a list.

    For a field that is a list, a list of lists is crossed.

    Raises:
        InputError: as for `build`; also for an empty list, whose cross is empty.
    """
    known = types_of(cls)
    axes: list[list[tuple[str, Any]]] = []
    for name, value in table.items():
        if name not in known:
            raise unknown("parameter", name, known, where)
        choices = value if _is_axis(value, known[name]) else [value]
        if not choices:
            raise InputError(f"{where}, key {name!r}: expected at least one value to cross, got an empty list")
        axes.append([(name, choice) for choice in choices])
    for combination in itertools.product(*axes):
        yield build(cls, dict(combination), where)


def values_of(instance: Any, *, judged_too: bool = True) -> dict[str, Any]:
    """The parameters as plain JSON values; without those that only `verify` reads where asked."""
    return {
        field.name: _plain(getattr(instance, field.name))
        for field in dataclasses.fields(instance)
        if judged_too or not field.metadata.get("judged")
    }


def label(name: str, instance: Any) -> str:
    """`name[parameter=value,…]` with the parameters that differ from their defaults."""
    changed = [
        f"{field.name}={_short(getattr(instance, field.name))}"
        for field in dataclasses.fields(instance)
        if getattr(instance, field.name) != field.default
    ]
    return f"{name}[{','.join(changed)}]" if changed else name


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN; equal values give equal text in any process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_axis(value: Any, annotation: Any) -> bool:
    if not isinstance(value, list):
        return False
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    if any(typing.get_origin(part) is tuple for part in parts):
        return bool(value) and all(isinstance(entry, list) for entry in value)
    return True


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(_short(entry) for entry in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def require_shares(name: str, shares: tuple[float, ...], most: float) -> None:
    """Refuse shares that do not rise within (0, most].

    Raises:
        ValueError: with what was given.
    """
    rising = all(first < second for first, second in itertools.pairwise(shares))
    if not (shares and rising and shares[0] > 0 and math.isfinite(shares[-1]) and shares[-1] <= most):
        limit = "above 0" if math.isinf(most) else f"in (0, {most:g}]"
        raise ValueError(f"expected {name} {limit} that rise, got {list(shares)}")


def require_training(epochs: int, learning_rate: float, least: int = 1) -> None:
    """Refuse a training that is none.

    Raises:
        ValueError: with what was given.
    """
    if epochs < least or not 0 < learning_rate < math.inf:
        raise ValueError(f"expected epochs >= {least} and learning_rate > 0, got {epochs} and {learning_rate}")
