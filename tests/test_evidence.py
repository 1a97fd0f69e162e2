import math

import pytest

from bench.evidence import Evidence, all_of, any_of


def test_alternatives_take_the_smallest_p_times_their_number():
    best = any_of({"a": Evidence(3, -5.0, {"bit_error": 0.1}), "b": Evidence(1, -2.0), "c": Evidence(0, 0.0)})
    assert best.log10_p == pytest.approx(-5.0 + math.log10(3))
    assert best.statistic == 3
    assert best.figures == {"bit_error": 0.1, "log10_p.a": -5.0, "log10_p.b": -2.0, "log10_p.c": 0.0}


def test_alternatives_never_exceed_one():
    assert any_of({"a": Evidence(0, -0.1), "b": Evidence(0, 0.0)}).log10_p == 0.0


def test_an_unreadable_alternative_still_costs_its_factor():
    mixed = any_of({"a": Evidence(3, -5.0), "b": Evidence.unreadable("no head")})
    assert mixed.log10_p == pytest.approx(-5.0 + math.log10(2))
    assert mixed.reason is None
    nothing = any_of({"a": Evidence.unreadable("x"), "b": Evidence.unreadable("y")})
    assert nothing.reason == "a: x; b: y"
    assert nothing.log10_p == 0.0


def test_conditions_take_the_largest_p():
    assert all_of({"a": Evidence(3, -5.0), "b": Evidence(1, -2.0)}).log10_p == -2.0


def test_texts_are_those_of_the_reading_that_is_taken():
    first, second = Evidence(3, -5.0, texts={"decoded": "a"}), Evidence(1, -2.0, texts={"decoded": "b"})
    assert any_of({"a": first, "b": second}).texts == {"decoded": "a"}
    assert all_of({"a": first, "b": second}).texts == {"decoded": "b"}


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_a_p_value_above_one_is_refused(value):
    with pytest.raises(ValueError, match="log10_p"):
        Evidence(0, value)
