"""Messages in the widths of layers: embedding, reading, and what moves them; the contract is in test_contract.py."""

import dataclasses
import math

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import models
from bench import data
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from defenses.channel_rate import ChannelRate
from models.channels import channels
from models.pruning import natural_widths, with_widths
from models.surgery import inner
from models.widths import exported_widths, widths

INFO = data.info("digits")


def task_of(model, shape=(1, 8, 8)):
    return Task(dataclasses.replace(INFO, shape=shape), model, INFO.recipe)


TASKS = {
    "vgg8": task_of("vgg8"),
    "lenet5": task_of("lenet5", (1, 28, 28)),
    "resnet8": task_of("resnet8"),
    "resnet20": task_of("resnet20", (3, 32, 32)),
    "pointnet-basic": task_of("pointnet-basic", (3, 32)),
}
TASK = TASKS["vgg8"]
NETS = {name: nets.lived_in(models.build(name, 10, task.shape)) for name, task in TASKS.items()}
SCHEMES = st.builds(
    ChannelRate,
    form=st.sampled_from(["direct", "nearest"]),
    cell=st.integers(1, 3),
    bits=st.integers(0, 3),
    low=st.sampled_from([0.0, 0.1, 0.25]),
    high=st.sampled_from([0.5, 0.75, 1.0]),
    importance=st.sampled_from(["filter", "scale"]),
    dense=st.booleans(),
    layers=st.integers(0, 3),
    spare=st.integers(0, 2),
)


def key_of(scheme, task, seed=0):
    return scheme.draw(task, Stream.root(seed).child("owner", "key"))


def marked(scheme, key, name="vgg8"):
    """The net with the widths that the key wants, not trained."""
    wanted = scheme.wanted(key, TASKS[name], NETS[name])
    return with_widths(NETS[name], wanted, scheme.importance, np.random.default_rng(0))


@given(scheme=SCHEMES, name=st.sampled_from(sorted(TASKS)), seed=st.integers(0, 2**32))
def test_what_is_embedded_is_read(scheme, name, seed):
    task = TASKS[name]
    if scheme.applies_to(task) is not None:
        return
    key = key_of(scheme, task, seed)
    model = marked(scheme, key, name)
    found = scheme.judge(widths(model), key, task)
    assert found.figures["bit_error"] == found.figures["layers_wrong"] == 0
    assert found.log10_p == pytest.approx(-len(key.tensor("message")) * math.log10(2))
    assert found.log10_p >= scheme.capacity(task) - 1e-9
    said = scheme.symbols(key, task)
    for layer, cells in scheme.cells(task).items():
        width = models.weights_of(model, [layer])[layer].shape[0]
        assert width in cells.widths if layer in said else width == cells.full
    # What is published is a net that works, of a description that can be stored.
    again = models.rebuild(models.describe(model), model.state_dict())
    assert torch.equal(again(nets.inputs(model, 2)), model(nets.inputs(model, 2)))


@pytest.mark.parametrize("name", ["vgg8", "resnet8", "pointnet-basic"])
def test_an_exported_program_says_the_same_whatever_its_layers_are_called(name):
    scheme, task = ChannelRate(), TASKS[name]
    key = key_of(scheme, task)
    model = marked(scheme, key, name)
    program = torch.export.export(model, (nets.inputs(model, 2),))
    for one in (program, program.run_decompositions()):
        assert exported_widths(one) == widths(model)
        assert scheme.judge(exported_widths(one), key, task) == scheme.judge(widths(model), key, task)


def test_the_default_tasks_28_bits_tolerate_one_error():
    scheme = ChannelRate()
    assert scheme.capacity(TASK) == pytest.approx(-28 * math.log10(2))
    key = key_of(scheme, TASK)
    there = list(widths(marked(scheme, key)))
    cells = scheme.cells(TASK)
    for hit, log10_p in ((1, stats.binom.logsf(26, 28, 0.5)), (2, stats.binom.logsf(25, 28, 0.5))):
        place = hit - 1
        there[place] += 1 if there[place] - 1 not in cells[f"conv{hit}"].widths else -1
        found = scheme.judge(there, key, TASK)
        assert found.figures["layers_wrong"] == hit
        # A slip by one channel is a slip into the next cell, and costs a bit.
        assert found.figures["bit_error"] == pytest.approx(hit / 28)
        assert found.log10_p == pytest.approx(log10_p / math.log(10))
        assert (found.log10_p <= -6) == (hit == 1)
    assert ChannelRate(cell=2).capacity(TASK) == pytest.approx(-22 * math.log10(2))


@given(seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=30)
def test_a_change_below_the_margin_of_each_layer_turns_no_bit(seed, data):
    scheme = ChannelRate(cell=3)
    key = key_of(scheme, TASK, seed)
    there, cells = list(widths(marked(scheme, key))), scheme.cells(TASK)
    moved = list(there)
    for place, layer in enumerate(cells):
        margin = cells[layer].margin(there[place])
        moved[place] += data.draw(st.integers(1 - margin, margin - 1))
    assert scheme.judge(moved, key, TASK).figures["bit_error"] == 0
    hit = data.draw(st.sampled_from(range(len(cells))))
    margin = cells[f"conv{hit + 1}"].margin(there[hit])
    said = {
        scheme.judge([*there[:hit], there[hit] + by, *there[hit + 1 :]], key, TASK).statistic
        for by in (-margin, margin)
    }
    assert min(said) < len(key.tensor("message"))


