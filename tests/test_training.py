import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.augmentation import Augmentation
from bench.hooks import Hooks
from bench.recipe import Recipe
from bench.stream import Stream
from bench.suspect import predict
from bench.training import training

STREAM = Stream(("training",))


def augmented(x, recipe):
    return Augmentation.draw(recipe, len(x), STREAM.torch(), x.device)(x)


def trained(owner, recipe=None, **options):
    model = owner.new_model()
    for _ in training(model, owner.train, recipe or owner.recipe(epochs=1), STREAM, **options):
        pass
    return model


def test_a_step_is_that_of_plain_pytorch(owner):
    """One step of the loop against the same step written out by hand."""
    recipe = Recipe(epochs=1, batch_size=800, schedule="constant", label_smoothing=0.1)
    model, by_hand = trained(owner, recipe), owner.new_model()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    order = torch.randperm(800, generator=STREAM.child("order").torch())
    F.cross_entropy(by_hand(owner.train.x[order]), owner.train.y[order], label_smoothing=0.1).backward()
    optimizer.step()
    for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_same_stream_gives_the_same_bits_and_another_does_not(owner):
    first, second = trained(owner).state_dict(), trained(owner).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = owner.new_model()
    for _ in training(other, owner.train, owner.recipe(epochs=1), STREAM.child("other")):
        pass
    assert not torch.equal(other.head.weight, first["head.weight"])


def test_frozen_layers_keep_weights_and_statistics(owner):
    before = {name: value.clone() for name, value in owner.new_model().state_dict().items()}
    after = trained(owner, trainable=["head"]).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_masks_hold_after_every_step(owner):
    mask = (torch.rand(64, 32, 3, 3, generator=STREAM.torch()) < 0.3).float()
    zeros = []

    def check(model, step):
        zeros.append(bool((model.conv3.weight[mask == 0] == 0).all()))

    model = trained(owner, masks={"conv3.weight": mask}, hooks=Hooks(after_step=check))
    assert zeros == [True] * 25
    assert (model.conv3.weight[mask == 1] != 0).all()


def test_hooks_are_called_and_joined(owner):
    seen = []
    first = Hooks(
        loss_term=lambda model: model.head.bias.sum() * 0 + 1,
        extra_inputs=lambda step: (owner.train.x[:2], owner.train.y[:2]),
        after_epoch=lambda model, epoch: seen.append(("first", epoch)),
    )
    second = Hooks(
        loss_term=lambda model: model.head.bias.sum() * 0 + 2,
        extra_inputs=lambda step: (owner.train.x[2:5], owner.train.y[2:5]),
        after_epoch=lambda model, epoch: seen.append(("second", epoch)),
    )
    both = first & second
    assert both.loss_term(owner.new_model()).item() == 3
    assert torch.equal(both.extra_inputs(0)[0], owner.train.x[:5])
    trained(owner, hooks=both)
    assert seen == [("first", 1), ("second", 1)]
    objective = Hooks(objective=lambda model, x, y: model(x).sum())
    with pytest.raises(ValueError, match="one objective"):
        objective & objective


def test_an_objective_replaces_the_loss(owner):
    model = owner.new_model()
    start = predict(model, owner.train.x)[:, 0].mean()
    push = Hooks(objective=lambda m, x, y: -m(x)[:, 0].mean())
    for _ in training(model, owner.train, owner.recipe(epochs=1, learning_rate=0.01), STREAM, hooks=push):
        pass
    assert predict(model, owner.train.x)[:, 0].mean() > start + 1


def test_a_set_smaller_than_a_batch_is_one_batch(owner):
    model, steps = owner.new_model(), []
    hooks = Hooks(after_step=lambda m, step: steps.append(step))
    for _ in training(model, owner.train.take(7), owner.recipe(epochs=3), STREAM, hooks=hooks):
        pass
    assert steps == [0, 1, 2]


