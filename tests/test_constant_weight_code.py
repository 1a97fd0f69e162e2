"""The two-threshold marks: projection, the cliff at R_max, evidence, erasures; the contract is in test_contract.py."""

import copy
import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import models
from attacks.magnitude_prune import magnitude_masks
from bench.stream import Stream
from bench.suspect import Suspect
from defenses.constant_weight_code import ConstantWeightCode, UncodedThreshold
from defenses.weights.enumerative_code import smallest_length
from defenses.weights.keyed_weights import Carrier

KEY = Stream.root(0).child("owner", "key")
SHAPES = {"vgg8": (1, 8, 8), "lenet5": (1, 28, 28), "resnet8": (1, 8, 8)}
SCHEMES = [ConstantWeightCode(), ConstantWeightCode(pool="layer", rate=0.9), UncodedThreshold()]


def net(name, seed=0):
    torch.manual_seed(seed)
    return models.build(name, 10, SHAPES[name])


@functools.cache
def on(task, name):
    return dataclasses.replace(task, model=name, info=dataclasses.replace(task.info, shape=SHAPES[name]))


def marked(defense, task, model):
    """The model projected as it is, and the key with what protecting would have added."""
    assert defense.applies_to(on(task, model.architecture["name"])) is None
    key = defense.draw(on(task, model.architecture["name"]), KEY)
    project = defense.projection(key)
    project(model)
    low, high = (float(threshold) for threshold in project.thresholds(model))
    return key.complete(t0=low, t1=high), project


def pruned(model, drop, scope, size):
    """Exactly `drop` weights less in each pool of `size`."""
    cut = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in magnitude_masks(cut, drop / size, scope).items():
            cut.get_parameter(name).mul_(mask)
    return cut


