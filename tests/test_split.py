"""Inputs in memory: scaled in the same way whole or by batch, on the device or fetched from the host."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import trainer
from bench.recipe import Recipe
from bench.split import Inputs, Scale, Split
from bench.stream import Stream
from bench.suspect import predict
from bench.training import training

CPU = torch.device("cpu")
SCALE = Scale((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def pixels(count=20):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@given(order=st.lists(st.integers(0, 19), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_a_batch_is_those_rows_of_the_whole_bit_for_bit(order):
    inputs, chosen = Inputs(pixels(), SCALE), torch.tensor(order)
    assert torch.equal(inputs.batch(chosen), inputs.x[chosen])


def test_the_scale_is_per_channel_and_leaves_what_it_reads():
    stored = pixels()
    before = stored.clone()
    x = SCALE(stored)
    assert torch.allclose(x[:, 1], (stored[:, 1] / 255 - 0.5) / 0.3)
    raw = torch.rand(2, 3, 4, 4)
    kept = raw.clone()
    Scale((0.1,) * 3, (0.5,) * 3, top=1.0)(raw)
    assert torch.equal(stored, before)
    assert torch.equal(raw, kept)


def test_what_is_too_large_for_the_device_stays_on_the_host_and_is_fetched_by_batch(monkeypatch):
    """The meta device stands for one with less memory than the data: no storage can be read from it."""
    split = Split(Inputs(pixels(), SCALE), torch.arange(20))
    small = split.inputs.placed(torch.device("meta"), room=20 * 192 - 1)
    assert small.stored.device == CPU
    assert small.place == torch.device("meta")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    batch = small.batch(small.indices(torch.tensor([3, 1])))
    assert (batch.device.type, batch.shape) == ("meta", (2, 3, 8, 8))
    assert small.x.device == CPU
    assert split.inputs.placed(torch.device("meta"), room=20 * 192).stored.device.type == "meta"


def test_training_and_answers_do_not_depend_on_where_the_inputs_lie(task, parts):
    near = parts.train
    # Room for none: batches take the way from the host, though it ends on the CPU again.
    far = Split(Inputs(near.inputs.stored, near.inputs.scale, CPU), near.y)
    trained = []
    for split in (near, far, Split(near.x, near.y)):
        model = task.new_model(Stream(("init",)))
        for _ in training(model, split, Recipe(epochs=1, shift=1), Stream(("order",))):
            pass
        trained.append(model)
    first, *others = (model.state_dict() for model in trained)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(predict(trained[0], near.x), predict(trained[0], near.inputs, batch=1024))


@pytest.mark.parametrize("split", [Split(torch.ones(4, 1), torch.arange(4)), Split(Inputs(pixels(), SCALE), pixels())])
def test_copies_cannot_be_spoiled(split):
    whole, labels, other = split.x.clone(), split.y.clone(), split.copy()
    other.inputs.stored.zero_()
    other.x.zero_()
    other.y.zero_()
    assert torch.equal(split.x, whole)
    assert torch.equal(split.y, labels)


def test_a_trainer_takes_data_to_its_device_wherever_it_lies(owner, monkeypatch):
    """Answers on a GPU beside inputs that did not fit there, say."""
    seen = []
    monkeypatch.setattr(trainer, "training", lambda model, data, *args, **options: seen.append(data) or iter(()))
    owner.device = torch.device("meta")
    owner.fit(owner.task.skeleton, Split(torch.ones(4, 1), torch.arange(4)))
    assert seen[0].inputs.place.type == seen[0].y.device.type == "meta"


def test_a_scale_is_the_same_whoever_used_it_first():
    scale = Scale((0.1,), (0.3,), top=1.0)
    raw = torch.rand(2, 1, 2, 2)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            first = scale(raw)
    finally:
        torch.set_default_dtype(torch.float32)
    assert first.dtype == torch.float32
    assert torch.equal(first, (raw - 0.1) / 0.3)
    # Not an inference tensor: a gradient passes through.
    scale(raw.requires_grad_()).sum().backward()
    assert raw.grad is not None


def test_answers_leave_frozen_parts_frozen(task):
    model = task.new_model(Stream(("init",))).train()
    model.norm1.eval()
    predict(model, torch.rand(2, 1, 8, 8))
    assert model.training
    assert model.norm2.training
    assert not model.norm1.training


def test_splits_can_be_cut():
    split = Split(Inputs(pixels(), SCALE), torch.arange(20)).take(3)
    assert len(split) == len(split.inputs) == 3
    assert torch.equal(split.x, SCALE(pixels()[:3]))


def test_a_compiled_step_is_the_plain_one(task, parts, monkeypatch):
    """Compiled by the backend that only records: what is compiled is what is trained."""
    whole, asked = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda model: asked.append(model) or whole(model, backend="eager"))
    states = []
    for compiled in (False, True):
        model = task.new_model(Stream(("init",)))
        recipe = Recipe(epochs=1, compile=compiled)
        for _ in training(model, parts.train, recipe, Stream(("order",))):
            pass
        states.append(model.state_dict())
    assert len(asked) == 1
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