@pytest.mark.parametrize(("every", "stops"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_stops_come_every_so_many_epochs_and_at_the_end(owner, every, stops):
    done = []
    hooks = Hooks(after_epoch=lambda model, epoch: done.append(epoch))
    small = owner.train.take(7), owner.recipe(epochs=5), STREAM
    assert list(training(owner.new_model(), *small, hooks=hooks, every=every)) == stops
    assert done == [1, 2, 3, 4, 5]


def test_bad_input_is_refused(owner):
    with pytest.raises(ValueError, match="at least one"):
        next(training(owner.new_model(), owner.train.take(0), Recipe(), STREAM))
    with pytest.raises(ValueError, match="'haed'"):
        next(training(owner.new_model(), owner.train, Recipe(), STREAM, trainable=["haed"]))


@given(st.integers(1, 200), st.sampled_from(["one-cycle", "cosine", "step", "constant"]))
def test_schedules_stay_between_zero_and_the_peak(steps, schedule):
    recipe = Recipe(schedule=schedule)
    rates = [recipe.rate(step, steps) for step in range(steps)]
    assert all(0 <= rate <= recipe.learning_rate for rate in rates)
    if schedule == "one-cycle" and steps >= 20:
        peak = max(range(steps), key=rates.__getitem__)
        assert abs(peak / steps - recipe.warmup) < 0.1
        assert rates[-1] < 0.1 * recipe.learning_rate


def test_the_step_schedule_divides_by_ten_at_each_milestone():
    recipe = Recipe(schedule="step", learning_rate=1.0, milestones=(0.5, 0.75))
    assert [round(recipe.rate(step, 8), 6) for step in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]


def test_shifts_move_each_input_by_at_most_one_pixel():
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    y = augmented(x, Recipe(shift=1))
    padded = F.pad(x[:1], (1, 1, 1, 1), mode="replicate")[0, 0]
    allowed = {(i, j): padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)}
    seen = set()
    for one in y[:, 0]:
        matches = [at for at, window in allowed.items() if torch.equal(one, window)]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 9


def test_flips_mirror_about_half():
    x = torch.arange(8.0).view(1, 1, 1, 8).expand(1000, 1, 1, 8)
    y = augmented(x, Recipe(flip=True))
    mirrored = (y[:, 0, 0, 0] == 7).sum().item()
    assert 400 < mirrored < 600
    assert ((y == x).all(3) | (y == x.flip(3)).all(3)).all()


def test_points_are_not_augmented_as_images():
    x = torch.rand(4, 3, 100)
    assert augmented(x, Recipe(shift=1, flip=True)) is x


def test_convolutions_are_as_they_were_laid_out_once_training_ends(owner):
    model = trained(owner)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    running = training(model, owner.train, owner.recipe(epochs=2), STREAM)
    next(running)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    running.close()
    assert model.conv2.weight.is_contiguous()


@pytest.mark.parametrize("change", [{"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}])
def test_recipes_are_checked(change):
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(Recipe(), **change)


# Clouds of points


CLOUDS = torch.randn(400, 3, 32, generator=STREAM.child("clouds").torch())


def changed(x, recipe):
    return Augmentation.draw(recipe, len(x), STREAM.torch(), x.device, x.shape[1:])(x)


def test_points_and_images_ignore_each_others_changes():
    images = torch.randn(40, 1, 8, 8, generator=STREAM.torch())
    for_points = Recipe(rotate=True, rescale=0.2, offset=0.1, jitter=0.1, drop=0.5)
    assert torch.equal(changed(images, for_points), images)
    assert torch.equal(augmented(images, dataclasses.replace(for_points, shift=1)), augmented(images, Recipe(shift=1)))
    assert torch.equal(changed(CLOUDS, Recipe(shift=3, flip=True)), CLOUDS)


def test_rotations_keep_distances_and_turn_every_way():
    turned = changed(CLOUDS, Recipe(rotate=True))
    for cloud, before in zip(turned.mT, CLOUDS.mT, strict=True):
        torch.testing.assert_close(torch.pdist(cloud), torch.pdist(before))
    turns = Augmentation.draw(Recipe(rotate=True), 4000, STREAM.torch(), CLOUDS.device, (3, 32)).turns
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(4000))
    # Every entry of a uniform rotation is uniform in [-1, 1], also where several of them meet.
    for entry in (turns[:, 0, 0], turns[:, 1, 2], turns[:, 2, 0], turns[:, 0, 1], turns[:, 2, 2]):
        assert stats.kstest(entry.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    angle = torch.arccos(((turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert stats.kstest(angle.numpy(), lambda t: (t - np.sin(t)) / np.pi).pvalue > 1e-3


def test_scales_offsets_and_jitter_have_their_ranges():
    scaled = changed(CLOUDS, Recipe(rescale=0.25)) / CLOUDS
    factor = scaled.flatten(1).median(1).values
    torch.testing.assert_close(scaled, factor[:, None, None].expand_as(scaled), rtol=1e-4, atol=1e-5)
    assert stats.kstest(factor.numpy(), "uniform", args=(0.8, 0.45)).pvalue > 1e-3
    moved = changed(CLOUDS, Recipe(offset=0.5)) - CLOUDS
    torch.testing.assert_close(moved, moved[:, :, :1].expand_as(moved), rtol=0, atol=1e-5)
    assert stats.kstest(moved[:, :, 0].flatten().numpy(), "uniform", args=(-0.5, 1)).pvalue > 1e-3
    shaken = changed(CLOUDS, Recipe(jitter=0.1)) - CLOUDS
    assert stats.kstest(shaken.flatten()[::7].numpy(), stats.norm(0, 0.1).cdf).pvalue > 1e-3


def test_dropped_points_become_the_first_one():
    dropped = changed(CLOUDS, Recipe(drop=0.8))
    gone = (dropped != CLOUDS).any(1)
    assert torch.equal(dropped, torch.where(gone[:, None], CLOUDS[:, :, :1], CLOUDS))
    share = gone[:, 1:].float().mean(1)
    assert 0.35 < share.mean() < 0.45 and share.max() > 0.7 and share.min() < 0.1


def test_a_batch_takes_the_choices_of_its_clouds():
    recipe = Recipe(rotate=True, rescale=0.2, offset=0.1, jitter=0.1, drop=0.5)
    chosen = Augmentation.draw(recipe, 400, STREAM.torch(), CLOUDS.device, (3, 32))
    parted = torch.cat([chosen(CLOUDS[start : start + 80], start) for start in range(0, 400, 80)])
    torch.testing.assert_close(parted, chosen(CLOUDS))


@pytest.mark.parametrize("wrong", [{"rescale": -1.0}, {"offset": -0.1}, {"jitter": -0.1}, {"drop": 1.5}])
def test_changes_of_points_are_checked(wrong):
    with pytest.raises(ValueError, match="expected rescale, offset, jitter >= 0 and drop in"):
        Recipe(**wrong)
