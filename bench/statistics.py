"""Exact tails in log space, and the one interval that the leaderboard uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special, stats

LN10 = math.log(10.0)


def _log10_upper_tail(distribution: Any, at_least: int, most: int) -> float:
    # scipy's own logsf takes the logarithm of a number that has already underflowed; the terms have not.
    terms = distribution.logpmf(np.arange(at_least, most + 1))
    return min(0.0, float(special.logsumexp(terms)) / LN10)


def binomial_tail(hits: int, trials: int, rate: float) -> float:
    """log10 P(X >= hits) for X ~ Binomial(trials, rate); 0 for hits <= 0.

    Args:
        hits: agreements seen, 0 to trials.
        trials: independent uniform symbols of the key.
        rate: probability that one of them agrees by chance, in (0, 1).

    Raises:
        ValueError: hits outside [0, trials], or rate outside (0, 1).
    """
    if not 0 <= hits <= trials:
        raise ValueError(f"expected hits in 0..{trials}, got {hits}")
    if not 0.0 < rate < 1.0:
        raise ValueError(f"expected a rate in (0, 1), got {rate}")
    if hits == 0:
        return 0.0
    return _log10_upper_tail(stats.binom(trials, rate), hits, trials)


def hypergeometric_tail(hits: int, population: int, marked: int, drawn: int) -> float:
    """log10 P(X >= hits) for the marked ones among `drawn` of a `population` that holds `marked`.

    Raises:
        ValueError: counts that no such draw can have.
    """
    least, most = max(0, drawn + marked - population), min(drawn, marked)
    if not (0 <= marked <= population and 0 <= drawn <= population and hits <= most):
        raise ValueError(f"expected hits <= {most} with {marked} marked and {drawn} drawn of {population}, got {hits}")
    if hits <= least:
        return 0.0
    return _log10_upper_tail(stats.hypergeom(population, marked, drawn), hits, most)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """The t interval of the mean, or None below three values (an interval from two says nothing)."""
    if len(values) < 3:
        return None
    mean, error = float(np.mean(values)), float(stats.sem(values))
    if error == 0.0:
        return mean, mean
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)
