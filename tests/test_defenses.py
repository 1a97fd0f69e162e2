"""The exact algorithm of each defense; the contract that they share is in test_contract.py."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import reframed
from PIL import Image
from scipy import stats

import models
from bench import images
from bench.errors import InputError
from bench.stream import Stream
from bench.suspect import Suspect
from defenses.trigger_set import TriggerSet
from defenses.uchida import Uchida, mean_filter

KEY = Stream.root(0).child("owner", "key")


@pytest.fixture(scope="module")
def protected(task, parts):
    """Each defense's protected model and completed key, made once."""
    from bench.trainer import OwnerTrainer

    made = {}

    def get(defense):
        if defense.label not in made:
            trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))
            key = defense.draw(task, KEY)
            made[defense.label] = (defense.protect(trainer, key), trainer)
        return made[defense.label]

    return get


class TestUchida:
    def test_the_mean_is_over_the_output_filters(self):
        conv = torch.nn.Conv2d(2, 3, 3)
        expected = [
            sum(conv.weight[o, i, y, x] for o in range(3)) / 3 for i in range(2) for y in range(3) for x in range(3)
        ]
        torch.testing.assert_close(mean_filter(conv), torch.stack(expected))

    @pytest.mark.parametrize("projection", ["direct", "diff"])
    def test_sparse_projections_use_each_weight_at_most_once(self, task, projection):
        matrix = Uchida(bits=100, projection=projection).draw(task, KEY).tensor("projection")
        assert matrix.shape == (100, 576)
        assert (matrix.abs().sum(0) <= 1).all()
        assert ((matrix == 1).sum(1) == 1).all()
        assert ((matrix == -1).sum(1) == (projection == "diff")).all()

    def test_the_random_projection_is_standard_normal(self, task):
        matrix = Uchida().draw(task, KEY).tensor("projection")
        assert stats.kstest(matrix.flatten().numpy(), "norm").pvalue > 1e-3

    def test_the_embedding_loss_is_the_summed_cross_entropy_of_the_current_weights(self, task, owner, monkeypatch):
        """Equations 3 and 5; the nearest peer froze the weights at the first step, so ask twice."""
        defense, seen = Uchida(strength=0.5), {}
        key = defense.draw(task, KEY)

        def fit(model, data, recipe=None, *, hooks, **_):
            for scale in (1.0, 2.0):
                with torch.no_grad():
                    model.conv6.weight.mul_(scale)
                loss = hooks.loss_term(model)
                loss.backward()
                seen[scale] = (loss.item(), model.conv6.weight.detach().clone(), model.conv6.weight.grad.clone())
                model.conv6.weight.grad = None
            return model

        monkeypatch.setattr(owner, "fit", fit)
        defense.protect(owner, key)
        for loss, weight, gradient in seen.values():
            logits = key.tensor("projection") @ weight.mean(0).flatten()
            message = key.tensor("message").float()
            by_hand = -(message * F.logsigmoid(logits) + (1 - message) * F.logsigmoid(-logits)).sum()
            assert loss == pytest.approx(0.5 * by_hand.item(), rel=1e-5)
            slope = 0.5 * (torch.sigmoid(logits) - message) @ key.tensor("projection") / 64
            torch.testing.assert_close(gradient[7].flatten(), slope)

    def test_evidence_is_the_tail_of_the_agreeing_bits(self, task, owner):
        defense = Uchida(bits=16)
        key = defense.draw(task, KEY)
        model = models.build("vgg8", 10, (1, 8, 8))
        read = (key.tensor("projection") @ mean_filter(model.conv6).detach() >= 0).long()
        right = int((read == key.tensor("message")).sum())
        evidence = defense.verify(Suspect.of(model), key, owner)
        assert evidence.statistic == right
        assert evidence.figures["bit_error"] == pytest.approx(1 - right / 16)
        assert evidence.log10_p == pytest.approx(math.log10(stats.binom.sf(right - 1, 16, 0.5)))

    @pytest.mark.parametrize("projection", ["random", "direct", "diff"])
    def test_free_moves_hide_the_mark_from_the_raw_reading_alone(self, task, protected, projection):
        made, trainer = protected(Uchida(projection=projection, strength=0.1))
        raw, canonical = Uchida(projection=projection), Uchida(projection=projection, canonical=True)
        moved = Suspect.of(reframed(made.model, 1))
        assert raw.verify(moved, made.key, trainer).log10_p > -3
        before, behind = (
            raw.verify(Suspect.of(made.model), made.key, trainer),
            canonical.verify(moved, made.key, trainer),
        )
        assert before.log10_p < -10
        assert behind.figures["bit_error"] == before.figures["bit_error"]
        assert behind.log10_p == pytest.approx(before.log10_p + math.log10(2))
        assert canonical.capacity(task) == pytest.approx(raw.capacity(task) + math.log10(2))

    def test_the_layer_is_named_and_checked(self, task):
        assert Uchida().draw(task, KEY).text("layer") == "conv6"
        assert Uchida(layer="conv2").draw(task, KEY).tensor("projection").shape == (64, 288)
        assert "Did you mean" in Uchida(layer="conv66").applies_to(task)
        assert "Linear" in Uchida(layer="hidden").applies_to(task)
        assert "mean filter has 576" in Uchida(bits=600).applies_to(task)
        with pytest.raises(ValueError, match="bits >= 1"):
            Uchida(bits=0)


