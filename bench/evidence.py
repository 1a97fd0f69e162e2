"""What a verification returns, and how several of them make one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Evidence:
    """What `verify` says of one suspect under one key.

    Attributes:
        statistic: larger is more; in the scheme's own unit.
        log10_p: log10 of the probability of a statistic at least as large when the key's uniform part is
            drawn afresh and the suspect stays as it is; at most 0.
        figures: further numbers by name, such as a bit error rate in [0, 1].
        reason: why the suspect could not be read, where it could not.
        texts: what was read that is no number, by name, such as a decoded message.
    """

    statistic: float
    log10_p: float
    figures: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if math.isnan(self.log10_p) or self.log10_p > 0.0:
            raise ValueError(f"expected log10_p <= 0, got {self.log10_p}")

    @classmethod
    def unreadable(cls, reason: str) -> Evidence:
        """No evidence, because this suspect cannot be read (another architecture, no such layer)."""
        return cls(statistic=0.0, log10_p=0.0, reason=reason)


def any_of(readings: Mapping[str, Evidence]) -> Evidence:
    """Alternative readings: the smallest p times their number (Bonferroni); unreadable ones count too."""
    best = min(readings.values(), key=lambda evidence: evidence.log10_p)
    log10_p = min(0.0, best.log10_p + math.log10(len(readings)))
    reason = None
    if all(evidence.reason for evidence in readings.values()):
        reason = "; ".join(f"{name}: {evidence.reason}" for name, evidence in readings.items())
    return Evidence(best.statistic, log10_p, _figures(best, readings), reason, best.texts)


def all_of(conditions: Mapping[str, Evidence]) -> Evidence:
    """Necessary conditions, all of which must hold: the largest p."""
    worst = max(conditions.values(), key=lambda evidence: evidence.log10_p)
    return Evidence(worst.statistic, worst.log10_p, _figures(worst, conditions), worst.reason, worst.texts)


def _figures(chosen: Evidence, parts: Mapping[str, Evidence]) -> dict[str, float]:
    figures = dict(chosen.figures)
    for name, evidence in parts.items():
        figures[f"log10_p.{name}"] = evidence.log10_p
    return figures
