"""Extraction: what a student is, what it is trained on, what it costs in queries, and what it may not see."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from attacks.distill import Distill
from attacks.extract_hard import ExtractHard, Retrain
from attacks.extraction.student import narrowed
from bench.bundle import Bundle
from bench.errors import AccessError
from bench.planning import cells, sources, suite
from bench.running import work
from bench.running.work import Work
from bench.stage import TargetAnswers
from bench.stream import Stream
from bench.suspect import Target, predict
from bench.trainer import AttackerTrainer
from models.channels import channels
from models.surgery import inner, reshaped
from tests.planned import Runner

ALL = (Distill, Retrain, ExtractHard)


@pytest.fixture(scope="module")
def protected(task):
    return task.new_model(Stream(("protected",)))


@pytest.fixture(scope="module")
def cut(protected):
    """A published model with other widths than its architecture's."""
    return reshaped(protected, {"conv2": np.arange(7), "hidden": np.arange(50)})


def trained_on(attack, target, trainer, monkeypatch):
    """The student before its training, and the inputs and targets that it is to be trained on."""
    seen = []
    monkeypatch.setattr(trainer, "training", lambda model, data, *args, **more: seen.append((model, data)) or iter(()))
    assert list(attack.run(target, trainer)) == []
    return seen[0]


def student_of(attack, model, attacker_for, monkeypatch):
    target = Target(model, attack.access_used())
    return trained_on(attack, target, attacker_for(attack, target), monkeypatch)[0]


def same(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def planned(*attacks):
    """The plan of a small suite with these attacks, of one epoch each."""
    text = {
        "name": "small",
        "tasks": [{"dataset": "digits", "recipe": {"epochs": 1}}],
        "defenses": [{"name": "uchida", "bits": 16}],
        "attacks": [{"epochs": 1, **one} for one in attacks],
    }
    return cells.make(suite.parse(text, "here", "here"))


class TestLosses:
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0], [0.0, 0.0, 0.0], [2.0, 2.0, -1.0]])
    answers = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 1.0], [5.0, -5.0, 0.0], [1.0, 1.0, 1.0]])

    def loss(self, attack, targets):
        return attack._loss(lambda x: x, self.logits, targets)

    def divergence(self, temperature):
        p, q = (self.answers / temperature).softmax(1), (self.logits / temperature).softmax(1)
        return temperature**2 * (p * (p / q).log()).sum(1).mean()

    @pytest.mark.parametrize("temperature", [1.0, 3.0, 8.0])
    def test_the_divergence_is_scaled_by_the_squared_temperature(self, temperature):
        found = self.loss(Distill(temperature=temperature), self.answers)
        torch.testing.assert_close(found, self.divergence(temperature))

    @pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
    def test_alpha_mixes_it_with_the_cross_entropy_of_the_labelled_inputs(self, alpha):
        labels = torch.tensor([[1.0], [-100.0], [2.0], [-100.0]])
        found = self.loss(Distill(temperature=3.0, alpha=alpha), torch.cat([self.answers, labels], 1))
        right = self.logits.softmax(1)[[0, 2], [1, 2]]
        torch.testing.assert_close(found, alpha * self.divergence(3.0) - (1 - alpha) * right.log().mean())

    def test_a_batch_without_labels_has_the_divergence_alone(self):
        targets = torch.cat([self.answers, torch.full((4, 1), -100.0)], 1)
        torch.testing.assert_close(self.loss(Distill(alpha=0.25), targets), 0.25 * self.divergence(3.0))

    def test_probabilities_are_soft_targets_and_labels_hard_ones(self):
        p, q = self.answers.softmax(1), self.logits.softmax(1)
        torch.testing.assert_close(self.loss(Retrain(), p), -(p * q.log()).sum(1).mean())
        labels = torch.tensor([0, 2, 0, 1])
        torch.testing.assert_close(self.loss(ExtractHard(), labels), -q[range(4), labels].log().mean())


