"""Cells of pruning rates: what a width says, exactly; and the code over layers."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import models
from defenses.structure.cells import Cells, most_bits
from defenses.structure.symbol_code import SymbolCode
from models.channels import channels
from models.surgery import inner

TENTHS = st.integers(0, 10).map(lambda n: Fraction(n, 10))


@st.composite
def cells(draw):
    low, high = sorted(draw(st.sets(TENTHS, min_size=2, max_size=2)))
    full, channels_in_cell = draw(st.integers(1, 300)), draw(st.integers(1, 5))
    room = most_bits(full, low, high, channels_in_cell)
    assume(room)
    bits = draw(st.integers(1, room))
    if draw(st.booleans()):
        return Cells.covering(full, low, high, bits)
    return Cells.repeating(full, low, high, bits, channels_in_cell)


@given(one=cells())
def test_each_symbol_has_a_width_that_says_it(one):
    for symbol in range(2**one.bits):
        for width in (one.central(symbol), one.nearest(symbol, Fraction(one.full, 3))):
            assert one.symbol(width) == symbol
            assert one.low <= 1 - Fraction(width, one.full) < one.high
    said = [one.symbol(width) for width in one.widths]
    assert set(said) == set(range(2**one.bits))


@given(one=cells(), natural=st.fractions(0, 300))
def test_the_nearest_width_is_the_nearest_of_all_that_say_the_symbol(one, natural):
    for symbol in range(2**one.bits):
        found = one.nearest(symbol, natural)
        assert all(abs(found - natural) <= abs(width - natural) for width in one.choices(symbol))


@given(one=cells())
def test_a_slip_into_the_next_cell_costs_one_bit(one):
    for wide, narrow in itertools.pairwise(one.widths):
        assert (one.symbol(wide) ^ one.symbol(narrow)).bit_count() <= 1


@given(one=cells(), data=st.data())
def test_the_margin_is_the_least_change_that_says_something_else(one, data):
    width = data.draw(st.sampled_from(one.widths))
    margin = one.margin(width)
    assert all(one.symbol(width + change) == one.symbol(width) for change in range(1 - margin, margin))
    assert {one.symbol(width - margin), one.symbol(width + margin)} != {one.symbol(width)}
    fewer = one.fewer(width)
    below = [other for other in range(1, width) if one.symbol(other) != one.symbol(width)]
    assert fewer == (max(below) if below else None)


@pytest.mark.parametrize("wide", [1, 3, 5])
def test_in_the_middle_of_a_cell_half_a_cell_is_tolerated(wide):
    one = Cells.covering(wide * 8, Fraction(0), Fraction(1), 3)
    for symbol in range(7):
        assert one.margin(one.central(symbol)) == wide // 2 + 1


def test_a_symbol_has_one_cell_or_many():
    half = Fraction(1, 2)
    covering = Cells.covering(64, Fraction(0), half, 3)
    assert covering.choices(0) == (64, 63, 62, 61)
    assert covering.central(0) == 63
    repeating = Cells.repeating(64, Fraction(0), half, 3, 1)
    assert repeating.choices(0) == (64, 56, 48, 40)
    assert repeating.nearest(0, Fraction(50)) == 48
    # As near from both sides: the larger one costs less.
    assert repeating.nearest(0, Fraction(52)) == 56
    # The last cell and the first one of the next round are neighbours.
    assert repeating.symbol(57) ^ repeating.symbol(56) == 4


def test_a_symbol_that_no_width_says_is_an_error():
    with pytest.raises(ValueError, match="no width of 4 channels says"):
        Cells.covering(4, Fraction(0), Fraction(1, 2), 3).central(7)


def exact(low, high):
    return Fraction(low), Fraction(high)


@given(full=st.integers(1, 600), low=TENTHS, high=TENTHS)
def test_capacity_is_the_count_of_achievable_widths(full, low, high):
    assume(low < high)
    bits = most_bits(full, low, high, 1)
    # 2 ** bits cells of a channel or more fit into the range, twice as many do not.
    assert 2**bits <= max(1, (high - low) * full) < 2 ** (bits + 1) or bits == 0
    widths = Cells.covering(full, low, high, bits).widths
    assert bits == 0 or 2**bits <= len(widths)


# Capacities in the range [0, 0.5): with cells of one channel, and of two for each channel of tolerance.
CAPACITIES = {
    ("vgg16-bn", (3, 32, 32)): {1: 91, 2: 78, 4: 65, 8: 52, 16: 39},
    ("resnet18", (3, 32, 32)): {1: 52, 2: 44, 4: 36, 8: 28, 16: 20},
    ("resnet20", (3, 32, 32)): {1: 36, 2: 27, 4: 18, 8: 9, 16: 3},
    ("vgg8", (1, 8, 8)): {1: 28, 2: 22},
}


@pytest.mark.parametrize(("name", "shape"), list(CAPACITIES))
def test_capacities_of_known_nets(name, shape):
    net = models.skeleton(name, 10, shape)
    widths = [one.width for one in inner(channels(net)) if hasattr(models.layer(net, one.layer), "kernel_size")]
    for wide, bits in CAPACITIES[name, shape].items():
        assert sum(most_bits(width, *exact(0, "1/2"), wide) for width in widths) == bits


@given(
    bits=st.integers(3, 6),
    data=st.data(),
)
def test_a_code_corrects_half_as_many_layers_as_it_spares(bits, data):
    length = data.draw(st.integers(3, min(15, 2**bits - 1)))
    code = SymbolCode(bits, length, data.draw(st.integers(1, length - 1)))
    symbols = st.integers(0, 2**bits - 1)
    message = data.draw(st.lists(symbols, min_size=length - code.spare, max_size=length - code.spare))
    word = code.encode(message)
    assert word[: len(message)] == message
    assert max(word) < 2**bits
    for place in data.draw(st.sets(st.integers(0, length - 1), max_size=code.spare // 2)):
        word[place] = data.draw(symbols)
    assert code.decode(word) == message


def test_where_nothing_can_be_corrected_the_message_is_read_as_it_stands():
    code = SymbolCode(4, 7, 1)
    word = code.encode([1, 2, 3, 4, 5, 6])
    word[0] = 9
    assert code.decode(word) == [9, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("bits", "length", "spare"), [(2, 3, 1), (3, 8, 2), (4, 6, 6), (4, 6, 0)])
def test_a_code_that_cannot_be_is_refused(bits, length, spare):
    with pytest.raises(ValueError, match="expected 0 < spare < length"):
        SymbolCode(bits, length, spare)
