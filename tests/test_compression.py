"""What a model takes to store and to run: exact numbers of nets made by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
from models.compression import compression, on_grids, positions, stored_bits


def linear(rows):
    weight = torch.tensor(rows, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight
    return layer


def test_a_net_by_hand():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[3].weight[:, ::2] = 0
    found = compression(net, (2, 4, 4))
    assert found["weights"] == 54 + 240
    assert found["weights_kept"] == 36 + 120
    assert found["multiply_adds"] == 54 * 16 + 240
    assert found["multiply_adds_kept"] == 36 * 16 + 120
    assert found["stored_bits"] == 32 * 156
    # The convolution: 18 zeros lie between its filters. With 3 bits of distance two of them are stored as well, with 4
    # bits one (37 x 36), with 5 bits none (36 x 37). The linear layer: one zero before each weight, 1 bit.
    assert found["stored_bits_indexed"] == 38 * 35 + 120 * 33


@pytest.mark.parametrize(
    ("rows", "plain", "indexed"),
    [
        # Zeros alone are nothing.
        ([[0.0, 0.0]], 0, 0),
        # Floats, nothing shared.
        ([[0.1, math.pi, math.e, 5.3]], 4 * 32, 4 * 32),
        # Two values 64 times: 1 bit each and a codebook of 64 bits beat 40 bits a row and 1 bit.
        ([[0.3, 0.7] * 32], 64 + 64, 64 + 64),
        # -1, 1 in units of a scale by row, rows of different scales: integers from -1 to 1 take 2 bits.
        ([[0.1, -0.1] * 64, [math.pi, -math.pi] * 64, [1.7, -1.7] * 64, [9.1, -9.1] * 64], 4 * 40 + 512 * 2, None),
        # 1 to 200 in units of one scale, each in a row of its own: one scale for all, and 8 bits each.
        ([[0.3 * one] for one in range(1, 201)], 40 + 200 * 8, None),
    ],
)
def test_bits_of_a_layer_by_hand(rows, plain, indexed):
    found = stored_bits(torch.tensor(rows))
    assert found == (plain, plain if indexed is None else indexed)


def test_a_sparse_layer_is_stored_by_distances_where_that_is_less():
    weight = torch.zeros(1, 1000)
    weight[0, [0, 99, 499]] = torch.tensor([0.1, math.pi, math.e])
    # Distances 0, 98 and 399: 9 bits without zeros between, or 7 bits with 3 of them, 8 bits with one.
    assert stored_bits(weight) == (96, 3 * (32 + 9))
    weight[0, :] = 0
    weight[0, 511:] = 0.25
    # One value: no bit each, 32 for it. Behind 511 zeros: 1 bit of distance and 255 zeros stored, or 9 bits for each
    # value, or all of them: two values of 1 bit.
    assert stored_bits(weight) == (32, 1000 + 32)


def naive(weight):
    """The rule of the module, spelled out: without indices, and with."""
    rows, flat = weight.flatten(1).numpy(), weight.flatten().tolist()
    living = [value for value in flat if value]
    if not living:
        return 0, 0
    bits = lambda count: math.ceil(math.log2(count))  # noqa: E731
    distinct = len(set(living))
    ways = [(32, 32, 0), (bits(distinct), bits(distinct + 1), 32 * distinct)]
    for grids in ([grid(row) for row in rows], [grid(rows.ravel())]):
        if any(one is None for one in grids):
            continue
        narrow = max(max(alive) - min(alive) + 1 for one in grids if (alive := [i for i in one if i]))
        wide = max(max(*one, 0) - min(*one, 0) + 1 for one in grids)
        ways.append((bits(narrow), bits(wide), 40 * len(grids)))
    plain = min(len(living) * one + table for one, _, table in ways)
    if len(living) == len(flat):
        return plain, plain
    best = min(len(flat) * wide + table for _, wide, table in ways)
    for width in range(1, 17):
        steps, last = 0, -1
        for place, value in enumerate(flat):
            if value:
                apart = place - last - 1
                while apart >= 2**width:
                    steps, apart = steps + 1, apart - 2**width
                last = place
        for narrow, wide, table in ways:
            best = min(best, (len(living) + steps) * ((wide if steps else narrow) + width) + table)
    return plain, best


@given(values=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.0, 1.0]), min_size=1, max_size=60))
def test_the_stored_size_is_that_of_a_code_that_can_be_read(values):
    # One value: it needs no bit, 32 for the codebook, and one where zeros are told from it.
    kept = int(sum(values))
    cheapest = [len(values) + 32, 32 * len(values)] if kept < len(values) else [32]
    for width in range(1, 17):
        entries, skipped = [], 0
        for value in values:
            if value:
                entries.append((skipped, value))
                skipped = 0
            elif skipped == 2**width - 1:
                entries.append((skipped, 0))
                skipped = 0
            else:
                skipped += 1
        read = [one for gap, value in entries for one in [0] * gap + [value]]
        assert read + [0] * skipped == values
        # Bridges behind the last weight tell nothing.
        while entries and not entries[-1][1]:
            entries.pop()
        cheapest.append(len(entries) * (int(len(entries) > kept) + width) + 32)
    assert stored_bits(torch.tensor([values])) == ((32, min(cheapest)) if kept else (0, 0))


def grid(row):
    largest = max(abs(float(value)) for value in row)
    if not largest:
        return [0] * len(row)
    for most in range(1, 256):
        scaled = [float(value) / largest * most for value in row]
        if all(abs(one - round(one)) <= most * 2**-22 for one in scaled):
            return [round(one) for one in scaled]
    return None


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 40),
    kind=st.sampled_from(["floats", "grid", "few"]),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150)
def test_bits_of_any_layer_follow_the_rule(rows, columns, kind, zeros, seed):
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=chance)
    if kind == "grid":
        whole = torch.randint(-128, 128, (rows, columns), generator=chance)
        weight = whole * torch.rand(rows, 1, generator=chance)
    elif kind == "few":
        weight = weight[0, torch.randint(0, min(3, columns), (rows, columns), generator=chance)]
    weight = weight * (torch.rand(rows, columns, generator=chance) >= zeros)
    assert stored_bits(weight) == naive(weight)


@given(seed=st.integers(0, 10**6), most=st.integers(1, 255), columns=st.integers(1, 300))
@settings(max_examples=60)
def test_rows_on_grids_are_found_as_the_smallest_integers(seed, most, columns):
    chance = np.random.default_rng(seed)
    whole = chance.integers(-most, most + 1, (5, columns))
    scale = np.exp(chance.uniform(-30, 30, (5, 1)))
    found = on_grids(torch.from_numpy(whole.astype("float32") * scale.astype("float32")))
    common = np.gcd.reduce(np.abs(whole), axis=1, keepdims=True)
    assert torch.equal(found, torch.from_numpy(whole // np.maximum(common, 1)))


def test_floats_are_on_no_grid():
    weight = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    assert on_grids(weight) is None
    # One row that is not on a grid is enough, and one value of a row.
    weight = torch.ones(64, 100)
    assert on_grids(weight) is not None
    weight[63, 99] = math.sqrt(0.5)
    assert on_grids(weight) is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vgg8", (1, 8, 8)), ("resnet8", (1, 8, 8)), ("pointnet", (3, 16)), ("lenet5", (1, 28, 28))],
)
def test_multiply_adds_are_half_of_what_pytorch_counts(name, shape):
    net = models.build(name, 10, shape).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = compression(net, shape)
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *shape))
    # T-Nets also multiply points by matrices, which are no weights.
    products = counter.get_flop_counts()["Global"]
    layers = sum(count for kind, count in products.items() if "bmm" not in str(kind))
    assert 2 * found["multiply_adds"] == layers
    assert found["weights"] == sum(weight.numel() for weight in models.weights_of(net).values())


def test_a_layer_counts_as_often_as_it_runs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(self.used(x))

    assert positions(Twice(), (3,)) == {"used": 2, "unused": 0}
    found = compression(Twice(), (3,))
    assert (found["weights"], found["multiply_adds"]) == (18, 18)


def test_a_surrogate_is_measured_in_the_modes_and_on_the_data_type_that_it_has():
    net = models.build("vgg8", 10, (1, 8, 8)).double().train()
    statistics = net.norm1.running_mean.clone()
    assert compression(net, (1, 8, 8))["weights"] == 172_576
    assert net.training and torch.equal(net.norm1.running_mean, statistics)


def test_quantized_and_clustered_weights_take_their_bits():
    from attacks.quantize import quantized

    weight = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(1))
    for bits in (8, 4):
        made = quantized(weight, bits, "channel", "symmetric")
        _, indexed = stored_bits(made)
        assert indexed == weight.numel() * bits + 64 * 40
    shared = torch.tensor([0.11, -0.37, 1.91, 2.77])[torch.randint(0, 4, (64, 32))]
    assert stored_bits(shared) == (64 * 32 * 2 + 4 * 32,) * 2