class TestTargets:
    def test_they_are_the_answers_of_the_declared_kind(self, protected, attacker_for, monkeypatch):
        expected = predict(protected, attacker_for(Distill()).inputs)
        for attack, told in (
            (Distill(), expected),
            (Retrain(), expected.softmax(1)),
            (ExtractHard(), expected.argmax(1)),
        ):
            target = Target(protected, "black-box")
            trainer = attacker_for(attack, target)
            _, data = trained_on(attack, target, trainer, monkeypatch)
            assert torch.equal(data.y, told)
            assert torch.equal(data.x, trainer.inputs)

    def test_the_first_of_equal_answers_is_the_label(self, task, attacker_for, monkeypatch):
        model = task.new_model(Stream(("tied",)))
        torch.nn.init.zeros_(model.head.weight)
        model.head.bias.data = torch.tensor([0.0, 1, 0, 2, 2, 0, 2, 1, 0, 0])
        attack, target = ExtractHard(), Target(model, "black-box")
        _, data = trained_on(attack, target, attacker_for(attack, target), monkeypatch)
        assert data.y.tolist() == [3] * 300

    def test_labels_stand_beside_the_inputs_that_carry_them(self, protected, attacker_for, parts, monkeypatch):
        attack, target = Distill(alpha=0.5), Target(protected, "black-box")
        trainer = attacker_for(attack, target)
        _, data = trained_on(attack, target, trainer, monkeypatch)
        assert torch.equal(data.y[:, :-1], predict(protected, trainer.inputs))
        assert data.y[:100, -1].tolist() == parts.attacker.y[:100].tolist()
        assert data.y[100:, -1].tolist() == [-100] * 200
        assert trainer.labels_used == 100

    @given(share=st.floats(0.01, 1.0), kind=st.sampled_from(["distill", "mixed", "retrain", "extract-hard"]))
    @settings(max_examples=25)
    def test_a_share_is_exactly_the_first_inputs(self, share, kind, task, parts, protected):
        made = {"distill": Distill, "retrain": Retrain, "extract-hard": ExtractHard}
        attack = Distill(share=share, alpha=0.5) if kind == "mixed" else made[kind](share=share)
        target = Target(protected, "black-box")
        known = parts.attacker.take(parts.labelled)
        stream = Stream(("attacker",))
        trainer = AttackerTrainer(task, parts.attacker.inputs, known, stream, target=target, data=attack.data_used())
        seen = []
        trainer.training = lambda model, data, *args, **more: seen.append(data) or iter(())
        list(attack.run(target, trainer))
        count = round(300 * share)
        assert torch.equal(seen[0].x, parts.attacker.x[:count])
        assert len(seen[0].y) == target.queries == trainer.inputs_used == count
        assert trainer.labels_used == (min(100, count) if kind == "mixed" else 0)


class TestStudents:
    def test_by_default_it_is_the_tasks_own_fresh_net(self, cut, attacker_for, monkeypatch):
        for attack in (Distill(), Retrain(), ExtractHard()):
            assert same(student_of(attack, cut, attacker_for, monkeypatch), attacker_for(attack).new_model())

    def test_the_published_widths_are_those_of_the_published_model(self, cut, protected, attacker_for, monkeypatch):
        attack = Distill(widths="published")
        student = student_of(attack, cut, attacker_for, monkeypatch)
        assert models.describe(student) == models.describe(cut) != models.describe(protected)
        assert student.conv2.out_channels == 7 and student.hidden.out_features == 50
        for name, weight in models.weights_of(student).items():
            assert not torch.isclose(weight, cut.get_submodule(name).weight).any(dim=0).all()
        assert same(student_of(attack, protected, attacker_for, monkeypatch), attacker_for(attack).new_model())

    def test_drawn_widths_come_from_the_stream(self, protected, cut, attacker_for, monkeypatch):
        attack = Distill(widths="drawn")
        first, second = (student_of(attack, one, attacker_for, monkeypatch) for one in (protected, cut))
        assert same(first, second)
        assert models.describe(first) != models.describe(protected)

    @given(seed=st.integers(0, 2**32), name=st.sampled_from(["vgg8", "resnet8"]))
    @settings(max_examples=5)
    def test_each_inner_layer_loses_less_than_half(self, seed, name):
        model = models.build(name, 10, (1, 8, 8))
        found = narrowed(model, Stream.root(seed))
        assert found == narrowed(model, Stream.root(seed)) != narrowed(model, Stream.root(seed + 1))
        before, after = (
            {one.layer: one.width for one in inner(channels(made))} for made in (model, models.outline(found))
        )
        assert before.keys() == after.keys()
        assert all(before[layer] / 2 < after[layer] <= before[layer] for layer in before)
        assert models.outline(found).head.out_features == 10

    def test_drawn_shares_are_uniform(self):
        model = models.build("vgg8", 10, (1, 8, 8))
        widths = {one.layer: one.width for one in inner(channels(model))}
        missing = []
        for seed in range(12):
            layers = narrowed(model, Stream.root(seed))["layers"]
            for name, width in widths.items():
                kept = layers.get(name, {})
                missing.append(1 - kept.get("out_features", kept.get("out_channels", width)) / width)
        assert len(missing) == 84
        # Whole channels: up to one of 32 below what was drawn.
        assert np.mean(missing) == pytest.approx(0.25 - 0.5 / 64, abs=3 * 0.5 / 12**0.5 / 84**0.5)
        assert min(missing) < 0.04 and 0.44 < max(missing) < 0.5

    @pytest.mark.parametrize("cls", ALL)
    def test_another_architecture_is_built_and_trained(self, cls, protected, attacker_for):
        attack = cls(architecture="resnet8", epochs=1)
        target = Target(protected, "black-box")
        ((_, student),) = attack.run(target, attacker_for(attack, target))
        assert models.describe(student) == {"name": "resnet8", "classes": 10, "shape": [1, 8, 8]}
        assert attack.architectures() == ("resnet8",) and cls().architectures() == ()

    def test_another_architecture_may_be_narrowed(self, protected, attacker_for, monkeypatch):
        student = student_of(Distill(architecture="resnet8", widths="drawn"), protected, attacker_for, monkeypatch)
        described = models.describe(student)
        assert described["name"] == "resnet8" and "layer3.0.conv1" in described["layers"]

    def test_its_architecture_is_among_the_sources_of_its_job(self, monkeypatch):
        seen = []
        whole = sources.whole_module
        monkeypatch.setattr(sources, "whole_module", lambda name: seen.append(name) or whole(name))
        planned({"name": "distill"})
        assert "models.resnet" not in seen
        planned({"name": "distill", "architecture": "resnet8"})
        assert "models.resnet" in seen


