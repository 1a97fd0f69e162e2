"""More channels and the same function: what the new ones look like, and how a verifier takes them out."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import KINDS, apart, difference, inputs, lived_in, put, reframed, vgg_like
from torch import nn

import models
from attacks.widening import DeadChannels, Net2Wider, PadWidth, with_dead, with_doubles
from bench.canonical import canonicalise
from bench.effort import Effort
from bench.stream import Stream
from bench.suspect import Target
from defenses.uchida import Uchida
from models.channels import channels
from models.surgery import inner, outgoing, reshaped

BY_SHARE = [DeadChannels(), DeadChannels(hide="pairs"), Net2Wider()]
ALL = [*BY_SHARE, PadWidth(), PadWidth(hide="pairs")]
# A few, since each structure has to be followed once.
WIDTHS = st.sampled_from([[2, 2, 2], [9, 4, 6], [3, 8, 5, 2, 7], [5, 6, 7, 8, 9, 4, 3]])
SEEDS = st.integers(0, 2**16)
CLOSE = 1e-4
each = pytest.mark.parametrize("attack", BY_SHARE, ids=lambda one: one.label)


def attacked(attack, model, seed=0, task=None):
    """Its surrogate; all that it sees of a trainer is the stream and the task."""
    trainer = SimpleNamespace(stream=Stream(("attacker", str(seed))), task=task)
    ((strength, made),) = attack.run(Target(model, "white-box"), trainer)
    return strength, made


def layers_of(model):
    return inner(channels(model))


def widths_of(model):
    return {one.layer: one.width for one in layers_of(model)}


def unread(model):
    """For each layer and reader, the channels that are read with zeros."""
    return {
        (one.layer, reader): np.flatnonzero(~outgoing(model, reader, one.layer).detach().flatten(1).any(1).numpy())
        for one in layers_of(model)
        for reader in one.readers
    }


def rows_of(model, one):
    """All that makes the channels of a layer: weights, bias, and normalization."""
    parts = [*model.get_submodule(one.layer).state_dict().values()]
    parts += [value for value in model.get_submodule(one.norm).state_dict().values() if value.dim()] if one.norm else []
    return torch.cat([value.flatten(1) if value.dim() > 1 else value[:, None] for value in parts], 1)


@each
@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS, share=st.sampled_from([0.1, 0.25, 1.0, 1.6]))
@settings(max_examples=8)
def test_every_layer_is_wider_and_the_function_stays(attack, kind, widths, seed, share):
    model = KINDS[kind](widths, seed).double()
    before, old = copy.deepcopy(model.state_dict()), widths_of(model)
    strength, made = attacked(dataclasses.replace(attack, share=share), model, seed)
    new = widths_of(made)
    assert new == {name: width + max(1, round(share * width)) for name, width in old.items()}
    assert strength == pytest.approx(sum(new.values()) / sum(old.values()) - 1)
    assert difference(model, made) < 1e-10
    assert models.describe(made)["layers"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part.training for part in made.modules())


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS)
@settings(max_examples=8)
def test_zero_slices_are_there_to_spot_unless_they_are_hidden(kind, widths, seed):
    model = KINDS[kind](widths, seed)
    assert not any(len(places) for places in unread(model).values())
    for attack in BY_SHARE:
        _, made = attacked(dataclasses.replace(attack, share=0.5), model, seed)
        added = {name: width - widths_of(model)[name] for name, width in widths_of(made).items()}
        for (layer, _), places in unread(made).items():
            assert len(places) == (added[layer] if attack == DeadChannels() else 0), attack.label


@pytest.mark.parametrize("kind", ["plain", "vgg_like", "residual"])
@pytest.mark.parametrize("more", [1, 2, 5])
def test_equal_channels_come_by_twos_where_they_are_hidden(kind, more):
    model = KINDS[kind]([6, 7, 8])
    more_of = {one.layer: more for one in layers_of(model)}
    plain, pairs = (with_dead(model, more_of, hide, Stream(("a",))) for hide in ("none", "pairs"))
    doubles = with_doubles(model, more_of, Stream(("a",)))
    for one in layers_of(model):
        distinct = [len(torch.unique(rows_of(made, one), dim=0)) for made in (plain, pairs, doubles)]
        # An odd one out, and every double, is equal to a channel that was there.
        assert distinct == [one.width + more, one.width + more // 2, one.width]


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS, hide=st.sampled_from(["none", "pairs"]))
@settings(max_examples=10)
def test_new_channels_look_like_those_of_their_layer(kind, widths, seed, hide):
    model = KINDS[kind](widths, seed)
    _, made = attacked(DeadChannels(share=1.0, hide=hide), model, seed)
    for one in layers_of(model):
        first = not any(one.layer in other.readers for other in layers_of(model))
        old, new = (net.get_submodule(one.layer).weight.detach().flatten(1) for net in (model, made))
        if first:
            # No column is a new one, so that rows can be compared.
            gaps = (new.norm(dim=1)[:, None] - old.norm(dim=1)[None]).abs() / old.norm(dim=1)
            assert gaps.min(dim=1).values.max() < 1e-5
        known = {tuple(row) for row in rows_of(model, one)[:, old.shape[1] :].tolist()}
        assert {tuple(row) for row in rows_of(made, one)[:, new.shape[1] :].tolist()} == known


def test_new_channels_stand_anywhere():
    model = lived_in(models.build("vgg8", 10, (1, 8, 8)))
    _, made = attacked(DeadChannels(), model)
    places = unread(made)
    for one in layers_of(made):
        (reader,) = one.readers
        found = places[one.layer, reader]
        assert len(found) == one.width // 5
        # Eight of 40 or more: the odds that none is in some half are below 1e-2 each, that all are last below 1e-7.
        assert found.min() < one.width * 0.6
        assert found.max() > one.width * 0.4
        assert found.tolist() != list(range(one.width - len(found), one.width))
    assert len({tuple(found) for found in places.values()}) > 3


@each
@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS, share=st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=8)
def test_a_verifier_with_a_reference_takes_them_out(attack, kind, widths, seed, share):
    reference = KINDS[kind](widths, seed)
    _, made = attacked(dataclasses.replace(attack, share=share), reference, seed)
    for suspect in (made, reframed(made, seed + 1)):
        found = canonicalise(suspect, reference, {})
        assert apart(reference, found) < (CLOSE, "")
        assert difference(suspect, found) < CLOSE


@each
def test_what_is_widened_twice_is_taken_out_as_well(attack):
    reference = vgg_like([4, 5, 6, 4, 5, 6, 7])
    _, once = attacked(attack, reference, 1)
    _, twice = attacked(DeadChannels(hide="pairs"), once, 2)
    assert apart(reference, canonicalise(reframed(twice, 3), reference, {})) < (CLOSE, "")


@each
def test_the_stream_alone_decides(attack):
    model = vgg_like([4, 5, 6, 4, 5, 6, 7])
    first, again, other = (attacked(attack, model, seed)[1].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["conv2.weight"], other["conv2.weight"])
    assert not torch.equal(first["hidden.weight"], other["hidden.weight"])


def test_parts_of_doubles_are_drawn():
    model = vgg_like([3] * 7)
    made = with_doubles(model, {"conv2": 40}, Stream(("parts",)))
    read = outgoing(made, "conv3", "conv2").detach().flatten(1)
    found = []
    for row, whole in zip(rows_of(model, layers_of(model)[1]), outgoing(model, "conv3", "conv2"), strict=True):
        copies = (rows_of(made, layers_of(made)[1]) == row).all(1)
        parts = (read[copies] / whole.detach().flatten()).median(dim=1).values
        assert parts.sum() == pytest.approx(1.0, abs=1e-5)
        found += parts.tolist()
    assert len(set(found)) == len(found) == 43
    assert min(found) > 0


@pytest.mark.parametrize("hide", ["none", "pairs"])
def test_a_pruned_model_is_brought_back_to_its_widths(task, hide):
    model = lived_in(models.build(task.model, task.classes, task.shape))
    chance = np.random.default_rng(0)
    kept = {one.layer: chance.permutation(one.width)[: one.width * 2 // 3] for one in layers_of(model)[1:]}
    pruned = reshaped(model, kept)
    strength, made = attacked(PadWidth(hide=hide), pruned, task=task)
    assert models.describe(made) == models.describe(model)
    assert strength == pytest.approx(sum(widths_of(model).values()) / sum(widths_of(pruned).values()) - 1)
    assert difference(pruned, made) < 1e-5
    assert apart(pruned, canonicalise(made, pruned, {})) < (CLOSE, "")
    # What is as wide already stays bit for bit.
    assert torch.equal(made.conv1.weight, pruned.conv1.weight)


def test_only_layers_of_the_same_name_are_padded(task):
    strength, made = attacked(PadWidth(), lived_in(models.build("resnet8", 10, (1, 8, 8))), task=task)
    assert (strength, "layers" in models.describe(made)) == (0.0, False)
    lenet = lived_in(models.build("lenet5", 10, (1, 16, 16)))
    strength, made = attacked(PadWidth(), lenet, task=task)
    # Of the task's vgg8 the first convolution is wider, the second and the hidden layer are not.
    assert widths_of(made) == {"conv1": 32, "conv2": 50, "hidden": 500}
    assert strength == 12 / 570
    assert difference(lenet, made) < 1e-5


def test_padding_is_for_marks_in_widths():
    assert PadWidth().against(SimpleNamespace(name="some", key_kind="architecture")) is None
    assert PadWidth().against(Uchida()) == "uchida publishes the architecture's own widths"
    assert all(attack.against(Uchida()) is None for attack in BY_SHARE)


@pytest.mark.parametrize("attack", ALL, ids=lambda one: one.label)
def test_it_says_where_nothing_can_be_widened(attack, task):
    assert attack.applies_to(task) is None
    assert attack.effort(task) == Effort()
    fixed = models.build("lenet5", 10, (1, 16, 16))
    for number, width in enumerate((20, 50, 500), start=1):
        put(fixed, f"act{number}", nn.GroupNorm(5, width))
    assert attack.applies_to(SimpleNamespace(skeleton=fixed)) == "lenet5 has no layer whose channels can come and go"
    assert "models.build" in attack.applies_to(SimpleNamespace(skeleton=nn.Linear(2, 2)))
    if attack in BY_SHARE:
        strength, made = attacked(attack, lived_in(fixed))
        assert (strength, models.describe(made)) == (0.0, models.describe(fixed))
        with torch.no_grad():
            assert torch.equal(fixed(inputs(fixed)), made(inputs(fixed)))


def test_shares_are_checked():
    for attack in (DeadChannels, Net2Wider):
        for wrong in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="finite share > 0, got"):
                attack(share=wrong)
