"""The game between owners and attackers: what each defense is worth against each removal, and its equilibrium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from bench.tables.origins import origin_of
from bench.tables.schema import WITHSTOOD, Protocol

Payoff = Literal["price", "survived"]
Row = Mapping[str, Any]
Matrix = NDArray[np.float64]
# Verdicts on defenses that have no claim to lose.
_WORTHLESS = ("no claim", "cannot claim at alpha")


@dataclass(frozen=True)
class Game:
    """A zero-sum game: the owner picks a row and gets what the attacker, who picks a column, has to pay.

    Attributes:
        defenses: labels of the rows.
        attacks: labels of the columns.
        payoff: finite, of shape (defenses, attacks), at least one of each.
        bounded: of the same shape, whether the attack left the mark in, so that the payoff is the most it can be.
    """

    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    payoff: Matrix
    bounded: NDArray[np.bool_]


@dataclass(frozen=True)
class Contest:
    """All that an owner can choose from.

    Attributes:
        games: one for each set of attacks that apply to the same defenses: an attacker sees which do.
        left_out: label to reason, of defenses that are in no game.
        worthless: label to reason, of those that are in one and have no claim to lose.
    """

    games: tuple[Game, ...]
    left_out: Mapping[str, str]
    worthless: Mapping[str, str]


class Equilibrium(NamedTuple):
    """Optimal mixtures of a zero-sum game, which need not be the only ones.

    Attributes:
        value: what the owner gets at least, and the attacker pays at most, on average.
        rows: probabilities of the owner's choices.
        columns: of the attacker's.
    """

    value: float
    rows: Matrix
    columns: Matrix


class Pure(NamedTuple):
    """The owner's best single choices where the attacker sees them first.

    Attributes:
        value: what they are worth against the worst attack.
        choices: labels of the defenses that are worth as much, with the worst attack on each; None where no attack
            removes the mark.
    """

    value: float
    choices: tuple[tuple[str, str | None], ...]


def equilibrium(payoff: Matrix) -> Equilibrium:
    """Both sides' optimal mixtures, each by a linear program (von Neumann's minimax theorem).

    Args:
        payoff: to the row player, finite, of shape (rows, columns), at least one of each.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    if payoff.ndim != 2 or 0 in payoff.shape or not np.isfinite(payoff).all():
        raise ValueError(f"expected a finite matrix with rows and columns, got shape {payoff.shape}")
    value, rows = _best_mixture(payoff)
    _, columns = _best_mixture(-payoff.T)
    return Equilibrium(value, rows, columns)


def maximin(contest: Contest) -> Pure:
    """The best pure choices of an owner whom the attacker answers.

    Raises:
        ValueError: nothing to choose from.
    """
    worst = [
        (float(row.min()), defense, None if kept.all() else one.attacks[int(np.lexsort((kept, row))[0])])
        for one in contest.games
        for defense, row, kept in zip(one.defenses, one.payoff, one.bounded, strict=True)
    ]
    value = max(least for least, _, _ in worst)
    return Pure(value, tuple((defense, attack) for least, defense, attack in worst if least >= value - 1e-9))


def unseen(contest: Contest) -> tuple[Game, Equilibrium]:
    """The game that is worth most to an owner who mixes unseen, and its equilibrium.

    The attacker knows which game it is in, so that mixing over several gives no more than the best of them.

    Raises:
        ValueError: nothing to choose from.
    """
    return max(((one, equilibrium(one.payoff)) for one in contest.games), key=lambda pair: pair[1].value)


