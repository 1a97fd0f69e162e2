"""Trigger sets of inputs that are no noise: solids of other classes, and training inputs with a wrong label."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from bench import data, solids
from bench.key import Key
from bench.planning import cells, suite
from bench.split import Split
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Sizes, Task
from bench.trainer import OwnerTrainer
from defenses.trigger_set import TriggerSet
from defenses.triggers.answers import TRUE, targets
from defenses.triggers.kinds import pasted

KEY = Stream(("key",))
RELABELLED = TriggerSet(inputs="relabelled")


@pytest.fixture(scope="module")
def points():
    info = data.info("shapes")
    return Task(info, info.model, dataclasses.replace(info.recipe, epochs=1), Sizes(200, 20, 60, 40, 20))


def chosen_by(defense, trainer, key):
    """The training data and the key's triggers as protecting takes them, without training."""
    return defense.chosen(trainer, key)


def test_noise_is_drawn_as_ever(task, monkeypatch):
    key = TriggerSet().draw(task, KEY)
    assert torch.equal(key.tensor("inputs"), task.noise(64, KEY.child("inputs")))
    labels = KEY.child("labels").numpy().integers(0, 10, 64)
    assert torch.equal(key.tensor("labels"), torch.from_numpy(labels))
    assert set(key.drawn) == {"inputs", "labels"}


