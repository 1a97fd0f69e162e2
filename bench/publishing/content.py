"""What the page shows of a published set, as one value that JSON can say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from bench.publishing import curves as following
from bench.publishing.packing import packed, plain
from bench.publishing.sets import Published
from bench.tables import origins
from bench.tables import records as recorded
from bench.tables.prices import CELL
from bench.text import equilibria
from bench.text.grids import SECTIONS, cell_text, smaller

Row = Mapping[str, Any]

# Verdict to the glyph that tells it from the others without colour, its style, and what it means.
STATES = {
    "survived": ("✓", "kept", "the mark was not removed within the budget, in any seed"),
    "removed": ("✗", "lost", "the mark was removed within the budget in some seed, at this price in points"),
    "ceiling": ("=", "rule", "what training without touching the model costs, in points"),
    "withstood": ("✓", "kept", "the forged key was not accepted"),
    "forged": ("⚑", "lost", "the forged key was accepted"),
    "claim": ("✓", "kept", "the owner's claim holds"),
    "no claim": ("∅", "void", "the owner's key does not verify"),
    "cannot claim at alpha": ("◌", "void", "even a perfect match is more likely by chance than alpha"),
    "unjudged": ("?", "void", "the protected model itself was not judged"),
    "failed": ("!", "fail", "the cell failed; its error stands in the details"),
    "not applicable": ("·", "none", "the attack does not apply to this defense or task"),
    "no false claim": ("✓", "kept", "no claim on a model that never had the mark"),
    "false claim": ("⚑", "lost", "a claim on a model that never had the mark"),
    "reference": ("=", "rule", "the undefended model"),
}
_OWN: tuple[str, Callable[[Row], bool]] = ("The protected model itself", lambda row: row["attack_kind"] == "none")
_CONTROL: tuple[str, Callable[[Row], bool]] = (
    "Controls: models that never had the mark, where any claim is a false one",
    lambda row: row["attack_kind"] == "control",
)
_ALL = [_OWN, *SECTIONS, _CONTROL]
# Nothing is left out because no section expects it.
_ALL.append(("Other", lambda row: not any(is_in(row) for _, is_in in _ALL[:-1])))
_ATTACK = ("attack", "attack_params", "attack_label", "attack_kind", "attack_class", "attack_access", "knowledge")
_NAMED = ("task", "dataset", "model", "defense", "defense_params", "defense_label", "reference", "yardstick")
_CURVE = ("strength", "accuracy", "accuracy_low", "accuracy_high", "log10_p", "log10_p_low", "log10_p_high")


def content(found: Published, points: int = following.POINTS) -> dict[str, Any]:
    """All that the page's script draws from; its size depends on the cells and not on the records.

    Args:
        found: the set.
        points: of curves, kept in all.
    """
    meta = recorded.metadata(found.records)
    board, cells = found.leaderboard.to_pylist(), found.matrix.to_pylist()
    lines = following.curves(found.records, points)
    known = _by_cell(following.jobs(found.records))
    games = json.loads(equilibria.render(found.leaderboard, found.matrix, "json"))["games"] if board else []
    tasks = []
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in board):
        here = [row for row in board if (row["task"], row["model"]) == (task, model)]
        there = [row for row in cells if (row["task"], row["model"]) == (task, model)]
        of_task = lines[(lines["task"] == task) & (lines["model"] == model)]
        tasks.append(
            {
                **{"task": task, "model": model, "dataset": here[0]["dataset"]},
                "clean": plain(_first(row["accuracy_clean"] for row in origins.own_first(here))),
                "seeds": max(row["seeds"] for row in here),
                "defenses": _defenses(here),
                **_matrix(here, there, of_task, known),
                "games": [_game(game) for game in games if (game["task"], game["model"]) == (task, model)],
            }
        )
    return {
        **{"suite": meta.get("suite", ""), "alpha": float(meta["alpha"]), "budget": float(meta["accuracy_budget"])},
        "states": {word: dict(zip(("glyph", "style", "means"), told, strict=True)) for word, told in STATES.items()},
        "tasks": tasks,
    }


def cautions(row: Row) -> list[str]:
    """What makes a row of the leaderboard less than it looks."""
    origin = origins.origin_of(row["defense"])
    notes = [f"submitted by {origin}, not run again here"] if origin else []
    if row["verdict"] not in ("claim", "reference"):
        held = f", in {row['seeds'] - row['claims']} of {row['seeds']} seeds" if row["verdict"] == "no claim" else ""
        notes.append(f"{row['verdict']}{held}")
    if row["cells_failed"]:
        notes.append(f"{row['cells_failed']} of {row['cells_ok'] + row['cells_failed']} cells failed")
    if row["false_claims"]:
        notes.append(f"{row['false_claims']} false claims on {row['controls']} models that never had the mark")
    if 0 < row["seeds"] < 3:
        notes.append("one seed" if row["seeds"] == 1 else "two seeds")
    if row["verdict"] == "claim" and row["ceiling"] is None:
        notes.append("no ceiling: nothing bounds its price")
    for column, what in (("mixed_devices", "devices"), ("mixed_versions", "library versions")):
        if row[column]:
            notes.append(f"rows of its task come from different {what}")
    return notes


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _defenses(board: list[Row]) -> dict[str, Any]:
    rows = []
    for row in board:
        only = f"--only {shlex.quote('defense=' + origins.plain_label(row))}"
        rows.append({**row, "cautions": cautions(row), "only": only})
    return packed(rows, ("task", "dataset", "model"))


def _matrix(board: list[Row], cells: list[Row], lines: pd.DataFrame, known: Mapping[tuple, Row]) -> dict[str, Any]:
    """Attacks by section, cells that point at attacks and defenses, and curves that point at cells."""
    columns = {(row["defense"], row["defense_params"]): place for place, row in enumerate(board)}
    attacks: dict[tuple, dict[str, Any]] = {}
    places: dict[tuple, int] = {}
    rows: list[dict[str, Any]] = []
    gained = smaller(cells)
    for section, (title, is_in) in enumerate(_ALL):
        for row in filter(is_in, cells):
            name = row["attack"], row["attack_params"]
            attack = attacks.setdefault(
                (section, *name),
                {
                    **{"place": len(attacks), "section": title},
                    **{column: row[column] for column in (*_ATTACK, "judged_key")},
                    "smaller": gained.get(name, "") if row["attack_kind"] == "removal" else "",
                    "only": f"--only {shlex.quote('attack=' + row['attack_label'])}",
                },
            )
            key = tuple(row[column] for column in CELL)
            places[key] = len(rows)
            here = {"d": columns[row["defense"], row["defense_params"]], "a": attack["place"], "text": _text(row)}
            rows.append({**here, **row, **known[key]})
    return {
        "attacks": packed(list(attacks.values()), ("place",)),
        "cells": packed(rows, (*_NAMED, *_ATTACK, "judged_key", *CELL)),
        "curves": _curves(lines, places),
    }


def _text(row: Row) -> str:
    if row["attack_kind"] in ("none", "control"):
        share = f"{row['claims']}/{row['judged']}" if row["seeds"] else row["verdict"]
        return share + ("!" if row["seeds_failed"] and row["seeds"] else "")
    return cell_text(row).replace(">=", "≥").replace("FAILED", "failed").replace("FORGED", "forged")


def _curves(lines: pd.DataFrame, places: Mapping[tuple, int]) -> dict[str, Any]:
    rows = lines[[*CELL, *_CURVE, "seeds", "claims", "left_out"]].to_dict("records")
    placed = [{"cell": places[tuple(row[name] for name in CELL)], **row} for row in rows]
    return packed(placed, CELL)


def _by_cell(frame: pd.DataFrame) -> dict[tuple, Row]:
    return {tuple(row[name] for name in CELL): row for row in frame.to_dict("records")}


def _game(game: Row) -> dict[str, Any]:
    # The payoffs are the matrix again.
    return {name: value for name, value in game.items() if name != "games"}
