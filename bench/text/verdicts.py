"""What a judge finds, in words for people and as JSON."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator

from bench.claims import Claim, Commitment, Opening, Pairs, Ruling, Standing, Verdict
from bench.evidence import Evidence

WIDTH = 100


def verdict_text(verdict: Verdict, opening: Opening, commitment: Commitment | None) -> str:
    """A verdict for people: the finding first, then what it rests on."""
    lines = [_finding(verdict, opening)]
    lines += [f"- {line}" for line in _reasons(verdict, opening, commitment)]
    return _wrapped(lines)


def verdict_json(verdict: Verdict, opening: Opening, commitment: Commitment | None) -> str:
    """The same for programs; infinities are the texts `inf` and `-inf`."""
    evidence = verdict.evidence
    values = {
        "holds": verdict.holds,
        "log10_p": _number(evidence.log10_p),
        "alpha": verdict.alpha,
        "statistic": _number(evidence.statistic),
        "capacity_log10_p": _number(verdict.capacity),
        "reason": evidence.reason,
        "figures": {name: _number(value) for name, value in evidence.figures.items()},
        "texts": dict(evidence.texts),
        "owner": opening.owner,
        "scheme": opening.scheme.label,
        "opens_commitment": verdict.opens,
        "commitment_time": None if commitment is None else commitment.time,
        "digest": opening.digest,
        "committed_model": verdict.committed_model,
        "derived": verdict.derived,
    }
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def ruling_text(ruling: Ruling, pairs: Pairs, owners: tuple[str, str], standings: tuple[Standing, Standing]) -> str:
    """A ruling for people: who wins, the four pairs and the times."""
    named = {"A": f"A ({owners[0]})", "B": f"B ({owners[1]})"}
    head = "UNDECIDED" if ruling.winner is None else f"{named[ruling.winner]} WINS"
    lines = [f"{head}: {ruling.reason}."]
    words = {True: "verifies", False: "does not verify"}
    for place, side in enumerate("AB"):
        own, other = (pairs.a_in_a, pairs.a_in_b) if side == "A" else (pairs.b_in_b, pairs.b_in_a)
        where = f"{words[own]} in its own model and {words[other]} in that of {'BA'[place]}"
        lines.append(f"- The key of {named[side]} {where}.")
        standing = standings[place]
        state = "opens its commitment and fits its model"
        if not standing.sound:
            state = "contradicts its commitment, its model or its seed"
        kind = "; it is derived from a seed and the owner's name" if standing.derived else ""
        lines.append(f"- The key file of {side} {state}; committed to at {standing.time.isoformat()}{kind}.")
    lines.append(
        "- Times count for as much as the log that stamped them: a file alone says what its maker wrote. Compare both "
        "with the logs, and give other times by --time-a and --time-b."
    )
    return _wrapped(lines)


def ruling_json(ruling: Ruling, pairs: Pairs, owners: tuple[str, str], standings: tuple[Standing, Standing]) -> str:
    """The same for programs."""
    claims = {
        side: {"owner": owner, "sound": one.sound, "time": one.time.isoformat(), "derived": one.derived}
        for side, owner, one in zip("AB", owners, standings, strict=True)
    }
    head = {"winner": ruling.winner, "by": ruling.by, "reason": ruling.reason}
    return json.dumps({**head, "pairs": pairs._asdict(), "claims": claims}, indent=1) + "\n"


def claim_text(claim: Claim, evidence: Evidence, alpha: float, paths: tuple[str, str, str]) -> str:
    """What was written where, and what an owner does with it."""
    model, key, commitment = paths
    lines = [
        f"Claim of {claim.opening.owner} by {claim.opening.scheme.label}: {claim.commitment.digest}",
        f"- {commitment}: publish it now, where somebody else stamps it with the time; the model only later.",
        f"- {key}: keep it secret until a dispute, with a copy elsewhere. Without it nothing can be claimed.",
        f"- {model}: what may be published once the commitment is. A dispute needs it as it is.",
        f"- On this model the key's p-value is {p_text(evidence.log10_p)}.",
    ]
    if evidence.log10_p > math.log10(alpha):
        lines.append(f"- CAUTION: that is no claim at the suite's alpha of {alpha:g}: this commitment proves nothing.")
    return _wrapped(lines)


def p_text(log10_p: float) -> str:
    """A probability: plain down to a thousandth, below that as a power of ten."""
    if math.isinf(log10_p):
        return "0"
    return f"{10**log10_p:.2g}" if log10_p > -3 else f"10^{log10_p:.1f}"


def _finding(verdict: Verdict, opening: Opening) -> str:
    who = f"{opening.owner}'s claim by {opening.scheme.label}"
    if verdict.holds:
        return f"THE CLAIM HOLDS: {who}, p = {p_text(verdict.evidence.log10_p)}, at alpha {verdict.alpha:g}."
    if verdict.opens is False:
        why = "the key file does not open this commitment"
    elif verdict.derived is False:
        why = "the seed in the key file gives another key"
    elif verdict.evidence.reason:
        why = f"the suspect cannot be read: {verdict.evidence.reason}"
    else:
        why = f"p = {p_text(verdict.evidence.log10_p)} is more than alpha {verdict.alpha:g}"
    return f"THE CLAIM DOES NOT HOLD: {who}: {why}."


def _reasons(verdict: Verdict, opening: Opening, commitment: Commitment | None) -> Iterator[str]:
    evidence = verdict.evidence
    if evidence.reason is None:
        yield (
            f"Evidence: a freshly drawn key would fit this suspect as well with probability {p_text(evidence.log10_p)} "
            f"({'at most' if verdict.found else 'more than'} alpha)."
        )
    elif verdict.opens is False or verdict.derived is False:
        yield f"Evidence: none; the suspect cannot be read: {evidence.reason}."
    if verdict.capacity > math.log10(verdict.alpha):
        yield f"With these parameters the scheme reaches {p_text(verdict.capacity)} at best: no claim at this alpha."
    if verdict.committed_model:
        yield "The suspect is the model that was committed to, bit for bit."
    else:
        yield "The suspect is not the model that was committed to; what it shares with it is for the evidence to say."
    if commitment is None:
        yield (
            "No commitment was given: nothing shows that the key was there before the suspect was seen, and keys that "
            "fit a model can be made from it. Give the published one by --commitment."
        )
    elif verdict.opens:
        yield (
            f"The key file opens the commitment. It says that it was made at {commitment.time}; whether that is so, "
            "the log where it was published has to say."
        )
    else:
        yield f"The commitment is to {commitment.digest}, the key file gives {opening.digest}: one of them was changed."
    yield {
        None: "The key has no seed: its random part may have been chosen.",
        True: "The key's random part follows from the seed and the owner's name: it was not chosen.",
        False: "The key's random part does not follow from the seed that the key file names.",
    }[verdict.derived]


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _wrapped(lines: list[str]) -> str:
    filled = [
        textwrap.fill(line, WIDTH, subsequent_indent="  " if line.startswith("- ") else "", break_on_hyphens=False)
        for line in lines
    ]
    return "\n".join(filled) + "\n"