@given(seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=30)
def test_with_a_code_any_one_layer_may_be_of_any_width(seed, data):
    scheme = ChannelRate(dense=True, spare=2)
    key = key_of(scheme, TASK, seed)
    there = list(widths(marked(scheme, key)))
    there[data.draw(st.integers(0, 6))] = data.draw(st.integers(1, 200))
    found = scheme.judge(there, key, TASK)
    assert found.figures["bit_error"] == 0
    assert found.figures["layers_wrong"] <= 1
    assert found.log10_p <= -6


def test_the_key_says_which_layers_carry_bits_and_in_which_order():
    scheme = ChannelRate(layers=3)
    orders = {tuple(key_of(scheme, TASK, seed).tensor("order").tolist()) for seed in range(40)}
    assert len(orders) > 20
    assert {len(order) for order in orders} == {3}
    assert {place for order in orders for place in order} == set(range(6))
    key = key_of(scheme, TASK)
    assert sum(scheme.cells(TASK)[layer].bits for layer in scheme.symbols(key, TASK)) == len(key.tensor("message"))


def test_the_nearest_form_changes_widths_less_than_the_direct_one():
    layers = inner(channels(TASK.skeleton))
    kept, far = natural_widths(NETS["vgg8"], layers, "filter", 0.2), {}
    for form in ("direct", "nearest"):
        scheme = ChannelRate(form=form, bits=3, natural=0.2)
        wanted = [scheme.wanted(key_of(scheme, TASK, seed), TASK, NETS["vgg8"]) for seed in range(20)]
        far[form] = np.mean([abs(width - kept[layer]) for one in wanted for layer, width in one.items()])
    assert far["nearest"] < far["direct"] / 2


def test_the_least_important_channels_go(owner):
    scheme = ChannelRate(epochs=1, learning_rate=1e-9)
    key = key_of(scheme, owner.task)
    model, completed, _ = scheme.protect(owner, key)
    assert completed == key
    clean = owner.clean()
    for layer, width in scheme.wanted(key, owner.task, clean).items():
        kept = models.weights_of(model, [layer])[layer].shape[0]
        assert kept == width
    size = clean.conv1.weight.detach().abs().sum((1, 2, 3))
    stay = size.topk(model.conv1.out_channels).indices.sort().values
    assert torch.allclose(model.conv1.weight, clean.conv1.weight[stay], atol=1e-6)
    assert scheme.verify(Suspect.of(model), completed, owner).log10_p == pytest.approx(scheme.capacity(owner.task))


@given(seed=st.integers(0, 2**32), number=st.integers(1, 6))
@settings(max_examples=12)
def test_channels_that_do_nothing_are_not_counted_in_canonical_form(seed, number):
    plain = ChannelRate()
    scheme = dataclasses.replace(plain, canonical=True)
    key = key_of(scheme, TASK, seed)
    model = nets.lived_in(marked(scheme, key), seed)
    suspect = nets.widened(model, number, doubles=1, dead=1, pairs=1, seed=seed % 1000)
    before, found = (scheme.verify(Suspect.of(one), key, FakeTrainer) for one in (model, suspect))
    assert before.log10_p == pytest.approx(scheme.capacity(TASK))
    assert found.figures["log10_p.canonical"] == before.figures["log10_p.canonical"]
    assert plain.verify(Suspect.of(suspect), key, FakeTrainer).figures["layers_wrong"] >= 1
    merged = nets.merged(suspect)
    assert scheme.verify(Suspect.of(merged), key, FakeTrainer).log10_p == found.log10_p


class FakeTrainer:
    """What verifying needs of a trainer."""

    task = TASK


def test_another_number_of_layers_is_no_evidence_and_other_widths_are_read():
    scheme, key = ChannelRate(), key_of(ChannelRate(), TASK)
    found = scheme.verify(Suspect.of(NETS["lenet5"]), key, FakeTrainer)
    assert (found.log10_p, found.reason) == (0.0, "expected 8 layers with weights, got 4")
    found = scheme.verify(Suspect.of(nets.vgg_like([100, 3, 7])), key, FakeTrainer)
    assert found.reason is None
    assert found.log10_p > -6
    foreign = scheme.verify(Suspect.of(torch.nn.Sequential(torch.nn.Linear(4, 4))), key, FakeTrainer)
    assert "expected a model made by models.build" in foreign.reason


@pytest.mark.parametrize(
    ("scheme", "name", "reason"),
    [
        (ChannelRate(bits=6), "vgg8", "1 layers that carry 6 bits are needed, vgg8 has 0"),
        (ChannelRate(layers=7), "vgg8", "7 layers that carry any bits are needed, vgg8 has 6"),
        (ChannelRate(spare=3), "resnet8", "expected 0 < spare < length"),
        (ChannelRate(cell=20), "resnet8", "1 layers that carry any bits"),
    ],
)
def test_where_it_does_not_fit_it_says_so(scheme, name, reason):
    assert reason in scheme.applies_to(TASKS[name])


@pytest.mark.parametrize(
    "wrong",
    [{"low": 0.6}, {"high": 1.5}, {"natural": 1.0}, {"cell": 0}, {"bits": -1}, {"epochs": 0}, {"learning_rate": 0.0}],
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        ChannelRate(**wrong)
