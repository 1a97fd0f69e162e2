"""Tables as text that fits a width, and as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.parameters import AND

# Labels are not cut below the one; columns stand two apart if labels then keep the other.
_LEAST, _FAIR = 10, 24


@dataclass
class Grid:
    """A table of texts.

    Attributes:
        headers: of the columns; a line break starts a second line.
        rows: one text per column, or a single text that heads the rows below it.
        labels: places of columns with labels, which stand left and may be shortened; others stand right.
    """

    headers: list[str]
    rows: list[list[str] | str] = field(default_factory=list)
    labels: tuple[int, ...] = (0,)


def filled(text: str, width: int = 100) -> list[str]:
    """A note as lines of at most `width` characters, all but the first indented."""
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)


def shorten(labels: Sequence[str], width: int) -> list[str]:
    """Labels of at most `width` characters; different labels stay different.

    A label `name[parameter=value]` first loses what its parameters can do without, then its middle.
    """
    given: dict[str, str] = {}
    for label in labels:
        if label in given:
            continue
        short, number = _shortened(label, width), 2
        taken = set(given.values())
        while short in taken:
            short, number = f"{_cut(label, width - len(str(number)) - 1)}~{number}", number + 1
        given[label] = short
    return [given[label] for label in labels]


def _shortened(label: str, width: int) -> str:
    if len(label) <= width:
        return label
    # A flag is known by its name, any other parameter by its value.
    flags = re.sub(r"([\[,])([^\[\],=]+)=false(?=[,\]])", r"\1no \2", label.replace("=true", ""))
    return _cut(re.sub(r"(?<=[\[,])[^\[\],=]+=", "", flags), width)


def _cut(label: str, width: int) -> str:
    if len(label) <= width:
        return label
    tail = (width - 1) // 2
    return f"{label[: width - 1 - tail]}…{label[len(label) - tail :]}"


def to_text(grid: Grid, width: int) -> str:
    """The grid as lines of at most `width` characters.

    Label columns are narrowed where needed, the widest first; if that is not enough the width is exceeded.
    """
    cells = [row for row in grid.rows if not isinstance(row, str)]
    heads = [header.split("\n") for header in grid.headers]
    widths = [max([*map(len, heads[place]), *(len(row[place]) for row in cells)]) for place in range(len(heads))]
    needed = sum(min(size, _FAIR) if place in grid.labels else size for place, size in enumerate(widths))
    gap = 2 if needed + 2 * (len(widths) - 1) <= width else 1
    spare = width - gap * (len(widths) - 1) - sum(widths)
    while spare < 0 and (wide := [place for place in grid.labels if widths[place] > _LEAST]):
        widths[max(wide, key=lambda place: widths[place])] -= 1
        spare += 1
    columns = [[row[place] for row in cells] for place in range(len(widths))]
    folded = [_folded(label, widths[0]) for label in columns[0]] if 0 in grid.labels else []
    short = iter(shorten([line for _, *below in folded for line in below], widths[0]))
    below = [[next(short) for _ in lines] for _, *lines in folded] or [[] for _ in cells]
    columns[0] = [label for label, *_ in folded] or columns[0]
    for place in grid.labels:
        columns[place] = shorten(columns[place], widths[place])
    height = max(map(len, heads))
    top = [[""] * (height - len(head)) + head for head in heads]
    for place in grid.labels:
        top[place] = [_cut(line, widths[place]) for line in top[place]]
    lines = [_line([head[level] for head in top], widths, grid.labels, gap) for level in range(height)]
    lines.append("─" * (sum(widths) + gap * (len(widths) - 1)))
    body, rest = iter(zip(*columns, strict=True)), iter(below)
    for row in grid.rows:
        lines += [row] if isinstance(row, str) else [_line(next(body), widths, grid.labels, gap), *next(rest)]
    return "\n".join(lines)


def parted(label: str) -> list[str]:
    """The parts of a label that is made of several, each but the first with what stands before it."""
    first, *others = label.split(AND)
    return [first, *(f"{AND.lstrip()}{other}" for other in others)]


def _folded(label: str, width: int) -> list[str]:
    """A label, and what stands below it where that does not fit beside: parameters, and the second one of a pair."""
    if len(label) <= width:
        return [label]
    lines: list[str] = []
    margin = len(label) - len(label.lstrip())
    indent = " " * (margin + 1)
    for part in parted(label):
        name, bracket, inside = part.partition("[")
        if len(part) <= width:
            lines.append(part)
            continue
        lines += _wrapped(name, width, indent if margin else "")
        lines += [f"{indent}{bracket}{inside}"] if bracket else []
    return lines


def _wrapped(name: str, width: int, indent: str) -> list[str]:
    whole = len(name) <= width
    return [name] if whole else textwrap.wrap(name, width, subsequent_indent=indent, break_long_words=False)


def _line(texts: Sequence[str], widths: Sequence[int], left: Sequence[int], gap: int) -> str:
    padded = [
        text.ljust(width) if place in left else text.rjust(width)
        for place, (text, width) in enumerate(zip(texts, widths, strict=True))
    ]
    return (" " * gap).join(padded).rstrip()


def to_markdown(grid: Grid) -> str:
    """The grid as a Markdown table; headings become rows in bold."""
    headers = [_escaped(header.replace("\n", " ")) for header in grid.headers]
    marks = [":--" if place in grid.labels else "--:" for place in range(len(headers))]
    lines = [headers, marks]
    for row in grid.rows:
        texts = [f"**{row}**", *[""] * (len(headers) - 1)] if isinstance(row, str) else row
        lines.append([_escaped(text) for text in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("*", "\\*") if "**" not in text else text
