"""What stands in the cells of the printed leaderboard and matrix."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from bench.tables.schema import WITHSTOOD
from bench.text.layout import Grid, parted, shorten

Row = Mapping[str, Any]

_CLASSES = {
    "price_in_place": "in\nplace",
    "price_reparametrisation": "repar.",
    "price_extraction": "extr.",
}
# Title and members of each group of rows of the matrix, in the order in which they stand.
SECTIONS: list[tuple[str, Callable[[Row], bool]]] = [
    ("In place: the model's weights are changed", lambda row: _headline(row, "in-place")),
    ("Reparametrised: other weights, the same function", lambda row: _headline(row, "reparametrisation")),
    ("Extraction: a new model is trained from the model's answers", lambda row: _headline(row, "extraction")),
    ("The ceiling: trained without touching the model", lambda row: bool(row["yardstick"])),
    ("Insiders, who hold a part of the key (not counted above)", lambda row: _insider(row)),
    ("Forging a second proof", lambda row: _forgery(row, None)),
    ("Forging a second proof after the fact, which a commitment refuses", lambda row: _forgery(row, "after the fact")),
    ("Forging a second proof, committed to before", lambda row: _forgery(row, "committed before")),
    (
        "Forging a second proof, by insiders (not counted either)",
        lambda row: is_forged(row) and row["knowledge"] == "insider",
    ),
    (
        "The owner's claim on the model that the forger shows, and the points that it has lost",
        lambda row: is_disputed(row),
    ),
]
_WORDS = {
    "failed": "FAILED",
    "not applicable": "n/a",
    "cannot claim at alpha": "too weak",
    "unjudged": "?",
    "forged": "FORGED",
    "withstood": "withstood",
    "no claim": "no claim",
}
# Of a forgery by a key that follows from no seed.
CHOSEN = "°"
# Heads the column of `smaller`.
SMALLER = "smaller"
# What a null table says of a defense's p-values.
_CALIBRATION = {"reliable": "ok", "unreliable": "A LIE"}
# Below it nothing is gained.
_SMALLER = 1.05
# Characters kept for the labels of attacks where there are many defenses, and at most for a defense.
_LABEL, _HEADER = 32, 16


def board_grid(board: list[Row]) -> Grid:
    """A row per defense.

    Args:
        board: rows of the leaderboard of one task and model.
    """
    classes = [column for column in _CLASSES if any(row[f"{column}_censored"] is not None for row in board)]
    prices = [f"price\n{_CLASSES[column]}" for column in classes]
    headers = ["defense", "box", "worth", "claim", "cost", "kept", *prices, "cheapest\nremoval", "forged", "false"]
    tested = [row for row in board if row["calibration"] in _CALIBRATION]
    headers += ["p is"] if tested else []
    grid = Grid(headers, labels=(0, 1, 6 + len(classes)))
    for row in board:
        grid.rows.append(
            [
                row["defense_label"],
                "-" if row["reference"] else row["defense_access"].removesuffix("-box"),
                number(row["worth"]),
                "-" if row["reference"] else _claim(row["log10_p"]),
                _cost(row),
                _kept(row),
                *(price(row[column], row[f"{column}_censored"]) for column in classes),
                _cheapest(row),
                _forged(row),
                _share(row["false_claims"], row["controls"]),
                *([_CALIBRATION.get(row["calibration"], "-")] if tested else []),
            ]
        )
    return grid


def matrix_grids(board: list[Row], cells: list[Row], width: int | None) -> list[Grid]:
    """A row per attack and a column per defense, the undefended model left out.

    Args:
        board: rows of the leaderboard of one task and model, which give the order of the columns.
        cells: rows of the matrix of the same task and model.
        width: where given, columns are dealt to as many grids as are needed to fit it.
    """
    defenses = {_defense(row): row["defense_label"] for row in board if not row["reference"]}
    sections = [(title, [row for row in cells if is_in(row) and not row["reference"]]) for title, is_in in SECTIONS]
    shown = [(title, rows) for title, rows in sections if rows]
    if not shown:
        return []
    # By section too: a forgery is judged under two keys.
    keyed = {(title, _attack(row), _defense(row)): cell_text(row) for title, rows in shown for row in rows}
    headers = _headers(list(defenses.values()), None if width is None else _HEADER)
    columns = dict(zip(defenses, headers, strict=True))
    wide = {key: max(map(len, columns[key].split("\n"))) for key in columns}
    for (_, _, key), text in keyed.items():
        wide[key] = max(wide[key], len(text))
    gained = smaller(cells)
    taken = _LABEL + 2 + (len(SMALLER) + 2 if gained else 0)
    grids = []
    for block in _blocks(wide, None if width is None else width - taken):
        grid = Grid(["attack", *([SMALLER] if gained else []), *(columns[key] for key in block)])
        for title, rows in shown:
            grid.rows.append(title)
            for attack, label in {_attack(row): row["attack_label"] for row in rows}.items():
                size = [gained.get(attack, "")] if gained else []
                grid.rows.append([f"  {label}", *size, *(keyed.get((title, attack, key), "") for key in block)])
        grids.append(grid)
    return grids


def smaller(cells: list[Row]) -> dict[tuple[str, str], str]:
    """How many times smaller an attack makes its copy, the median over defenses; nothing where nothing is gained.

    Args:
        cells: rows of the matrix; those of the undefended model do not count.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for row in cells:
        counted = row["attack_kind"] == "removal" and not row["reference"]
        if counted and row["compression_indexed"] is not None:
            found.setdefault(_attack(row), []).append(row["compression_indexed"])
    times = {attack: statistics.median(values) for attack, values in found.items()}
    return {
        attack: f"{value:.1f}x" if value < 10 else f"{value:.0f}x"
        for attack, value in times.items()
        if value >= _SMALLER
    }


