"""The matrix and the Pareto plot of each task as SVG and PNG, the same bytes from the same tables."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from bench.publishing.content import STATES
from bench.text.grids import cell_text
from bench.text.layout import shorten

Row = Mapping[str, Any]
# Style of a verdict to a colour that is told from the others by people who see few colours, too.
_COLOURS = {
    **{"kept": "#d3e5f8", "lost": "#f3a15f", "void": "#e8e3f2", "fail": "#ffe27a", "rule": "#eeeeee"},
    "none": "#ffffff",
}
# More rows than this are no figure that anybody reads; the page shows them.
MOST = 60
# Characters of a label.
_LONGEST = 40


def draw(leaderboard: pa.Table, matrix: pa.Table) -> dict[str, bytes]:
    """Name of a file to its content; of each task both figures in both forms.

    Args:
        leaderboard: of `bench.tables.leaderboard.boards`.
        matrix: likewise.
    """
    import matplotlib as mpl

    board, cells = leaderboard.to_pylist(), matrix.to_pylist()
    drawn: dict[str, bytes] = {}
    # Texts stay texts in SVG; a fixed salt gives elements the same names every time.
    with mpl.rc_context({"svg.hashsalt": "ownbench", "svg.fonttype": "none", "font.size": 8}):
        for task, model in dict.fromkeys((row["task"], row["model"]) for row in board):
            here = [row for row in board if (row["task"], row["model"]) == (task, model)]
            there = [row for row in cells if (row["task"], row["model"]) == (task, model)]
            name = named(task, model)
            while f"matrix-{name}.svg" in drawn:
                name += "-again"
            drawn |= _saved(f"pareto-{name}", _pareto(here, task))
            drawn |= _saved(f"matrix-{name}", _matrix(here, there, task))
    return drawn


def named(task: str, model: str) -> str:
    """A part of a file's name: letters, digits and hyphens alone, whatever the task is called."""
    whole = task if model in task else f"{task}-{model}"
    return re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-") or "task"


def _saved(name: str, figure: Any) -> dict[str, bytes]:
    files = {}
    for form, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        sink = io.BytesIO()
        figure.savefig(sink, format=form, dpi=110, metadata=metadata)
        files[f"{name}.{form}"] = sink.getvalue()
    return files


def _pareto(board: list[Row], task: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    for rank, row in enumerate(board, 1):
        if row["verdict"] != "claim" or row["price"] is None or row["accuracy_cost"] is None:
            continue
        label = f"{rank} {_plain(row['defense_label'])}{' (bound)' if row['price_censored'] else ''}"
        marker = "^" if row["price_censored"] else "o"
        panel.plot(row["accuracy_cost"], row["price"], marker, label=label, markersize=5)
        panel.annotate(str(rank), (row["accuracy_cost"], row["price"]), xytext=(4, 3), textcoords="offset points")
    panel.set(xlabel="accuracy cost, points", ylabel="price of the cheapest removal, points", title=_plain(task))
    if panel.lines:
        figure.legend(loc="outside right upper", fontsize=6)
    return figure


def _matrix(board: list[Row], cells: list[Row], task: str) -> Any:
    columns = {(row["defense"], row["defense_params"]): place for place, row in enumerate(board)}
    kept = [row for row in cells if row["attack_kind"] in ("removal", "ambiguity")]
    kept = [row for row in kept if row["attack_kind"] == "removal" or row["judged_key"] == "forger"]
    rows: dict[tuple, int] = {}
    labels: list[str] = []
    names: set[tuple] = set()
    for row in sorted(kept, key=lambda one: (one["attack_kind"] != "removal", one["knowledge"] == "insider")):
        key = (row["attack_kind"], row["attack"], row["attack_params"])
        names.add(key)
        if key not in rows and len(rows) < MOST:
            rows[key] = len(rows)
            labels.append(_plain(row["attack_label"]))
    more = f"; {len(names) - len(rows)} more attacks on the page" if len(names) > len(rows) else ""
    return _drawn(board, kept, columns, rows, labels, _plain(task) + more)


def _drawn(
    board: list[Row],
    kept: list[Row],
    columns: Mapping[tuple, int],
    rows: Mapping[tuple, int],
    labels: list[str],
    title: str,
) -> Any:
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    styles = list(_COLOURS)
    ground = np.full((max(1, len(rows)), len(columns)), styles.index("none"))
    texts = []
    for row in kept:
        place = rows.get((row["attack_kind"], row["attack"], row["attack_params"]))
        if place is not None:
            column = columns[row["defense"], row["defense_params"]]
            glyph, style, _ = STATES.get(row["verdict"], ("?", "void", ""))
            ground[place, column] = styles.index(style)
            texts.append((column, place, f"{glyph} {_plain(cell_text(row))}"))
    # Margins by hand, in inches: to find them by drawing takes longer than all the rest.
    left, top, wide, high = 2.9, 2.3, 0.75 * len(columns), 0.22 * len(ground)
    figure = Figure(figsize=(left + wide + 1.4, top + high + 0.1))
    whole = figure.get_size_inches()
    panel = figure.add_axes((left / whole[0], 0.1 / whole[1], wide / whole[0], high / whole[1]))
    edges = [np.arange(size + 1) - 0.5 for size in ground.shape[::-1]]
    colours = ListedColormap(list(_COLOURS.values()))
    panel.pcolormesh(*edges, ground, cmap=colours, vmin=-0.5, vmax=len(styles) - 0.5, edgecolors="white", linewidth=1)
    for column, place, text in texts:
        panel.text(column, place, text, ha="center", va="center", fontsize=6)
    panel.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(ground) - 0.5, -0.5))
    panel.set_xticks(range(len(columns)), [_plain(row["defense_label"]) for row in board], rotation=60, ha="left")
    panel.set_yticks(range(len(labels)), labels)
    panel.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    figure.text(0.1 / whole[0], 1 - 0.25 / whole[1], title, fontsize=10)
    return figure


def _plain(text: str) -> str:
    """Text that is not read as mathematics, and leaves room for the figure."""
    return shorten([text], _LONGEST)[0].replace("$", r"\$")