class TestRefusals:
    @pytest.mark.parametrize(
        ("cls", "values", "message"),
        [
            *((cls, {"architecture": "resnet9"}, "'resnet9'.*Did you mean.*'resnet8'") for cls in ALL),
            *((cls, {"share": share}, r"share in \(0, 1\]") for cls in ALL for share in (0.0, 1.5, float("nan"))),
            *((cls, {"epochs": 0}, "epochs >= 1") for cls in ALL),
            (Distill, {"temperature": 0.5}, "temperature >= 1, got 0.5"),
            (Distill, {"alpha": 1.1}, r"alpha in \[0, 1\], got 1.1"),
            (Distill, {"architecture": "resnet8", "widths": "published"}, "got 'resnet8'"),
        ],
    )
    def test_values_that_make_no_sense(self, cls, values, message):
        with pytest.raises(ValueError, match=message):
            cls(**values)

    @pytest.mark.parametrize("cls", ALL)
    def test_inputs_that_the_student_does_not_take(self, cls, task):
        assert "16x16" in cls(architecture="lenet5").applies_to(task)
        assert "coordinates" in cls(architecture="pointnet").applies_to(task)
        assert cls(architecture="resnet8").applies_to(task) is None
        assert "300 inputs is 1, training takes two" in cls(share=0.004).applies_to(task)

    def test_widths_of_layers_that_have_none_to_spare(self, task, monkeypatch):
        attack = Distill(widths="drawn", architecture="resnet8")
        assert attack.applies_to(task) is None
        monkeypatch.setattr("models.surgery.inner", lambda graph: ())
        assert attack.applies_to(task) == "resnet8 has no layer whose channels can come and go"


