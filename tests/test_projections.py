"""Each projection is the Euclidean one onto its set: nothing in the set is nearer, by trying all of it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
from attacks.admm.allocation import grouped, kept_by_rates, kept_by_share, prunable
from attacks.admm.projections import (
    Conductances,
    Grid,
    block_groups_of,
    energies,
    groups_of,
    largest,
    mask_of,
)

KINDS = ("weight", "filter", "column", "channel")
SHAPES = st.sampled_from([(3, 2), (2, 4), (2, 2, 2), (3, 2, 1, 2), (2, 3, 1, 1)])


@st.composite
def weights(draw):
    """A small weight; coarse values, so that there are ties and zeros."""
    shape = draw(SHAPES)
    values = draw(st.lists(st.integers(-8, 8), min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(values, dtype=torch.float32).view(shape) / 4


def nearest_by_trying(weight, groups, count):
    """The squared distance of the best choice of groups, over all choices."""
    squares = (weight.double() ** 2).flatten()
    parts = [float(squares[groups.flatten() == one].sum()) for one in range(int(groups.max()) + 1)]
    return min(sum(parts) - sum(chosen) for chosen in itertools.combinations(parts, min(count, len(parts))))


@given(weight=weights(), kind=st.sampled_from(KINDS), data=st.data())
def test_pruning_to_groups_is_the_nearest_point_of_its_set(weight, kind, data):
    groups = groups_of(weight.shape, kind)
    count = data.draw(st.integers(0, int(groups.max()) + 1))
    found = largest(weight, groups, count)
    assert len(set(groups[found != 0].tolist())) <= count
    assert float((weight - found).double().square().sum()) == nearest_by_trying(weight, groups, count)
    assert torch.equal(found[found != 0], weight[found != 0])


@given(
    weight=weights(),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    lines=st.sampled_from(["rows", "columns"]),
    data=st.data(),
)
def test_pruning_lines_of_crossbars_is_the_nearest_point_of_its_set(weight, block, lines, data):
    groups = block_groups_of(weight.shape, block, lines)
    matrix, numbers = weight.flatten(1), groups.flatten(1)
    named = {}
    for row, column in itertools.product(*map(range, matrix.shape)):
        crossbar = row // block[0], column // block[1]
        line = (crossbar, row) if lines == "rows" else (crossbar, column)
        named.setdefault(line, set()).add(int(numbers[row, column]))
    assert all(len(found) == 1 for found in named.values())
    assert len(set.union(*named.values())) == len(named) == int(groups.max()) + 1
    count = data.draw(st.integers(0, min(4, len(named))))
    found = largest(weight, groups, count)
    assert float((weight - found).double().square().sum()) == nearest_by_trying(weight, groups, count)


@given(weight=weights())
def test_groups_are_those_of_the_matrix_view(weight):
    matrix = weight.flatten(1)
    for kind, view in (("filter", matrix), ("column", matrix.T), ("channel", weight.transpose(0, 1).flatten(1))):
        groups = groups_of(weight.shape, kind)
        torch.testing.assert_close(energies(weight, groups), view.double().square().sum(1))
    assert groups_of(weight.shape, "weight").flatten().tolist() == list(range(weight.numel()))


def test_of_equal_groups_the_first_stay():
    assert mask_of(torch.ones(2, 3), groups_of(torch.Size((2, 3)), "weight"), 2).tolist() == [[1, 1, 0], [0, 0, 0]]


def test_a_crossbar_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        block_groups_of(torch.Size((2, 2)), (0, 1), "rows")


@given(weight=weights(), step=st.sampled_from([0.1, 0.25, 0.3]), count=st.integers(1, 4))
def test_quantizing_is_the_nearest_level_and_none_is_zero(weight, step, count):
    grid = Grid(step, count)
    levels = grid.levels
    assert levels.tolist() == sorted(levels.tolist()) and len(levels) == 2 * count and not (levels == 0).any()
    torch.testing.assert_close(levels[count:], step * torch.arange(1, count + 1))
    torch.testing.assert_close(levels, -levels.flip(0))
    found = grid(weight)
    assert torch.equal(found == 0, weight == 0)
    assert bool(torch.isin(found[weight != 0], levels).all())
    nearest = (weight.flatten()[:, None] - levels).abs().min(1).values.view(weight.shape)
    torch.testing.assert_close((weight - found).abs()[weight != 0], nearest[weight != 0])
    assert torch.equal(grid.levels[grid.count + grid.indices(found)[found > 0] - 1], found[found > 0])


@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12), count=st.integers(1, 5))
def test_the_step_is_the_best_of_those_searched(values, count):
    weight = torch.tensor(values, dtype=torch.float32)
    left = weight[weight != 0].double().numpy()
    grid = Grid.fitted(weight, count)
    if not len(left):
        assert grid.step == 0 and torch.equal(grid(weight), weight)
        return
    centre = np.abs(left).max() / count
    steps = [centre * (1 + k / 1000) for k in range(-100, 101)]
    signed = np.concatenate([np.arange(-count, 0), np.arange(1, count + 1)])
    errors = [(np.abs(left[:, None] - signed * step).min(1) ** 2).sum() for step in steps]
    reached = (np.abs(left[:, None] - signed * grid.step).min(1) ** 2).sum()
    assert reached == pytest.approx(min(errors), rel=1e-9, abs=1e-30)
    assert any(grid.step == pytest.approx(step, rel=1e-12) for step in steps)


def test_a_grid_without_levels_is_refused():
    with pytest.raises(ValueError, match="at least one level"):
        Grid.fitted(torch.ones(3), 0)


@given(
    weight=weights(),
    low=st.sampled_from([0.0, 0.5]),
    width=st.sampled_from([0.5, 2.0]),
    scale=st.sampled_from([0.3, 1.0]),
    bits=st.integers(1, 3),
)
def test_conductances_are_the_nearest_difference_of_a_pair(weight, low, width, scale, bits):
    devices = Conductances(scale, low, low + width, bits)
    realisable = torch.linspace(low, low + width, 2**bits, dtype=torch.float64)
    differences = scale * (realisable[:, None] - realisable).flatten()
    found = devices(weight)
    nearest = (weight.double().flatten()[:, None] - differences).abs().min(1).values.view(weight.shape)
    torch.testing.assert_close((weight - found).abs().double(), nearest, rtol=0, atol=1e-6)
    above, below = devices.pair(weight)
    torch.testing.assert_close((scale * (above - below)).float(), found)
    for one in (above, below):
        assert float((one.flatten()[:, None] - realisable).abs().min(1).values.max()) < 1e-9
    assert bool((torch.minimum(above, below) == low).all())


@given(
    values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30),
    bits=st.integers(1, 6),
    on_off=st.floats(1.5, 1000),
)
def test_fitted_devices_reach_each_weight_within_half_a_step(values, bits, on_off):
    weight = torch.tensor(values)
    devices = Conductances.fitted(weight, 1 / on_off, 1.0, bits)
    step = float(weight.abs().max()) / (2**bits - 1)
    assert ((devices(weight) - weight).abs() <= step * 0.501 + 1e-6).all()
    assert torch.equal(devices(weight)[weight == 0], weight[weight == 0])
    largest = weight.abs().argmax()
    assert devices(weight)[largest] == pytest.approx(float(weight[largest]), rel=1e-6)
    for one in devices.pair(weight):
        assert one.min() >= 1 / on_off and one.max() <= 1 + 1e-9


def test_the_largest_weight_is_the_largest_difference():
    weight = torch.tensor([[0.5, -2.0], [0.0, 1.0]])
    assert Conductances.fitted(weight, 1.0, 5.0, 8)(weight).abs().max() == 2.0
    assert torch.equal(Conductances.fitted(torch.zeros(2, 2), 1.0, 5.0, 8)(torch.zeros(2, 2)), torch.zeros(2, 2))


@pytest.mark.parametrize("wrong", [(0.0, 0.0, 1.0, 2), (1.0, 1.0, 1.0, 2), (1.0, -0.1, 1.0, 2), (1.0, 0.0, 1.0, 0)])
def test_devices_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="expected scale"):
        Conductances(*wrong)


def test_the_published_rates_leave_the_published_weights():
    net = models.build("lenet5", 10, (1, 28, 28))
    layers = prunable(net, "weight", 1)
    kept = kept_by_rates(grouped(layers, "weight"), (0.8, 0.92, 0.991, 0.93))
    assert list(kept.values()) == [100, 2000, 3600, 350]
    assert sum(weight.numel() for weight in layers.values()) == 430_500


@given(seed=st.integers(0, 99), share=st.floats(0, 0.9), kind=st.sampled_from(KINDS))
def test_one_share_of_all_falls_by_the_layer_adaptive_score(seed, share, kind):
    chance = torch.Generator().manual_seed(seed)
    layers = {
        name: torch.randn(shape, generator=chance) * scale
        for name, shape, scale in (("a", (3, 2, 2), 0.01), ("b", (4, 5), 1.0), ("c", (2, 6), 7.0))
    }
    groups = grouped(layers, kind)
    scored = []
    for name, weight in layers.items():
        parts = sorted(energies(weight, groups[name]).tolist(), reverse=True)
        size = weight.numel() // len(parts)
        scored += [(part / sum(parts[: place + 1]), name, size) for place, part in enumerate(parts)]
    left, budget = {name: int(one.max()) + 1 for name, one in groups.items()}, round(share * 44)
    for _, name, size in sorted(scored):
        if size > budget:
            break
        budget -= size
        left[name] -= 1
    assert kept_by_share(layers, groups, share, "global") == {name: max(1, count) for name, count in left.items()}


def test_scaling_a_layer_changes_nothing_of_what_it_keeps():
    layers = {"a": torch.randn(6, 5), "b": torch.randn(30, 20)}
    groups = grouped(layers, "weight")
    kept = kept_by_share(layers, groups, 0.8, "global")
    assert kept_by_share({**layers, "a": layers["a"] * 1e-3}, groups, 0.8, "global") == kept
    assert sum(kept.values()) == 630 - round(0.8 * 630)
    assert kept_by_share(layers, groups, 0.999, "layer") == {"a": 1, "b": 1}


def test_answers_and_inputs_are_no_filters_and_channels_that_go():
    net = models.build("vgg8", 10, (1, 8, 8))
    every = [f"{name}.weight" for name in models.weights_of(net)]
    assert list(prunable(net, "weight", 1)) == list(prunable(net, "column", 1)) == every
    assert list(prunable(net, "filter", 1)) == every[:-1]
    assert list(prunable(net, "channel", 1)) == every[1:]
