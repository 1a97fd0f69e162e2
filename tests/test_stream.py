import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.stream import Stream

names = st.lists(st.text(max_size=5), min_size=1, max_size=4).map(tuple)


@given(names, names)
def test_streams_of_different_paths_differ_and_equal_paths_agree(first, second):
    same = first == second
    assert (Stream(first).bytes(16) == Stream(second).bytes(16)) is same
    assert (Stream(first).seed == Stream(second).seed) is same


def test_a_path_is_not_the_join_of_its_names():
    assert Stream(("a", "b")).seed != Stream(("ab",)).seed
    assert Stream.root(1).child("x", 2) == Stream(("1", "x", "2"))


def test_values_are_the_same_on_every_machine():
    # Written down once; a change of any of them changes every key and every result.
    stream = Stream.root(0).child("owner", "key")
    assert stream.bytes(4).hex() == "f1f7acc3"
    assert stream.bits(12).tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1]
    assert stream.numpy().integers(0, 10, 6).tolist() == [1, 2, 2, 4, 1, 5]


def test_bits_are_fair_and_a_longer_draw_continues_a_shorter_one():
    stream = Stream(("bits",))
    bits = stream.bits(100_000)
    assert set(bits.tolist()) == {0, 1}
    assert abs(bits.float().mean().item() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))
    assert torch.equal(stream.bits(13), bits[:13])


def test_asking_twice_gives_the_same():
    stream = Stream(("again",))
    assert torch.equal(torch.rand(3, generator=stream.torch()), torch.rand(3, generator=stream.torch()))
    assert np.array_equal(stream.numpy().random(3), stream.numpy().random(3))
