"""A comparison of two sets, for people and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from bench.publishing.comparison import OUTCOMES
from bench.publishing.packing import plain
from bench.text.grids import number
from bench.text.layout import Grid, to_text

WIDTH = 100
# Lines of each outcome that the text shows; JSON has all.
SHOWN = 40
_QUIET = ("within noise", "same")
_MEANS = {
    "better": "for the owner, beyond noise (95 % interval over seeds)",
    "worse": "for the owner, beyond noise (95 % interval over seeds)",
    "too few seeds": "different, and fewer than three seeds in both: nothing tells this from noise",
    "not comparable": "no seed with a number in both",
    "missing in A": "only in B",
    "missing in B": "only in A",
}
_UNITS = {"price": "price", "cost": "accuracy cost", "claim": "seeds with a claim"}


def render(lines: pd.DataFrame, names: tuple[str, str], form: str = "table") -> str:
    """The changes as text of 100 columns, or all lines as JSON.

    Args:
        lines: of `bench.publishing.comparison.compare`.
        names: what A and B are called.
        form: `table` or `json`.
    """
    counts = {word: int((lines["outcome"] == word).sum()) for word in OUTCOMES}
    if form == "json":
        rows = [{name: plain(value) for name, value in row.items()} for row in lines.to_dict("records")]
        return json.dumps({"a": names[0], "b": names[1], "counts": counts, "lines": rows}, indent=1) + "\n"
    parts = [f"A: {names[0]}\nB: {names[1]}", ", ".join(f"{count} {word}" for word, count in counts.items() if count)]
    for word in OUTCOMES:
        rows = lines[lines["outcome"] == word]
        if word not in _QUIET and len(rows):
            parts.append("\n".join(_section(word, rows)))
    return "\n\n".join([*parts, *_legend(counts)]) + "\n"


def _section(word: str, rows: pd.DataFrame) -> Iterator[str]:
    yield f"{word.upper()}: {_MEANS[word]}"
    if word.startswith("missing"):
        yield from _gaps(rows)
        return
    grid = Grid(["defense", "attack", "what", "A", "B", "B - A", "verdict"], labels=(0, 1, 2, 6))
    for row in rows.head(SHOWN).to_dict("records"):
        grid.rows.append(_row(row))
    yield to_text(grid, WIDTH)
    if len(rows) > SHOWN:
        yield f"and {len(rows) - SHOWN} more; --format json has all"


def _gaps(rows: pd.DataFrame) -> Iterator[str]:
    """What is missing, by defense: a scheme or an attack that one side never had fills many cells."""
    cells = rows[rows["measure"] != "cost"]
    grid = Grid(["defense", "cells", "of these attacks"], labels=(0, 2))
    for (_, _, label), group in cells.groupby(["task", "model", "defense_label"], sort=True):
        names = list(dict.fromkeys(group["attack_label"]))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        grid.rows.append([label, str(len(group)), ", ".join(names[:3]) + more])
    yield to_text(grid, WIDTH)


def _row(row: Mapping[Any, Any]) -> list[str]:
    kinds = {"ambiguity": f" ({row['judged_key']}'s key)", "control": " (control)"}
    kind = kinds.get(row["attack_kind"], "")
    values = {name: plain(row[name]) for name in ("a", "b", "difference", "low", "high")}
    scale = 100.0 if row["measure"] == "claim" else 1.0
    a, b, change = (number(None if values[name] is None else scale * values[name]) for name in ("a", "b", "difference"))
    if values["high"] is not None:
        change += f" ±{scale * (values['high'] - values['low']) / 2:.1f}"
    before, after = plain(row["verdict_a"]), plain(row["verdict_b"])
    verdict = "" if before == after else f"{before or 'none'} -> {after or 'none'}"
    unit = _UNITS[row["measure"]] + (", %" if row["measure"] == "claim" else "")
    return [row["defense_label"], f"{row['attack_label']}{kind}", unit, a, b, change, verdict]


def _legend(counts: Mapping[str, int]) -> Iterator[str]:
    tested = counts["better"] + counts["worse"] + counts["within noise"]
    told = (
        "Prices and costs in points, means over the seeds of both; differences are paired over seeds, and a price at "
        "the ceiling counts as the ceiling."
    )
    if tested:
        told += (
            f" Of {tested} differences that were tested, one by one and at 95 %, chance alone would put about "
            f"{0.05 * tested:.0f} beyond noise."
        )
    yield textwrap.fill(told, WIDTH)
