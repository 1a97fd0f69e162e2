"""Two claims that contradict each other: who of two has the earlier and the better one."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal, NamedTuple

Side = Literal["A", "B"]
By = Literal["both models", "only claim", "earlier commitment", "undecided"]


class Pairs(NamedTuple):
    """Which key verifies in which deposited model."""

    a_in_a: bool
    a_in_b: bool
    b_in_a: bool
    b_in_b: bool


@dataclass(frozen=True)
class Standing:
    """What is known of a claim beside its evidence.

    Attributes:
        sound: the key file opens its commitment, the deposited model is the committed one, and no seed contradicts.
        time: of the commitment.
        derived: the key follows from a seed and its owner's name.
    """

    sound: bool
    time: datetime.datetime
    derived: bool = False


@dataclass(frozen=True)
class Ruling:
    """Who wins.

    Attributes:
        winner: None where the judge cannot tell.
        by: which rule decided.
        reason: in words.
    """

    winner: Side | None
    by: By
    reason: str


def resolve(pairs: Pairs, a: Standing, b: Standing) -> Ruling:
    """Who of two claimants the models belong to.

    A claim is valid if it is sound and its key verifies in the model that its owner deposited. Of two valid ones the
    one whose key verifies in both models wins, if the other's does so in its own model alone: whoever marks a stolen
    model cannot have marked the original. A key that was committed to later and is not derived may have been fitted
    to both models after they were seen, so that it does not win by being in both. If both keys verify in both models,
    the earlier commitment wins. If each does so in its own alone, nothing shows that one model stems from the other.
    """
    valid_a, valid_b = a.sound and pairs.a_in_a, b.sound and pairs.b_in_b
    if not (valid_a or valid_b):
        return Ruling(None, "undecided", "neither claim is valid")
    if not (valid_a and valid_b):
        winner: Side = "A" if valid_a else "B"
        return Ruling(winner, "only claim", f"the claim of {winner} is the only valid one")
    if pairs.a_in_b != pairs.b_in_a:
        return _by_evidence("A", a, b) if pairs.a_in_b else _by_evidence("B", b, a)
    if not pairs.a_in_b:
        told = "each key verifies in its own model alone: nothing shows that one model stems from the other"
        return Ruling(None, "undecided", told)
    if a.time == b.time:
        return Ruling(None, "undecided", "each key verifies in both models, and both were committed to at one time")
    earlier: Side = "A" if a.time < b.time else "B"
    return Ruling(earlier, "earlier commitment", f"each key verifies in both models, and {earlier} committed first")


def _by_evidence(side: Side, mine: Standing, other: Standing) -> Ruling:
    told = f"the key of {side} verifies in both models, the other in its own alone"
    if mine.time > other.time and not mine.derived:
        return Ruling(
            None, "undecided", f"{told}; but {side} committed later, to a key that may have been fitted to both models"
        )
    return Ruling(side, "both models", told)
