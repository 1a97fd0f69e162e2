"""Whose rows they are: what others submitted bears their name in the name of each defense, `uchida@lab`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bench.errors import InputError
from bench.parameters import canonical
from bench.tables import records as recorded

# No name of a plugin of a submission has it, see `bench.publishing.numbers`.
MARK = "@"
_ORIGIN = re.compile(r"[a-z0-9][a-z0-9.-]{0,23}")


def require_origin(name: str) -> str:
    """The name, where it may stand for an origin.

    Raises:
        InputError: anything but 1 to 24 lower-case letters, digits, dots and hyphens, the first of them no sign.
    """
    if not _ORIGIN.fullmatch(name):
        raise InputError(
            f"--origin: expected 1 to 24 of the signs a-z, 0-9, '.' and '-' that begin with a letter or a digit, got "
            f"{name[:60]!r}"
        )
    return name


def origin_of(defense: str) -> str | None:
    """Who submitted the rows of a defense; None where they are our own."""
    _, mark, origin = defense.rpartition(MARK)
    return origin if mark else None


def origins(table: pa.Table) -> list[str | None]:
    """Each origin that a table with a column `defense` has, None for rows of our own, which come first."""
    found = {origin_of(name) for name in pc.unique(table["defense"]).to_pylist()}
    return sorted(found, key=lambda name: (name is not None, name or ""))


def parted(table: pa.Table) -> list[pa.Table]:
    """The table by origin, in the order of `origins`; as it is where there is but one."""
    names = pc.unique(table["defense"]).to_pylist()
    by_origin: dict[str | None, list[str]] = {origin: [] for origin in origins(table)}
    for name in names:
        by_origin[origin_of(name)].append(name)
    if len(by_origin) < 2:
        return [table]
    column = table["defense"]
    return [table.filter(pc.is_in(column, pa.array(known, pa.string()))) for known in by_origin.values()]


def own_first(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of a leaderboard with our own before those that were submitted, else in their order."""
    return sorted(rows, key=lambda row: origin_of(row["defense"]) is not None)


def plain_label(row: Mapping[str, Any]) -> str:
    """The label of a row's defense by which a suite knows it: without the origin."""
    name, label = row["defense"], str(row["defense_label"])
    origin = origin_of(name)
    return label if origin is None else _without(name, label, MARK + origin)


def told(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """A sentence on the rows of a leaderboard that were submitted; None where none was."""
    names = sorted({origin for row in rows if (origin := origin_of(row["defense"]))})
    if not names:
        return None
    listed = ", ".join(f"{MARK}{name}" for name in names)
    return (
        f"Submitted by others and not run again here: what bears {listed} in its name. Their numbers are consistent "
        "with their records, which is all that was checked; they change none of the other rows and no game counts them."
    )


def marked(table: pa.Table, origin: str) -> pa.Table:
    """Records or decoys of an origin, with names of defenses, ids of runs and labels that say so.

    Args:
        table: of which no name has an origin.
        origin: as `require_origin` wants it.
    """
    meta, tail = recorded.metadata(table), MARK + origin
    for column in ("defense", "run_id"):
        names = pc.binary_join_element_wise(table[column], pa.scalar(tail, pa.string()), "")
        table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), names)
    labels = _relabelled(table, lambda name, label: (name + tail, _with(name, label, tail)))
    names = {name: meta.get(name, "") + tail for name in ("suite", "run_id")}
    return _stating(table, {**names, "labels": labels})


def unmarked(table: pa.Table) -> pa.Table:
    """Records that all are of one submission, under the names that they had there; any others as they are."""
    found = origins(table)
    if len(found) != 1 or found[0] is None:
        return table
    tail = MARK + found[0]
    names = pa.array([name.removesuffix(tail) for name in table["defense"].to_pylist()], pa.string())
    table = table.set_column(table.schema.get_field_index("defense"), table.schema.field("defense"), names)
    labels = _relabelled(table, lambda name, label: (name.removesuffix(tail), _without(name, label, tail)))
    return _stating(table, {"labels": labels})


def _stating(table: pa.Table, changes: Mapping[str, str]) -> pa.Table:
    """The table with other metadata."""
    stated = {**recorded.metadata(table), **changes}
    return table.replace_schema_metadata({recorded.PREFIX + name: value for name, value in stated.items()})


def _relabelled(table: pa.Table, change: Callable[[str, str], tuple[str, str]]) -> str:
    """The labels of a table as its metadata has them, with other names and labels of defenses."""
    labels = recorded.labels(table)
    defenses = {}
    for known, label in labels["defense"].items():
        name, _, params = known.partition(" ")
        other, text = change(name, label)
        defenses[recorded.name_of(other, params)] = text
    return canonical({**labels, "defense": defenses})


def _is_named(name: str, label: str) -> bool:
    """Whether a label begins with the name; that of a pair is made of its members'."""
    return label == name or label.startswith(f"{name}[")


def _with(name: str, label: str, tail: str) -> str:
    return f"{name}{tail}{label[len(name) :]}" if _is_named(name, label) else label + tail


def _without(name: str, label: str, tail: str) -> str:
    """What `_with` made a label of; `name` has the tail."""
    return name.removesuffix(tail) + label[len(name) :] if _is_named(name, label) else label.removesuffix(tail)
