"""Commitments: what they bind, that nothing collides, derived keys, and who wins a dispute."""

import dataclasses
import datetime
import itertools
import json
import stat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from bench import claims
from bench.bundle import Bundle
from bench.claims.encoding import key_digest, model_digest, sealed, tensors_digest
from bench.claims.judging import Judge
from bench.claims.opening import Commitment, Opening
from bench.derivation import derived_stream
from bench.errors import InputError
from bench.key import Key
from bench.registry import discover
from bench.stream import Stream
from defenses.uchida import Uchida

SALT = bytes(range(32))
SEED = bytes(range(100, 132))
OWNER = "Ada, Countess of Lovelace"
SCHEME = Uchida(bits=16)


@pytest.fixture(scope="module")
def net(task):
    return task.new_model(Stream(("net",)))


@pytest.fixture(scope="module")
def key(task):
    return SCHEME.draw(task, derived_stream(SEED, OWNER, SCHEME)).complete(note="learnt", rate=0.5)


@pytest.fixture(scope="module")
def made(task, net, key):
    return claims.commit(net, key, SCHEME, task, OWNER, seed=SEED)


def changed(opening, **changes):
    return dataclasses.replace(opening, statement={**opening.statement, **changes})


def flipped(tensor, place):
    content = bytearray(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    content[place % len(content)] ^= 1 << (place % 8)
    return torch.frombuffer(content, dtype=tensor.dtype).reshape(tensor.shape)


@settings(max_examples=60)
@given(place=st.integers(0, 10**6), part=st.sampled_from(["message", "projection"]))
def test_any_bit_of_the_key_changes_the_digest(made, key, place, part):
    other = Key({**key.drawn, part: flipped(key.drawn[part], place)}, key.facts)
    assert dataclasses.replace(made.opening, key=other).digest != made.opening.digest


@settings(max_examples=60)
@given(place=st.integers(0, 31), bit=st.integers(0, 7))
def test_any_bit_of_salt_or_seed_changes_the_digest(made, place, bit):
    opening, mask = made.opening, bytes((1 << bit) if i == place else 0 for i in range(32))
    salt = bytes(a ^ b for a, b in zip(opening.salt, mask, strict=True))
    seed = bytes(a ^ b for a, b in zip(SEED, mask, strict=True))
    assert dataclasses.replace(opening, salt=salt).digest != opening.digest
    assert changed(opening, seed=seed.hex()).digest != opening.digest


@settings(max_examples=60)
@given(owner=st.text())
def test_any_other_owner_changes_the_digest(made, owner):
    assert (changed(made.opening, owner=owner).digest == made.opening.digest) == (owner == OWNER)


@pytest.mark.parametrize("name", ["bits", "projection", "layer", "strength", "canonical"])
def test_any_parameter_changes_the_digest(made, name):
    scheme = made.opening.statement["scheme"]
    value = {"bits": 17, "projection": "direct", "layer": "x", "strength": 0.010000000000000002, "canonical": True}
    other = {**scheme, "params": {**scheme["params"], name: value[name]}}
    assert changed(made.opening, scheme=other).digest != made.opening.digest


def test_scheme_task_and_data_change_the_digest(made):
    statement, digest = made.opening.statement, made.opening.digest
    scheme, task = statement["scheme"], statement["task"]
    assert changed(made.opening, scheme={**scheme, "path": "defenses.uchida:Other"}).digest != digest
    assert changed(made.opening, task={**task, "model": "lenet5"}).digest != digest
    assert changed(made.opening, data={**statement["data"], "train": "0" * 16}).digest != digest
    assert set(statement["data"]) == {"train", "heldout"}


@settings(max_examples=30)
@given(place=st.integers(0, 10**6), data=st.data())
def test_any_bit_of_the_model_changes_its_digest(net, place, data):
    state = net.state_dict()
    name = data.draw(st.sampled_from(sorted(state)))
    other = {**state, name: flipped(state[name], place)}
    assert tensors_digest(other) != tensors_digest(state)


def test_the_architecture_is_part_of_the_model():
    first, second = (models.build("lenet5", 10, (1, side, side)) for side in (28, 28))
    second.load_state_dict(first.state_dict())
    assert model_digest(first) == model_digest(second)
    second.architecture["shape"] = [1, 29, 29]
    assert model_digest(first) != model_digest(second)


def test_strides_order_and_devices_make_no_difference(net, key):
    turned = models.rebuild(models.describe(net), net.state_dict()).to(memory_format=torch.channels_last)
    assert model_digest(turned) == model_digest(net)
    state = net.state_dict()
    assert tensors_digest(dict(reversed(state.items()))) == tensors_digest(state)
    assert key_digest(Key(dict(reversed(key.drawn.items())), key.facts)) == key_digest(key)


TENSORS = st.dictionaries(
    st.text(alphabet="ab/.0", max_size=3),
    st.builds(
        lambda shape, kind: torch.zeros(shape, dtype=kind),
        st.sampled_from([(), (0,), (1,), (4,), (2, 2), (1, 4), (4, 1)]),
        st.sampled_from([torch.int8, torch.bool, torch.int32, torch.float32, torch.bfloat16]),
    ),
    max_size=3,
)
PLAIN = st.dictionaries(
    st.text(alphabet="ab", max_size=2), st.sampled_from(["", "1", "true", 0, 1, 0.0, 1.0, True, False]), max_size=2
)
KEYS = st.builds(lambda a, b, c, d: Key({**a, **b}, {**c, **d}), TENSORS, PLAIN, TENSORS, PLAIN)


def spelled(key):
    """A key as nested tuples: equal for equal content alone."""

    def part(value):
        if isinstance(value, torch.Tensor):
            return ("tensor", str(value.dtype), tuple(value.shape))
        return (type(value).__name__, value)

    return [sorted((name, part(value)) for name, value in section.items()) for section in (key.drawn, key.facts)]


@settings(max_examples=300)
@given(KEYS, KEYS)
def test_two_keys_have_one_digest_only_if_they_are_one_key(first, second):
    assert (key_digest(first) == key_digest(second)) == (spelled(first) == spelled(second))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_two_statements_have_one_digest_only_if_they_are_one_statement(first, second):
    assert (sealed(SALT, first) == sealed(SALT, second)) == (repr(ordered(first)) == repr(ordered(second)))
    assert sealed(SALT, json.loads(json.dumps(first))) == sealed(SALT, first)


def ordered(value):
    if isinstance(value, dict):
        return {name: ordered(value[name]) for name in sorted(value)}
    return [ordered(one) for one in value] if isinstance(value, list) else value


def test_a_salt_of_another_length_and_endless_numbers_are_refused(net, task, key):
    with pytest.raises(ValueError, match="salt of 32 bytes"):
        sealed(b"short", {})
    with pytest.raises(InputError, match="finite numbers"):
        claims.commit(net, key.complete(rate=float("nan")), SCHEME, task, OWNER)


def test_the_encoding_is_the_same_on_every_machine():
    made = Key({"message": torch.arange(4), "layer": "é"}, {"scale": torch.tensor([[0.5, -0.0]]), "rate": 0.1})
    assert sealed(SALT, {"owner": OWNER, "key": key_digest(made)}) == GOLDEN


# Of SHA-256, struct and json alone, without this program.
GOLDEN = "4f921bbddc24801bbd14351f1c18d5b2b2d586ec987f260276ceef10d843787e"


def test_the_same_claim_made_again_has_another_salt_and_tells_nothing(task, net, key, made):
    again = claims.commit(net, key, SCHEME, task, OWNER, seed=SEED)
    assert again.opening.statement == made.opening.statement
    assert again.commitment.digest != made.commitment.digest
    assert set(json.loads(made.commitment.to_bytes())) == {"format", "digest", "time", "tool"}


def test_opening_and_commitment_come_back_from_their_files(tmp_path, net, made):
    model, key, commitment = claims.write(made, net, tmp_path / "new" / "claim")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert claims.read_commitment(commitment) == made.commitment
    opening = claims.read_opening(key)
    assert opening.digest == made.opening.digest == made.commitment.digest
    assert opening.scheme == SCHEME and opening.owner == OWNER and opening.derived is True
    assert model_digest(claims.read_model(model, {})) == opening.statement["model"]
    with pytest.raises(InputError, match="without a claim"):
        claims.write(made, net, tmp_path / "new" / "claim")
    with pytest.raises(InputError, match="the model of this claim"):
        claims.write(made, models.build("lenet5", 10, (1, 28, 28)), tmp_path / "other")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"format": "ownbench-commitment-1", "digest": 5, "time": "x", "tool": "1"}',
        json.dumps(
            {"format": "ownbench-commitment-1", "digest": "G" * 64, "time": "2030-01-01T00:00Z", "tool": ""}
        ).encode(),
        json.dumps(
            {"format": "ownbench-commitment-1", "digest": "a" * 64, "time": "2030-01-01T00:00", "tool": ""}
        ).encode(),
        json.dumps({"format": "ownbench-commitment-1", "digest": "a" * 64, "time": "soon", "tool": ""}).encode(),
    ],
)
def test_what_is_no_commitment_is_refused(text):
    with pytest.raises(InputError, match=r"^file:|^commitment, time:"):
        Commitment.from_bytes(text, "file")


