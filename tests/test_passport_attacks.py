"""Attacks on passports that need no secret: forged branches, exactly; what is read off; what flips of signs undo."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import lived_in
from torch import nn

import models
from attacks.passport_affine import CollectiveBlock, IndividualBlocks, PassportAffine
from attacks.passport_projection import PassportProjection
from attacks.passport_random import PassportRandom
from attacks.passports.forging import SCALE, SHIFT, Affine, ForgedBranch, hashed
from attacks.reparametrise import SignFlip
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.stream import Stream
from bench.suspect import Suspect, Target, predict
from defenses.passport import PassportV1, PassportV2, PassportV3
from defenses.passport_aware import PassportAware
from defenses.passports.branches import insert, with_groups
from defenses.passports.scheme import plan
from defenses.uchida import Uchida

SCHEMES = [
    PassportAware(),
    PassportAware(layers=("conv6", "hidden", "head")),
    PassportAware(norm="group"),
    PassportAware(statistics="shared"),
    PassportV1(),
    PassportV2(),
    PassportV3(),
    PassportV2(norm="batch"),
    PassportV2(norm="batch", statistics="separate", layers=("conv2", "conv5")),
    PassportV2(norm="batch", statistics="separate", passports="single"),
]
PAIRS = [
    (PassportProjection(bits=bits), scheme)
    for scheme in SCHEMES
    for bits in ("read-off", "chosen", "hash")
    if PassportProjection(bits=bits).against(scheme) is None
]


def public_model(scheme, task, seed=0):
    """A model as if trained and published."""
    torch.manual_seed(seed)
    model = lived_in(models.build(task.model, task.classes, task.shape), seed)
    if scheme.norm == "group":
        with_groups(model)
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
    return model


def target_for(scheme, task, seed=0):
    """That model with what V1 would release beside it, which its scales are not made of."""
    single = isinstance(scheme, PassportV1)
    tensors = {"passports": scheme.draw(task, Stream(("owner",))).tensor("passports")} if single else {}
    return Target(public_model(scheme, task, seed), "white-box", Bundle(tensors=tensors), scheme)


def forged_on(attack, target, attacker_for):
    """The forgery with key and model as they come back from storage."""
    made = attack.forge(target, attacker_for(attack, target))
    bundle = key_to_bundle(made.key)
    bundle.models["0"] = made.model
    stored = Bundle.from_bytes(bundle.to_bytes())
    return bundle_to_key(stored), stored.models["0"], made.figures


def branch_of(key, model, scheme, task):
    passports = scheme.passports_of(key.tensor("passports"), task)
    return insert(model, plan(task), scheme.form(task), passports, key.tensor("private"))


def same(first, second, but=()):
    mine, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine if name.rpartition(".")[0] not in but)


# In closed form


@pytest.mark.parametrize(("attack", "scheme"), PAIRS, ids=lambda one: one.label)
def test_the_forged_branch_is_the_public_one_and_shows_all_of_its_bits(attack, scheme, task, parts, attacker_for):
    target = target_for(scheme, task)
    key, model, figures = forged_on(attack, target, attacker_for)
    x = parts.test.x[:100]
    public = predict(target.module, x)
    assert torch.equal(predict(model, x), public)
    net = branch_of(key, model, scheme, task)
    assert torch.allclose(predict(net.private, x), public, atol=2e-3 * float(public.abs().max()))
    assert figures["residual"] < 1e-3
    unturned = attack.bits == "hash" and "head" in scheme.layers
    shown = ((net.raw_scales() > 0).long() == key.tensor("signature")).double().mean()
    assert figures["own_match"] == pytest.approx(float(shown))
    # Linear layers have no normalization to flip a channel before.
    assert shown == 1.0 or unturned
    # Ownership is not what it is about: the owner's bits are as good as any others.
    owners = scheme.draw(task, Stream(("owner",))).tensor("signature")
    if not (attack.bits == "read-off" and not scheme.form(task).mlp):
        agreement = float((key.tensor("signature") == owners).double().mean())
        assert abs(agreement - 0.5) < 4 * 0.5 / len(owners) ** 0.5
    flips = attack.bits == "hash" or (attack.bits == "chosen" and not scheme.form(task).mlp)
    assert same(model, target.module) == (not flips)
    assert (0.3 < figures["flipped"] < 0.7 if not unturned else figures["flipped"] > 0) == flips
    if target.release.tensors:
        assert abs(figures["cosine"]) < 0.2


def test_without_a_bottleneck_the_signs_are_those_of_the_published_scales(task, attacker_for):
    for scheme in (PassportV1(), PassportV2()):
        target = target_for(scheme, task)
        key, _, _ = forged_on(PassportProjection(bits="read-off"), target, attacker_for)
        published = torch.cat([target.module.get_submodule(f"norm{n}").weight for n in range(2, 7)])
        assert torch.equal(key.tensor("signature"), (published > 0).long())
        assert 0 < int((published < 0).sum()) < len(published)


def test_chosen_bits_are_the_forgers_own_draw(task, attacker_for):
    for scheme in (PassportAware(), PassportV1()):
        target = target_for(scheme, task)
        key, _, _ = forged_on(PassportProjection(), target, attacker_for)
        trainer = attacker_for(PassportProjection(), target)
        drawn = scheme.draw(task, trainer.stream.child("key", scheme.name))
        assert torch.equal(key.tensor("signature"), drawn.tensor("signature"))


def test_bits_that_a_hash_binds_to_the_passports_can_be_had_as_well(task, attacker_for):
    for scheme in (PassportAware(), PassportV1()):
        target = target_for(scheme, task)
        key, _, _ = forged_on(PassportProjection(bits="hash"), target, attacker_for)
        passports = scheme.passports_of(key.tensor("passports"), task)
        bits = key.tensor("signature")
        assert torch.equal(bits, hashed(torch.cat([one[0].flatten() for one in passports.values()]), len(bits)))
        passports["conv4"][0, 0, 0, 0] += 1e-3
        other = hashed(torch.cat([one[0].flatten() for one in passports.values()]), len(bits))
        assert abs(float((bits == other).double().mean()) - 0.5) < 0.15


def test_where_a_layer_reads_less_than_it_gives_flips_find_the_signs(task, attacker_for):
    scheme = PassportAware(layers=("conv1",))
    target = target_for(scheme, task)
    key, model, figures = forged_on(PassportProjection(), target, attacker_for)
    net = branch_of(key, model, scheme, task)
    assert torch.equal((net.raw_scales() > 0).long(), key.tensor("signature"))
    assert figures["flipped"] > 0
    assert figures["residual"] < 1e-3
    # Without a bottleneck nothing makes up for it.
    bare = PassportV2(norm="batch", layers=("conv1",))
    assert forged_on(PassportProjection(bits="read-off"), target_for(bare, task), attacker_for)[2]["residual"] > 0.1


@given(seed=st.integers(0, 999))
@settings(max_examples=10)
def test_a_projection_gives_what_is_wanted_and_moves_one_passport_alone(seed, task):
    scheme = PassportAware(layers=("conv3",))
    forged = ForgedBranch(target_for(scheme, task), task, Stream((str(seed),)))
    chance = torch.Generator().manual_seed(seed)
    before = {name: one.clone() for name, one in forged.passports.items()}["conv3"]
    wanted = torch.randn(64, generator=chance, dtype=torch.float64)
    forged.project("conv3", SHIFT, wanted)
    assert torch.allclose(forged.raw("conv3")[SHIFT], wanted, atol=1e-4)
    step = (forged.passports["conv3"] - before).double()
    assert not step[SCALE].any()


@given(seed=st.integers(0, 999), share=st.floats(0, 1))
@settings(max_examples=10)
def test_flips_change_no_answer_by_a_single_bit(seed, share, task, parts):
    scheme = PassportV2(norm="batch", statistics="separate")
    target = target_for(scheme, task, seed)
    forged = ForgedBranch(target, task, Stream((str(seed),)))
    before = forged.signs()
    chance = torch.Generator().manual_seed(seed)
    turned = {name: torch.rand(len(one), generator=chance) < share for name, one in forged.by_layer(before).items()}
    for name, channels in turned.items():
        forged.flip(name, channels)
    x = parts.test.x[:50]
    assert torch.equal(predict(forged.model, x), predict(target.module, x))
    assert torch.equal(forged.signs() != before, torch.cat(list(turned.values())))
    assert forged.flipped == int(torch.cat(list(turned.values())).sum())


def test_groups_do_not_make_up_for_flips_and_none_is_made(task):
    forged = ForgedBranch(target_for(PassportV2(), task), task, Stream(("groups",)))
    before = copy.deepcopy(forged.model)
    forged.flip("conv3", torch.ones(64, dtype=torch.bool))
    assert same(before, forged.model)
    assert forged.flipped == 0


# On what an owner has trained


def test_what_is_read_off_random_passports_is_no_claim(protected, owner, task, attacker_for):
    for scheme in (PassportAware(), PassportV1(), PassportV2()):
        model, owned = protected(scheme)
        release = scheme.released(owned)
        key, claimed, _ = forged_on(
            PassportRandom(), Target(copy.deepcopy(model), "white-box", release, scheme), attacker_for
        )
        assert same(claimed, model)
        found = scheme.verify(Suspect.of(claimed), key, owner)
        assert found.figures["signature_match"] == 1.0
        assert found.figures["private_accuracy"] < 0.5
        assert found.log10_p > -3
        agreement = float((key.tensor("signature") == owned.tensor("signature")).double().mean())
        assert abs(agreement - 0.5) < 0.2


@pytest.mark.parametrize("bits", ["read-off", "chosen", "hash"])
def test_what_is_solved_for_is_a_claim_as_good_as_the_owners(bits, protected, owner, attacker_for):
    scheme = PassportAware()
    model, owned = protected(scheme)
    key, claimed, _ = forged_on(
        PassportProjection(bits=bits), Target(copy.deepcopy(model), "white-box", None, scheme), attacker_for
    )
    found = scheme.verify(Suspect.of(claimed), key, owner)
    assert found.log10_p <= -6
    assert found.figures["signature_match"] == 1.0
    # The comparison with fresh passports does not tell: in the forged bottleneck they are no use either.
    assert found.figures["fresh_accuracy"] < 0.5
    owners = scheme.verify(Suspect.of(claimed), owned, owner)
    assert (owners.log10_p <= -6) == (bits != "hash")


# Trained scales and shifts

METHODS = ["plain", "individual", "collective"]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_scales_shifts_and_blocks_is_trained(method, protected, task, attacker_for):
    attack = PassportAffine(method=method, epochs=2)
    for scheme in (PassportAware(), PassportV2(), PassportV2(norm="batch")):
        model, _ = protected(scheme)
        _, claimed, figures = forged_on(attack, Target(copy.deepcopy(model), "white-box", None, scheme), attacker_for)
        assert same(claimed, model)
        assert figures["labels"] == 80
        assert figures["own_match"] == 1.0
        assert "cosine" not in figures


def test_where_passports_are_released_the_forgers_own_copy_runs_on_forged_ones(protected, task, parts, attacker_for):
    scheme = PassportV1()
    model, owned = protected(scheme)
    target = Target(copy.deepcopy(model), "white-box", scheme.released(owned), scheme)
    key, claimed, figures = forged_on(PassportAffine(epochs=2), target, attacker_for)
    norms = [f"norm{number}" for number in range(2, 7)]
    assert same(claimed, model, but=norms)
    assert not any(torch.equal(claimed.get_submodule(n).weight, model.get_submodule(n).weight) for n in norms)
    net = branch_of(key, claimed, scheme, task)
    assert torch.allclose(predict(net.private, parts.test.x), predict(claimed, parts.test.x), atol=1e-4)
    assert abs(figures["cosine"]) < 0.3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [PassportAware(layers=("conv5", "head")), PassportV2()], ids=lambda s: s.label)
def test_the_forged_branch_is_what_was_trained(method, scheme, task, parts, attacker_for, monkeypatch):
    learnt = {}
    bring = ForgedBranch.bring

    def noting(self, name, wanted):
        learnt[name] = wanted
        bring(self, name, wanted)

    monkeypatch.setattr(ForgedBranch, "bring", noting)
    target = target_for(scheme, task)
    key, model, _ = forged_on(PassportAffine(method=method, epochs=2), target, attacker_for)
    net = branch_of(key, model, scheme, task)
    assert list(learnt) == list(net.passports)
    for name, layer in net.passports.items():
        made = layer.raw() if layer.mlp is None else layer.mlp(layer.raw())
        assert torch.allclose(made.double(), torch.stack(learnt[name]), atol=1e-3)
        assert not torch.equal(learnt[name].scale, torch.ones_like(learnt[name].scale))


def test_training_finds_what_the_model_can_do(protected, owner, attacker_for):
    scheme = PassportV1()
    model, owned = protected(scheme)
    found = {}
    for epochs in (1, 60):
        target = Target(copy.deepcopy(model), "white-box", scheme.released(owned), scheme)
        key, claimed, _ = forged_on(PassportAffine(epochs=epochs), target, attacker_for)
        found[epochs] = scheme.verify(Suspect.of(claimed), key, owner)
    assert found[1].log10_p > -6
    assert found[60].figures["private_accuracy"] > found[1].figures["private_accuracy"] + 0.2
    assert found[60].log10_p <= -6


def test_the_blocks_are_those_of_the_source():
    torch.manual_seed(0)
    scale = torch.randn(16)
    together = CollectiveBlock(16)
    assert sum(one.numel() for one in together.parameters()) == 2 * 16 * 2 + 2 + 16
    hidden = together.first.weight @ scale + together.first.bias
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    assert torch.allclose(together(scale), together.second.weight @ hidden + together.second.bias + scale)
    alone = IndividualBlocks(16)
    assert sum(one.numel() for one in alone.parameters()) == 16 * 31
    reach = torch.autograd.functional.jacobian(alone, scale)
    assert torch.equal(reach, torch.diag(reach.diag()))
    hidden = alone.first[3] * scale[3] + alone.first_bias[3]
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    assert torch.allclose(alone(scale)[3], hidden @ alone.second[3] + alone.second_bias[3] + scale[3])
    # Blocks are not alike, and each begins near nothing at all.
    assert not torch.equal(alone.first[0], alone.first[1])
    assert isinstance(Affine(scale, scale), tuple)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 1.0])
def test_the_declared_effort_and_the_labels_are_those_of_the_share(share, protected, attacker_for, counted, task):
    scheme, attack = PassportAware(), PassportAffine(method="plain", share=share, epochs=2)
    target = target_for(scheme, task)
    figures = forged_on(attack, target, attacker_for)[2]
    assert figures["labels"] == min(100, round(share * task.sizes.train))
    assert counted["inputs"] == attack.effort(task).trained


# Flipped signs as removal


def flipped(model, attacker_for):
    target = Target(copy.deepcopy(model), "white-box")
    return next(SignFlip().run(target, attacker_for(SignFlip(), target)))[1]


def test_sign_flips_undo_the_owners_branch_and_the_canonical_reading_brings_it_back(
    protected, owner, parts, attacker_for
):
    plain, canonical = PassportAware(), PassportAware(canonical=True)
    model, key = protected(plain)
    assert plain.verify(Suspect.of(model), key, owner).log10_p <= -6
    turned = flipped(model, attacker_for)
    x = parts.test.x
    assert torch.allclose(predict(turned, x), predict(model, x), atol=1e-4)
    lost = plain.verify(Suspect.of(turned), key, owner)
    assert lost.log10_p > -2
    assert abs(lost.figures["signature_match"] - 0.5) < 0.15
    back = canonical.verify(Suspect.of(turned), key, owner)
    assert back.log10_p <= -6
    assert canonical.taken(Suspect.of(turned), key, owner)["canonical"].figures["signature_match"] > 0.95


def test_of_one_branch_with_its_own_scales_no_reading_brings_the_signs_back(protected, owner, parts, attacker_for):
    scheme = PassportV1(canonical=True)
    model, key = protected(PassportV1())
    assert scheme.verify(Suspect.of(model), key, owner).log10_p <= -6
    turned = flipped(model, attacker_for)
    assert torch.allclose(predict(turned, parts.test.x), predict(model, parts.test.x), atol=1e-4)
    taken = scheme.taken(Suspect.of(turned), key, owner)
    assert set(taken) == {"raw", "canonical"}
    for one in taken.values():
        assert one.log10_p > -2
        assert abs(one.figures["signature_match"] - 0.5) < 0.15


# What they refuse


def test_schemes_without_passports_and_flips_under_groups_are_refused_with_a_reason():
    for attack in (PassportRandom(), PassportProjection(), PassportAffine()):
        assert "passports" in attack.against(Uchida())
        assert attack.against(PassportAware()) is None
        assert attack.against(PassportV1()) is None
    for bits, scheme, possible in [
        ("chosen", PassportV2(), False),
        ("hash", PassportV2(), False),
        ("read-off", PassportV2(), True),
        ("chosen", PassportAware(norm="group"), True),
        ("hash", PassportAware(norm="group"), False),
    ]:
        reason = PassportProjection(bits=bits).against(scheme)
        assert (reason is None) == possible
        assert possible or "group normalization" in reason


@pytest.mark.parametrize("values", [{"share": 0.0}, {"share": 1.5}, {"epochs": 0}, {"learning_rate": 0.0}])
def test_parameters_are_checked(values):
    with pytest.raises(ValueError, match=r"expected .*got"):
        PassportAffine(**values)
