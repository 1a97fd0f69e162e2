"""What a stranger's records declare of themselves: rules, names, times and labels."""

from __future__ import annotations

import datetime
import json
import re

import pyarrow as pa

from bench.errors import InputError
from bench.parameters import AND, THEN, canonical
from bench.publishing import intake
from bench.publishing.archive import from_json
from bench.tables import records as recorded
from bench.tables import schema

_SUITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# By side, what is made of several plugins, and what stands between their labels.
_COMPOSED = {"attack": ("chain", THEN), "defense": ("pair", AND)}
DAY = datetime.timedelta(days=1)
FIRST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def described(table: pa.Table) -> dict[str, str]:
    """The metadata of records, of which nothing but what is known is kept.

    Raises:
        InputError: something is missing or out of its range.
    """
    where = "records.parquet, metadata"
    meta = recorded.metadata(table)
    found = {"schema_version": str(schema.VERSION)}
    for rule, told in (("alpha", "(0, 1)"), ("accuracy_budget", "[0, 100]")):
        try:
            value = float(meta[rule])
        except (KeyError, ValueError) as error:
            raise InputError(f"{where}: expected a number as {rule}") from error
        if not (0.0 < value < 1.0 if rule == "alpha" else 0.0 <= value <= 100.0):
            raise InputError(f"{where}: expected {rule} in {told}, got {value!r}")
        found[rule] = repr(value)
    found["created_at"] = _time(meta.get("created_at", ""), where)
    for name in ("suite", "run_id"):
        parts = meta.get(name, "").split(" + ")
        if not all(map(_SUITE.fullmatch, parts)):
            raise InputError(f"{where}: expected a name as {name}, got {' + '.join(parts)[:80]!r}")
        found[name] = " + ".join(parts)
    found["labels"] = canonical(_labels(meta.get("labels", ""), where))
    return found


def _time(text: str, where: str) -> str:
    # An empty run has no time.
    if not text:
        return text
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{where}: expected a time, got {text[:40]!r}") from error
    if found.tzinfo is None or not FIRST <= found <= now() + DAY:
        raise InputError(f"{where}: expected a time with its zone from 2020 until now, got {text[:40]!r}")
    return found.isoformat()


def now() -> datetime.datetime:
    """The time; of what others say, no time is later than a day from it."""
    return datetime.datetime.now(datetime.UTC)


def _labels(text: str, where: str) -> dict[str, dict[str, str]]:
    found = from_json(text.encode(), f"{where}, labels")
    if found.keys() != {"defense", "attack"}:
        raise InputError(f"{where}: expected labels of defense and attack, got those of {sorted(found)!r:.80}")
    for side, labels in found.items():
        pairs = labels.items() if isinstance(labels, dict) else [("", None)]
        for known, label in pairs:
            if not isinstance(label, str) or len(label) > intake.NAME or not _is_of(label, side, known):
                raise InputError(
                    f"{where}, label of {side}: expected its name, or that with parameters in brackets, got "
                    f"{ascii(label)[:80]} for {ascii(known)[:80]}"
                )
    return found


def _is_of(label: str, side: str, known: str) -> bool:
    """Whether a label is that of the plugin it is given to, `name` or `name[…]`; of a chain or pair, of each part."""
    if re.search(_python(intake.STEERS_NAME), label):
        return False
    name, _, params = known.partition(" ")
    names = [name]
    composed, between = _COMPOSED[side]
    if name == composed:
        try:
            names = [str(part["name"]) for part in json.loads(params)[composed]]
        except (ValueError, LookupError, TypeError, RecursionError):
            return False
    parts = label.split(between)
    if len(parts) != len(names):
        return False
    return all(
        part == one or (part.startswith(f"{one}[") and part[-1] == "]") for part, one in zip(parts, names, strict=True)
    )


def _python(pattern: str) -> str:
    """A class of signs of RE2 as Python writes it."""
    return re.sub(r"\\x\{([0-9a-f]+)\}", lambda found: re.escape(chr(int(found[1], 16))), pattern)