def test_derived_keys_depend_on_seed_owner_scheme_and_parameters_and_on_no_reading():
    path = derived_stream(SEED, OWNER, SCHEME).path
    others = [
        derived_stream(SEED[::-1], OWNER, SCHEME),
        derived_stream(SEED, OWNER + " ", SCHEME),
        derived_stream(SEED, OWNER, Uchida(bits=17)),
        derived_stream(SEED, OWNER, discover().defense["constant-weight-code"]()),
    ]
    assert len({path, *(other.path for other in others)}) == 5
    assert derived_stream(SEED, OWNER, dataclasses.replace(SCHEME, canonical=True)).path == path


def test_a_key_is_derived_only_from_its_own_seed(task, net, key, made):
    assert made.opening.derived is True
    assert claims.commit(net, key, SCHEME, task, OWNER).opening.derived is None
    assert changed(made.opening, owner="Someone else").derived is False
    with pytest.raises(InputError, match="derived from"):
        claims.commit(net, key, SCHEME, task, "Someone else", seed=SEED)
    with pytest.raises(InputError, match="32 bytes"):
        claims.commit(net, key, SCHEME, task, OWNER, seed=b"1")
    with pytest.raises(InputError, match="empty"):
        claims.commit(net, key, SCHEME, task, "  ")


