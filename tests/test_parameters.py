from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import parameters
from bench.errors import InputError


@dataclass(frozen=True)
class Sample:
    bits: int = 64
    rate: float = 0.5
    on: bool = False
    mode: Literal["scratch", "fine-tune"] = "scratch"
    fractions: tuple[float, ...] = (0.5,)
    layer: str | None = None
    read: int = parameters.judged(3)

    def __post_init__(self):
        if self.bits < 1:
            raise ValueError(f"expected bits >= 1, got {self.bits}")


def crossed(**table):
    return list(parameters.crossed(Sample, table, "suite.toml, [[x]] number 1"))


def test_a_list_is_crossed_and_a_list_field_takes_a_list():
    assert [(s.bits, s.on) for s in crossed(bits=[32, 64], on=[True, False])] == [
        (32, True), (32, False), (64, True), (64, False)
    ]  # fmt: skip
    assert [s.fractions for s in crossed(fractions=[0.3, 0.6])] == [(0.3, 0.6)]
    assert [s.fractions for s in crossed(fractions=[[0.3], [0.6, 0.9]])] == [(0.3,), (0.6, 0.9)]


def test_an_integer_is_a_float_and_nothing_else_is_converted():
    assert crossed(rate=1)[0].rate == 1.0
    for wrong in ({"bits": 1.0}, {"bits": True}, {"on": 1}, {"mode": 3}, {"fractions": 0.5}, {"layer": 1}):
        with pytest.raises(InputError, match="expected"):
            crossed(**wrong)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"bitz": 1}, ["suite.toml, [[x]] number 1", "'bitz'", "Did you mean 'bits'?", "fractions"]),
        ({"mode": "fine_tune"}, ["key 'mode'", "'fine_tune'", "Did you mean 'fine-tune'?"]),
        ({"bits": "many"}, ["key 'bits'", "expected int", "'many'", "str"]),
        ({"bits": []}, ["key 'bits'", "empty list"]),
        ({"bits": 0}, ["expected bits >= 1, got 0"]),
        ({"fractions": [0.1, "x"]}, ["key 'fractions'[1]", "expected float", "'x'"]),
    ],
)
def test_errors_say_where_what_and_the_nearest_names(table, words):
    with pytest.raises(InputError) as error:
        crossed(**table)
    for word in words:
        assert word in str(error.value)


def test_labels_name_what_differs_from_the_defaults():
    assert parameters.label("x", Sample()) == "x"
    assert (
        parameters.label("x", Sample(bits=32, fractions=(0.1, 0.2), on=True)) == "x[bits=32,on=true,fractions=0.1+0.2]"
    )


def test_judged_fields_can_be_left_out():
    assert "read" in parameters.values_of(Sample())
    assert "read" not in parameters.values_of(Sample(), judged_too=False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=5))
def test_canonical_json_does_not_depend_on_order(value):
    shuffled = dict(reversed(list(value.items())))
    assert parameters.canonical(value) == parameters.canonical(shuffled)


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON"):
        parameters.canonical({"x": float("nan")})
