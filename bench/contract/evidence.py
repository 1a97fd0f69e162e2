"""The rules about p-values: uniform or conservative under fresh keys, and no claim on independent models.

What is independent of what decides about the bounds. With the suspect as it is, each fresh draw of the key's
uniform part is a try of its own, so that the number of small p-values of one model is at most binomial, whatever
its weights are; each model is a cluster and is judged by itself, and the levels and models share the chance of a
false alarm. An owner's key is one draw, however many models it is held against: these p-values hang together
through it, no share of them has a bound, and only the smallest can be judged, times their number.
"""

from __future__ import annotations

from collections.abc import Iterator

from scipy import stats
from torch import nn

from bench.contract.rule import Rule, demand, rule
from bench.contract.workshop import OTHER_OWNER, OWNER, Made, Skip, Workshop
from bench.defense import Defense
from bench.running.work import evidence_on, remembering
from bench.stream import Stream

LEVELS = (0.1, 0.01)
# The chance that a sound scheme is called a liar by one rule.
FALSE_ALARM = 1e-3


@rule("p-values-are-no-lies", "Under fresh uniform parts, p-values are uniform or conservative on every model")
def _no_lies(defense: Defense, workshop: Workshop) -> str:
    made = _made(defense, workshop)
    suspects = list(_suspects(made, workshop))
    bound = FALSE_ALARM / (len(suspects) * len(LEVELS))
    pairs, widest = 0, dict.fromkeys(LEVELS, 0.0)
    for name, model, count in suspects:
        found = _p_values(defense, workshop, made, model, count)
        pairs += len(found)
        for level in LEVELS:
            # A p-value that is a power of ten stands a rounding error away from it.
            hits = sum(p <= level * (1 + 1e-12) for p in found)
            widest[level] = max(widest[level], hits / count)
            chance = float(stats.binom.sf(hits - 1, count, level))
            demand(
                chance > bound,
                f"expected at most a share of {level} of p-values at or below {level} under fresh keys, got "
                f"{hits / count:.3f} ({hits} of {count}) on {name}; so many come by chance with {chance:.1g}",
            )
    told = ", ".join(f"{share:.3f} at or below {level}" for level, share in widest.items())
    return f"{pairs} pairs; largest share of a model {told}"


@rule("no-claim-on-independent-models", "Owners' own keys are not found in models that never met them")
def _no_claim(defense: Defense, workshop: Workshop) -> str:
    made = _made(defense, workshop)
    other = workshop.protected(defense, workshop.quick, OTHER_OWNER)
    pairs = [
        *((name, _evidence(defense, workshop, made, model, OWNER)) for name, model in _strangers(workshop, other)),
        *(
            (name, _evidence(defense, workshop, other, model, OTHER_OWNER))
            for name, model in _strangers(workshop, made)
        ),
    ]
    for name, log10_p in pairs:
        p = min(1.0, 10**log10_p * len(pairs))
        # One pair in ten thousand reaches this; the many untrained nets share the chance of a false alarm.
        alarm = p <= FALSE_ALARM or (log10_p <= -4.0 and "untrained" not in name)
        demand(not alarm, f"expected no evidence on {name}, got log10_p {log10_p:.1f} under the owner's own key")
    return f"2 owners, {len(pairs)} pairs; log10_p {min(log10_p for _, log10_p in pairs):.1f} at best"


RULES: tuple[Rule, ...] = (_no_lies, _no_claim)


def _made(defense: Defense, workshop: Workshop) -> Made:
    if defense.undefended:
        raise Skip("it protects nothing")
    return workshop.protected(defense)


def _suspects(made: Made, workshop: Workshop) -> Iterator[tuple[str, nn.Module, int]]:
    many, few = workshop.keys, workshop.keys // 10
    yield "the protected model", made.model, many
    yield "an independent model", workshop.clean, many
    yield "a short-trained model", workshop.net(1, workshop.quick), few
    yield "an untrained model", workshop.untrained(1), few
    # A key that is not quite uniform agrees with one of these too often.
    yield "a model of zeros", workshop.constant(0.0), few
    yield "a model of ones", workshop.constant(1.0), few


def _p_values(defense: Defense, workshop: Workshop, made: Made, model: nn.Module, count: int) -> list[float]:
    suspect, trainer = remembering(model, defense.access_used()), workshop.judging()
    found = []
    for number in range(count):
        fresh = defense.draw(workshop.task, Stream(("null", defense.name, str(number))))
        found.append(10 ** evidence_on(defense, suspect(), made.key.redraw(fresh, defense.uniform), trainer).log10_p)
    return found


def _strangers(workshop: Workshop, other: Made) -> Iterator[tuple[str, nn.Module]]:
    yield "an independent model", workshop.clean
    yield "a model of zeros", workshop.constant(0.0)
    yield "a model of ones", workshop.constant(1.0)
    yield "a short-trained model", workshop.net(1, workshop.quick)
    yield "another owner's protected model", other.model
    # They cost nothing to make and differ the most; 40 by default.
    for number in range(2 * workshop.keys // 25):
        yield f"an untrained model ({number})", workshop.untrained(number)


def _evidence(defense: Defense, workshop: Workshop, made: Made, model: nn.Module, owner: int) -> float:
    return workshop.verify(defense, model, made.key, owner=owner).log10_p