def cell_text(row: Row) -> str:
    """What one cell of the matrix says."""
    some = "!" if row["seeds_failed"] and row["seeds"] else ""
    if is_disputed(row) and row["verdict"] in ("claim", "no claim"):
        return _dispute(row) + some
    if row["verdict"] in _WORDS:
        return _WORDS[row["verdict"]] + (CHOSEN if is_chosen(row) else "") + some
    if row["verdict"] == "ceiling":
        return number(row["least_loss"]) + some
    mark = "" if row["survived"] else "*"
    return price(row["price"], row["price_censored"]) + mark + some


def is_forged(row: Row) -> bool:
    """Whether a row of the matrix judges a forger's key."""
    return bool(row["attack_kind"] == "ambiguity" and row["judged_key"] == "forger")


def is_chosen(row: Row) -> bool:
    """Whether a row of the matrix is a forgery that a commitment does not refuse, and a judge of derived keys does."""
    return bool(row["forged_committed"] and row["forged_derived"] is False)


def protocols(row: Row) -> list[int | None]:
    """Forgeries of a defense that are accepted under each protocol, None where that is unknown."""
    counts = [row[column] for column in WITHSTOOD.values()]
    return [None if count is None else row["forgeries"] - count for count in counts]


def is_split(row: Row) -> bool:
    """Whether it is known of a defense which protocol refuses the forgeries that evidence does not."""
    accepted, *stricter = protocols(row)
    return bool(accepted) and any(count is not None for count in stricter)


def is_disputed(row: Row) -> bool:
    """Whether a row of the matrix judges the owner's key on the model on which a forger claims another."""
    return bool(row["attack_kind"] == "ambiguity" and row["judged_key"] == "owner")


def number(value: float | None) -> str:
    """One decimal, or a dash."""
    if value is None:
        return "-"
    return f"{value + 0.0:.1f}".replace("-0.0", "0.0") if math.isfinite(value) else str(value)


