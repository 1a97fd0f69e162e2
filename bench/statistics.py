"""Exact tails in log space, intervals of means and of shares, and Holm's correction."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

LN10 = math.log(10.0)


def _log10_upper_tail(distribution: Any, at_least: int, most: int, *shape: float) -> float:
    # scipy's own logsf takes the logarithm of a number that has already underflowed; the terms have not. Freezing the
    # distribution would take longer than all of them.
    terms = distribution.logpmf(np.arange(at_least, most + 1), *shape)
    return min(0.0, float(special.logsumexp(terms)) / LN10)


# A thousand keys agree in the same few counts.
@functools.lru_cache(maxsize=4096)
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
    return _log10_upper_tail(stats.binom, hits, trials, trials, rate)


@functools.lru_cache(maxsize=4096)
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
    return _log10_upper_tail(stats.hypergeom, hits, most, population, marked, drawn)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """The t interval of the mean, or None below three values (an interval from two says nothing)."""
    if len(values) < 3:
        return None
    mean, error = float(np.mean(values)), float(stats.sem(values))
    if error == 0.0:
        return mean, mean
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values, each at most 1: to reject those at or below a rate has no more than that chance of an error.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps) if len(values) else steps
    return [float(one) for one in adjusted]


@dataclass(frozen=True)
class Share:
    """A share of tries that hang together in clusters.

    Attributes:
        hits, tries: as counted.
        effective: how many independent tries tell as much.
        low, high: limits of the interval.
    """

    hits: int
    tries: int
    effective: float
    low: float
    high: float

    @property
    def rate(self) -> float:
        """The share itself."""
        return self.hits / self.tries

    def exceeding(self, level: float) -> float:
        """The chance of as large a share of the effective tries where each hits with this probability."""
        hits = self.rate * self.effective
        return float(stats.beta.cdf(level, hits, self.effective - hits + 1)) if hits else 1.0


def clustered_share(
    hits: NDArray[np.int64], tries: NDArray[np.int64], crossed: bool = False, confidence: float = 0.95
) -> Share:
    """The Clopper-Pearson interval of a share, on as many independent tries as the clustered ones are worth.

    The effective number is the tries over the design effect, times the squared ratio of the t quantiles for tries and
    for clusters. The design effect is the variance of the share between clusters (that of a ratio of sums) over that of
    independent tries, 1 at the least; of crossed clusters the effects of rows and columns add up, less one. Where all
    tries hit or none does, nothing can be said of the variance: tries that are clustered by rows alone then count
    each, crossed ones as one for each row or column, whichever are fewer. Assumed is that clusters are drawn
    independently of each other from what the share is about.

    Args:
        hits: of shape (rows, columns), or (rows, 1); 0 to `tries`.
        tries: of the same shape, at least one in all.
        crossed: whether columns are clusters as well as rows.
        confidence: of the two-sided interval.

    Raises:
        ValueError: no tries, or hits outside [0, tries].

    Source: Korn & Graubard 1998, Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data, Survey Methodology 24 (no share without variance: Parker et al. 2017, NCHS, Vital and
    Health Statistics 2, 175); Cameron, Gelbach & Miller 2011, Robust inference with multiway clustering, section 2.
    """
    if not tries.sum() or (hits < 0).any() or (hits > tries).any():
        raise ValueError(f"expected hits in 0..tries and at least one try, got {hits.sum()} of {tries.sum()}")
    found, whole = int(hits.sum()), int(tries.sum())
    sides = (1, 0) if crossed else (1,)
    groups = [(hits.sum(side), tries.sum(side)) for side in sides]
    fewest = min(len(group) for group, _ in groups)
    if found in (0, whole):
        effective = float(fewest if crossed else whole)
    else:
        effect = 1 + sum(max(1.0, _design_effect(*group)) - 1 for group in groups)
        wide = stats.t.ppf((1 + confidence) / 2, [max(1, whole - 1), max(1, fewest - 1)])
        # A single cluster tells nothing of others, and no interval is wider than that of one try.
        lost = float((wide[0] / wide[1]) ** 2) if fewest > 1 else 1.0
        effective = min(float(whole), max(1.0, whole / effect * lost))
    agreed, tail = found / whole * effective, (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, agreed, effective - agreed + 1)) if found else 0.0
    high = float(stats.beta.ppf(1 - tail, agreed + 1, effective - agreed)) if found < whole else 1.0
    return Share(found, whole, effective, low, high)


def _design_effect(hits: NDArray[np.int64], tries: NDArray[np.int64]) -> float:
    """How many times the variance of a share is that of independent tries; 1 where there is a single cluster."""
    count, whole = len(hits), int(tries.sum())
    if count < 2:
        return 1.0
    rate = float(hits.sum()) / whole
    between = count / (count - 1) * float(((hits - rate * tries) ** 2).sum()) / whole**2
    return between / (rate * (1 - rate) / whole)
