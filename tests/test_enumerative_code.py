"""The enumerative code against a brute-force ranking, and how long it takes."""

import itertools
import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses.weights import enumerative_code
from defenses.weights.enumerative_code import capacity, decode, encode, smallest_length


@pytest.fixture(params=["as it is", "few leading bits"])
def precision(request, monkeypatch):
    """With a few bits nearly every step has to be decided by the whole numbers, and far ones are searched for."""
    if request.param == "few leading bits":
        monkeypatch.setattr(enumerative_code, "_BITS", 6)
        monkeypatch.setattr(enumerative_code, "_GUARD", 1)
        monkeypatch.setattr(enumerative_code, "_FAR", 1)


def ranked(length, weight):
    """All words by their value as binary numbers: the definition."""
    return sorted(itertools.combinations(range(length), weight), key=lambda ones: sum(1 << t for t in ones))


def walked(message, length, weight):
    """Algorithm 1 of the paper, step by step."""
    ones, left = [], weight
    for t in range(length):
        count = math.comb(length - t - 1, left)
        if left and message >= count:
            ones.append(length - t - 1)
            message -= count
            left -= 1
    return tuple(reversed(ones))


@pytest.mark.parametrize("length", range(1, 11))
def test_small_codes_are_the_brute_force_ranking(length, precision):
    for weight in range(1, length + 1):
        words = ranked(length, weight)
        assert [encode(rank, length, weight) for rank in range(len(words))] == words
        assert [decode(word, length) for word in words] == list(range(len(words)))


@st.composite
def codes(draw, longest=400):
    length = draw(st.integers(1, longest))
    weight = draw(st.integers(1, length))
    return draw(st.integers(0, math.comb(length, weight) - 1)), length, weight


@given(codes())
def test_encoding_is_algorithm_1_and_decoding_undoes_it(code):
    message, length, weight = code
    word = encode(message, length, weight)
    assert word == walked(message, length, weight)
    assert decode(word, length) == message


@given(codes(longest=120))
def test_so_it_is_where_the_leading_bits_do_not_decide(code):
    message, length, weight = code
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_BITS", 5), ("_GUARD", 0), ("_FAR", 1)):
            patch.setattr(enumerative_code, name, value)
        assert encode(message, length, weight) == walked(message, length, weight)
        assert decode(encode(message, length, weight), length) == message


@given(st.integers(1, 5000), st.data())
def test_any_word_has_a_rank_and_greater_words_greater_ones(length, data):
    weight = data.draw(st.integers(1, min(length, 60)))
    words = st.sets(st.integers(0, length - 1), min_size=weight, max_size=weight)
    word, other = data.draw(words), data.draw(words)
    first, second = (decode(list(ones), length) for ones in (word, other))
    assert encode(first, length, weight) == tuple(sorted(word))
    assert (first < second) == (sum(1 << t for t in word) < sum(1 << t for t in other))


@given(bits=st.integers(1, 300), weight=st.integers(1, 300))
def test_the_smallest_length_is_the_smallest(bits, weight):
    length = smallest_length(bits, weight)
    assert math.comb(length, weight) >= 2**bits > math.comb(length - 1, weight)
    largest = 2**bits - 1
    assert decode(encode(largest, length, weight), length) == largest


def test_lengths_that_are_known():
    assert [smallest_length(64, weight) for weight in (16, 24, 48, 256)] == [117, 75, 73, 268]
    assert [smallest_length(128, weight) for weight in (16, 24, 32, 64)] == [1_749, 407, 221, 132]
    assert smallest_length(512, 24) == 25_902_172
    assert smallest_length(128, 1) == 2**128
    assert encode(2**128 - 1, 2**128, 1) == (2**128 - 1,)


@given(codes())
def test_the_capacity_is_the_floor_of_the_logarithm(code):
    _, length, weight = code
    assert 2 ** capacity(length, weight) <= math.comb(length, weight) < 2 ** (capacity(length, weight) + 1)


@pytest.mark.parametrize(("bits", "weight", "seconds"), [
    (128, 24, 0.1), (319, 24, 0.2), (128, 1_000, 1.0), (8_073, 1_000, 1.5), (99_991, 50_000, 4.0)
])  # fmt: skip
def test_a_word_of_a_hundred_thousand(bits, weight, seconds):
    """The bounds leave room for a busy machine; a walk by whole numbers takes many times as long."""
    message = random.Random(bits).getrandbits(bits)
    started = time.process_time()
    word = encode(message, 100_000, weight)
    assert decode(word, 100_000) == message
    assert time.process_time() - started < seconds
    assert len(word) == weight


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match=r"expected a message in 0 to 9, got 10"):
        encode(10, 5, 2)
    with pytest.raises(ValueError, match=r"expected a message in 0 to C\(1000, 100\) - 1, got 2001 bits"):
        encode(1 << 2000, 1000, 100)
    with pytest.raises(ValueError, match="got -1"):
        encode(-1, 5, 2)
    for weight in (0, 6):
        with pytest.raises(ValueError, match=f"expected a weight in 1 to 5, got {weight}"):
            encode(0, 5, weight)
        with pytest.raises(ValueError, match="expected a weight"):
            capacity(5, weight)
    for ones in ([], [1, 1], [-1, 2], [2, 5]):
        with pytest.raises(ValueError, match="expected different positions in 0 to 4"):
            decode(ones, 5)
    with pytest.raises(ValueError, match="bits >= 1 and weight >= 1, got 0 and 3"):
        smallest_length(0, 3)
