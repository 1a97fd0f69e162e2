"""Tables as small JSON that may stand inside a page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

# Significant digits: more than is ever printed.
DIGITS = 5
Row = Mapping[str, Any]


def packed(rows: Sequence[Row], left_out: Iterable[str] = ()) -> dict[str, Any]:
    """Rows as columns: `{"n": rows, "columns": {name: column}}`.

    A column is `{"all": value}` where all values are equal, `{"words": […], "codes": […]}` where texts repeat, else
    `{"values": […]}`. Infinities are the texts `inf` and `-inf`, NaN is null.

    Args:
        rows: all with the same names.
        left_out: names that are not wanted.
    """
    names = [name for name in (rows[0] if rows else {}) if name not in set(left_out)]
    return {"n": len(rows), "columns": {name: _column([plain(row[name]) for row in rows]) for name in names}}


def plain(value: Any) -> Any:
    """A value as JSON can say it."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            short = float(f"{value:.{DIGITS}g}")
            # Rounding may leave the range of floats.
            short = short if math.isfinite(short) else value
            return int(short) if short.is_integer() and abs(short) < 1e15 else short
        return None if math.isnan(value) else str(value)
    return value.isoformat() if isinstance(value, datetime) else value


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there: no <, > or & is left."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _column(values: list[Any]) -> dict[str, Any]:
    if values and all(type(value) is type(values[0]) and value == values[0] for value in values):
        return {"all": values[0]}
    if any(isinstance(value, str) for value in values) and all(isinstance(value, str | None) for value in values):
        places: dict[str | None, int] = {}
        codes = [places.setdefault(value, len(places)) for value in values]
        if len(places) < len(values):
            return {"words": list(places), "codes": codes}
    return {"values": values}
