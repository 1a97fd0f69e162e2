"""The files of a published set, and the block of a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.errors import InputError
from bench.publishing import figures, page
from bench.publishing.sets import Published
from bench.storage.store import write_whole
from bench.tables import records as recorded
from bench.text import report

BEGIN, END = "<!-- BEGIN LEADERBOARD -->", "<!-- END LEADERBOARD -->"


def files(found: Published) -> dict[str, bytes]:
    """Name to content of all files of a set; a function of the set alone."""
    made = {f"{name}.parquet": recorded.to_bytes(table) for name, table in found.tables().items()}
    made |= figures.draw(found.leaderboard, found.matrix)
    made["LEADERBOARD.md"] = _markdown(found, list(made)).encode()
    return {**made, "index.html": page.render(found, made).encode()}


def write(made: dict[str, bytes], to: Path) -> list[Path]:
    """Write the files that are not there yet as they should be, each whole or not at all; the page last.

    Returns:
        those that were written.

    Raises:
        InputError: the folder cannot be written to.
    """
    changed = []
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name, content in made.items():
            if put(to / name, content):
                changed.append(to / name)
    except OSError as error:
        raise InputError(f"--to: expected a folder that can be written, got {to}: {error}") from error
    return changed


def put(path: Path, content: bytes) -> bool:
    """Write a file unless it holds just this; whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    write_whole(path, content)
    return True


def into_readme(path: Path, found: Published) -> bool:
    """Put the tables as text between the markers of a file; whether that changed it.

    Raises:
        InputError: no such file, or not one pair of markers in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--readme: cannot be read: {error}") from error
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after or END in before:
        raise InputError(f"--readme: {path}: expected one block between {BEGIN} and {END}")
    board = str(report.render(found.leaderboard, found.matrix, "table"))
    # An error's message may hold what ends the block.
    board = board.replace("```", "'''").replace("<!--", "< !--")
    return put(path, f"{before}{begin}```\n{board}```\n{end}{after}".encode())


def _markdown(found: Published, names: Sequence[str]) -> str:
    """The tables as Markdown, for who reads without a browser."""
    meta = recorded.metadata(found.leaderboard)
    notes = [f"- {note}" for note in page.warnings(found)]
    drawn = [f"![{name.removesuffix('.svg')}]({name})" for name in names if name.endswith(".svg")]
    tables = ", ".join(f"[{name}]({name})" for name in names if name.endswith(".parquet"))
    suite = meta.get("suite", "").replace("\n", " ")
    parts = [
        f"# Leaderboard: {suite}",
        f"Written by `ownbench publish`. With curves, filters and commands: [index.html](index.html); data: {tables}.",
        "\n".join(notes),
        "\n\n".join(drawn),
        # No label makes a link.
        str(report.render(found.leaderboard, found.matrix, "markdown")).replace("](", "]\\("),
    ]
    # What comes from data is text in Markdown, too.
    return "\n\n".join(part for part in parts if part).replace("&", "&amp;").replace("<", "&lt;")