class TestProjection:
    @given(rate=st.floats(0.3, 0.99), margin=st.floats(0.05, 0.95), pool=st.sampled_from(["layer", "global"]),
           name=st.sampled_from(["vgg8", "resnet8"]), seed=st.integers(0, 5))  # fmt: skip
    @settings(max_examples=12)
    def test_it_is_the_nearest_point_with_signs_kept(self, task, rate, margin, pool, name, seed):
        defense = ConstantWeightCode(rate=rate, margin=margin, pool=pool)
        model = net(name, seed)
        before = copy.deepcopy(model)
        key, project = marked(defense, task, model)
        old, new = (project.carrier.read(one) for one in (before, model))
        ones, zeros = project.positions[project.ones], project.positions[~project.ones]
        low, high = key.facts["t0"], key.facts["t1"]
        assert low == pytest.approx((1 - margin) * high)
        assert (new[ones].abs() >= high).all() and (new[zeros].abs() <= low).all()
        assert torch.equal(new.sign(), old.sign())
        # The distance to either set, weight by weight.
        torch.testing.assert_close((new - old)[ones].abs(), (high - old[ones].abs()).clamp_min(0))
        torch.testing.assert_close((new - old)[zeros].abs(), (old[zeros].abs() - low).clamp_min(0))
        mask = defense.counted(key)
        for name, value in model.state_dict().items():
            same = value == before.state_dict()[name]
            assert (same | mask[name]).all() if name in mask else same.all()

    @pytest.mark.parametrize("pool", ["layer", "global"])
    def test_once_more_changes_nothing(self, task, pool):
        model = net("vgg8")
        _, project = marked(ConstantWeightCode(pool=pool, layers=("hidden", "conv6")), task, model)
        once = copy.deepcopy(model.state_dict())
        project(model)
        assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())

    @given(rate=st.floats(0.3, 0.999), pool=st.sampled_from(["layer", "global"]), seed=st.integers(0, 5))
    @settings(max_examples=12)
    def test_afterwards_just_the_demanded_share_lies_below_the_ones(self, task, rate, pool, seed):
        model = net("vgg8", seed)
        key, project = marked(ConstantWeightCode(rate=rate, pool=pool), task, model)
        layers = (
            [model.hidden] if pool == "layer" else [m for m in model if hasattr(m, "weight") and m.weight.dim() > 1]
        )
        magnitudes = torch.cat([layer.weight.detach().abs().flatten() for layer in layers])
        share, high = math.ceil(rate * len(magnitudes)), torch.tensor(key.facts["t1"], dtype=torch.float32)
        below = torch.nextafter(high, torch.tensor(0.0))
        # Weights are drawn from few enough numbers for several to be equal.
        assert int((magnitudes < below).sum()) < share <= int((magnitudes < high).sum())

    def test_zero_counts_as_positive(self, task):
        model = net("vgg8")
        defense = ConstantWeightCode()
        key = defense.draw(task, KEY)
        project = defense.projection(key)
        with torch.no_grad():
            model.hidden.weight.flatten()[project.positions] = 0.0
            model.hidden.weight.view(-1)[project.positions] = -0.0
        project(model)
        values = project.carrier.read(model)[project.positions]
        assert (values[project.ones] > 0).all() and (values[~project.ones] == 0).all()

    @pytest.mark.parametrize("defense", [SCHEMES[0], SCHEMES[2], ConstantWeightCode(every=2)], ids=lambda d: d.label)
    def test_each_acts_on_the_current_weights(self, defense, task, owner, monkeypatch):
        key, seen = defense.draw(task, KEY), []

        def fit(model, data, recipe, *, hooks):
            assert self.satisfied(defense, key, model)
            calls = [lambda: hooks.after_epoch(model, 1), lambda: hooks.after_epoch(model, 2)]
            if defense.every:
                calls = [lambda: hooks.after_step(model, 0), lambda: hooks.after_step(model, 1)]
            for call in calls:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.copy_(torch.randn_like(parameter) * (1 + len(seen)))
                expected = copy.deepcopy(model)
                defense.projection(key)(expected)
                before = model.hidden.weight.clone()
                call()
                seen.append((torch.equal(model.hidden.weight, expected.hidden.weight), before))
                assert seen[-1][0] or (defense.every and torch.equal(model.hidden.weight, before))
            # Here training ends somewhere else.
            torch.nn.init.normal_(model.hidden.weight)
            return model

        monkeypatch.setattr(owner, "fit", fit)
        model, completed, _ = defense.protect(owner, key)
        assert [one for one, _ in seen] == ([False, True] if defense.every else [True, True])
        assert self.satisfied(defense, key, model)
        assert completed.facts["embedding_change"] > 0.001

    @staticmethod
    def satisfied(defense, key, model):
        project = defense.projection(key)
        low, high = project.thresholds(model)
        chosen = project.carrier.read(model)[project.positions].abs()
        return bool((chosen[project.ones] >= high).all() and (chosen[~project.ones] <= low).all())

    @pytest.mark.parametrize(("every", "between"), [(0, 2), (10, 7), (25, 2), (1000, 0)])
    def test_it_comes_first_between_and_last(self, every, between, task, owner, monkeypatch):
        """Three epochs of 25 steps: where a multiple of `every` is the end, there is one projection and not two."""
        assert len(owner.train) // task.recipe.batch_size == 25
        defense, calls = ConstantWeightCode(every=every), []
        project = type(defense.projection(defense.draw(task, KEY)))
        whole = project.__call__
        monkeypatch.setattr(project, "__call__", lambda self, model: (calls.append(model.training), whole(self, model)))
        defense.protect(owner, defense.draw(task, KEY))
        assert len(calls) == 1 + between + 1

    def test_fine_tuning_starts_from_the_clean_model(self, task, owner, monkeypatch):
        defense, started = ConstantWeightCode(mode="fine-tune", epochs=2), {}
        clean = owner.clean()

        def fit(model, data, recipe, **_):
            started[recipe.epochs, recipe.learning_rate] = model.conv1.weight.clone()
            return model

        monkeypatch.setattr(owner, "fit", fit)
        defense.protect(owner, defense.draw(task, KEY))
        assert torch.equal(started[2, 0.01], clean.conv1.weight)


