"""The leaderboard for people: a table of 100 columns, Markdown, JSON. Starts without pandas and torch."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, overload

import pyarrow as pa

from bench.errors import unknown
from bench.tables import origins
from bench.tables import records as recorded
from bench.text.grids import CHOSEN, SMALLER, board_grid, is_chosen, is_disputed, is_split, matrix_grids, smaller
from bench.text.layout import to_markdown, to_text

Row = Mapping[str, Any]
FORMATS = ("table", "markdown", "json", "parquet")
WIDTH = 100
_PROTOCOLS = (
    " (a·b·c/n: of n tried a on evidence alone, b if the key must have been committed to before the model was "
    "published, c if it must be derived from a seed and its owner's name as well)"
)

_WORTH = (
    "worth, by which the table is sorted: the least price less the cost. The price counts as 0 where a forgery is "
    "accepted in spite of commitments, or may be; a cost below 0 counts as 0."
)


@overload
def render(leaderboard: pa.Table, matrix: pa.Table, form: Literal["parquet"]) -> bytes: ...
@overload
def render(leaderboard: pa.Table, matrix: pa.Table, form: str = "table") -> str | bytes: ...


def render(leaderboard: pa.Table, matrix: pa.Table, form: str = "table") -> str | bytes:
    """Both tables for reading; as `parquet` the bytes of the leaderboard's file alone.

    Args:
        leaderboard: of `bench.tables.leaderboard.boards`, or as read from leaderboard.parquet.
        matrix: likewise.
        form: `table` (at most 100 columns), `markdown`, `json` or `parquet`.

    Raises:
        InputError: no such format.
    """
    if form == "parquet":
        return recorded.to_bytes(leaderboard)
    if form not in FORMATS:
        raise unknown("format", form, FORMATS, "--format")
    board, cells = leaderboard.to_pylist(), matrix.to_pylist()
    meta = recorded.metadata(leaderboard)
    if form == "json":
        return _json(meta, board, cells)
    parts = []
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in board):
        here = [row for row in board if (row["task"], row["model"]) == (task, model)]
        there = [row for row in cells if (row["task"], row["model"]) == (task, model)]
        parts.append(_markdown(here, there) if form == "markdown" else _table(here, there))
    if not parts:
        return "No records yet.\n"
    notes = [*_legend(meta, board, cells), *_warnings(float(meta["accuracy_budget"]), board, cells)]
    return "\n".join([*parts, *(_listed(notes) if form == "markdown" else _wrapped(notes))]) + "\n"


def _title(board: list[Row]) -> str:
    first = board[0]
    clean = next((row["accuracy_clean"] for row in origins.own_first(board) if row["accuracy_clean"] is not None), None)
    known = "" if clean is None else f", accuracy without defense {100 * clean:.1f} %"
    seeds = max(row["seeds"] for row in board)
    return f"Task {first['task']}, model {first['model']}{known}, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def _table(board: list[Row], cells: list[Row]) -> str:
    parts = [_title(board), "", to_text(board_grid(board), WIDTH), ""]
    for number, grid in enumerate(matrix_grids(board, cells, WIDTH)):
        again = " (continued)" if number else ""
        parts += [f"Price of removing each mark, in points of accuracy{again}", "", to_text(grid, WIDTH), ""]
    return "\n".join(parts)


def _markdown(board: list[Row], cells: list[Row]) -> str:
    parts = [f"### {_title(board)}", "", to_markdown(board_grid(board)), ""]
    for grid in matrix_grids(board, cells, None):
        parts += ["Price of removing each mark, in points of accuracy:", "", to_markdown(grid), ""]
    return "\n".join(parts)


def _legend(meta: Mapping[str, str], board: list[Row], cells: list[Row]) -> list[str]:
    alpha, budget = float(meta["alpha"]), float(meta["accuracy_budget"])
    ceilings = [row["ceiling"] for row in board if row["ceiling"] is not None]
    told = f" ({_span(ceilings)})" if ceilings else ""
    seeds = max(row["seeds"] for row in board)
    claim = (
        "claim: log10 of the chance that a random key fits as well; it holds at or below "
        f"{math.log10(alpha):g} (alpha {alpha:g}). box: white = the check reads weights, "
        "black = only answers. cost: points of accuracy that protecting takes"
        f"{' (± 95 %)' if seeds >= 3 else ''}."
    )
    price = (
        "price: points of accuracy that an attacker gives up for a copy that fails the check"
        f"{' (mean over seeds)' if seeds > 1 else ''}; * = within the budget of {budget:g}"
        f"{' in some seed' if seeds > 1 else ''}: mark removed"
    )
    if ceilings:
        price += f"; >=x = not below x, the ceiling{told}: the price of training on own labels instead"
    kept = (
        "kept: attacks that did not remove the mark"
        f"{' (a-b: a in every seed, b in some seed)' if _differ(board) else ''}. forged: forgeries accepted"
        f"{_PROTOCOLS if any(map(is_split, board)) else ''}. "
        "false: claims on models that never had the mark."
    )
    return [claim, f"{price}.", kept, _WORTH, *_tested(board), *_gained(budget, cells), *_words(cells)]


def _gained(budget: float, cells: list[Row]) -> list[str]:
    if not smaller(cells):
        return []
    return [
        f"{SMALLER}: what compressing brings the attacker. How many times less a copy within the budget of {budget:g} "
        "takes to store, with what says where its weights are, than the protected model's weights as floats (the most "
        "of an attack, median over seeds and defenses)."
    ]


def _tested(board: list[Row]) -> list[str]:
    if not {row["calibration"] for row in board} & {"reliable", "unreliable"}:
        return []
    return [
        "p is: ok = on models without the mark small p-values are as rare as they say (suite with [null]); "
        "A LIE = they are not, and its claims are unreliable; - = not tested as it stands."
    ]


def _differ(board: list[Row]) -> bool:
    return any(row["survived"] != row["survived_any"] for row in board)


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"


def _words(cells: list[Row]) -> list[str]:
    explained = {
        "no claim": "no claim: the owner's own model already fails the check, so there is nothing to remove",
        "cannot claim at alpha": "too weak: even a perfect match is more likely by chance than alpha",
        "unjudged": "?: the protected model itself was not judged",
        "not applicable": "n/a: the attack does not apply to this defense or task",
    }
    told = [row for row in cells if not row["reference"] and row["attack_kind"] != "control"]
    present = {row["verdict"] for row in told if not is_disputed(row)}
    found = [text for word, text in explained.items() if word in present]
    if any(is_disputed(row) for row in told):
        found.append(
            "claims x, no claim x: whether the owner's key verifies on the model that the forger shows, and the points "
            "of accuracy that this model has lost"
        )
    if any(is_chosen(row) for row in told):
        found.append(f"{CHOSEN}: by a key that is not derived from a seed and the forger's name")
    if any(row["seeds_failed"] and row["seeds"] for row in cells):
        found.append("!: failed in some seeds")
    return ["; ".join(found) + "."] if found else []


def _warnings(budget: float, board: list[Row], cells: list[Row]) -> list[str]:
    notes = [told] if (told := origins.told(board)) else []
    total = sum(row["cells_ok"] + row["cells_failed"] + row["cells_not_applicable"] for row in board)
    for state, word in (("failed", "FAILED"), ("not_applicable", "not applicable")):
        count = sum(row[f"cells_{state}"] for row in board)
        if count:
            first = next(row for row in cells if row[f"seeds_{state}"])
            message = " ".join(str(first["error"]).split())
            where = f"{first['defense_label']} x {first['attack_label']}"
            notes.append(f"{word}: {count} of {total} cells. The first: {where}: {message[:200]}")
    if any(row["ceiling"] is not None and row["ceiling"] <= budget for row in board):
        notes.append(
            "CAUTION: the ceiling is within the budget: training on own labels alone costs no more than a removal may."
        )
    mixed = [name for name in ("devices", "versions") if any(row[f"mixed_{name}"] for row in board)]
    if mixed:
        devices = ", ".join(sorted({name for row in board for name in row["devices"] or []}))
        what = " and ".join({"devices": f"devices ({devices})", "versions": "library versions"}[m] for m in mixed)
        notes.append(f"MIXED: the rows come from different {what}; small differences may be due to that.")
    return notes


def _wrapped(notes: list[str]) -> list[str]:
    return [
        line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    ]


def _listed(notes: list[str]) -> list[str]:
    return ["- " + note.replace("*", "\\*") for note in notes]


def _json(meta: Mapping[str, str], board: list[Row], cells: list[Row]) -> str:
    rules = {name: float(meta[name]) for name in ("alpha", "accuracy_budget")}
    values = {"schema_version": int(meta["schema_version"]), "suite": meta.get("suite"), **rules}
    return (
        json.dumps({**values, "leaderboard": _plain(board), "matrix": _plain(cells)}, indent=1, allow_nan=False) + "\n"
    )


def _plain(rows: list[Row]) -> list[dict[str, Any]]:
    # JSON has no infinities: they are written as the strings "inf" and "-inf".
    def value(one: object) -> object:
        return str(one) if isinstance(one, float) and not math.isfinite(one) else one

    return [{name: value(one) for name, one in row.items()} for row in rows]
