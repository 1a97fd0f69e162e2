import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.key import Key

names = st.text(alphabet="abc./_-", min_size=1, max_size=8)
values = st.one_of(st.text(max_size=5), st.integers(-5, 5), st.booleans(), st.floats(allow_nan=False, width=32))


def same(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        other = second[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@given(st.dictionaries(names, values, max_size=4), st.dictionaries(names, st.integers(0, 3), max_size=4))
def test_keys_survive_the_round_trip(plain, sizes):
    tensors = {f"t{name}": torch.arange(size) for name, size in sizes.items()}
    key = Key({**plain, **tensors}, {"fact": torch.ones(2), "layer": "conv6"})
    back = bundle_to_key(Bundle.from_bytes(key_to_bundle(key).to_bytes()))
    same(key.drawn, back.drawn)
    same(key.facts, back.facts)


def test_models_tensors_and_values_survive_the_round_trip():
    model = models.build("vgg8", 10, (1, 8, 8)).to(memory_format=torch.channels_last)
    bundle = Bundle({"0": model, "a/b": models.build("resnet8", 3, (1, 8, 8))}, {"x": torch.eye(3).t()}, {"n": [1]})
    back = Bundle.from_bytes(bundle.to_bytes())
    same(bundle.models["0"].state_dict(), back.models["0"].state_dict())
    assert set(back.models) == {"0", "a/b"}
    assert torch.equal(back.tensors["x"], torch.eye(3))
    assert back.values == {"n": [1]}


def test_the_same_content_gives_the_same_bytes():
    torch.manual_seed(0)
    model = models.build("vgg8", 10, (1, 8, 8))
    assert Bundle({"m": model}).to_bytes() == Bundle({"m": model}).to_bytes()


@pytest.mark.parametrize("content", [b"", b"not a file", b"\x80\x04\x95pickle"])
def test_what_is_no_bundle_is_refused(content):
    with pytest.raises(Exception, match=r".+"):
        Bundle.from_bytes(content)


def test_a_decoy_takes_the_facts_and_nothing_else():
    owner = Key({"message": torch.ones(3)}, {"layer": "conv6"})
    fresh = Key({"message": torch.zeros(3)})
    decoy = fresh.with_facts_of(owner)
    assert decoy.tensor("message").sum() == 0
    assert decoy.text("layer") == "conv6"
    redrawn = Key({"message": torch.ones(3), "matrix": torch.ones(1)}).redraw(
        Key({"message": torch.zeros(3), "matrix": torch.zeros(1)}), ("message",)
    )
    assert redrawn.tensor("message").sum() == 0
    assert redrawn.tensor("matrix").sum() == 1


def test_a_missing_part_is_named():
    with pytest.raises(KeyError, match="mask"):
        Key({}).tensor("mask")
    with pytest.raises(KeyError, match="layer"):
        Key({"layer": torch.ones(1)}).text("layer")
