"""Games between owners and attackers, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bench.tables import records as recorded
from bench.tables.game import Contest, Equilibrium, Game, Matrix, Payoff, Pure, contest, maximin, unseen
from bench.tables.schema import Protocol
from bench.text.layout import Grid, filled, to_text

Row = Mapping[str, Any]
WIDTH = 100
_KINDS: tuple[Payoff, ...] = ("price", "survived")
_UNITS = {"price": "points of accuracy", "survived": "chance that the mark survives"}
_FORGED: dict[Protocol, str] = {
    "evidence": "A mark that anybody forges is worth 0.",
    "committed": "Keys must have been committed to before the model was published: a mark forged so is worth 0.",
    "derived": "Keys must be committed to before and derived from a seed and a name: a mark forged so is worth 0.",
}
# Below it a choice is noise of the solver.
_LEAST = 5e-4
# Defenses of equal worth that are named in a line.
_NAMED = 3


def render(leaderboard: pa.Table, matrix: pa.Table, form: str, protocol: Protocol | None = None) -> str:
    """The games of all tasks.

    Args:
        leaderboard, matrix: as for `bench.text.report.render`.
        form: `table` or `json`.
        protocol: as for `bench.tables.game.contest`.
    """
    board, cells = leaderboard.to_pylist(), matrix.to_pylist()
    meta = recorded.metadata(leaderboard)
    found: list[dict[str, Any]] = []
    parts: list[str] = []
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in board):
        here = [row for row in board if (row["task"], row["model"]) == (task, model)]
        there = [row for row in cells if (row["task"], row["model"]) == (task, model)]
        for kind in _KINDS:
            known = {"task": task, "model": model, "payoff": kind}
            made = contest(here, there, kind, protocol)
            found.append({**known, **_values(made)})
            parts.append(_text(f"Task {task}, model {model}: {_title(kind, meta)}", made, kind))
    if form == "json":
        values = {"alpha": float(meta["alpha"]), "protocol": protocol, "games": found}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"
    return "\n".join([*parts, *_legend(protocol)]) + "\n" if parts else "No records yet.\n"


def _title(kind: Payoff, meta: Mapping[str, str]) -> str:
    if kind == "price":
        return "what removing the mark costs the attacker, in points of accuracy"
    return f"whether the mark survives a budget of {float(meta['accuracy_budget']):g} points"


def _text(title: str, made: Contest, kind: Payoff) -> str:
    lines = [title, ""]
    if not made.games:
        lines.append("No game: no defense that claims, or no removal attack.")
    else:
        pure = maximin(made)
        lines += _pure_text(pure, kind)
        lines += _unseen_text(*unseen(made), pure, kind)
    for label, reason in made.worthless.items():
        lines += filled(f"Worth 0: {label} ({reason}).")
    for label, reason in made.left_out.items():
        lines += filled(f"Left out: {label} ({reason}).")
    return "\n".join(lines) + "\n"


def _pure_text(pure: Pure, kind: Payoff) -> list[str]:
    if pure.value <= _LEAST:
        words = "is removed for nothing" if kind == "price" else "is removed within the budget"
        return filled(f"If the attacker sees the defense before it chooses: worth 0; each {words} by some attack.")
    best = "; ".join(
        f"{defense}, {'which no attack removes' if attack is None else f'against which {attack} is best'}"
        for defense, attack in pure.choices[:_NAMED]
    )
    more = len(pure.choices) - _NAMED
    others = f"; and {more} more that are worth as much" if more > 0 else ""
    return filled(
        f"If the attacker sees the defense before it chooses: worth {pure.value:.2f}. The best defense: {best}{others}."
    )


def _unseen_text(chosen: Game, mixed: Equilibrium, pure: Pure, kind: Payoff) -> list[str]:
    head = f"If both choose unseen, each by chance: worth {abs(mixed.value):.2f}"
    if mixed.value <= pure.value + _LEAST:
        names = [label for label, share in zip(chosen.attacks, mixed.columns, strict=True) if share >= _LEAST]
        kept = chosen.bounded[mixed.rows >= _LEAST].all()
        why = "" if kept else f", since an attacker by {', '.join(names)} need pay no more whatever the owner does"
        return filled(f"{head} as well{why}.")
    unit = f"{_UNITS[kind]} on average, with these shares:"
    return [*filled(f"{head}, {unit}"), "", to_text(_grid(chosen, mixed), WIDTH)]


def _grid(made: Game, mixed: Equilibrium) -> Grid:
    grid = Grid(["choice", "share", "worth\nif kept to"], labels=(0,))
    # What a side gets that always takes this choice, against the other side's mixture.
    sides = (
        ("The owner's defenses", made.defenses, mixed.rows, made.payoff @ mixed.columns),
        ("The attacker's attacks", made.attacks, mixed.columns, mixed.rows @ made.payoff),
    )
    for title, labels, shares, worth in sides:
        grid.rows.append(title)
        for place in np.argsort(-shares, kind="stable"):
            if shares[place] >= _LEAST:
                grid.rows.append([f"  {labels[place]}", f"{100 * shares[place]:.1f} %", f"{worth[place]:.2f}"])
    return grid


def _values(made: Contest) -> dict[str, Any]:
    games = [{"defenses": one.defenses, "attacks": one.attacks, "payoff": one.payoff.tolist()} for one in made.games]
    whole = {"games": games, "worthless": dict(made.worthless), "left_out": dict(made.left_out)}
    if not games:
        return {"seen": None, "unseen": None, **whole}
    pure, (chosen, mixed) = maximin(made), unseen(made)
    shares = {"owner": _shares(chosen.defenses, mixed.rows), "attacker": _shares(chosen.attacks, mixed.columns)}
    seen = {"value": pure.value, "best": [{"defense": one, "attack": other} for one, other in pure.choices]}
    return {"seen": seen, "unseen": {"value": mixed.value, **shares}, **whole}


def _shares(labels: Sequence[str], shares: Matrix) -> dict[str, float]:
    return {label: float(share) for label, share in zip(labels, shares, strict=True) if share >= _LEAST}


def _legend(protocol: Protocol | None) -> Iterator[str]:
    yield from filled(
        "The owner picks a defense, the attacker a removal attack; what the one gets the other pays. Prices count at "
        "most as the ceiling, which training on own labels costs. An attacker sees which attacks apply, so that an "
        "owner hides among defenses to which the same ones do. Other mixtures may be worth as much. Insiders"
        + (" and forgeries are not in these games." if protocol is None else f" are in none. {_FORGED[protocol]}")
    )
