"""The iterations by ADMM, the training afterwards, the snapping to levels, and the attacks made of them."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from torch import nn

import models
from attacks.admm.compression import zeros_of
from attacks.admm.core import Schedule, admm, project
from attacks.admm.projections import Grid, groups_of, largest
from attacks.admm.snapping import closest, snap, trainings
from attacks.admm_prune import AdmmPrune, AdmmStructured
from attacks.admm_quantize import AdmmPruneQuantize, AdmmQuantize
from attacks.magnitude_prune import MagnitudePrune
from bench import training as loop
from bench.hooks import Hooks
from bench.suspect import Target, predict

SHORT = {"iterations": 2, "epochs": 1}


@pytest.fixture(scope="module")
def fresh(task):
    torch.manual_seed(3)
    return models.build(task.model, task.classes, task.shape)


def line(values):
    """A net of one row of weights, in double precision."""
    model = nn.Linear(len(values), 1, bias=False).double()
    model.weight.data = torch.as_tensor(values).double().view(1, -1)
    return model


def exactly(objective):
    """A training that finds the minimum of a quadratic objective and what the hooks add, by one Newton step."""

    def minimise(model, hooks):
        loss = objective(model.weight.flatten()) + hooks.loss_term(model)
        (slope,) = torch.autograd.grad(loss, model.weight, create_graph=True)
        rows = [torch.autograd.grad(one, model.weight, retain_graph=True)[0].flatten() for one in slope.flatten()]
        model.weight.data -= torch.linalg.solve(torch.stack(rows), slope.detach().flatten()).view(1, -1)

    return minimise


@given(seed=st.integers(0, 99), growth=st.sampled_from([1.0, 1.02]))
@settings(max_examples=10)
def test_a_convex_quadratic_in_a_box_comes_to_its_minimum(seed, growth):
    chance = np.random.default_rng(seed)
    a, b = chance.standard_normal((40, 4)) / 40**0.5, 3 * chance.standard_normal(40)
    matrix, wanted = torch.from_numpy(a), torch.from_numpy(b)
    model = line(chance.standard_normal(4))
    box = {"weight": lambda weight: weight.clamp(-0.5, 0.5)}
    course = admm(model, box, exactly(lambda w: (matrix @ w - wanted).square().sum() / 2), Schedule(60, 1.0, growth))
    known = lsq_linear(a, b, bounds=(-0.5, 0.5), tol=1e-12).x
    np.testing.assert_allclose(model.weight.detach().numpy().ravel(), known, atol=1e-4)
    assert course.residuals[-1]["weight"] < 1e-4


def test_a_round_quadratic_with_few_weights_keeps_the_largest():
    centre = torch.tensor([0.3, -2.0, 1.1, 0.2, -1.4]).double()
    model = line([0.0] * 5)
    sparse = {"weight": lambda weight: largest(weight, groups_of(weight.shape, "weight"), 2)}
    admm(model, sparse, exactly(lambda w: (w - centre).square().sum() / 2), Schedule(60, 0.2, 1.1))
    torch.testing.assert_close(
        model.weight.detach()[0], torch.tensor([0.0, -2.0, 0.0, 0.0, -1.4]).double(), atol=1e-4, rtol=0
    )


def test_penalty_rho_and_residual_are_those_of_the_scaled_form():
    chance = torch.Generator().manual_seed(1)
    model = line(torch.randn(6, generator=chance))
    rule = Grid(0.5, 2)
    seen = []

    def minimise(one, hooks):
        seen.append((hooks.loss_term(one).item(), one.weight.detach().clone()))
        one.weight.data += 0.3 * torch.randn(1, 6, generator=chance)
        seen[-1] += (one.weight.detach().clone(),)

    course = admm(model, {"weight": rule}, minimise, Schedule(4, 0.1, 1.5))
    assert course.rhos == pytest.approx((0.1, 0.15, 0.225, 0.3375))
    z, u = rule(seen[0][1]), torch.zeros(1, 6).double()
    for rho, (penalty, before, after), residual in zip(course.rhos, seen, course.residuals, strict=True):
        assert penalty == pytest.approx(float(rho / 2 * (before - z + u).norm() ** 2))
        z = rule(after + u)
        u = (u + after - z) / 1.5
        assert residual["weight"] == pytest.approx(float((after - z).norm() / after.norm()))
    assert torch.equal(model.weight.detach(), rule(seen[-1][2]))


def test_a_projection_that_gives_back_its_argument_leaves_z_where_it_was():
    model, seen = line([1.0, 2.0]), []

    def minimise(one, hooks):
        one.weight.data += 1.0
        seen.append(hooks.loss_term(one).item())

    admm(model, {"weight": lambda weight: weight}, minimise, Schedule(1, 2.0))
    assert seen == [2.0]


@pytest.mark.parametrize("wrong", [(0, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, 0.9), (1, float("nan"), 1.0)])
def test_a_schedule_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="iterations >= 1"):
        Schedule(*wrong)


@pytest.fixture
def steps(monkeypatch):
    """Of each step its optimiser, learning rate and what `watch` says of the model after it."""
    taken, watch = [], []
    step = loop._Step.__call__

    def recorded(self, x, y):
        step(self, x, y)
        taken.append((self.optimizer, self.optimizer.param_groups[0]["lr"]))
        for one in watch:
            one(self.model)

    monkeypatch.setattr(loop._Step, "__call__", recorded)
    return taken, watch


def test_each_iteration_begins_with_its_own_optimiser_and_rate(fresh, attacker_for, steps):
    taken, _ = steps
    attack = AdmmPrune(fractions=(0.9,), iterations=3, epochs=2, retrain_epochs=0, learning_rate=0.04)
    target = Target(fresh, "white-box")
    list(attack.run(target, attacker_for(attack, target)))
    optimizers = list(dict.fromkeys(id(one) for one, _ in taken))
    rates = [[rate for one, rate in taken if id(one) == each] for each in optimizers]
    assert len(rates) == 3 and len(rates[0]) == 2 * (100 // 32)
    assert rates[0] == rates[1] == rates[2]
    assert max(rates[0]) <= 0.04 and rates[0][-1] < rates[0][2]


def test_the_residual_falls_and_the_net_outlives_the_cut(full_clean, attacker_for, parts):
    attack = AdmmPrune(fractions=(0.95,), retrain_epochs=0)
    target = Target(full_clean, "white-box")
    trainer = attacker_for(attack, target)
    unlabelled = parts.attacker.skip(parts.labelled)

    def accuracy(model):
        return float((predict(model, unlabelled.x).argmax(1) == unlabelled.y).float().mean())

    model = target.copy()
    ((strength, projections),) = attack.plans(model, trainer.task)
    pruned, _ = list(attack.pruned(model, projections, trainer))
    worst = [max(one.values()) for one in pruned.course.residuals]
    assert worst[-1] < worst[0] / 3 and worst[-1] < 0.25
    once = MagnitudePrune(fractions=(0.95,))
    ((_, cut),) = once.run(target, attacker_for(once, target))
    count = sum(int((model.get_parameter(name) != 0).sum()) for name in projections)
    assert count == sum(int((cut.get_parameter(name) != 0).sum()) for name in projections)
    assert strength == 0.95
    assert accuracy(model.eval()) > accuracy(cut.eval()) + 0.5


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_masks_hold_after_every_step_to_the_last_weight(fresh, attacker_for, optimizer):
    attack = AdmmPrune()
    model, trainer = copy.deepcopy(fresh), attacker_for(attack)
    chance = torch.Generator().manual_seed(2)
    masks = {
        f"{name}.weight": (torch.rand(weight.shape, generator=chance) < 0.1).float()
        for name, weight in models.weights_of(model).items()
    }
    held = []

    def look(one, step):
        held.append(all(not one.get_parameter(name)[mask == 0].any() for name, mask in masks.items()))

    recipe = trainer.recipe(epochs=2, optimizer=optimizer, learning_rate=0.01)
    trainer.fit(model, trainer.labelled, recipe, hooks=Hooks(after_step=look), masks=masks)
    assert len(held) == 6 and all(held)
    assert all(bool(model.get_parameter(name)[mask == 1].all()) for name, mask in masks.items())


@pytest.mark.parametrize("attack", [
    AdmmPrune(fractions=(0.9, 0.97), retrain_epochs=2, **SHORT),
    AdmmPrune(fractions=(0.5,), scope="layer", retrain_epochs=1, **SHORT),
    AdmmPrune(rates=(0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.95, 0.3), retrain_epochs=1, **SHORT),
    AdmmStructured(fractions=(0.5,), retrain_epochs=2, **SHORT),
    AdmmStructured(fractions=(0.5,), group="column", retrain_epochs=2, **SHORT),
    AdmmStructured(fractions=(0.5,), group="channel", scope="layer", retrain_epochs=2, **SHORT),
], ids=lambda attack: attack.label)  # fmt: skip
def test_surrogates_have_the_zeros_that_their_strength_says(attack, fresh, task, attacker_for):
    assert attack.applies_to(task) is None
    target = Target(fresh, "white-box")
    made = [(strength, copy.deepcopy(model)) for strength, model in attack.run(target, attacker_for(attack, target))]
    assert len(made) == attack.surrogates()
    for (strength, model), (planned, projections) in zip(made, attack.plans(fresh, task), strict=True):
        assert strength == planned
        zeros = {name: int((model.get_parameter(name) == 0).sum()) for name in projections}
        assert zeros == {n: int((one(fresh.get_parameter(n).detach()) == 0).sum()) for n, one in projections.items()}
        for name in projections:
            mask, weight = (model.get_parameter(name) == 0), model.get_parameter(name).detach()
            groups = groups_of(weight.shape, attack.whole)
            whole = torch.zeros(int(groups.max()) + 1).index_add_(0, groups.flatten(), mask.float().flatten())
            assert set(whole.tolist()) <= {0.0, float((groups == 0).sum())}
        if attack.whole == "weight":
            share = sum(zeros.values()) / sum(fresh.get_parameter(name).numel() for name in zeros)
            assert share == pytest.approx(strength, abs=1e-4)


@given(data=st.data(), count=st.integers(1, 3), share=st.sampled_from([0.3, 0.5, 1.0]))
def test_of_each_level_the_nearest_free_weights_are_chosen(data, count, share):
    size = data.draw(st.integers(1, 15))
    weight = torch.tensor(data.draw(st.lists(st.integers(-9, 9), min_size=size, max_size=size))) / 4
    free = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    grid = Grid(0.5, count)
    chosen = closest(weight, grid, free, share)
    assert not (chosen & ~free).any()
    levels, distance = grid.nearest(weight), (weight - grid.nearest(weight)).abs()
    for level in grid.levels:
        of = free & (levels == level)
        assert int((chosen & of).sum()) == -int(-(share * int(of.sum()) - 1e-9) // 1)
        if (chosen & of).any() and (of & ~chosen).any():
            assert distance[chosen & of].max() <= distance[of & ~chosen].min()


@given(count=st.integers(0, 200), share=st.sampled_from([0.3, 0.7, 1.0]))
def test_snapping_never_trains_more_often_than_is_declared(count, share):
    model, chance = line(torch.linspace(-1, 1, max(1, count))), torch.Generator().manual_seed(count)

    def minimise(one, hooks):
        one.weight.data += 0.1 * torch.randn(one.weight.shape, generator=chance).double()
        hooks.after_step(one, 0)

    grid = Grid.fitted(model.weight, 3)
    assert snap(model, {"weight": grid}, minimise, share) <= trainings(max(1, count), share)
    levels = torch.cat([grid.levels.double(), torch.zeros(1).double()])
    assert bool(torch.isin(model.weight.detach(), levels).all())


def test_what_is_fixed_never_moves_again(fresh, attacker_for, steps):
    _, watch = steps
    attack = AdmmQuantize(bits=(2,), snapped=0.6, **SHORT)
    model, trainer = copy.deepcopy(fresh), attacker_for(attack)
    counts, name = attack.counts(model, 2), "conv3.weight"
    grid = Grid.fitted(model.get_parameter(name), counts[name])
    phases = attack.quantized(model, counts, trainer)
    assert next(phases).name == "quantize"
    on, history = [], []

    def look(one):
        weight = one.get_parameter(name).detach()
        history.append(weight.clone())
        on.append(torch.isin(weight, grid.levels))

    watch.append(look)
    assert next(phases).epochs > 1
    for before, after, levels in zip(history, history[1:], on, strict=False):
        assert torch.equal(before[levels], after[levels])
    assert on[0].float().mean() < on[-1].float().mean()


@pytest.mark.parametrize("attack", [
    AdmmQuantize(bits=(3, 1), snapped=0.8, **SHORT),
    AdmmQuantize(levels=(7, 6, 5, 4, 3, 2, 1, 3), snapped=0.8, **SHORT),
], ids=lambda attack: attack.label)  # fmt: skip
def test_weights_take_the_stated_levels_only(attack, fresh, attacker_for):
    target = Target(fresh, "white-box")
    made = [(strength, copy.deepcopy(model)) for strength, model in attack.run(target, attacker_for(attack, target))]
    sizes = [weight.numel() for weight in models.weights_of(fresh).values()]
    mean = np.average(np.log2(2 * np.array(attack.levels or sizes)), weights=sizes)
    assert [strength for strength, _ in made] == (pytest.approx([mean]) if attack.levels else [3, 1])
    for strength, model in made:
        counts = attack.counts(model, None if attack.levels else int(strength))
        assert list(counts.values()) == list(attack.levels or [2 ** (int(strength) - 1)] * 8)
        for name, count in counts.items():
            levels = Grid.fitted(fresh.get_parameter(name), count).levels
            assert torch.isin(model.get_parameter(name), levels).all()
        assert not torch.equal(model.hidden.bias, fresh.hidden.bias)


def test_pruned_weights_stay_zero_and_the_others_take_levels(fresh, task, attacker_for):
    attack = AdmmPruneQuantize(fractions=(0.9,), bits=2, snapped=0.8, retrain_epochs=1, **SHORT)
    model, trainer = copy.deepcopy(fresh), attacker_for(attack)
    ((_, projections),) = attack.plans(model, task)
    masks, levels = {}, {}
    for phase in attack.compressed(model, projections, trainer):
        masks[phase.name] = zeros_of(model, projections)
        if phase.name == "retrain":
            levels = {name: Grid.fitted(model.get_parameter(name), 2).levels for name in projections}
    assert list(masks) == ["prune", "retrain", "quantize", "snap"]
    for name, mask in masks["prune"].items():
        assert all(torch.equal(mask, later[name]) for later in masks.values())
        assert torch.isin(model.get_parameter(name)[mask == 1], levels[name]).all()
    total = sum(mask.numel() for mask in masks["prune"].values())
    assert sum(int(mask.sum()) for mask in masks["prune"].values()) == total - round(0.9 * total)
    ((strength, same),) = attack.run(Target(fresh, "white-box"), attacker_for(attack))
    assert strength == 0.9
    assert all(torch.equal(same.get_parameter(name), model.get_parameter(name)) for name in levels)


def test_projecting_replaces_the_named_weights_alone(fresh):
    model = copy.deepcopy(fresh)
    project(model, {"head.weight": lambda weight: weight.sign()})
    assert model.head.weight.abs().eq(1).all()
    others = [name for name, _ in model.named_parameters() if name != "head.weight"]
    assert all(torch.equal(model.get_parameter(name), fresh.get_parameter(name)) for name in others)


def test_rates_and_levels_for_another_number_of_layers_do_not_apply(task):
    assert "needs 2 layers to prune, one for each rate; vgg8 has 8" in AdmmPrune(rates=(0.5, 0.5)).applies_to(task)
    assert "vgg8 has 7" in AdmmStructured(rates=(0.5,) * 8).applies_to(task)
    assert "one for each number of levels" in AdmmQuantize(levels=(3, 3)).applies_to(task)
    assert "one for each number of levels" in AdmmPruneQuantize(levels=(3, 3)).applies_to(task)


@pytest.mark.parametrize(("cls", "wrong", "word"), [
    (AdmmPrune, {"fractions": (1.0,)}, "fractions"),
    (AdmmPrune, {"rates": (-0.1,)}, "rates"),
    (AdmmPrune, {"fractions": ()}, "fractions or rates"),
    (AdmmPrune, {"epochs": 0}, "epochs"),
    (AdmmPrune, {"retrain_epochs": -1}, "epochs"),
    (AdmmPrune, {"rho": 0.0}, "rho"),
    (AdmmQuantize, {"bits": (0,)}, "bits"),
    (AdmmQuantize, {"bits": ()}, "bits or levels"),
    (AdmmQuantize, {"levels": (0,)}, "levels"),
    (AdmmPruneQuantize, {"bits": 0}, "bits"),
    (AdmmPruneQuantize, {"snapped": 0.0}, "snapped"),
    (AdmmPruneQuantize, {"snap_epochs": 0}, "snap_epochs"),
])  # fmt: skip
def test_parameters_that_mean_nothing_are_refused(cls, wrong, word):
    with pytest.raises(ValueError, match=word):
        cls(**wrong)
