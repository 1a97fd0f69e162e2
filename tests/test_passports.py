"""Passport schemes: which layers and bits, where passports come from, and what a suspect proves."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

import models
from attacks.reparametrise import Permute, SignFlip
from bench import data
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.canonical import REFERENCE, canonicalise
from bench.key import Key
from bench.recipe import Recipe
from bench.statistics import binomial_tail
from bench.stream import Stream
from bench.suspect import Suspect, Target, predict
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.passport import PassportV1, PassportV2, PassportV3
from defenses.passport_aware import PassportAware
from defenses.passports import evidence
from defenses.passports import key as passport_key
from defenses.passports.branches import insert, raw_scale
from defenses.passports.scheme import plan

KEY = Stream(("key",))
SCHEMES = [PassportV1(), PassportV2(), PassportV3(), PassportAware()]


def on(model, dataset="cifar10", classes=None, shape=None):
    """A task of some architecture; no data is looked at."""
    info = data.info(dataset)
    info = dataclasses.replace(info, classes=classes or info.classes, shape=shape or info.shape)
    return Task(info, model, Recipe())


def branch(scheme, key, model, task):
    passports = scheme.passports_of(key.tensor("passports"), task)
    return insert(model, plan(task), scheme.form(task), passports, key.tensor("private"))


def accuracy(module, split):
    return float((predict(module, split.inputs).argmax(1) == split.y).double().mean())


class TestBits:
    @pytest.mark.parametrize(
        ("scheme", "model", "bits"),
        [
            (PassportV1(), "alexnet", 896),
            (PassportV2(), "alexnet", 896),
            (PassportV3(), "resnet18", 2560),
            (PassportAware(), "alexnet", 1152),
            (PassportAware(), "resnet18", 4800),
        ],
    )
    def test_the_sources_layers_have_the_sources_bits(self, scheme, model, bits):
        task = on(model)
        assert sum(scheme.widths(task).values()) == bits
        assert scheme.applies_to(task) is None

    @pytest.mark.parametrize("model", ["pointnet", "pointnet-basic"])
    def test_all_six_layers_of_a_pointnet_have_2024(self, model):
        task = on(model, "digits", classes=40, shape=(3, 1024))
        assert PassportAware().widths(task) == {
            **{"conv1": 64, "conv2": 128, "conv3": 1024},
            **{"hidden1": 512, "hidden2": 256, "head": 40},
        }

    def test_elsewhere_all_convolutions_but_the_first(self, task):
        for scheme in SCHEMES:
            assert scheme.carriers(task) == ("conv2", "conv3", "conv4", "conv5", "conv6")

    def test_a_name_stands_for_all_that_it_holds_in_the_order_in_which_they_run(self):
        task = on("resnet18")
        assert len(PassportAware(layers=("layer4", "conv1")).carriers(task)) == 6
        assert PassportAware(layers=("layer4", "conv1")).carriers(task)[0] == "conv1"

    def test_what_holds_no_weights_is_refused_with_a_reason(self, task):
        assert "no layer 'conv9'" in PassportAware(layers=("conv9",)).applies_to(task)
        assert "no convolution and no linear layer" in PassportAware(layers=("act1",)).applies_to(task)
        assert "no normalization behind it" in PassportV1(layers=("head",)).applies_to(task)

    @pytest.mark.parametrize(
        "wrong",
        [{"strength": 0.0}, {"margin": -1.0}, {"ratio": 1.0}, {"norm": "group", "canonical": True}],
    )
    def test_what_makes_no_sense_is_refused(self, wrong):
        with pytest.raises(ValueError, match="expected"):
            PassportAware(**wrong)

    def test_triggers_need_a_number_that_fits(self):
        with pytest.raises(ValueError, match="per_batch"):
            PassportV3(triggers=4)


class TestWherePassportsComeFrom:
    def test_random_ones_are_uniform_and_every_owners_different(self, task):
        first, second = (PassportAware().draw(task, Stream((owner,))).tensor("passports") for owner in "ab")
        assert first.abs().max() < 1
        assert abs(float(first.mean())) < 0.01
        assert float(first.std()) == pytest.approx(1 / math.sqrt(3), rel=0.01)
        assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.02

    @pytest.mark.parametrize("origin", ["single", "shuffled"])
    def test_those_of_images_are_what_layers_are_given_for_them(self, task, origin):
        scheme = PassportAware(passports=origin)
        shapes, net = scheme.shapes(task), task.new_model(Stream(("net",))).eval()
        key = scheme.draw(task, KEY)
        count = 1 if origin == "single" else 20
        assert key.tensor("images").shape == (2, count)
        images = torch.rand(2, count, 1, 8, 8)
        flat = passport_key.through(net, images, key.tensor("slots"), shapes)
        # What conv2 is given for the images of the shifts, by hand.
        given = net.act1(net.norm1(net.conv1(images[1])))
        found = passport_key.parted(flat, shapes)["conv2"][1]
        slots = key.tensor("slots")[32:64]
        assert torch.equal(found, given[slots[:, 0], slots[:, 1]])

    def test_shuffled_channels_come_from_all_images_and_none_twice(self, task):
        slots = PassportAware(passports="shuffled").draw(task, KEY).tensor("slots")[:32]
        assert slots[:, 0].tolist() == [j % 20 for j in range(32)]
        pairs = {tuple(pair) for pair in slots.tolist()}
        assert len(pairs) == 32

    def test_a_layer_that_reads_the_images_takes_one_whole(self, task):
        slots = PassportAware(passports="shuffled", layers=("conv1", "conv2")).draw(task, KEY).tensor("slots")
        assert slots[0, 1] == 0
        assert 0 <= slots[0, 0] < 20

    def test_the_uniform_part_is_fair_and_of_its_own_stream(self, task):
        bits = PassportAware().draw(task, KEY).tensor("signature")
        assert torch.equal(bits, PassportV2().draw(task, KEY).tensor("signature"))
        many = torch.cat([PassportAware().draw(task, Stream((str(n),))).tensor("signature") for n in range(40)])
        assert binomial_tail(int(many.sum()), len(many), 0.5) > -4
        assert binomial_tail(len(many) - int(many.sum()), len(many), 0.5) > -4


class TestProtecting:
    @pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
    def test_published_is_a_plain_model(self, protected, scheme):
        model, key = protected(scheme)
        rebuilt = Bundle.from_bytes(Bundle({"model": model}).to_bytes()).models["model"]
        assert {type(m).__module__.partition(".")[0] for m in rebuilt.modules()} <= {"torch", "models"}
        assert sum(p.numel() for p in rebuilt.parameters()) == 173_354
        assert "passports" in key.drawn

    @pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
    def test_its_answers_do_not_depend_on_the_private_branch(self, protected, parts, task, scheme):
        model, key = protected(scheme)
        before = predict(model, parts.heldout.inputs)
        net = branch(scheme, key, model, task)
        with torch.no_grad():
            for value in net.secrets().values():
                value.add_(1.0)
        assert torch.equal(predict(model, parts.heldout.inputs), before)

    @pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
    def test_the_signature_is_in_the_signs_of_the_raw_scales(self, protected, task, scheme):
        model, key = protected(scheme)
        passports = scheme.passports_of(key.tensor("passports"), task)
        raw = torch.cat([raw_scale(model, name, passports[name]) for name in scheme.carriers(task)])
        assert float(((raw > 0) == (key.tensor("signature") == 1)).double().mean()) >= 0.95

    def test_the_key_survives_storage_and_its_branch_answers_the_same(self, protected, parts, task):
        scheme = PassportAware()
        model, key = protected(scheme)
        stored = bundle_to_key(Bundle.from_bytes(key_to_bundle(key).to_bytes()))
        first, second = (predict(branch(scheme, k, model, task).private, parts.heldout.inputs) for k in (key, stored))
        assert torch.equal(first, second)
        assert torch.equal(key.tensor("branch"), torch.cat([key.tensor("passports"), key.tensor("private")]))

    def test_v1_releases_its_passports_and_publishes_what_they_come_to(self, task, parts, owner):
        scheme = PassportV1()
        model, key, release = scheme.protect(owner, scheme.draw(task, KEY))
        assert torch.equal(release.tensors["passports"], key.tensor("passports"))
        net = branch(scheme, key, model, task)
        assert torch.allclose(model.norm4.weight, net.passports["conv4"].raw()[0], atol=1e-6)
        apart = predict(net.private, parts.heldout.inputs) - predict(model, parts.heldout.inputs)
        assert float(apart.abs().max()) < 1e-3
        assert scheme.protect(owner, scheme.draw(task, KEY)).release.tensors.keys() == {"passports"}

    def test_only_v1_releases_anything(self, task, owner):
        for scheme in (PassportV2(), PassportAware()):
            release = scheme.protect(owner, scheme.draw(task, KEY)).release
            assert not release.tensors
            assert not release.models

    def test_groups_leave_no_batch_statistics(self, protected):
        model, _ = protected(PassportV2())
        assert not any(name.endswith("running_mean") for name in model.state_dict())


class TestReading:
    def test_both_conditions_must_hold(self, protected, owner, task):
        scheme = PassportAware()
        model, key = protected(scheme)
        found = scheme.verify(Suspect.of(model), key, owner)
        assert found.log10_p == max(found.figures["log10_p.signature"], found.figures["log10_p.fidelity"])
        bits = int(key.tensor("signature").numel())
        right = round(found.figures["signature_match"] * bits)
        assert found.figures["log10_p.signature"] == pytest.approx(binomial_tail(right, bits, 0.5))
        assert found.statistic == right
        # Other bits, the same branch; then the same bits and a branch of noise.
        other = dataclasses.replace(key, drawn={**key.drawn, "signature": 1 - key.tensor("signature")})
        assert scheme.verify(Suspect.of(model), other, owner).log10_p == 0.0
        noise = key.complete(private=torch.randn_like(key.tensor("private")).abs())
        broken = scheme.verify(Suspect.of(model), noise, owner)
        assert broken.figures["log10_p.signature"] < -60
        assert broken.log10_p == broken.figures["log10_p.fidelity"] > -3

    def test_fidelity_is_binomial_at_the_best_rate_of_fresh_passports(self, protected, owner, task):
        scheme = PassportAware()
        model, key = protected(scheme)
        asked = owner.heldout.take(50)
        net = branch(scheme, key, model, task)
        right = round(accuracy(net.private, asked) * 50)
        drawn = [scheme.fresh(key, owner, Stream(("fresh", str(n)))) for n in range(5)]
        rates = []
        for one in drawn:
            anew = dataclasses.replace(key, drawn={**key.drawn, "passports": models.joined(one)})
            rates.append(accuracy(branch(scheme, anew, model, task).private, asked))
        found = evidence.fidelity(net, asked, drawn, task.classes)
        assert found.figures["fresh_accuracy"] == pytest.approx(max(rates))
        assert found.log10_p == pytest.approx(binomial_tail(right, 50, max(*rates, 0.1)))

    def test_where_fresh_passports_do_as_well_there_is_no_fidelity(self, protected, owner, task):
        scheme = PassportAware()
        model, key = protected(scheme)
        net = branch(scheme, key, model, task)
        own = scheme.passports_of(key.tensor("passports"), task)
        found = evidence.fidelity(net, owner.heldout.take(50), [own], task.classes)
        assert found.log10_p == 0.0

    def test_an_old_head_is_put_back_where_it_was_replaced(self, protected, owner, parts):
        scheme = PassportAware()
        model, key = protected(scheme)
        suspect = copy.deepcopy(model)
        torch.manual_seed(0)
        suspect.head.reset_parameters()
        found = scheme.verify(Suspect.of(suspect), key, owner)
        assert found.figures["log10_p.own_head"] > -3
        assert found.figures["log10_p.old_head"] < -20
        assert found.log10_p < -20
        assert not torch.equal(suspect.head.weight, key.tensor(f"{REFERENCE}head.weight"))

    def test_a_head_for_another_number_of_classes_is_read_by_the_old_one(self, protected, owner):
        scheme = PassportAware()
        model, key = protected(scheme)
        suspect = copy.deepcopy(model)
        suspect.head = torch.nn.Linear(128, 3)
        assert scheme.verify(Suspect.of(suspect), key, owner).log10_p < -20

    def test_bits_in_a_replaced_head_are_left_out(self, task, owner):
        scheme = PassportAware(layers=("conv2", "head"))
        model, key, _ = scheme.protect(owner, scheme.draw(task, KEY))
        assert scheme.verify(Suspect.of(model), key, owner).figures["signature_bits"] == 42
        model.head = torch.nn.Linear(128, 3)
        found = scheme.verify(Suspect.of(model), key, owner)
        assert found.figures["signature_bits"] == 32
        assert "private_accuracy" in found.figures

    def test_verifying_leaves_the_passports_of_linear_layers_alone(self, task, owner):
        scheme = PassportAware(layers=("hidden", "head"))
        model, key, _ = scheme.protect(owner, scheme.draw(task, KEY))
        before = key.tensor("passports").clone()
        scheme.verify(Suspect.of(model), key, owner)
        assert torch.equal(key.tensor("passports"), before)

    def test_other_architectures_give_their_reason(self, protected, owner):
        scheme = PassportAware()
        _, key = protected(scheme)
        found = scheme.verify(Suspect.of(models.build("lenet5", 10, (1, 28, 28))), key, owner)
        assert (found.log10_p, "conv3" in found.reason) == (0.0, True)
        with pytest.raises(Exception, match="only be queried"):
            scheme.verify(Suspect(lambda x: x), key, owner)

    def test_statistics_estimated_anew_do_not_hide_v1(self, protected, owner):
        scheme = PassportV1()
        model, key = protected(scheme)
        suspect = copy.deepcopy(model)
        for module in suspect.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
        found = scheme.verify(Suspect.of(suspect), key, owner)
        assert found.figures["log10_p.own_statistics"] > -3
        assert found.log10_p < -20
        assert found.log10_p >= scheme.capacity(owner.task)

    def test_triggers_are_one_more_reading(self, protected, owner):
        scheme = PassportV3()
        model, key = protected(scheme)
        found = scheme.verify(Suspect.of(model), key, owner)
        best = min(found.figures["log10_p.raw"], found.figures["log10_p.triggers"])
        assert found.log10_p == pytest.approx(best + math.log10(2))
        assert scheme.capacity(owner.task) <= found.log10_p

    def test_equal_questions_are_answered_once(self, protected, owner, monkeypatch):
        scheme = PassportAware(strength=0.11)
        model, key = protected(scheme)
        asked = []
        fidelity = PassportAware.fidelity
        monkeypatch.setattr(PassportAware, "fidelity", lambda *args: asked.append(1) or fidelity(*args))
        flipped = dataclasses.replace(key, drawn={**key.drawn, "signature": 1 - key.tensor("signature")})
        first = scheme.verify(Suspect.of(model), key, owner)
        scheme.verify(Suspect.of(model), flipped, owner)
        assert len(asked) == 1
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.conv4.weight.mul_(-1.0)
        found = scheme.verify(Suspect.of(changed), key, owner)
        assert len(asked) == 2
        assert found.figures["private_accuracy"] < first.figures["private_accuracy"]


class TestFreeMoves:
    @pytest.mark.parametrize("attack", [SignFlip(), Permute()], ids=lambda a: a.name)
    def test_they_end_the_raw_reading_and_not_the_canonical_one(self, protected, owner, attacker_for, parts, attack):
        scheme = PassportAware(canonical=True)
        model, key = protected(PassportAware())
        target = Target(model, "white-box")
        (_, moved) = next(iter(attack.run(target, attacker_for(attack, target))))
        apart = predict(moved, parts.heldout.inputs) - predict(model, parts.heldout.inputs)
        assert float(apart.abs().max()) < 1e-3
        found = scheme.verify(Suspect.of(moved), key, owner)
        assert found.figures["log10_p.raw"] > -3
        assert found.figures["log10_p.canonical"] < -20

    def test_signs_that_are_the_message_are_not_undone(self, protected, owner, attacker_for):
        model, key = protected(PassportV1())
        attack, target = SignFlip(), Target(model, "white-box")
        (_, moved) = next(iter(attack.run(target, attacker_for(attack, target))))
        found = PassportV1(canonical=True).verify(Suspect.of(moved), key, owner)
        assert found.log10_p > -3
        attack = Permute()
        (_, moved) = next(iter(attack.run(target, attacker_for(attack, target))))
        assert PassportV1(canonical=True).verify(Suspect.of(moved), key, owner).log10_p < -20

    def test_without_signs_the_function_stays_all_the_same(self, protected, attacker_for, parts):
        model, _ = protected(PassportV1())
        attack, target = SignFlip(), Target(model, "white-box")
        (_, moved) = next(iter(attack.run(target, attacker_for(attack, target))))
        found = canonicalise(moved, model, {}, signs=False)
        apart = predict(found, parts.heldout.inputs) - predict(model, parts.heldout.inputs)
        assert float(apart.abs().max()) < 1e-3
        assert torch.equal(found.norm3.weight.sign(), moved.norm3.weight.sign())


class TestNoLies:
    """Owners' own keys against models of other owners and of nobody, canonicalised or not."""

    @pytest.mark.parametrize("scheme", [PassportAware(), PassportV1()], ids=lambda s: s.name)
    def test_signatures_agree_with_independent_models_by_chance(self, protected, task, scheme, full_clean, workshop):
        model, key = protected(scheme)
        counted = scheme.counted(key, task)
        passports = scheme.passports_of(key.tensor("passports"), task)
        found = []
        for suspect in (full_clean, *(workshop.net(seed, workshop.quick) for seed in range(6))):
            for aligned in (suspect, canonicalise(suspect, model, counted, signs=scheme.signs_undone)):
                signs = evidence.signs_of(aligned, passports, scheme.widths(task))
                read = evidence.signature(signs, key.tensor("signature"), scheme.widths(task))
                found.append(read.log10_p)
        assert min(found) + math.log10(len(found)) > -3

    def test_the_bits_and_not_the_signs_are_what_is_random(self, protected, task, full_clean):
        # Signs under drawn passports hang together over the channels; agreement with fair bits does not.
        scheme = PassportAware()
        _, key = protected(scheme)
        passports, widths = scheme.passports_of(key.tensor("passports"), task), scheme.widths(task)
        signs = evidence.signs_of(full_clean, passports, widths)
        p = [evidence.signature(signs, Stream((str(n),)).bits(288), widths).log10_p for n in range(400)]
        for level in (0.1, 0.01):
            hits = sum(one <= math.log10(level) for one in p)
            assert binomial_tail(hits, len(p), level) > -4


def test_keys_without_a_reference_have_no_canonical_reading(protected, owner):
    scheme = PassportAware(canonical=True)
    model, key = protected(PassportAware())
    bare = Key(key.drawn, {n: v for n, v in key.facts.items() if n != "reference"})
    found = scheme.verify(Suspect.of(model), bare, owner)
    assert found.figures["log10_p.canonical"] == 0.0
    assert found.log10_p < -20


def test_images_do_not_leave_the_owner(task, parts):
    # Fresh passports of images are drawn through the published model, from the owner's training images.
    scheme = PassportV2(passports="shuffled")
    trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))
    model, key, release = scheme.protect(trainer, scheme.draw(task, KEY))
    assert not release.tensors
    assert key.facts.keys() >= {"passports", "private"}
    first, second = (scheme.fresh(key, trainer, Stream((name,))) for name in "ab")
    assert not torch.equal(first["conv2"], second["conv2"])
    assert {name: tuple(one.shape) for name, one in first.items()} == scheme.shapes(task)