@pytest.mark.parametrize("name", sorted(discover().defense))
def test_every_draw_of_a_scheme_has_one_form(task, name):
    scheme = discover().defense[name]()
    if scheme.applies_to(task):
        pytest.skip("not for digits")
    forms = set()
    for number in range(3):
        drawn = scheme.draw(task, derived_stream(SEED, str(number), scheme)).drawn
        shapes = {part: getattr(value, "shape", None) for part, value in drawn.items()}
        forms.add(repr(sorted((part, type(drawn[part]).__name__, shape) for part, shape in shapes.items())))
    assert len(forms) == 1


def test_a_judge_reads_the_owners_data_when_it_is_asked_for_and_refuses_other_data(task, made, parts):
    judge = Judge(made.opening, task, "cpu")
    assert judge._parts == {}
    assert torch.equal(judge.heldout.x, parts.heldout.x)
    assert torch.equal(judge.train.y, parts.train.y)
    other = changed(made.opening, data={**made.opening.statement["data"], "heldout": "0" * 16})
    with pytest.raises(InputError, match="expected the owner's heldout part"):
        _ = Judge(other, task, "cpu").heldout


def test_a_claim_names_no_module_to_import(tmp_path, made):
    for scheme in ({"name": "uchida", "path": "antigravity:Uchida"}, {"name": "antigravity", "path": "antigravity:x"}):
        opening = changed(made.opening, scheme={**scheme, "params": {}})
        with pytest.raises(InputError, match="key file, scheme"):
            Opening.from_bundle(Bundle.from_bytes(opening.to_bytes()), "file")


DAYS = [datetime.datetime(2030, 1, day, tzinfo=datetime.UTC) for day in (1, 2)]
SAME, EARLIER, LATER = (DAYS[0], DAYS[0]), (DAYS[0], DAYS[1]), (DAYS[1], DAYS[0])
# In order: the key of A in A's and in B's model, the key of B in A's and in B's; who wins if A committed earlier, at
# the same time, and later.
RULINGS = {
    "0000": "---",
    "0001": "BBB",
    "0010": "---",
    "0011": "BBB",
    "0100": "---",
    "0101": "BBB",
    "0110": "---",
    "0111": "BBB",
    "1000": "AAA",
    "1001": "---",
    "1010": "AAA",
    "1011": "-BB",
    "1100": "AAA",
    "1101": "AA-",
    "1110": "AAA",
    "1111": "A-B",
}


@pytest.mark.parametrize("pattern", RULINGS)
def test_a_dispute_is_ruled_by_both_models_and_then_by_time(pattern):
    pairs = claims.Pairs(*(digit == "1" for digit in pattern))
    for expected, (first, second) in zip(RULINGS[pattern], (EARLIER, SAME, LATER), strict=True):
        ruling = claims.resolve(pairs, claims.Standing(True, first), claims.Standing(True, second))
        assert (ruling.winner or "-") == expected
        assert (ruling.by == "undecided") == (ruling.winner is None)


def test_all_patterns_are_in_the_table():
    assert set(RULINGS) == {"".join(digits) for digits in itertools.product("01", repeat=4)}


@pytest.mark.parametrize("pattern", RULINGS)
def test_exchanging_the_sides_exchanges_the_winner(pattern):
    a_in_a, a_in_b, b_in_a, b_in_b = (digit == "1" for digit in pattern)
    swapped = {"A": "B", "B": "A", None: None}
    for (first, second), *flags in itertools.product((EARLIER, SAME, LATER), *[(False, True)] * 4):
        a, b = claims.Standing(flags[0], first, flags[1]), claims.Standing(flags[2], second, flags[3])
        one = claims.resolve(claims.Pairs(a_in_a, a_in_b, b_in_a, b_in_b), a, b)
        other = claims.resolve(claims.Pairs(b_in_b, b_in_a, a_in_b, a_in_a), b, a)
        assert other.winner == swapped[one.winner] and other.by == one.by


def test_an_unsound_claim_wins_nothing_and_a_derived_key_wins_late():
    everywhere, both = claims.Pairs(True, True, True, True), claims.Pairs(False, False, True, True)
    unsound = claims.Standing(False, DAYS[0])
    assert claims.resolve(everywhere, unsound, claims.Standing(True, DAYS[1])).winner == "B"
    assert claims.resolve(everywhere, unsound, unsound).winner is None
    assert claims.resolve(both, claims.Standing(True, DAYS[0]), unsound).winner is None
    late = claims.Pairs(True, False, True, True)
    assert claims.resolve(late, claims.Standing(True, DAYS[0]), claims.Standing(True, DAYS[1], True)).winner == "B"