class TestTriggerSet:
    def test_labels_are_uniform_over_all_classes(self, task):
        labels = TriggerSet(triggers=5000).draw(task, KEY).tensor("labels")
        assert stats.chisquare(np.bincount(labels.numpy(), minlength=10)).pvalue > 1e-3

    def test_triggers_are_appended_in_turn(self, task, owner, monkeypatch):
        defense, batches = TriggerSet(triggers=10, per_batch=4), []
        key = defense.draw(task, KEY)

        def fit(model, data, recipe=None, *, hooks, **_):
            batches.extend(hooks.extra_inputs(step) for step in range(4))
            return model

        monkeypatch.setattr(owner, "fit", fit)
        defense.protect(owner, key)
        order = [
            list(key.tensor("inputs").flatten(1).tolist()).index(x) for b in batches for x in b[0].flatten(1).tolist()
        ]
        assert order == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5]
        assert torch.equal(batches[2][1], key.tensor("labels")[[8, 9, 0, 1]])

    def test_only_queries_are_used_without_the_old_head(self, protected):
        (model, key, _), trainer = protected(TriggerSet())
        suspect = Suspect(Suspect.of(model)._answer, None, "black-box")
        assert TriggerSet().verify(suspect, key, trainer).figures["trigger_accuracy"] > 0.5
        assert suspect.queries == 64

    def test_the_old_head_brings_the_mark_back_after_a_new_one(self, task, protected):
        defense = TriggerSet(old_head=True)
        (model, key, _), trainer = protected(defense)
        other = models.rebuild(models.describe(model), model.state_dict())
        other.head = torch.nn.Linear(128, 5)
        evidence = defense.verify(Suspect.of(other), key, trainer)
        assert evidence.figures["log10_p.old_head"] < -10
        assert evidence.log10_p == pytest.approx(evidence.figures["log10_p.old_head"] + math.log10(2))
        assert TriggerSet().verify(Suspect.of(other), key, trainer).log10_p > -4

    def test_a_new_head_on_reordered_channels_needs_the_canonical_form(self, protected):
        (model, key, _), trainer = protected(TriggerSet())
        other = reframed(model, 1)
        # A head in the way of the marked body answers triggers better than chance with some weights.
        torch.manual_seed(0)
        other.head = torch.nn.Linear(128, 5)
        old = TriggerSet(old_head=True).verify(Suspect.of(other), key, trainer)
        assert old.log10_p > -4
        found = TriggerSet(old_head=True, canonical=True).verify(Suspect.of(other), key, trainer)
        assert found.figures["log10_p.canonical"] < -10
        assert found.log10_p == pytest.approx(found.figures["log10_p.canonical"] + math.log10(3))
        with pytest.raises(ValueError, match="expected old_head"):
            TriggerSet(canonical=True)

    def test_only_verify_reads_the_old_head(self):
        from bench import parameters

        plain = parameters.values_of(TriggerSet(), judged_too=False)
        assert plain == parameters.values_of(TriggerSet(old_head=True), judged_too=False)

    @pytest.mark.parametrize("kind", ["folder", "parquet"])
    def test_images_are_cut_to_their_centre(self, task, tmp_path, kind):
        pixels = [np.full((12, 10), shade, dtype=np.uint8) for shade in range(0, 250, 10)]
        for number, image in enumerate(pixels):
            image[2:10, 1:9] = 255 - number
            Image.fromarray(image).save(tmp_path / f"{number:03}.png")
        path = tmp_path
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            rows = [{"bytes": f.read_bytes(), "path": f.name} for f in sorted(tmp_path.glob("*.png"))]
            path = tmp_path / "images.parquet"
            pq.write_table(pa.table({"image": rows}), path)
        raw = images.read(str(path), 20, (1, 8, 8))
        assert torch.allclose(raw[3], torch.full((1, 8, 8), 252 / 255))
        key = TriggerSet(triggers=20, images=str(path)).draw(task, KEY)
        assert torch.allclose(key.tensor("inputs"), task.normalised(raw))

    def test_images_that_are_missing_or_too_few_are_named(self, tmp_path):
        with pytest.raises(InputError, match="OWNBENCH_DATA"):
            images.read(str(tmp_path / "nowhere"), 1, (1, 8, 8))
        with pytest.raises(InputError, match="found none"):
            images.read(str(tmp_path), 1, (1, 8, 8))
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        with pytest.raises(InputError, match="at least 2 images, got 1"):
            images.read(str(tmp_path), 2, (3, 8, 8))
        assert images.read(str(tmp_path), 1, (3, 8, 8)).shape == (1, 3, 8, 8)
        (tmp_path / "a.png").write_bytes(b"no image")
        with pytest.raises(InputError, match=r"a\.png: expected an image"):
            images.read(str(tmp_path), 1, (3, 8, 8))

    def test_parameters_are_checked(self):
        with pytest.raises(ValueError, match="per_batch"):
            TriggerSet(triggers=4, per_batch=8)

    def test_the_published_images_are_found_where_the_data_is(self, task):
        import os

        if "OWNBENCH_DATA" not in os.environ:
            pytest.skip("OWNBENCH_DATA is not set")
        assert images.read("abstract-triggers", 100, (3, 32, 32)).std() > 0.1


def test_fine_tuning_with_triggers_starts_from_the_clean_model(task, owner, monkeypatch):
    started = {}

    def fit(model, data, recipe=None, **_):
        started[recipe.epochs] = model.conv1.weight.clone()
        return model

    clean = owner.clean().conv1.weight
    monkeypatch.setattr(owner, "fit", fit)
    defense = dataclasses.replace(TriggerSet(), mode="fine-tune", epochs=2)
    defense.protect(owner, defense.draw(task, KEY))
    assert torch.equal(started[2], clean)
