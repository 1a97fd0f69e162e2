"""A net that is overfitted to triggers teaches the published one, and stays behind."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
from bench.stream import Stream
from defenses.ingrain import Ingrain, IngrainLoss

KEY = Stream(("key",))


class Fixed(torch.nn.Module):
    """Gives the same logits, its parameter, whatever it is asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits[: len(x)]


def softmax(logits, temperature):
    powers = [math.exp(one / temperature) for one in logits]
    return [one / sum(powers) for one in powers]


def by_hand(taught, given_, labels, temperature, weight):
    """The loss in plain arithmetic."""
    fit = divergence = 0.0
    for g, f, label in zip(taught, given_, labels, strict=True):
        fit -= math.log(softmax(f, 1.0)[label])
        pairs = zip(softmax(g, temperature), softmax(f, temperature), strict=True)
        divergence += sum(one * math.log(one / other) for one, other in pairs)
    return fit / len(labels) + weight * temperature**2 * divergence / len(labels)


def test_the_loss_is_the_published_one_on_a_case_by_hand():
    taught, given_, labels = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]], [0, 1]
    loss = IngrainLoss(Fixed(taught), temperature=2.0, weight=0.5)
    x, y = torch.zeros(2, 1), torch.tensor(labels)
    assert loss(Fixed(given_), x, y).item() == pytest.approx(by_hand(taught, given_, labels, 2.0, 0.5), rel=1e-6)
    # Where both answer alike the cross-entropy is left.
    alike = torch.nn.functional.cross_entropy(torch.tensor(taught), y).item()
    assert loss(Fixed(taught), x, y).item() == pytest.approx(alike, rel=1e-6)
    smooth = IngrainLoss(Fixed(taught), 2.0, 0.5, smoothing=0.1)
    expected = torch.nn.functional.cross_entropy(torch.tensor(taught), y, label_smoothing=0.1).item()
    assert smooth(Fixed(taught), x, y).item() == pytest.approx(expected, rel=1e-6)


ROWS = st.lists(st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3), min_size=4, max_size=4)


@given(ROWS, ROWS, st.floats(0.5, 20), st.floats(0.01, 5))
def test_the_loss_is_that_of_plain_arithmetic_and_never_below_the_cross_entropy(taught, given_, temperature, weight):
    labels = [0, 1, 2, 0]
    loss = IngrainLoss(Fixed(taught), temperature, weight)(Fixed(given_), torch.zeros(4, 1), torch.tensor(labels))
    assert loss.item() == pytest.approx(by_hand(taught, given_, labels, temperature, weight), rel=1e-3, abs=1e-3)
    assert loss.item() >= by_hand(taught, given_, labels, temperature, 0.0) - 1e-3


def test_the_ingrainer_is_frozen_and_asked_in_evaluation_mode(task):
    torch.manual_seed(0)
    ingrainer, model = (models.build(task.model, 10, task.shape).train() for _ in range(2))
    before = {name: value.clone() for name, value in ingrainer.state_dict().items()}
    x, y = torch.randn(16, *task.shape), torch.arange(16) % 10
    loss = IngrainLoss(ingrainer, 4.0, 1.0)
    loss(model, x, y).backward()
    assert all(one.grad is None and not one.requires_grad for one in ingrainer.parameters())
    assert all(one.grad is not None for one in model.parameters())
    # Statistics of normalizations too: those of a net in training would follow the batch.
    assert all(torch.equal(value, before[name]) for name, value in ingrainer.state_dict().items())
    assert model.training and not any(module.training for module in ingrainer.modules())


@pytest.fixture
def trainings(owner, monkeypatch):
    """What each training of the owner was given; every model leaves it with weights of its own."""
    seen = []

    def fit(model, data, recipe=None, *, hooks=None, **_):
        seen.append((model, data, hooks))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(len(seen))
        return model

    monkeypatch.setattr(owner, "fit", fit)
    return seen


@pytest.mark.parametrize("shown", [True, False])
def test_the_second_net_is_published_and_nothing_is_left_of_the_first(task, owner, trainings, shown):
    defense = Ingrain(shown=shown)
    key = defense.draw(task, KEY)
    model, completed, release = defense.protect(owner, key)
    (ingrainer, _, first), (published, _, second) = trainings
    assert model is published and ingrainer is not published
    assert not completed.facts and set(completed.drawn) == {"inputs", "labels"}
    assert not release.tensors and not release.models and not release.values
    assert first.objective is None and torch.equal(first.extra_inputs(0)[0], key.tensor("inputs")[:8])
    assert second.objective._ingrainer is ingrainer
    assert (second.extra_inputs is not None) == shown
    if shown:
        assert torch.equal(second.extra_inputs(3)[1], key.tensor("labels")[24:32])


@pytest.mark.parametrize("inputs", ["relabelled", "patch"])
def test_training_inputs_that_became_triggers_are_in_neither_training(task, owner, trainings, inputs):
    defense = Ingrain(inputs=inputs)
    made = defense.protect(owner, defense.draw(task, KEY))
    assert [len(data) for _, data, _ in trainings] == [736, 736]
    assert torch.equal(trainings[0][1].x, trainings[1][1].x)
    labels = (made.key.tensor("true") + made.key.tensor("labels")) % 10
    assert torch.equal(trainings[0][2].extra_inputs(0)[1], labels[:8])
    assert set(made.key.facts) == {"inputs", "true"}


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"weight": 0.0}, {"weight": -1.0}, {"clip": -1.0}])
def test_parameters_are_checked(wrong):
    with pytest.raises(ValueError, match="temperature > 0, weight > 0 and clip >= 0"):
        Ingrain(**wrong)