def test_noise_of_points_fills_the_cube(points):
    noise = points.noise(200, KEY) * 0.33
    assert noise.shape == (200, *points.shape)
    assert stats.kstest(noise.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_unrelated_triggers_are_strange_solids_in_turn(points):
    drawn = TriggerSet(inputs="unrelated", triggers=9).draw(points, KEY)
    chance = KEY.child("inputs").numpy()
    for number, given_ in enumerate(drawn.tensor("inputs")):
        expected = solids.cloud(solids.STRANGE[number % 6], points.shape[1], chance).T
        torch.testing.assert_close(given_ * 0.33, torch.from_numpy(expected).float())
    assert not set(solids.STRANGE) & set(solids.COMMON)
    other = TriggerSet(inputs="unrelated", triggers=9).draw(points, Stream(("other",)))
    assert not torch.equal(other.tensor("inputs"), drawn.tensor("inputs"))


def test_what_does_not_fit_a_task_says_why(task, points):
    assert TriggerSet(inputs="unrelated").applies_to(points) is None
    assert "images" in TriggerSet(inputs="unrelated").applies_to(task)
    assert TriggerSet(inputs="unrelated", images="somewhere").applies_to(task) is None
    assert "task on images" in TriggerSet(images="somewhere").applies_to(points)
    assert TriggerSet(inputs="relabelled").applies_to(points) is None
    assert "half of 200" in TriggerSet(inputs="relabelled", triggers=101).applies_to(points)
    two = dataclasses.replace(task, info=dataclasses.replace(task.info, classes=2))
    assert "three classes" in TriggerSet(inputs="relabelled").applies_to(two)
    with pytest.raises(ValueError, match="no images with relabelled"):
        TriggerSet(inputs="relabelled", images="somewhere")


def test_relabelled_labels_are_uniform_over_the_wrong_ones_and_never_the_true_one(task):
    many = dataclasses.replace(RELABELLED, triggers=9000)
    for name in ("a", "b"):
        key = many.draw(task, Stream((name,)))
        true = torch.arange(9000) % 10
        wrong = targets(key.complete(true=true), task)
        assert not (wrong == true).any()
        for label in range(10):
            counted = np.bincount(wrong[true == label].numpy(), minlength=10)
            assert counted[label] == 0
            assert stats.chisquare(np.delete(counted, label)).pvalue > 1e-4


def test_relabelled_triggers_leave_the_training_data_and_nothing_else_does(task, parts, owner):
    key = RELABELLED.draw(task, KEY)
    assert sorted(key.tensor("order").tolist()) == list(range(800))
    rest, completed = chosen_by(RELABELLED, owner, key)
    taken = completed.tensor("inputs")
    assert (len(rest), len(taken)) == (736, 64)
    order = key.tensor("order")
    assert torch.equal(taken, parts.train.x[order[:64]])
    assert torch.equal(completed.tensor("true"), parts.train.y[order[:64]])
    left = sorted(set(range(800)) - set(order[:64].tolist()))
    assert torch.equal(rest.x, parts.train.x[left]) and torch.equal(rest.y, parts.train.y[left])


def test_training_sees_the_wrong_labels_and_the_key_keeps_the_draw(task, owner, monkeypatch):
    seen = {}

    def fit(model, data, recipe=None, *, hooks, **_):
        seen.update(data=data, batch=hooks.extra_inputs(1))
        return model

    monkeypatch.setattr(owner, "fit", fit)
    key = RELABELLED.draw(task, KEY)
    made = RELABELLED.protect(owner, key)
    assert len(seen["data"]) == 736
    inputs, labels = seen["batch"]
    assert torch.equal(inputs, made.key.tensor("inputs")[8:16])
    assert torch.equal(labels, (made.key.tensor("true") + key.tensor("labels"))[8:16] % 10)
    assert made.key.drawn is key.drawn


@pytest.mark.parametrize("count", [5, 40, 127, 128])
def test_who_has_little_data_relabels_at_most_half_of_it(task, parts, count):
    trainer = OwnerTrainer(task, parts.train.take(count), parts.heldout, KEY)
    rest, completed = chosen_by(RELABELLED, trainer, RELABELLED.draw(task, KEY))
    taken = len(completed.tensor("inputs"))
    assert taken == min(64, count // 2)
    assert len(rest) + taken == count
    # Evidence is over those that there are.
    suspect = Suspect(lambda x: torch.nn.functional.one_hot(targets(completed, task), 10).float(), None, "black-box")
    found = RELABELLED.verify(suspect, completed, trainer)
    assert found.log10_p == pytest.approx(-taken * math.log10(9))


@given(st.lists(st.integers(0, 9), min_size=12, max_size=12), st.integers(0, 2**30), st.integers(3, 10))
def test_p_values_of_relabelled_triggers_are_conservative_for_any_answers(answers, seed, classes):
    """Exactly: the number of right answers under fresh labels against the binomial that is claimed."""
    true = np.random.default_rng(seed).integers(0, classes, 12)
    wrong = int((np.array(answers) % classes != true).sum())
    for right in range(13):
        claimed = stats.binom.sf(right - 1, 12, 1 / (classes - 1))
        assert stats.binom.sf(right - 1, wrong, 1 / (classes - 1)) <= claimed + 1e-12


def test_p_values_on_independent_nets_are_conservative(task, parts):
    """Nets that were trained without the key: 1,200 fresh draws on three nets, and the owner's own key on each."""
    trainer = OwnerTrainer(task, parts.train, parts.heldout, KEY)
    _, completed = chosen_by(RELABELLED, trainer, RELABELLED.draw(task, KEY))
    values = []
    for seed in range(3):
        # The half of the data that nobody marked; one of the nets stays untrained.
        net = OwnerTrainer(task, parts.heldout, parts.heldout, Stream((str(seed), "other")))
        model = net.fit(net.new_model(), parts.heldout) if seed else net.new_model()
        suspect = Suspect.of(model.eval())
        assert RELABELLED.verify(suspect, completed, trainer).log10_p > -3
        for draw in range(400):
            fresh = RELABELLED.draw(task, Stream((str(seed), str(draw)))).with_facts_of(completed)
            values.append(RELABELLED.verify(suspect, fresh, trainer).log10_p)
    for share in (0.1, 0.01):
        bound = stats.binom.ppf(0.999, len(values), share)
        assert (np.array(values) <= math.log10(share)).sum() <= bound


def test_a_decoy_reads_the_owners_inputs_with_its_own_labels(task, parts, owner):
    _, completed = chosen_by(RELABELLED, owner, RELABELLED.draw(task, KEY))
    decoy = RELABELLED.draw(task, Stream(("decoy",))).with_facts_of(completed)
    assert torch.equal(decoy.tensor("inputs"), completed.tensor("inputs"))
    steps = (targets(decoy, task) - targets(completed, task)) % 10
    assert torch.equal(steps, (decoy.tensor("labels") - completed.tensor("labels")) % 10)


@pytest.mark.parametrize("inputs", ["unrelated", "relabelled"])
def test_triggers_are_learnt_on_points(points, inputs):
    found = data.whole(points)
    recipe = dataclasses.replace(points.recipe, epochs=15, batch_size=8, rotate=False)
    trainer = OwnerTrainer(dataclasses.replace(points, recipe=recipe), found.train.take(48), found.heldout, KEY)
    defense = TriggerSet(inputs=inputs, triggers=8)
    key = defense.draw(points, KEY)
    fresh = OwnerTrainer(points, found.train, found.heldout, KEY).new_model().eval()
    facts = chosen_by(defense, trainer, key)[1]
    before = defense.verify(Suspect.of(fresh), facts, trainer).log10_p
    made = defense.protect(trainer, key)
    after = defense.verify(Suspect.of(made.model.eval()), made.key, trainer).log10_p
    assert after < min(before, -3)


def test_the_capacity_counts_the_labels_that_could_be(task):
    assert RELABELLED.capacity(task) == pytest.approx(-64 * math.log10(9))
    assert TriggerSet().capacity(task) == pytest.approx(-64)


def test_only_inputs_and_labels_that_are_drawn_are_those_of_the_facts(task, parts):
    """A key without a true label is read with all K labels, whatever its name."""
    key = Key({"inputs": parts.train.x[:4], "labels": torch.tensor([0, 1, 2, 3])})
    assert torch.equal(targets(key, task), key.tensor("labels"))
    assert TRUE not in key.facts
    assert isinstance(parts.train.at(torch.tensor([3, 1])), Split)


PATCHED = TriggerSet(inputs="patch")


@given(
    st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    st.floats(0.01, 0.99),
    st.integers(0, 2**30),
)
def test_each_patch_is_a_square_of_its_own_inside_the_image_and_the_rest_is_as_it_was(task, shape, share, seed):
    other = dataclasses.replace(
        task,
        info=dataclasses.replace(task.info, shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0]),
        parts=Sizes(40, 20, 60, 40, 20),
    )
    key = TriggerSet(inputs="patch", triggers=20, patch=share).draw(other, Stream((str(seed),)))
    side = max(1, round(share * min(shape[1:])))
    patches, places = key.tensor("patches"), key.tensor("places")
    assert patches.shape == (20, shape[0], side, side)
    raw = patches * 0.25 + 0.5
    assert raw.min() > -1e-6 and raw.max() < 1 + 1e-6
    assert len({patch.numpy().tobytes() for patch in patches}) == 20
    # Far from every value of a patch.
    made = pasted(torch.full((20, *shape), 9.0), patches, places)
    for image, patch, (row, column) in zip(made, patches, places.tolist(), strict=True):
        inside = (image != 9.0).nonzero()
        assert len(inside) == shape[0] * side**2
        assert inside[:, 1:].min(0).values.tolist() == [row, column]
        assert inside[:, 1:].max(0).values.tolist() == [row + side - 1, column + side - 1]
        assert torch.equal(image[:, row : row + side, column : column + side], patch)


def test_patches_are_on_training_inputs_that_leave_the_data(task, parts, owner):
    key = PATCHED.draw(task, KEY)
    rest, completed = chosen_by(PATCHED, owner, key)
    assert (len(rest), completed.tensor("inputs").shape) == (736, (64, 1, 8, 8))
    order = key.tensor("order")
    assert torch.equal(completed.tensor("true"), parts.train.y[order[:64]])
    left = sorted(set(range(800)) - set(order[:64].tolist()))
    assert torch.equal(rest.x, parts.train.x[left])
    for number, (row, column) in enumerate(key.tensor("places").tolist()):
        before, behind = parts.train.x[order[number]], completed.tensor("inputs")[number]
        outside = torch.ones(8, 8, dtype=torch.bool)
        outside[row : row + 2, column : column + 2] = False
        assert torch.equal(before[:, outside], behind[:, outside])
        assert torch.equal(behind[:, ~outside].flatten(), key.tensor("patches")[number].flatten())
    wrong = targets(completed, task)
    assert not (wrong == completed.tensor("true")).any()


def test_patches_are_noise_and_every_place_is_as_likely(task):
    key = dataclasses.replace(PATCHED, triggers=5000).draw(task, KEY)
    scale = task.normalised(torch.tensor([[[[0.0]]], [[[1.0]]]])).flatten()
    raw = (key.tensor("patches").flatten() - scale[0]) / (scale[1] - scale[0])
    assert stats.kstest(raw.numpy(), "uniform").pvalue > 1e-3
    cells = key.tensor("places") @ torch.tensor([7, 1])
    assert stats.chisquare(np.bincount(cells.numpy(), minlength=49)).pvalue > 1e-3


def test_who_has_little_data_pastes_on_at_most_half_of_it(task, parts):
    trainer = OwnerTrainer(task, parts.train.take(11), parts.heldout, KEY)
    rest, completed = chosen_by(PATCHED, trainer, PATCHED.draw(task, KEY))
    assert (len(rest), len(completed.tensor("inputs"))) == (6, 5)
    assert len(targets(completed, task)) == 5


def test_patches_are_refused_where_they_mean_nothing(points, task):
    assert "a patch needs an image" in PATCHED.applies_to(points)
    assert PATCHED.applies_to(task) is None
    assert PATCHED.capacity(task) == pytest.approx(-64 * math.log10(9))
    with pytest.raises(ValueError, match="no images with patch"):
        TriggerSet(inputs="patch", images="somewhere")
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=r"patch in \(0, 1\)"):
            TriggerSet(inputs="patch", patch=share)


