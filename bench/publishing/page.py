"""The page: one HTML file that needs nothing beside it, drawn by its own script from JSON inside it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import pyarrow as pa
from markupsafe import Markup

from bench import __version__
from bench.publishing.content import content
from bench.publishing.packing import embedded
from bench.publishing.sets import Published
from bench.tables import origins
from bench.tables import records as recorded

_FILES = {
    "records.parquet": "a row per judged surrogate and key",
    "decoys.parquet": "the p-value of every decoy",
    "leaderboard.parquet": "a row per defense: the ranking",
    "matrix.parquet": "a row per defense and attack",
    "LEADERBOARD.md": "the same tables as text",
}


def render(found: Published, written: Mapping[str, bytes]) -> str:
    """The page of a set.

    Args:
        found: the set.
        written: the files beside the page, by name; those that the page links to.
    """
    shown = content(found)
    script = _asset("page.js")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(_asset("page.html.j2")).render(
        suite=shown["suite"],
        alpha=f"{shown['alpha']:g}",
        log10_alpha=f"{math.log10(shown['alpha']):g}",
        budget=f"{shown['budget']:g}",
        states=list(shown["states"].items()),
        warnings=warnings(found),
        attacker=_attacker(found.matrix),
        records=f"{found.records.num_rows:,}",
        cells=f"{found.matrix.num_rows:,}",
        environment=_environment(found.leaderboard),
        files=[(name, _told(name), hashlib.sha256(written[name]).hexdigest()) for name in written],
        citation=citation(found, written),
        script_digest="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(_asset("page.css")),
        script=Markup(script),
        # It holds no character that means anything to HTML.
        data=Markup(embedded(shown)),
    )


def warnings(found: Published) -> list[str]:
    """What stands above everything else: how the set was put together, and what in it is missing or mixed."""
    notes = [f"{note[0].upper()}{note[1:]}." for note in found.notes]
    board = found.leaderboard.to_pylist()
    if submitted := origins.told(board):
        notes.append(submitted)
    if failed := sum(row["cells_failed"] for row in board):
        notes.append(f"{failed} cells failed. They stand in the matrix with their errors.")
    if false := sum(row["false_claims"] for row in board):
        notes.append(f"{false} false claims on models that never had the mark; see the controls.")
    for column, what in (("mixed_devices", "devices"), ("mixed_versions", "library versions")):
        if any(row[column] for row in board):
            notes.append(f"The rows come from different {what}; small differences may be due to that.")
    if board and max(row["seeds"] for row in board) < 3:
        notes.append("Fewer than three seeds: there are no intervals, and small differences mean nothing.")
    return notes


def citation(found: Published, written: Mapping[str, bytes]) -> str:
    """BibTeX for the set, which its records' digest tells from every other."""
    meta = recorded.metadata(found.records)
    year = meta.get("created_at", "")[:4]
    digest = hashlib.sha256(written["records.parquet"]).hexdigest()
    # Braces and backslashes would end or change the entry.
    suite = "".join(letter for letter in meta.get("suite", "") if letter not in "{}\\%#$&_^~\n")
    lines = [
        f"  title = {{OwnBench: results of the suite {suite}}}",
        f"  version = {{{__version__}}}",
        *([f"  year = {{{year}}}"] if year else []),
        f"  note = {{records.parquet with SHA-256 {digest}}}",
    ]
    return "@software{ownbench,\n" + ",\n".join(lines) + "\n}"


def _told(name: str) -> str:
    if name in _FILES:
        return _FILES[name]
    what = "the defense by attack matrix" if name.startswith("matrix-") else "accuracy cost against price"
    return f"{what}, as a figure"


def _attacker(matrix: pa.Table) -> str:
    told = []
    for column, what in (("data_inputs", "inputs"), ("data_labels", "labels")):
        used = [value for value in matrix[column].to_pylist() if value is not None]
        if used:
            told.append(f"at most {max(used):,} {what}")
    return f"data of its own, of which attacks used {' and '.join(told)}" if told else "data of its own"


def _environment(board: pa.Table) -> str:
    devices: Sequence[Any] = [name for names in board["devices"].to_pylist() for name in names or []]
    told = ", ".join(sorted(set(devices)))
    return f"Run on: {told}." if told else ""


def _asset(name: str) -> str:
    return files("bench.publishing").joinpath(name).read_text(encoding="utf-8")
