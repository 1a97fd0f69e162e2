import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.statistics import binomial_tail, hypergeometric_tail, t_interval


def exact_binomial(hits, trials, rate: Fraction) -> Fraction:
    return sum(
        (Fraction(math.comb(trials, k)) * rate**k * (1 - rate) ** (trials - k) for k in range(hits, trials + 1)),
        Fraction(0),
    )


def log10(value: Fraction) -> float:
    return math.log10(value.numerator) - math.log10(value.denominator)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_binomial_tail_is_exact(pair, classes):
    hits, trials = pair
    expected = log10(exact_binomial(hits, trials, Fraction(1, classes)))
    assert binomial_tail(hits, trials, 1 / classes) == pytest.approx(expected, abs=1e-9)


def test_binomial_tail_of_small_cases_by_enumeration():
    for trials in range(1, 7):
        for hits in range(trials + 1):
            share = sum(sum(word) >= hits for word in itertools.product((0, 1), repeat=trials)) / 2**trials
            assert 10 ** binomial_tail(hits, trials, 0.5) == pytest.approx(share)


def test_tails_do_not_underflow():
    assert binomial_tail(2000, 2000, 0.5) == pytest.approx(-2000 * math.log10(2), rel=1e-12)
    assert hypergeometric_tail(500, 100_000, 500, 500) == pytest.approx(-log10(Fraction(math.comb(100_000, 500))))


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))), st.data())
@settings(max_examples=60, deadline=None)
def test_hypergeometric_tail_is_exact(counts, data):
    population, marked, drawn = counts
    hits = data.draw(st.integers(0, min(marked, drawn)))
    ways = sum(
        math.comb(marked, k) * math.comb(population - marked, drawn - k)
        for k in range(hits, min(marked, drawn) + 1)
        if drawn - k <= population - marked
    )
    expected = log10(Fraction(ways, math.comb(population, drawn)))
    assert hypergeometric_tail(hits, population, marked, drawn) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("hits", "trials", "rate"), [(3, 2, 0.5), (-1, 2, 0.5), (1, 2, 0.0), (1, 2, 1.0)])
def test_binomial_tail_refuses_what_cannot_be(hits, trials, rate):
    with pytest.raises(ValueError, match="expected"):
        binomial_tail(hits, trials, rate)


def test_hypergeometric_tail_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="expected hits"):
        hypergeometric_tail(4, 10, 3, 5)


def test_interval_from_three_values_on():
    assert t_interval([1.0, 2.0]) is None
    low, high = t_interval([1.0, 2.0, 3.0])
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert (low, high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert t_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
