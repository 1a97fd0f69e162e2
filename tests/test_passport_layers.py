"""Passport layers by themselves: raw scales, the two branches and what they share, and the losses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import models
from bench.contract.workshop import contents, difference
from bench.errors import Unreadable
from bench.stream import Stream
from defenses.passports import key as passport_key
from defenses.passports.branches import (
    BorrowedNorm,
    Branches,
    Form,
    PassportNorm,
    bottleneck,
    branches,
    insert,
    mean_patch,
    raw_scale,
    with_groups,
)
from defenses.passports.training import DECAY, Objective, sign_loss
from models.blocks import blocks

SHAPE = (1, 8, 8)
LAYERS = ("conv3", "conv5")


def net(form=None, seed=0, name="vgg8", shape=SHAPE, groups=False):
    """Both branches of a fresh net."""
    torch.manual_seed(seed)
    form = form or Form(LAYERS)
    model = models.build(name, 10, shape)
    plan = blocks(models.skeleton(name, 10, shape))
    shapes = passport_key.shapes_of(plan, form.layers)
    flat = passport_key.uniform(shapes, Stream(("passports", str(seed))))
    made = branches(with_groups(model) if groups else model, plan, form, passport_key.parted(flat, shapes))
    return made, plan, shapes, flat


def perturbed(made):
    """All that the private branch has of its own changed."""
    with torch.no_grad():
        for value in made.secrets().values():
            value.add_(torch.rand_like(value))
        for layer in made.passports.values():
            layer.patches.neg_()
    return made


@st.composite
def layers(draw):
    """A layer with a passport that fits it."""
    before, after = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    bias, kind = draw(st.booleans()), draw(st.sampled_from(["linear", "conv1d", "conv2d"]))
    torch.manual_seed(draw(st.integers(0, 100)))
    if kind == "linear":
        return nn.Linear(before, after, bias=bias), torch.rand(2, before)
    dims = 1 if kind == "conv1d" else 2
    options = {
        "kernel_size": draw(st.integers(1, 3)),
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
    }
    layer = (nn.Conv1d if dims == 1 else nn.Conv2d)(before, after, bias=bias, **options)
    return layer, torch.rand(2, before, *(draw(st.integers(5, 7)) for _ in range(dims)))


class TestRawScales:
    @given(layers())
    def test_they_are_the_mean_of_what_the_layer_makes_of_the_passport(self, drawn):
        layer, passports = drawn
        answers = layer(passports)
        expected = answers.flatten(2).mean(2) if answers.dim() > 2 else answers
        found = PassportNorm(layer, None, mean_patch(layer, passports), None).raw()
        assert torch.allclose(found, expected, atol=1e-5)

    @given(layers(), st.floats(-3, 3), st.floats(-3, 3))
    def test_they_are_linear_in_the_passport(self, drawn, first, second):
        layer, passports = drawn
        layer.bias = None
        p, q = passports
        mixed = torch.stack([p, first * p + second * q])
        of_p, of_q = PassportNorm(layer, None, mean_patch(layer, passports), None).raw()
        found = PassportNorm(layer, None, mean_patch(layer, mixed), None).raw()[1]
        assert torch.allclose(found, first * of_p + second * of_q, atol=1e-4)

    def test_a_layer_of_another_kind_or_width_cannot_be_read(self):
        model = models.build("vgg8", 10, SHAPE)
        with pytest.raises(Unreadable, match="ReLU"):
            raw_scale(model, "act1", torch.rand(2, 32, 8, 8))
        with pytest.raises(Unreadable, match="32 channels"):
            raw_scale(model, "conv2", torch.rand(2, 16, 8, 8))
        with pytest.raises(Unreadable, match="no layer"):
            raw_scale(model, "conv9", torch.rand(2, 16, 8, 8))

    def test_no_gradient_reaches_passports(self):
        made, *_ = net()
        made.train()
        loss = made.private(torch.rand(4, *SHAPE)).square().sum() + made.raw_scales().sum()
        loss.backward()
        for layer in made.passports.values():
            assert not layer.patches.requires_grad
            assert layer.patches.grad is None
        assert made.public.conv3.weight.grad.abs().sum() > 0
        assert "patches" not in {name.rpartition(".")[2] for name, _ in made.named_parameters()}


class TestBottleneck:
    @given(st.integers(1, 16).map(lambda n: 4 * n))
    def test_it_has_half_of_the_channels_squared_as_parameters(self, channels):
        assert sum(p.numel() for p in bottleneck(channels).parameters()) == channels * channels // 2

    def test_one_serves_scale_and_shift_of_a_layer(self):
        made, *_ = net()
        layer = made.passports["conv3"]
        raw = layer.raw()
        x = torch.rand(4, 64, 4, 4)
        made.eval()
        expected = layer.norm(x) * layer.mlp(raw[0])[:, None, None] + layer.mlp(raw[1])[:, None, None]
        assert torch.allclose(layer(x), expected, atol=1e-6)
        assert len(list(made.bottlenecks())) == len(LAYERS)

    def test_it_can_begin_with_scales_like_those_of_a_normalization(self):
        made, *_ = net()
        for layer in made.passports.values():
            before = layer.mlp(layer.raw()).detach()
            layer.to_unit_scales()
            after = layer.mlp(layer.raw()).detach()
            assert float(after[0].square().mean().sqrt()) == pytest.approx(1.0, rel=1e-5)
            assert torch.allclose(after / before, (after / before).flatten()[0], rtol=1e-3)
        bare, *_ = net(Form(LAYERS, mlp=False))
        raw = bare.raw_scales()
        bare.passports["conv3"].to_unit_scales()
        assert torch.equal(bare.raw_scales(), raw)


class TestBranches:
    @pytest.mark.parametrize("statistics", ["separate", "shared"])
    @pytest.mark.parametrize("mlp", [True, False])
    def test_the_public_branch_knows_nothing_of_the_private_one(self, statistics, mlp):
        made, *_ = net(Form(LAYERS, statistics, mlp))
        made.eval()
        x = torch.rand(5, *SHAPE)
        before = made(x)
        perturbed(made)
        assert torch.equal(made(x), before)
        assert torch.equal(made.public(x), before)
        assert not torch.equal(made.private(x), before)

    def test_the_public_branch_is_a_plain_model(self):
        made, *_ = net()
        assert models.describe(made.public) == {"name": "vgg8", "classes": 10, "shape": list(SHAPE)}
        assert not any(isinstance(module, PassportNorm) for module in made.public.modules())

    def test_all_weights_are_shared_and_statistics_are_not(self):
        made, *_ = net()
        for name in ("conv1", "norm1", "norm2", "conv6", "hidden", "head"):
            assert made.private.get_submodule(name) is made.public.get_submodule(name)
        # From the first passport layer on, whether there are passports or not.
        assert set(made._own) == {"conv3", "conv5", "norm4", "norm6"}
        for name in ("norm3", "norm4", "norm5", "norm6"):
            assert made.private.get_submodule(name) is not made.public.get_submodule(name)

    @pytest.mark.parametrize("branch", ["public", "private"])
    def test_each_branch_leaves_the_others_statistics_alone(self, branch):
        made, *_ = net()
        made.train()
        other = made.private if branch == "public" else made.public
        there = {
            n: m for n, m in other.named_modules() if isinstance(m, nn.BatchNorm2d) and n not in ("norm1", "norm2")
        }
        before = {name: module.running_mean.clone() for name, module in there.items()}
        getattr(made, branch)(torch.rand(8, *SHAPE))
        assert len(there) == 4
        assert all(torch.equal(module.running_mean, before[name]) for name, module in there.items())

    def test_shared_statistics_are_moved_by_both(self):
        made, *_ = net(Form(LAYERS, "shared", mlp=False))
        made.train()
        assert isinstance(made.passports["conv3"].norm, BorrowedNorm)
        before = made.public.norm3.running_mean.clone()
        made.private(torch.rand(8, *SHAPE))
        assert not torch.equal(made.public.norm3.running_mean, before)
        assert made.secrets() == {}

    def test_a_borrowed_normalization_is_the_lenders_without_scale_and_shift(self):
        for lender in (nn.BatchNorm2d(4), nn.GroupNorm(2, 4)):
            torch.manual_seed(0)
            x = torch.rand(3, 4, 5, 5)
            for _ in range(3):
                lender(x)
            lender.eval()
            plain = BorrowedNorm(lender)(x)
            nn.init.normal_(lender.weight)
            nn.init.normal_(lender.bias)
            assert torch.allclose(
                lender(x), plain * lender.weight[:, None, None] + lender.bias[:, None, None], atol=1e-6
            )

    def test_with_the_public_scales_the_private_branch_is_the_public_one(self):
        made, *_ = net(Form(LAYERS, "separate", mlp=False))
        made.eval()
        with torch.no_grad():
            for name, layer in made.passports.items():
                norm = made.public.get_submodule("norm" + name[-1])
                raw = layer.raw()
                norm.weight.copy_(raw[0])
                norm.bias.copy_(raw[1])
        x = torch.rand(5, *SHAPE)
        assert torch.allclose(made.private(x), made.public(x), atol=1e-5)

    def test_a_layer_without_normalization_is_followed_by_its_passport_layer(self):
        made, *_ = net(Form(("hidden", "head")))
        made.eval()
        x = torch.rand(3, 128)
        layer = made.passports["head"]
        scale, shift = layer.mlp(layer.raw())
        assert torch.allclose(made.private.head(x), made.public.head(x) * scale + shift, atol=1e-5)
        assert layer.norm is None

    def test_groups_take_the_place_of_batches(self):
        made, *_ = net(Form(LAYERS, "shared", mlp=False), groups=True)
        kinds = {type(module) for module in made.public.modules()}
        assert nn.BatchNorm2d not in kinds
        assert made.public.norm3.num_groups == 4
        rebuilt = models.rebuild(models.describe(made.public), made.public.state_dict())
        x = torch.rand(2, *SHAPE)
        assert torch.equal(rebuilt(x), made.public.eval()(x))

    def test_copies_keep_their_weights_together(self):
        made, *_ = net()
        other = copy.deepcopy(made)
        assert other.private.conv3 is other.public.conv3
        assert other.passports["conv3"]._layer[0] is other.public.conv3
        assert other.public.conv3 is not made.public.conv3


class TestInserting:
    @pytest.mark.parametrize("form", [Form(LAYERS), Form(LAYERS, "shared", mlp=False), Form(("conv2", "head"))])
    def test_the_private_branch_comes_back_bit_for_bit(self, form):
        made, plan, shapes, flat = net(form)
        perturbed(made).eval()
        for layer, name in zip(made.passports.values(), form.layers, strict=True):
            layer.renew(passport_key.parted(flat, shapes)[name])
        found = insert(
            copy.deepcopy(made.public), plan, form, passport_key.parted(flat, shapes), models.joined(made.secrets())
        )
        x = torch.rand(5, *SHAPE)
        assert torch.equal(found.private(x), made.private(x))

    def test_the_suspect_stays_as_it_is(self):
        made, plan, shapes, flat = net()
        suspect = copy.deepcopy(made.public)
        before = contents(suspect)
        found = insert(suspect, plan, Form(LAYERS), passport_key.parted(flat, shapes), models.joined(made.secrets()))
        assert difference(before, contents(suspect)) is None
        assert found.private.conv3 is suspect.conv3

    def test_what_was_made_for_other_layers_does_not_fit(self):
        made, plan, shapes, flat = net()
        with pytest.raises(Unreadable, match="not those"):
            insert(made.public, plan, Form(LAYERS), passport_key.parted(flat, shapes), torch.zeros(7))
        other = models.build("resnet8", 10, SHAPE)
        with pytest.raises(Unreadable, match="no layer 'conv3'"):
            insert(other, plan, Form(LAYERS), passport_key.parted(flat, shapes), models.joined(made.secrets()))


class TestLosses:
    def test_the_sign_loss_on_numbers_by_hand(self):
        raw = torch.tensor([0.3, -0.3, 0.05, -0.2])
        signature = torch.tensor([1.0, 1.0, 1.0, -1.0])
        # Hinges: 0, 0.4, 0.05 and 0; squares: 0.09 + 0.09 + 0.0025 + 0.04.
        expected = 0.1 * 0.45 + DECAY * 0.2225
        assert sign_loss(raw, signature, 0.1, 0.1).item() == pytest.approx(expected, rel=1e-5)

    def test_right_signs_beyond_the_margin_cost_next_to_nothing(self):
        raw = torch.tensor([0.5, -0.5])
        assert sign_loss(raw, torch.tensor([1.0, -1.0]), 0.1, 0.1).item() == pytest.approx(DECAY * 0.5)

    def test_together_all_three_terms_are_added(self):
        made, *_ = net()
        made.eval()
        signature = torch.ones(128)
        x, y = torch.rand(6, *SHAPE), torch.arange(6)
        expected = (
            F.cross_entropy(made.public(x), y)
            + F.cross_entropy(made.private(x), y)
            + sign_loss(made.raw_scales(), signature, 0.1, 0.2)
        )
        assert Objective(signature, 0.1, 0.2)(made, x, y).item() == pytest.approx(expected.item())

    def test_triggers_have_a_weight_of_their_own(self):
        made, *_ = net()
        made.eval()
        signature = torch.ones(128)
        x, y = torch.rand(6, *SHAPE), torch.arange(6)
        found = Objective(signature, 0.1, 0.1, extra=2, weight=0.5)(made, x, y)
        expected = sign_loss(made.raw_scales(), signature, 0.1, 0.1)
        for branch in (made.public, made.private):
            logits = branch(x)
            expected = expected + F.cross_entropy(logits[:4], y[:4]) + 0.5 * F.cross_entropy(logits[4:], y[4:])
        assert found.item() == pytest.approx(expected.item())

    @given(st.floats(0.01, 0.99), st.integers(10, 200))
    def test_in_turn_the_private_branch_has_its_share_of_the_steps(self, ratio, steps):
        objective = Objective(torch.ones(1), 0.1, 0.1, schedule="alternate", ratio=ratio)
        turns = [objective.turns(step) for step in range(steps)]
        assert all(public != private for public, private in turns)
        assert sum(private for _, private in turns) == int(steps * ratio)

    def test_in_turn_the_steps_are_counted(self):
        made, *_ = net()
        made.train()
        objective = Objective(torch.ones(128), 0.1, 0.1, schedule="alternate", ratio=0.5)
        x, y = torch.rand(6, *SHAPE), torch.arange(6)
        for private in (False, True, False):
            made.zero_grad(set_to_none=True)
            objective(made, x, y).backward()
            assert (made.public.norm3.weight.grad is None) == private
            assert (next(made.bottlenecks())[0].weight.grad is None) != private
            objective.hooks().after_step(made, objective._step)

    def test_one_branch_alone(self):
        objective = Objective(torch.ones(1), 0.1, 0.1, public=False)
        assert objective.turns(0) == objective.turns(1) == (False, True)


def test_the_net_answers_as_its_public_branch():
    made, *_ = net()
    assert isinstance(made, Branches)
    made.eval()
    x = torch.rand(2, *SHAPE)
    assert torch.equal(made(x), made.public(x))