class TestCliff:
    """No error at any pruning fraction below R_max, failure above it, with the attack's own masks."""

    @pytest.mark.parametrize("name", ["vgg8", "lenet5"])
    @pytest.mark.parametrize("pool", ["layer", "global"])
    @pytest.mark.parametrize("rate", [0.5, 0.9, 0.99, 0.9999])
    def test_on_untrained_nets(self, name, pool, rate, task):
        defense = ConstantWeightCode(rate=rate, pool=pool)
        if rate == 0.9999 and name == "vgg8":
            assert "have to lie above the rate" in defense.applies_to(task)
            return
        model = net(name)
        key, _ = marked(defense, task, model)
        self.check(defense, model, key, rate)

    @pytest.mark.parametrize("defense", SCHEMES[:2], ids=lambda d: d.label)
    def test_on_trained_nets(self, defense, protected):
        model, key = protected(defense)
        self.check(defense, model, key, defense.rate)

    @staticmethod
    def check(defense, model, key, rate):
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        size = sum(m.weight.numel() for m in layers) if defense.pool == "global" else model.hidden.weight.numel()
        share = defense.read(model, key).figures["r_max"]
        assert share >= rate
        last = round(share * size)
        for drop in (0, math.ceil(rate * size) // 2, last - 1, last):
            figures = defense.read(pruned(model, drop, defense.pool, size), key).figures
            assert (figures["message_right"], figures["wrong_positions"], figures["erased"]) == (1, 0, 0), drop
            assert figures["r_max"] == pytest.approx(share)
        for drop in (last + 1, last + 4, min(last + 24, size - 1)):
            figures = defense.read(pruned(model, drop, defense.pool, size), key).figures
            assert figures["message_right"] == 0 and figures["wrong_positions"] >= 2, drop
            assert figures["message_among_candidates"] == 1 and figures["erased"] >= 1
            assert figures["r_max"] == 0

    def test_without_the_code_it_is_the_same_cliff(self, task):
        defense, model = UncodedThreshold(rate=0.9, pool="layer"), net("lenet5")
        key, _ = marked(defense, task, model)
        assert defense.read(pruned(model, 360_000, "layer", 400_000), key).figures["bit_error"] == 0
        lost = defense.read(pruned(model, 360_200, "layer", 400_000), key).figures["bit_error"]
        # Ones above T1 by themselves, a tenth of them, are not lost.
        assert lost == pytest.approx(0.9 * key.tensor("message").double().mean().item(), abs=0.1)

    def test_over_several_layers_the_least_counts(self, task):
        defense = ConstantWeightCode(layers=("conv6", "hidden"), pool="layer", rate=0.8)
        model = net("vgg8")
        key, project = marked(defense, task, model)
        share = defense.read(model, key).figures["r_max"]
        assert share >= 0.8
        low, least = [], project.carrier.read(model)[project.positions[project.ones]].abs().min()
        for layer in (model.conv6, model.hidden):
            low.append(float((layer.weight.abs() < least).double().mean()))
        assert share == pytest.approx(min(low))
        for fraction, right in ((share - 1e-4, 1.0), (max(low) + 1e-3, 0.0)):
            cut = pruned(model, fraction, "layer", 1)
            assert defense.read(cut, key).figures["message_right"] == right


class TestEvidence:
    def test_it_is_the_tail_of_the_overlap(self, task):
        defense, model = ConstantWeightCode(), net("vgg8")
        key = defense.draw(task, KEY)
        found = defense.read(model, key)
        chosen = model.hidden.weight.detach().flatten()[key.tensor("positions")].abs()
        hits = len({*chosen.topk(24).indices.tolist()} & {*defense.ones(key).nonzero().flatten().tolist()})
        assert found.statistic == hits
        assert found.figures["wrong_positions"] == 2 * (24 - hits)
        assert found.log10_p == pytest.approx(math.log10(stats.hypergeom.sf(hits - 1, 407, 24, 24)), abs=1e-9)

    def test_all_ones_reach_the_capacity(self, task):
        for defense in (ConstantWeightCode(), ConstantWeightCode(length=5000), UncodedThreshold()):
            model = net("vgg8")
            key, _ = marked(defense, task, model)
            found = defense.verify(Suspect.of(model), key, None)
            assert found.log10_p == pytest.approx(defense.capacity(task), abs=1e-9)
            assert found.figures["bit_error"] == 0
        assert ConstantWeightCode().capacity(task) == pytest.approx(-math.log10(math.comb(407, 24)), abs=1e-9)

    @pytest.mark.parametrize("kind", ["constant", "emptied", "coarse"])
    @pytest.mark.parametrize("length", [0, 5000])
    def test_p_values_are_no_lies_whatever_the_ties(self, kind, length, task):
        """With sixteen bits and five thousand places all ones stand among the first of them."""
        defense = ConstantWeightCode(bits=16, length=length)
        model = net("vgg8", 3)
        with torch.no_grad():
            if kind == "constant":
                model.hidden.weight.fill_(0.1)
            elif kind == "emptied":
                model.hidden.weight[:, 3:] = 0.0
            elif kind == "coarse":
                model.hidden.weight.copy_((model.hidden.weight * 40).round())
        made = defense.draw(task, KEY)
        found = []
        for number in range(400):
            fresh = defense.draw(task, KEY.child("fresh", number))
            found.append(10 ** defense.read(model, made.redraw(fresh, defense.uniform)).log10_p)
        for level in (0.1, 0.03, 0.01):
            hits = sum(p <= level * (1 + 1e-12) for p in found)
            assert stats.binom.sf(hits - 1, len(found), level) > 1e-4, (level, hits)
        # The overlap itself has the mean of the distribution that it is said to have.
        places = defense.places
        overlaps = [defense.read(model, defense.draw(task, KEY.child("own", n))).statistic for n in range(200)]
        mean, deviation = 24 * 24 / places, stats.hypergeom(places, 24, 24).std() / math.sqrt(200)
        assert abs(np.mean(overlaps) - mean) < 4 * deviation + 1e-9

    def test_ties_by_position_would_be_evidence_of_nothing(self, task):
        defense, model = ConstantWeightCode(bits=16, length=5000), net("vgg8")
        torch.nn.init.constant_(model.hidden.weight, 0.1)
        key = defense.draw(task, KEY)
        assert defense.read(model, key).log10_p > -3
        by_place = dataclasses.replace(key, drawn={**key.drawn, "ties": torch.arange(5000).flip(0)})
        assert defense.read(model, by_place).log10_p < -30

    @pytest.mark.parametrize("defense", SCHEMES, ids=lambda d: d.label)
    def test_marked_weights_drawn_anew_give_no_claim(self, defense, protected):
        model, key = protected(defense)
        assert defense.read(model, key).figures["bit_error"] == 0
        for seed in range(20):
            renewed, chance = copy.deepcopy(model), torch.Generator().manual_seed(seed)
            for name, mask in defense.counted(key).items():
                weight = renewed.get_parameter(name).data
                rest = weight[~mask]
                weight[mask] = rest[torch.randint(len(rest), (int(mask.sum()),), generator=chance)]
            assert defense.read(renewed, key).log10_p > -4

    def test_what_is_no_message_is_none(self, task):
        defense = ConstantWeightCode(bits=8, weight=2, length=64)
        key = defense.draw(task, KEY)
        model = net("vgg8")
        project = dataclasses.replace(defense.projection(key), ones=torch.arange(64) >= 62)
        project(model)
        figures = defense.read(model, key).figures
        assert (figures["message_right"], figures["bit_error"]) == (0.0, 0.5)

    def test_wrong_bits_are_counted(self, task):
        defense = ConstantWeightCode(bits=16)
        model = net("vgg8")
        key, _ = marked(defense, task, model)
        message = key.tensor("message").clone()
        message[[2, 7, 11]] ^= 1
        other = dataclasses.replace(key, drawn={**key.drawn, "message": message})
        figures = defense.read(model, other).figures
        assert figures["bit_error"] == 3 / 16
        assert figures["message_right"] == 0 and figures["wrong_positions"] > 0

    @pytest.mark.parametrize("erased", range(5))
    def test_candidates_are_those_of_brute_force(self, erased, task):
        defense = ConstantWeightCode(bits=8, weight=4, length=12)
        key, project = marked(defense, task, net("vgg8"))
        ones = set(project.ones.nonzero().flatten().tolist())
        alive = sorted(ones)[erased:]
        model = net("vgg8")
        with torch.no_grad():
            model.hidden.weight.view(-1)[project.positions] = 0.0
            model.hidden.weight.view(-1)[project.positions[alive]] = torch.linspace(-1, -0.5, len(alive))
        figures = defense.read(model, key).figures
        words = [set(word) for word in itertools.combinations(range(12), 4) if set(alive) <= set(word)]
        assert figures["erased"] == erased
        assert figures["log2_candidates"] == pytest.approx(math.log2(len(words)))
        assert figures["message_among_candidates"] == float(ones in words) == 1.0
        if alive:
            stranger = next(t for t in range(12) if t not in ones)
            with torch.no_grad():
                model.hidden.weight.view(-1)[project.positions[alive[0]]] = 0.0
                model.hidden.weight.view(-1)[project.positions[stranger]] = 0.1
            assert defense.read(model, key).figures["message_among_candidates"] == 0.0


class TestWhere:
    def test_the_carrier_is_the_largest_linear_layer_beside_the_head(self):
        assert Carrier.of(net("lenet5"), ()).shapes == (("hidden", (500, 800)),)
        assert Carrier.of(net("vgg8"), ()).shapes == (("hidden", (128, 256)),)
        assert Carrier.of(net("resnet8"), ()).names == ("layer3.0.conv2",)
        two = Carrier.of(net("vgg8"), ("conv2", "hidden"))
        assert Carrier.parse(two.text) == two
        assert two.sizes == (9216, 32768)

    def test_positions_run_over_all_layers_and_masks_find_them_again(self, task):
        defense = ConstantWeightCode(layers=("conv5", "hidden"), length=2000)
        key, model = defense.draw(task, KEY), net("vgg8").to(memory_format=torch.channels_last)
        carrier, masks = Carrier.parse(key.text("carrier")), defense.counted(key)
        assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
            "conv5.weight": (64, 64, 3, 3), "hidden.weight": (128, 256)
        }  # fmt: skip
        assert all(mask.any() for mask in masks.values())
        values = torch.cat([model.get_parameter(name).detach()[mask] for name, mask in masks.items()])
        assert torch.equal(values.sort().values, carrier.read(model)[key.tensor("positions")].sort().values)
        assert len(set(key.tensor("positions").tolist())) == 2000
        doubled = carrier.read(model) * 2
        carrier.write(model, doubled)
        assert torch.equal(carrier.read(model), doubled)

    def test_positions_are_in_uniform_order_and_ties_another(self, task):
        key = ConstantWeightCode(length=5000).draw(task, KEY)
        positions, ties = key.tensor("positions").numpy(), key.tensor("ties").numpy()
        assert sorted(ties) == list(range(5000))
        assert abs(stats.spearmanr(positions, np.arange(5000)).statistic) < 0.06
        assert abs(stats.spearmanr(positions, ties).statistic) < 0.06
        assert stats.kstest(positions / 32768, "uniform").pvalue > 1e-3

    def test_it_says_why_not(self, task):
        assert "Did you mean" in ConstantWeightCode(layers=("hiden",)).applies_to(task)
        assert "BatchNorm2d" in ConstantWeightCode(layers=("norm1",)).applies_to(task)
        assert "407 weights are needed, conv1 has 288" in ConstantWeightCode(layers=("conv1",)).applies_to(task)
        assert "24 weights have to lie above the rate 0.9999, which leaves" in ConstantWeightCode(
            rate=0.9999
        ).applies_to(task)
        many = ConstantWeightCode(pool="layer", rate=0.1, length=10_000)
        assert "more than 10000 weights have to lie below the rate 0.1, there are 3277" in many.applies_to(task)
        assert ConstantWeightCode(pool="layer", rate=0.999).applies_to(task) is None

    def test_parameters_are_checked(self):
        for wrong, told in [
            ({"weight": 0}, "1 <= weight <= length"),
            ({"length": 406}, "at least 407 for 128 bits"),
            ({"length": 20}, "1 <= weight <= length"),
            ({"rate": 1.0}, r"rate and margin in \(0, 1\)"),
            ({"margin": 0.0}, r"rate and margin in \(0, 1\)"),
            ({"bits": 0}, "bits >= 1"),
            ({"every": -1}, "every >= 0"),
            ({"layers": ("hidden", "hidden")}, "each layer once"),
        ]:
            with pytest.raises(ValueError, match=told):
                ConstantWeightCode(**wrong)
        assert ConstantWeightCode().places == smallest_length(128, 24) == 407
        assert ConstantWeightCode(length=9999).places == 9999

    def test_other_shapes_are_told(self, task):
        for defense in (ConstantWeightCode(), UncodedThreshold()):
            key, _ = marked(defense, task, net("vgg8"))
            found = defense.read(net("lenet5"), key)
            assert (found.log10_p, found.reason) == (
                0.0,
                "expected weights of shape (128, 256) in 'hidden', got (500, 800)",
            )
            assert "no layer 'hidden'" in defense.read(net("resnet8"), key).reason
