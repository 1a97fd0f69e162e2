"""The canonical form: free moves are undone, the function stays, and nothing that a key counts is ever read."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import KINDS, MOVES, apart, difference, lived_in, merged, noisy, put, reframed, residual, vgg_like, widened
from torch import nn

import models
from bench.canonical import alignment, canonicalise, readings, reference_of
from bench.errors import Unreadable
from bench.evidence import Evidence
from bench.key import Key
from bench.suspect import Suspect
from models.channels import channels

WIDTHS = st.lists(st.integers(2, 9), min_size=3, max_size=7)
SEEDS = st.integers(0, 2**16)
CLOSE = 1e-4


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, moves=st.sets(st.sampled_from(MOVES)), seed=SEEDS)
@settings(max_examples=40)
def test_any_combination_of_moves_is_undone(kind, widths, moves, seed):
    reference = KINDS[kind](widths, seed)
    suspect = reframed(reference, seed + 1, tuple(moves))
    found = canonicalise(suspect, reference, {})
    assert apart(reference, found) < (CLOSE, "")
    assert difference(suspect, found) < CLOSE


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vgg8", (1, 8, 8)),
        ("lenet5", (1, 28, 28)),
        ("resnet20", (3, 32, 32)),
        ("resnet18", (3, 8, 8)),
        ("pointnet", (3, 20)),
        ("pointnet-basic", (3, 20)),
    ],
)
def test_they_are_undone_on_the_architectures_of_the_benchmark(name, shape):
    reference = lived_in(models.build(name, 10, shape))
    found = canonicalise(reframed(reference, 1), reference, {})
    assert apart(reference, found) < (CLOSE, "")
    assert models.describe(found) == models.describe(reference)


@given(kind=st.sampled_from(sorted(KINDS)), widths=WIDTHS, seed=SEEDS, share=st.floats(0.01, 0.1))
@settings(max_examples=30)
def test_a_changed_model_has_one_form_whatever_its_moves(kind, widths, seed, share):
    reference = KINDS[kind](widths, seed)
    changed = noisy(reference, seed + 1, share)
    first, second = (canonicalise(model, reference, {}) for model in (changed, reframed(changed, seed + 2)))
    assert apart(first, second) < (CLOSE, "")
    assert difference(changed, second) < CLOSE


def test_the_reference_itself_stays_bit_for_bit_and_shares_no_memory():
    reference = residual([4, 6, 9])
    before = copy.deepcopy(reference.state_dict())
    found = canonicalise(reference, reference, {})
    for name, value in found.state_dict().items():
        assert torch.equal(value, before[name])
        value.add_(1)
        assert torch.equal(reference.state_dict()[name], before[name])
    assert not any(part.training for part in found.modules())


@given(kind=st.sampled_from(["vgg_like", "residual", "points", "aligned"]), widths=WIDTHS, seed=SEEDS)
@settings(max_examples=25)
def test_merged_normalization_is_unfolded(kind, widths, seed):
    reference = KINDS[kind](widths, seed)
    suspect = reframed(merged(reframed(reference, seed + 1)), seed + 2)
    found = canonicalise(suspect, reference, {})
    assert models.describe(found) == models.describe(reference)
    assert difference(suspect, found) < CLOSE
    assert apart(reference, found) < (CLOSE, "")


@given(
    widths=WIDTHS,
    number=st.integers(1, 6),
    doubles=st.integers(0, 3),
    dead=st.integers(0, 3),
    pairs=st.integers(0, 2),
    fold=st.booleans(),
    seed=SEEDS,
)
@settings(max_examples=40)
def test_channels_that_do_nothing_are_stripped(widths, number, doubles, dead, pairs, fold, seed):
    reference = vgg_like(widths, seed)
    suspect = reference
    for one in {number, number % 6 + 1}:
        suspect = widened(suspect, one, doubles, dead, pairs, seed)
    assert difference(reference, suspect) < CLOSE
    suspect = reframed(merged(suspect) if fold else suspect, seed + 1)
    found = canonicalise(suspect, reference, {})
    assert apart(reference, found) < (CLOSE, "")
    assert difference(suspect, found) < CLOSE


def test_a_dead_channel_behind_a_dead_channel_is_stripped_too():
    reference = vgg_like([4, 5, 6, 4, 5, 6, 7])
    suspect = widened(widened(reference, 3, dead=2), 2, dead=2)
    with torch.no_grad():
        # The last ones of the second layer are read by the dead ones of the third alone.
        suspect.conv3.weight[6:, 5:] = 1.0
    found = canonicalise(reframed(suspect, 1), reference, {})
    assert apart(reference, found) < (CLOSE, "")


def test_fewer_channels_leave_zeros_in_the_references_places():
    reference = vgg_like([6, 6, 6, 6, 6, 6, 6])
    suspect, kept = copy.deepcopy(reference), [0, 2, 3, 5]
    for name, layer in (("conv2", nn.Conv2d(6, 4, 3, padding=1, bias=False)), ("norm2", nn.BatchNorm2d(4))):
        layer.load_state_dict(
            {n: v[kept] if v.dim() else v for n, v in reference.get_submodule(name).state_dict().items()}
        )
        put(suspect, name, layer)
    put(suspect, "conv3", nn.Conv2d(4, 6, 3, padding=1, bias=False))
    suspect.conv3.weight.data = reference.conv3.weight.data[:, kept].clone()
    found = canonicalise(reframed(suspect.eval(), 1), reference, {})
    assert difference(suspect, found) < CLOSE
    torch.testing.assert_close(found.conv2.weight[kept], reference.conv2.weight[kept], rtol=1e-4, atol=1e-5)
    assert not found.conv2.weight[[1, 4]].any()
    assert not found.conv3.weight[:, [1, 4]].any()
    # Rows with fewer columns have other norms, so that scales are others; the order is not.
    ours, theirs = (model.conv5.weight.detach().flatten(1) for model in (reference, found))
    assert (torch.nn.functional.cosine_similarity(ours, theirs) > 0.99).all()


def test_another_number_of_answers_can_be_read():
    reference = vgg_like([4, 5, 6, 4, 5, 6, 7])
    suspect = copy.deepcopy(reference)
    put(suspect, "head", nn.Linear(7, 3))
    found = canonicalise(reframed(suspect, 1), reference, {})
    torch.testing.assert_close(found.conv6.weight, reference.conv6.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.head.weight[:3], suspect.head.weight, rtol=1e-4, atol=1e-5)
    assert not found.head.weight[3:].any()


def with_block(model):
    put(model, "act7", nn.Sequential(nn.Linear(7, 7)))
    return model


@pytest.mark.parametrize(
    ("suspect", "reason"),
    [
        (residual([4, 5, 6]), "another graph"),
        (models.build("vgg8", 10, (1, 12, 12)), "input"),
        (models.build("vgg8", 10, (3, 8, 8)), "input"),
        (with_block(vgg_like([4, 5, 6, 4, 5, 6, 7])), "another graph"),
        (nn.Linear(2, 2), r"models\.build"),
    ],
)
def test_another_graph_is_unreadable(suspect, reason):
    with pytest.raises(Unreadable, match=reason):
        canonicalise(suspect, vgg_like([4, 5, 6, 4, 5, 6, 7]), {})


def test_what_the_key_counts_must_be_there():
    reference = vgg_like([4, 5, 6, 4, 5, 6, 7])
    for name, what in (
        ("conv9.weight", torch.ones(1, 1)),
        ("conv6.weight", torch.ones(2, 44)),
        ("conv6.weight", torch.ones(6, 45, dtype=torch.bool)),
    ):
        with pytest.raises(Unreadable, match="the key counts"):
            canonicalise(reference, reference, {name: what})


class TestNothingCountedIsRead:
    """Counted coordinates of suspect and reference change at will: what is settled does not."""

    @given(widths=st.lists(st.integers(5, 9), min_size=7, max_size=7), seed=SEEDS, number=st.integers(2, 6))
    @settings(max_examples=25)
    def test_directions(self, widths, seed, number):
        reference, name = vgg_like(widths, seed), f"conv{number}.weight"
        # Another seed than the model's, whose rows would be combinations of these directions.
        chance = torch.Generator().manual_seed(seed + 2**20)
        matrix = torch.randn(6, reference.state_dict()[name][0].numel(), generator=chance)
        # Directions are those of the canonical form.
        suspect = canonicalise(noisy(reference, seed + 1, 0.05), reference, {name: matrix})
        before = canonicalise(reframed(suspect, seed + 2), reference, {name: matrix})
        for model in (reference, suspect):
            weight = model.get_parameter(name)
            mixed = torch.randn(len(weight), 6, generator=chance) @ matrix
            weight.data += mixed.reshape(weight.shape)
        after = canonicalise(reframed(suspect, seed + 2), reference, {name: matrix})
        # Only the counted part of the layer is another one.
        changed = (after.get_parameter(name) - before.get_parameter(name)).detach().flatten(1)
        basis = torch.linalg.qr(matrix.T).Q
        assert changed.norm() > 1
        assert (changed - changed @ basis @ basis.T).norm() < CLOSE * changed.norm()
        after.get_parameter(name).data = before.get_parameter(name).data
        assert apart(before, after) < (CLOSE, "")

    @given(kind=st.sampled_from(sorted(KINDS)), seed=SEEDS, place=st.integers(0, 20))
    @settings(max_examples=25)
    def test_positions(self, kind, seed, place):
        reference = KINDS[kind]([31, 32, 33] if kind == "points" else [6, 7, 8], seed)
        suspect, chance = noisy(reference, seed + 1, 0.02), torch.Generator().manual_seed(seed)
        wide = [n for n, p in reference.named_parameters() if p.dim() > 1 and p[0].numel() > 30]
        name = wide[place % len(wide)]
        mask = torch.rand(reference.state_dict()[name].shape, generator=chance) < 0.3
        before = canonicalise(reframed(suspect, seed + 2), reference, {name: mask})
        for model in (reference, suspect):
            weight = model.get_parameter(name)
            weight.data[mask] += torch.randn(int(mask.sum()), generator=chance) * weight.data.std()
        after = canonicalise(reframed(suspect, seed + 2), reference, {name: mask})
        values = after.get_parameter(name).data
        assert not torch.equal(values[mask], before.get_parameter(name).data[mask])
        values[mask] = before.get_parameter(name).data[mask]
        assert apart(before, after) < (CLOSE, "")

    @given(seed=SEEDS, moves=st.sets(st.sampled_from(["permute", "sign-flip"])))
    @settings(max_examples=15)
    def test_gains(self, seed, moves):
        """Not even their signs, although a flip before the normalization shows in them alone."""
        reference, name = vgg_like([6] * 7, seed), "norm3.weight"
        suspect, chance = noisy(reference, seed + 1, 0.02), torch.Generator().manual_seed(seed)
        counted = {name: torch.ones(6, dtype=torch.bool)}
        before = canonicalise(reframed(suspect, seed + 2, tuple(moves)), reference, counted)
        for model in (reference, suspect):
            model.get_parameter(name).data = torch.randn(6, generator=chance)
        truth = suspect.get_parameter(name).data.clone()
        after = canonicalise(reframed(suspect, seed + 2, tuple(moves)), reference, counted)
        scale = after.get_parameter(name).data / truth
        assert (scale > 0).all()
        after.get_parameter(name).data = before.get_parameter(name).data
        assert apart(before, after) < (CLOSE, "")


def test_an_alignment_that_reads_what_is_counted_would_lie():
    """Independent models agree with a mark to which they were aligned, and do not where it is left out."""
    reference, chance = lived_in(models.build("vgg8", 10, (1, 8, 8))), torch.Generator().manual_seed(99)
    matrix, bits = torch.randn(64, 576, generator=chance), torch.randint(0, 2, (64,), generator=chance)
    mark = torch.linalg.lstsq(matrix, (2.0 * bits - 1.0)[:, None]).solution.T
    reference.conv6.weight.data += 5 * mark.reshape(1, 64, 3, 3)
    agreed = {True: 0, False: 0}
    for seed in range(20):
        stranger = lived_in(models.build("vgg8", 10, (1, 8, 8)), seed + 1)
        for leave in agreed:
            found = canonicalise(stranger, reference, {"conv6.weight": matrix} if leave else {})
            read = matrix @ found.conv6.weight.detach().mean(0).flatten() >= 0
            agreed[leave] += int((read == bits.bool()).sum())
    # Of 1,280 bits half are right by chance, give or take 18.
    assert agreed[True] < 640 + 5 * 18
    assert agreed[False] > 640 + 10 * 18


class TestAssignment:
    """The numbers behind it."""

    def part(self, ours, theirs, **options):
        rows = alignment.Rows(ours, theirs, **options)
        return alignment.Part(rows, np.arange(len(ours)), np.arange(len(theirs)))

    @given(ours=st.integers(1, 12), theirs=st.integers(1, 12), seed=SEEDS)
    @settings(max_examples=40)
    def test_it_is_the_best_of_all(self, ours, theirs, seed):
        from scipy.optimize import linear_sum_assignment

        chance = torch.Generator().manual_seed(seed)
        first, second = torch.randn(ours, 5, generator=chance), torch.randn(theirs, 5, generator=chance)
        chosen = alignment.assign([self.part(first, second)], (ours, theirs), signed=False)
        cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=2).numpy()
        rows, columns = linear_sum_assignment(cosines, maximize=True)
        real = chosen >= 0
        assert len(set(chosen[real])) == real.sum() == min(ours, theirs)
        total = cosines[np.flatnonzero(real), chosen[real]].sum()
        assert total == pytest.approx(cosines[rows, columns].sum(), abs=1e-4)

    def test_ties_keep_their_places(self):
        ones = torch.ones(5, 3)
        for other in (ones, torch.zeros(5, 3)):
            assert alignment.assign([self.part(ones, other)], (5, 5), signed=False).tolist() == [0, 1, 2, 3, 4]
        assert alignment.assign([], (3, 2), signed=False).tolist() == [0, 1, -1]

    @given(seed=SEEDS, masked=st.booleans())
    @settings(max_examples=20)
    def test_products_of_pairs_are_those_of_the_cross(self, seed, masked):
        chance = torch.Generator().manual_seed(seed)
        ours, theirs = torch.randn(6, 7, generator=chance), torch.randn(8, 7, generator=chance)
        mask = torch.rand(6, 7, generator=chance) < 0.4 if masked else None
        affine = tuple(
            alignment.Affine(*torch.randn(2, n, generator=chance).double()) for n in (len(ours), len(theirs))
        )
        here, there = np.array([4, 0, 2]), np.array([7, 1, 5])
        for plain in (False, True):
            crossed = alignment.Rows(ours, theirs, mask, affine=affine).cross(here, there, plain=plain)
            paired = alignment.Rows(ours, theirs, mask, affine=affine).pair(here, there, plain=plain)
            for one, other in zip(crossed, paired, strict=True):
                torch.testing.assert_close(one.expand(3, 3).diagonal(), other, rtol=1e-5, atol=1e-5)

    def test_a_row_that_is_counted_whole_is_nothing(self):
        directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
        rows = torch.cat([torch.tensor([[1.0, -2.0, 0.5]]) @ directions, torch.eye(8)[:1]])
        products = alignment.paired([self.part(rows, rows, directions=directions)], np.array([0, 1]))
        assert products.ours[0] == products.theirs[0] == 0
        assert products.cosines[1] == pytest.approx(1.0)

    def test_factors_of_nothing_are_one(self):
        rows = self.part(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [-4.0, 0.0]]))
        products = alignment.paired([rows], np.array([0, 1]))
        assert alignment.ratios(products, signed=True).tolist() == [1.0, -0.5]
        assert alignment.ratios(products, signed=False).tolist() == [1.0, 0.5]


class TestReadings:
    """One line for a defense."""

    @staticmethod
    def mean(model):
        return Evidence(1.0, -float(model.conv6.weight.detach().abs().max()), {"rows": len(model.conv6.weight)})

    @pytest.fixture
    def owned(self, task, owner):
        reference = lived_in(models.build(task.model, task.classes, task.shape))
        return reference, Key({}).complete(**reference_of(reference)), owner

    def test_raw_alone_or_the_better_of_two(self, owned):
        reference, key, owner = owned
        suspect = Suspect.of(reframed(reference, 1))
        raw = readings(suspect, key, self.mean, {}, canonical=False)
        assert raw == self.mean(suspect.module)
        both = readings(suspect, key, self.mean, {}, canonical=True)
        assert both.figures["log10_p.raw"] == raw.log10_p
        assert both.figures["log10_p.canonical"] == pytest.approx(self.mean(reference).log10_p, rel=1e-4)
        best = min(raw.log10_p, both.figures["log10_p.canonical"])
        assert both.log10_p == pytest.approx(min(0.0, best + np.log10(2)))

    def test_each_may_be_unreadable_by_itself(self, owned):
        reference, key, owner = owned

        def only(wanted):
            def read(model):
                if (channels(model) is channels(reference)) is not wanted:
                    raise Unreadable("of another shape")
                return Evidence(1.0, -3.0)

            return read

        wide = Suspect.of(widened(reference, 6, dead=2))
        found = readings(wide, key, only(True), {}, canonical=True)
        assert (found.reason, found.figures["log10_p.raw"]) == (None, 0.0)
        found = readings(Suspect.of(models.build("resnet8", 10, (1, 8, 8))), key, only(False), {}, canonical=True)
        assert (found.reason, found.figures["log10_p.canonical"]) == (None, 0.0)
        found = readings(wide, key, only(False), {"nowhere": torch.ones(1, 1)}, canonical=True)
        assert found.figures["log10_p.canonical"] == 0.0
        assert readings(wide, Key({}), only(True), {}, canonical=True).reason.count("no reference") == 1

    def test_the_reference_must_be_one_of_the_tasks_model(self, owned, task):
        reference, key, owner = owned
        other = dataclasses.replace(key, facts={n: v for n, v in key.facts.items() if "conv1" not in n})
        found = readings(Suspect.of(reference), other, self.mean, {}, canonical=True)
        assert found.figures["log10_p.canonical"] == 0.0