def contest(board: Sequence[Row], cells: Sequence[Row], kind: Payoff, protocol: Protocol | None = None) -> Contest:
    """The games of one task and model.

    Columns are the removal attacks of the headline: no insiders, and not the yardstick, which every attacker has and
    which is the ceiling. `price` counts points of accuracy, at most the ceiling; `survived` counts 1 for an attack
    that does not remove the mark within the budget and 0 for one that does. A defense without a claim is worth 0. No
    gap is to the owner's good: a defense with a cell that failed in any seed, or that nothing bounds, is left out;
    and an attacker sees which attacks apply, so that owners hide among defenses to which the same ones do.

    Args:
        board: rows of the leaderboard of one task and model.
        cells: rows of the matrix of the same task and model.
        kind: what is counted.
        protocol: under which judges settle who a model belongs to: a defense of which a forgery holds there is worth 0
            as well, and one of which that is unknown is left out. None: forgeries are not counted.
    """
    heads = [row for row in cells if _is_headline(row)]
    games: dict[tuple[str, ...], dict[str, list[tuple[float, bool]]]] = {}
    left_out: dict[str, str] = {}
    worthless: dict[str, str] = {}
    for one in board:
        label = one["defense_label"]
        mine = [row for row in heads if row["defense_label"] == label]
        ran = {row["attack_label"]: row for row in mine if row["seeds"]}
        if one["reference"]:
            continue
        if reason := _unplayable(one, mine, kind) or _unsettled(one, protocol):
            left_out[label] = reason
            continue
        if one["verdict"] != "claim":
            worthless[label] = one["verdict"]
        elif protocol and (accepted := one["forgeries"] - one[WITHSTOOD[protocol]]):
            worthless[label] = f"{accepted} of {one['forgeries']} forgeries accepted"
        worths = [(0.0, False) if label in worthless else _worth(row, kind) for row in ran.values()]
        games.setdefault(tuple(ran), {})[label] = worths
    return Contest(tuple(_game(attacks, rows) for attacks, rows in games.items()), left_out, worthless)


def _game(attacks: tuple[str, ...], rows: Mapping[str, list[tuple[float, bool]]]) -> Game:
    both = np.array(list(rows.values()))
    return Game(tuple(rows), attacks, both[:, :, 0], both[:, :, 1] == 1.0)


def _is_headline(row: Row) -> bool:
    return bool(row["attack_kind"] == "removal" and row["knowledge"] != "insider" and not row["yardstick"])


def _unplayable(defense: Row, cells: Sequence[Row], kind: Payoff) -> str | None:
    if origin := origin_of(defense["defense"]):
        return f"submitted by {origin}, not run here"
    if defense["verdict"] not in ("claim", *_WORTHLESS):
        return str(defense["verdict"])
    if not any(row["seeds"] for row in cells):
        return "no removal attack was run on it"
    if defense["verdict"] in _WORTHLESS:
        return None
    if failed := [row["attack_label"] for row in cells if row["seeds_failed"]]:
        return f"failed under {', '.join(failed)}"
    unbounded = [row["attack_label"] for row in cells if row["seeds"] and row["price"] is None]
    if kind == "price" and unbounded:
        return f"nothing bounds its price under {unbounded[0]}; the suite needs `scratch`"
    return None


def _unsettled(defense: Row, protocol: Protocol | None) -> str | None:
    if protocol and defense["verdict"] == "claim" and defense[WITHSTOOD[protocol]] is None:
        return "its records do not say when forged keys were there"
    return None


def _worth(row: Row, kind: Payoff) -> tuple[float, bool]:
    """What the attacker has to pay, and whether that is a bound."""
    if kind == "survived":
        return float(row["survived"]), bool(row["survived"])
    return float(row["price"]), bool(row["price_censored"])


def _best_mixture(payoff: Matrix) -> tuple[float, Matrix]:
    """The row player's: maximise v, so that the mixture gets at least v against each column."""
    count, columns = payoff.shape
    # Between 0 and 1, so that the solver's tolerances mean the same for points and for shares.
    low, span = payoff.min(), max(float(np.ptp(payoff)), 1e-300)
    scaled = (payoff - low) / span
    found = linprog(
        c=np.append(np.zeros(count), -1.0),
        A_ub=np.column_stack([-scaled.T, np.ones(columns)]),
        b_ub=np.zeros(columns),
        A_eq=np.append(np.ones(count), 0.0)[None, :],
        b_eq=[1.0],
        bounds=[(0.0, 1.0)] * (count + 1),
        method="highs",
    )
    if not found.success:
        raise ValueError(f"expected a game that can be solved: {found.message}")
    mixture = np.clip(found.x[:-1], 0.0, None)
    mixture /= mixture.sum()
    return float((mixture @ payoff).min()), mixture