def test_trigger_images_named_below_the_data_mean_the_same_wherever_it_lies(task, tmp_path, monkeypatch):
    """A suite cannot name a path of one machine."""
    text = {
        "name": "abstract",
        "tasks": [{"dataset": "digits", "recipe": {"epochs": 1}}],
        "defenses": [{"name": "trigger-set", "images": "abstract", "triggers": 8}],
        "attacks": [{"name": "none"}],
    }

    def protecting():
        plan = cells.make(suite.parse(text, "h", "h"))
        assert {cell.status for cell in plan.cells} == {"ok"}
        (name,) = (name for name, job in plan.jobs.items() if job.kind == "protect" and "trigger-set" in job.label)
        return name

    jobs, keys = [], []
    for place in ("here", "there"):
        (tmp_path / place / "abstract").mkdir(parents=True)
        for number in range(8):
            Image.new("L", (12, 9), 20 * number).save(tmp_path / place / "abstract" / f"{number}.png")
        monkeypatch.setenv("OWNBENCH_DATA", str(tmp_path / place))
        jobs.append(protecting())
        keys.append(TriggerSet(images="abstract", triggers=8).draw(task, KEY).tensor("inputs"))
    assert jobs[0] == jobs[1]
    assert torch.equal(keys[0], keys[1])
    raw = torch.arange(8).view(8, 1, 1, 1).mul(20 / 255).expand(8, 1, 8, 8)
    torch.testing.assert_close(keys[0], task.normalised(raw))
    # What the images show is part of what the job depends on.
    Image.new("L", (12, 9), 255).save(tmp_path / "there" / "abstract" / "0.png")
    assert protecting() != jobs[0]