def price(value: float | None, censored: bool | None) -> str:
    """A price in points, `>=` where it is a bound, `never` where nothing bounds it."""
    if censored and value is None:
        return "never"
    return (">=" if censored else "") + number(value)


def _headline(row: Row, attack_class: str) -> bool:
    counted = row["attack_kind"] == "removal" and row["knowledge"] != "insider" and not row["yardstick"]
    return bool(counted and row["attack_class"] == attack_class)


def _dispute(row: Row) -> str:
    claims, judged = row["claims"], row["judged"]
    share = f" {claims}/{judged}" if 0 < claims < judged else ""
    return f"{'claims' if claims else 'no claim'}{share} {number(row['least_loss'])}"


def _forgery(row: Row, time_model: str | None) -> bool:
    return is_forged(row) and row["knowledge"] != "insider" and row["time_model"] == time_model


def _insider(row: Row) -> bool:
    return bool(row["attack_kind"] == "removal" and row["knowledge"] == "insider")


def _attack(row: Row) -> tuple[str, str]:
    return row["attack"], row["attack_params"]


def _defense(row: Row) -> tuple[str, str]:
    return row["defense"], row["defense_params"]


def _claim(log10_p: float | None) -> str:
    # Of what is that far below any alpha, tenths only take room.
    return number(log10_p) if log10_p is None or not -math.inf < log10_p <= -100 else f"{log10_p:.0f}"


def _cost(row: Row) -> str:
    if row["reference"]:
        return "-"
    mean, high = row["accuracy_cost"], row["accuracy_cost_high"]
    return number(mean) if mean is None or high is None else f"{number(mean)} ±{high - mean:.1f}"


def _kept(row: Row) -> str:
    if row["verdict"] not in ("claim", "no claim") or not row["attacks"]:
        return "-"
    every, some = row["survived"], row["survived_any"]
    return f"{every if every == some else f'{every}-{some}'}/{row['attacks']}"


def _forged(row: Row) -> str:
    counts = protocols(row) if is_split(row) else protocols(row)[:1]
    told = "·".join("?" if count is None else str(count) for count in counts)
    return f"{told}/{row['forgeries']}" if row["forgeries"] else "-"


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole}" if whole else "-"


def _cheapest(row: Row) -> str:
    if row["verdict"] == "reference":
        return "(undefended)"
    if row["verdict"] == "no claim" and row["claims"]:
        return f"(no claim: {row['seeds'] - row['claims']} of {row['seeds']})"
    if row["verdict"] != "claim":
        return f"({_WORDS.get(row['verdict'], row['verdict'])})"
    if row["price_attack"] is None:
        return "(no attacks)"
    return "none" if row["price_censored"] else row["price_attack"]


def _headers(labels: list[str], width: int | None) -> list[str]:
    """Each label on lines of its own, the parameters below the name; different labels stay different."""
    split = [part.partition("[") for label in labels for part in parted(label)]
    names, params = [name for name, _, _ in split], [bracket + rest for _, bracket, rest in split]
    if width is not None:
        names, params = [_broken(name, width) for name in names], shorten(params, width)
    lines = iter([f"{name}\n{inside}" if inside else name for name, inside in zip(names, params, strict=True)])
    return ["\n".join(next(lines) for _ in parted(label)) for label in labels]


def _broken(name: str, width: int) -> str:
    """A name on as many lines as it takes, broken at hyphens."""
    return "\n".join(shorten(textwrap.wrap(name, width, break_long_words=False), width))


def _blocks(wide: Mapping[Any, int], width: int | None) -> list[list[Any]]:
    blocks: list[list[Any]] = [[]]
    used = 0
    for key, size in wide.items():
        if width is not None and blocks[-1] and used + size + 2 > width:
            blocks.append([])
            used = 0
        blocks[-1].append(key)
        used += size + 2
    return [block for block in blocks if block]
