"""The QR code as a matrix: its function patterns, many codes at once, and the reader."""

import builtins

import numpy as np
import pytest
import qrcode
from hypothesis import given, settings
from hypothesis import strategies as st
from qrcode.constants import ERROR_CORRECT_H

from defenses.tickets import qr_pattern
from defenses.tickets.qr_pattern import (
    VERSIONS,
    completed,
    decode,
    encode,
    encode_all,
    function_patterns,
    restored_by_released_code,
    room,
    side,
)

MASKS = st.integers(0, 7)
CHARACTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


@pytest.mark.parametrize("version", VERSIONS)
def test_function_patterns_are_what_the_library_sets_before_any_data(version):
    n = side(version)
    code = qrcode.QRCode(version, ERROR_CORRECT_H, mask_pattern=0)
    code.modules_count, code.modules = n, [[None] * n for _ in range(n)]
    for row, column in ((0, 0), (n - 7, 0), (0, n - 7)):
        code.setup_position_probe_pattern(row, column)
    code.setup_position_adjust_pattern()
    code.setup_timing_pattern()
    code.setup_type_info(False, 0)
    fixed = np.array([[module is not None for module in row] for row in code.modules])
    assert np.array_equal(fixed, function_patterns(version))


def test_version_3_has_274_function_modules_and_the_released_code_restores_290():
    function, released = function_patterns(3), restored_by_released_code()
    assert (function.sum(), (~function).sum(), released.sum()) == (274, 567, 290)
    assert not (function & ~released).any()
    # The 16 more are beside the separators, in row 20 on the left and in column 20 at the top.
    more = released & ~function
    assert more.sum() == 16 and more[20, :9].sum() == more[:9, 20].sum() == 8


@settings(max_examples=30)
@given(version=st.sampled_from(VERSIONS), mask=MASKS, text=st.text(CHARACTERS, max_size=7))
def test_function_patterns_do_not_depend_on_the_text(version, mask, text):
    code, fixed = encode(text, version, mask), function_patterns(version)
    assert np.array_equal(code[fixed], encode("", version, mask)[fixed])
    assert np.array_equal(completed(np.where(fixed, ~code, code), version, mask), code)


def test_a_code_is_the_library_s():
    code = qrcode.QRCode(3, ERROR_CORRECT_H, box_size=1, border=0)
    code.add_data("signature")
    code.make()
    # The source's text; the library chooses mask 1 for it.
    assert np.array_equal(encode("signature", 3, 1), np.array(code.make_image().get_image().convert("1")))


@settings(max_examples=10)
@given(version=st.sampled_from(VERSIONS), mask=MASKS, data=st.data())
def test_many_codes_at_once_are_those_of_one_at_a_time(version, mask, data):
    length = data.draw(st.integers(1, 7))
    texts = data.draw(st.lists(st.text(CHARACTERS, min_size=length, max_size=length), min_size=1, max_size=3))
    contents = np.array([list(text.encode()) for text in texts], dtype=np.uint8).reshape(len(texts), length)
    assert np.array_equal(encode_all(contents, version, mask), [encode(text, version, mask) for text in texts])


@given(version=st.sampled_from(VERSIONS), mask=MASKS, data=st.data())
def test_a_code_is_read_and_one_without_its_function_patterns_is_not(version, mask, data):
    text = data.draw(st.text(CHARACTERS, min_size=1, max_size=room(version)))
    code, fixed = encode(text, version, mask), function_patterns(version)
    assert decode(code) == text
    assert decode(np.where(fixed, False, code)) is None
    assert decode(np.where(fixed, True, code)) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_text_has_as_many_bytes_as_the_library_takes(version):
    longest = "x" * room(version)
    assert decode(encode(longest, version, 0)) == longest
    with pytest.raises(ValueError, match=f"expected at most {room(version)} bytes"):
        encode(longest + "x", version, 0)
    with pytest.raises(qrcode.exceptions.DataOverflowError):
        qr_pattern._of_bytes(longest.encode() + b"x", version, 0)


def test_reed_solomon_corrects_what_it_can_and_gives_no_wrong_text():
    code, fixed = encode("signature", 3, 1), function_patterns(3)
    places = np.argwhere(~fixed)
    for wrong in (5, 40, 200):
        for seed in range(10):
            damaged = code.copy()
            rows, columns = np.random.default_rng(seed).permutation(places)[:wrong].T
            damaged[rows, columns] ^= True
            # Two blocks of 35 codewords correct 11 each: 5 wrong modules always, 200 never.
            assert decode(damaged) in {5: ("signature",), 40: ("signature", None), 200: (None,)}[wrong]


def test_a_missing_reader_is_said_so(monkeypatch):
    found = builtins.__import__

    def missing(name, *rest, **named):
        if name == "zxingcpp":
            raise ImportError(name)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RuntimeError, match="zxing-cpp"):
        decode(encode("a", 1, 0))