class TestAccess:
    @dataclass(frozen=True)
    class Opens(Distill):
        """Yields what it finds when it opens the model."""

        def run(self, target, trainer):
            yield 1.0, target.copy()

    @dataclass(frozen=True)
    class Asks(ExtractHard):
        """Asks for what it did not declare."""

        def run(self, target, trainer):
            target.answers(trainer.inputs, "probabilities")
            yield 1.0, trainer.new_model()

    def surroundings(self, attack, task, parts, model):
        bundles = {"target": Bundle({"model": model})}
        known = parts.attacker.take(parts.labelled)
        return Work(task, "x", torch.device("cpu"), bundles, {}, attack, inputs=parts.attacker.inputs, labelled=known)

    def test_the_harness_opens_the_model_for_the_white_box_variant_alone(self, task, parts, cut):
        _, products = work.attack(self.surroundings(self.Opens(widths="published"), task, parts, cut))
        assert same(products["public"].models["0"], cut)
        for widths in ("plain", "drawn"):
            with pytest.raises(AccessError, match="declared access 'black-box'"):
                work.attack(self.surroundings(self.Opens(widths=widths), task, parts, cut))

    def test_answers_that_tell_more_than_was_declared_are_refused(self, task, parts, cut):
        with pytest.raises(AccessError, match="asked for probabilities with declared answers 'labels'"):
            work.attack(self.surroundings(self.Asks(), task, parts, cut))

    @pytest.mark.parametrize(
        "attack",
        [Distill(), Distill(alpha=0.5), Distill(widths="drawn"), Retrain(), ExtractHard()],
        ids=lambda attack: attack.label,
    )
    def test_what_is_black_box_needs_no_model_but_answers(self, attack, protected, attacker_for):
        quick = dataclasses.replace(attack, epochs=1)
        assert quick.access_used() == "black-box"
        target = Target(None, "black-box")
        target._answer = lambda x: predict(protected, x)
        ((_, student),) = quick.run(target, attacker_for(quick, target))
        assert target.queries == 300 and models.describe(student)["name"] == "vgg8"

    def test_rows_show_the_access_that_was_used(self):
        plan = planned({"name": "distill", "widths": ["plain", "published", "drawn"]}, {"name": "extract-hard"})
        access = {cell.attack_label: cell.attack_access for cell in plan.cells if cell.attack_family == "extraction"}
        for widths in ("", ",widths=drawn"):
            assert access.pop(f"true-labels[epochs=1{widths}]") == "none"
        assert access.pop("true-labels[epochs=1,widths=published]") == "white-box"
        assert access == {
            "distill[epochs=1]": "black-box",
            "distill[epochs=1,widths=published]": "white-box",
            "distill[epochs=1,widths=drawn]": "black-box",
            "extract-hard[epochs=1]": "black-box",
        }

    def test_a_stage_with_more_access_than_its_attack_fails_the_cell(self, monkeypatch):
        monkeypatch.setattr(TargetAnswers, "access", "white-box")
        plan = planned({"name": "distill", "widths": ["plain", "published"]}, {"name": "retrain"})
        found = {cell.attack_label: cell for cell in plan.cells if cell.attack_family == "extraction"}
        assert found["distill[epochs=1,widths=published]"].status == "ok"
        # Of the one stage itself, and of one that it rests on.
        for label in ("distill[epochs=1]", "retrain[epochs=1]"):
            assert (found[label].status, found[label].error_type) == ("failed", "AccessError")
            assert "'white-box'" in found[label].error

    def test_a_stage_that_tells_more_than_its_attack_may_know_fails_the_cell(self, monkeypatch):
        monkeypatch.setattr(ExtractHard, "stages", lambda self: (TargetAnswers("probabilities"),))
        plan = planned({"name": "extract-hard"}, {"name": "retrain"})
        found = {cell.attack: cell for cell in plan.cells}
        assert found["retrain"].status == "ok"
        assert found["extract-hard"].error_type == "AccessError"
        assert "gives probabilities" in found["extract-hard"].error


@pytest.fixture(scope="module")
def plan():
    named = ({"name": name} for name in ("distill", "retrain", "extract-hard"))
    return planned(*named, {"name": "distill", "temperature": 8.0}, {"name": "extract-hard", "share": 0.1})


class TestOneSetOfQueries:
    def attacks(self, plan):
        found = (job for job in plan.jobs.values() if job.kind == "attack" and job.label.endswith("on uchida[bits=16]"))
        return {job.label.split()[1]: job for job in found if "[" in job.label.split()[1]}

    def test_the_model_is_asked_once_for_all_kinds_of_answers(self, plan):
        stages = [job.label for job in plan.jobs.values() if job.kind == "stage" and "of uchida" in job.label]
        assert sorted(stages) == sorted(
            f"stage target-answers{setting} of uchida[bits=16]"
            for setting in ("", "[kind=labels]", "[kind=probabilities]", "[share=0.1]", "[kind=labels,share=0.1]")
        )
        queried = [
            job for job in plan.jobs.values() if job.kind == "stage" and not any("stage:" in r for r in job.inputs)
        ]
        assert len([job for job in queried if "of uchida" in job.label]) == 2

    def test_what_an_attack_is_handed_tells_no_more_than_it_declares(self, plan):
        done, asked = Runner(plan.jobs), {}
        for label, job in self.attacks(plan).items():
            handed = [
                set(Bundle.from_bytes(done(one.job).products["public"]).tensors)
                for role, one in job.inputs.items()
                if role.startswith("stage:")
            ]
            result = done(job.id).result
            asked[label] = (handed, result["queries"], result["inputs_used"], result["labels_used"])
        assert asked == {
            "distill[epochs=1]": ([{"logits"}], 300, 300, 0),
            "distill[epochs=1,temperature=8]": ([{"logits"}], 300, 300, 0),
            "retrain[epochs=1]": ([{"probabilities"}], 300, 300, 0),
            "extract-hard[epochs=1]": ([{"labels"}], 300, 300, 0),
            "extract-hard[share=0.1,epochs=1]": ([{"labels"}], 30, 30, 0),
        }
