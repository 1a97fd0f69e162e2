"""The null table for people: how often p-values are small where nothing is to be found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from bench.tables import records as recorded
from bench.text.layout import Grid, filled, to_markdown, to_text

Row = Mapping[str, Any]
WIDTH = 100

_SECTIONS = {
    "decoys": "Fresh keys: {pairs} pairs of a key and a model each",
    "owners": "The {keys} owners' own keys: {pairs} pairs each",
}


def render(null: pa.Table, form: str) -> str:
    """The table, with a legend in words.

    Args:
        null: of `bench.tables.null`.
        form: `table` (at most 100 columns) or `markdown`.
    """
    rows = null.to_pylist()
    if not rows:
        return ""
    alpha = float(recorded.metadata(null)["alpha"])
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task]
        title = f"Task {task}: p-values on {max(row['models'] for row in here)} models that bear no mark of the owners"
        grid = _grid(here, alpha)
        parts += [f"### {title}", "", to_markdown(grid), ""] if form == "markdown" else [title, "", _text(grid), ""]
    notes = _legend(rows, alpha)
    told = [f"- {note}" for note in notes] if form == "markdown" else [line for note in notes for line in filled(note)]
    return "\n".join([*parts, *told]) + "\n"


def _text(grid: Grid) -> str:
    return to_text(grid, WIDTH)


def _grid(rows: list[Row], alpha: float) -> Grid:
    levels = sorted({row["level"] for row in rows if not row["is_alpha"]}, reverse=True)
    heads = [f"% with\np <= {level:g}" for level in levels]
    grid = Grid(["defense", *heads, f"p <= {alpha:g}\nat most", "not\nread", "verdict"], labels=(0,))
    for reading, title in _SECTIONS.items():
        lines: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if row["reading"] == reading:
                lines.setdefault((row["defense"], row["defense_params"]), []).append(row)
        tested = [one for line in lines.values() for one in line if one["pairs"]]
        counts = {name: max((one[name] for one in tested), default=0) for name in ("pairs", "keys")}
        grid.rows.append(title.format(**{name: f"{count:,}" for name, count in counts.items()}))
        grid.rows += [_line(line, levels) for line in lines.values()]
    return grid


def _line(line: list[Row], levels: list[float]) -> list[str]:
    by_level = {row["level"]: row for row in line}
    bound = next(row for row in line if row["is_alpha"])
    read = f"{bound['unreadable']:,}" if bound["pairs"] else "-"
    rates = [_rate(by_level[level]) for level in levels]
    return [f"  {bound['defense_label']}", *rates, _bound(bound), read, _verdict(line)]


def _rate(row: Row) -> str:
    if not row["pairs"]:
        return "-"
    return f"{_percent(row['rate'])} ({_percent(row['low'])}-{_percent(row['high'])})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share >= 0.01 else f"{100 * share:.2f}"


def _bound(row: Row) -> str:
    if not row["pairs"]:
        return "-"
    seen = f"{row['exceeding']} seen, " if row["exceeding"] else ""
    return f"{seen}{row['high']:.1e}"


def _verdict(line: list[Row]) -> str:
    if any(row["verdict"] == "exceeded" for row in line):
        return "TOO MANY"
    failed = line[0]["models_failed"]
    return f"FAILED ({failed})" if failed else "ok"


def _legend(rows: list[Row], alpha: float) -> list[str]:
    notes = [
        "A p-value is the chance that a random key fits a model as well. On a model that bears no mark, at most 10 % "
        "of keys may have one of 0.1 or less, 1 % one of 0.01 or less, and so on; fewer is caution, more is a lie. "
        "In brackets: 95 % interval of the share, by models (for owners by models and keys).",
        f"p <= {alpha:g}, at most: no number of draws shows a rate as small as alpha; this is the largest share "
        "(upper end of the 95 % interval) with which the draws agree.",
        "fresh keys: drawn anew for each model and completed with what the owners learnt when they protected theirs. "
        "owners' own keys: the completed keys of independent owners, on every model. not read: pairs in which the "
        "defense says that it cannot read the model, such as one of another architecture; they count as p = 1.",
        "TOO MANY: more small p-values than chance allows, over all models or on a single one, after Holm's correction "
        "over the whole table (one false alarm in 1,000 tables). Such a defense is unreliable wherever it claims.",
    ]
    if liars := [row for row in rows if row["verdict"] == "exceeded"]:
        worst = min(liars, key=lambda row: row["p_holm"])
        notes.append(
            f"UNRELIABLE: {', '.join(dict.fromkeys(row['defense_label'] for row in liars))}. The clearest: "
            f"{100 * worst['rate']:.2g} % with p <= {worst['level']:g} ({worst['reading']}), "
            f"{100 * worst['worst_rate']:.2g} % on the model {worst['worst_model'] or 'none'}; adjusted p "
            f"{worst['p_holm']:.1g}."
        )
    if error := next((row["error"] for row in rows if row["error"]), None):
        notes.append(f"FAILED: trials without a result. The first: {' '.join(error.split())[:200]}")
    return notes
