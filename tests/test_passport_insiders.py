"""Forgeries of private branches by insiders: what moves and what stays, exactly, and what they come to."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models
from attacks.passport_ambiguity import (
    FreePassports,
    PassportAmbiguityOne,
    PassportAmbiguityTwo,
    PassportMaximise,
    near,
    normal,
    renew,
)
from attacks.passport_insider import FreeScales, PassportReverse, realised, turned_over
from attacks.passports.algebra import last_weights, projected, raw_of
from attacks.passports.forging import around
from bench.stream import Stream
from bench.suspect import Suspect, Target, predict
from bench.trainer import OwnerTrainer
from defenses.passport import PassportV1, PassportV2, PassportV3
from defenses.passport_aware import PassportAware
from defenses.passports import key as passport_key
from defenses.passports.branches import insert, raw_scale, with_groups
from defenses.passports.scheme import plan
from defenses.uchida import Uchida

AWARE, V1, V2 = PassportAware(), PassportV1(), PassportV2()
SCHEMES = [AWARE, V1, V2, PassportAware(statistics="shared"), PassportAware(mlp=False)]


def labels(schemes):
    return pytest.mark.parametrize("scheme", schemes, ids=lambda scheme: scheme.label)


@pytest.fixture
def made_by(task, parts):
    """A protected model and its completed key, of an untrained net: what is exact is so for any weights."""
    known = {}

    def get(scheme):
        if scheme.label not in known:
            trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))
            key = scheme.draw(task, Stream(("key",)))
            model = trainer.new_model()
            net = scheme.begun(with_groups(model) if scheme.norm == "group" else model, key, trainer)
            moved(net)
            scheme.finish(net, task)
            known[scheme.label] = net.public.eval(), scheme.completed(key, net)
        return known[scheme.label]

    return get


def moved(net):
    """Statistics, scales and shifts as after training: of both branches, and different."""
    chance = torch.Generator().manual_seed(5)
    for name, value in [*net.public.state_dict().items(), *net.secrets().items()]:
        if "running" in name or name.endswith(("norm.weight", "norm.bias")):
            value.copy_(0.5 + torch.rand(value.shape, generator=chance))


def forged(attack, scheme, made, attacker_for):
    model, key = made
    target = Target(copy.deepcopy(model), "white-box", None, scheme, key.tensor(attack.part).clone())
    trainer = attacker_for(attack, target)
    found = attack.forge(target, trainer)
    assert target.queries == 0
    assert trainer.labels_used == 100
    assert same(target.module, model)
    return found


def same(first, second):
    mine, theirs = first.state_dict(), second.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def opened(scheme, task, key, model):
    passports = scheme.passports_of(key.tensor("passports"), task)
    return insert(copy.deepcopy(model), plan(task), scheme.form(task), passports, key.tensor("private"))


def attacks_on(scheme, **changes):
    """All that can be tried on a scheme."""
    tried = [PassportReverse(**changes), PassportMaximise(**changes), PassportAmbiguityOne(**changes)]
    tried += [PassportAmbiguityTwo(bottleneck=kind, **changes) for kind in ("kept", "renewed", "trained")]
    return [attack for attack in tried if attack.against(scheme) is None]


# Closed forms


LAYERS = {
    "padded": (nn.Conv2d(6, 5, 3, padding=1), (6, 7, 7)),
    "strided, with a bias": (nn.Conv2d(4, 8, 3, stride=2), (4, 9, 8)),
    "on a small map": (nn.Conv2d(8, 6, 3, padding=1), (8, 2, 2)),
    "over points": (nn.Conv1d(7, 5, 1), (7, 30)),
    "linear": (nn.Linear(12, 9), (12,)),
}


@pytest.mark.parametrize("kind", LAYERS)
@given(seed=st.integers(0, 99), scale=st.sampled_from([0.01, 1.0, 30.0]))
@settings(max_examples=10)
def test_projected_passports_come_to_what_is_wanted_and_move_as_little_as_they_can(kind, seed, scale):
    layer, shape = LAYERS[kind]
    chance = torch.Generator().manual_seed(seed)
    passports = torch.randn(2, *shape, generator=chance)
    channels = layer.weight.shape[0]
    wanted = scale * torch.randn(2, channels, generator=chance)
    found = projected(layer, passports, wanted)
    assert torch.allclose(raw_of(layer, found), wanted, atol=1e-5 * max(scale, 1.0))
    # Of the least norm: at right angles to whatever moves no raw value.
    zero = raw_of(layer, torch.zeros(2, *shape)).detach()
    idle = projected(layer, torch.randn(2, *shape, generator=chance), zero)
    moved = found - passports
    assert (moved * idle).sum().abs() <= 1e-4 * moved.norm() * idle.norm()


def test_raw_values_are_what_the_layer_answers_on_average():
    for layer, shape in LAYERS.values():
        passports = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        answers = layer(passports)
        mean = answers.flatten(2).mean(2) if answers.dim() > 2 else answers
        assert torch.allclose(raw_of(layer, passports), mean, atol=1e-5)


def test_a_layer_of_low_rank_comes_as_near_as_it_can():
    layer = nn.Conv1d(3, 8, 1, bias=False)
    passports, wanted = torch.randn(2, 3, 10), torch.randn(2, 8)
    found = raw_of(layer, projected(layer, passports, wanted)).detach()
    weights = layer.weight.detach()[:, :, 0]
    best = wanted @ torch.linalg.pinv(weights).T @ weights.T
    assert torch.allclose(found, best, atol=1e-4)


@given(seed=st.integers(0, 99), width=st.integers(2, 20), channels=st.integers(1, 40))
@settings(max_examples=20)
def test_the_last_weights_take_two_given_vectors_to_two_wanted_ones(seed, width, channels):
    chance = torch.Generator().manual_seed(seed)
    hidden, wanted = (torch.randn(2, n, generator=chance, dtype=torch.float64) for n in (width, channels))
    found = last_weights(hidden, wanted)
    assert found.shape == (channels, width)
    assert torch.allclose(hidden @ found.T, wanted, atol=1e-6)
    # A shift of zero is no obstacle.
    hidden[1] = wanted[1] = 0
    assert torch.allclose(hidden @ last_weights(hidden, wanted).T, wanted, atol=1e-6)


@given(share=st.floats(0, 1), count=st.integers(1, 200), seed=st.integers(0, 9))
def test_exactly_the_stated_share_of_the_bits_is_turned(share, count, seed):
    bits = Stream((str(seed), "bits")).bits(count)
    turned = turned_over(bits, share, Stream((str(seed),)))
    assert int((turned != bits).sum()) == round(share * count)
    assert set(turned.tolist()) <= {0, 1}
    assert torch.equal(turned, turned_over(bits, share, Stream((str(seed),))))


# What moves and what stays


@labels(SCHEMES)
def test_the_model_stays_bit_for_bit_and_the_forged_branch_is_in_it(scheme, task, made_by, attacker_for):
    made = made_by(scheme)
    for attack in attacks_on(scheme, epochs=2, learning_rate=0.05):
        key, model, figures, _ = forged(attack, scheme, made, attacker_for)
        assert same(model, made[0]), attack
        net = opened(scheme, task, key, model)
        assert torch.equal((net.raw_scales() > 0).long(), key.tensor("signature")), attack
        private = key.tensor("private")
        assert torch.equal(key.tensor("branch"), torch.cat([key.tensor("passports"), private]))
        true = made[1].tensor("passports")
        if attack.part != "signature":
            cosine = F.cosine_similarity(key.tensor("passports"), true, dim=0)
            assert figures["passport_cosine"] == pytest.approx(float(cosine), abs=1e-6)


@pytest.mark.parametrize("kind", ["kept", "renewed", "trained"])
@pytest.mark.parametrize("cls", [PassportAmbiguityOne, PassportAmbiguityTwo])
def test_a_bottleneck_is_the_owners_or_a_new_one_and_moves_where_it_is_trained(cls, kind, task, made_by, attacker_for):
    model, owned = made_by(AWARE)
    key, *_ = forged(cls(bottleneck=kind, epochs=1, learning_rate=100.0), AWARE, (model, owned), attacker_for)
    start = opened(AWARE, task, owned, model)
    if kind != "kept":
        renew(start, Stream.root(0).child("attacker"))
    before, after = start.secrets(), opened(AWARE, task, key, model).secrets()
    assert {name for name in before if "mlp" in name} != set()
    for name, value in before.items():
        trained = kind == "trained" and "mlp" in name
        assert torch.equal(value, after[name]) != trained, name
        # Statistics are the owner's in any case.
        assert "mlp" in name or torch.equal(value, opened(AWARE, task, owned, model).secrets()[name])
    assert not torch.equal(key.tensor("passports"), owned.tensor("passports"))


def beside(model, laid, scheme, trainer):
    task = trainer.task
    return around(copy.deepcopy(model), scheme.passports_of(laid, task), scheme, task, trainer.stream)


@labels(SCHEMES)
def test_statistics_move_where_that_is_wanted_and_the_branch_has_its_own(scheme, task, made_by, attacker_for):
    made = made_by(scheme)
    for attack in attacks_on(scheme, epochs=1, statistics="moving"):
        key, model, *_ = forged(attack, scheme, made, attacker_for)
        assert same(model, made[0])
        was, now = (opened(scheme, task, one, model).secrets() for one in (made[1], key))
        if attack.part in ("signature", "passports"):
            start = beside(model, made[1].tensor("passports"), scheme, attacker_for(attack))
            was = start.secrets()
        moved = {name for name in was if "running" in name and not torch.equal(was[name], now[name])}
        own = scheme.form(task).statistics == "separate"
        assert moved == {name for name in was if "running" in name}
        assert bool(moved) == own


def test_each_passport_is_trained(task, made_by, attacker_for):
    for scheme, attack in [
        (AWARE, PassportAmbiguityOne(epochs=1, learning_rate=1e4)),
        (V2, PassportMaximise(epochs=1)),
    ]:
        model, owned = made_by(scheme)
        key, *_ = forged(attack, scheme, (model, owned), attacker_for)
        start = normal(owned.tensor("passports"), Stream.root(0).child("attacker"))
        start = start if scheme is AWARE else near(owned.tensor("passports"), Stream.root(0).child("attacker"))
        was, now = (scheme.passports_of(flat, task) for flat in (start, key.tensor("passports")))
        for name, value in was.items():
            assert (value != now[name]).flatten(1).any(1).all(), name


def test_the_gradient_reaches_passports_as_it_would_through_the_layer_itself(task, made_by, parts):
    model, owned = made_by(V2)
    net = opened(V2, task, owned, model)
    free = FreePassports(net, V2.passports_of(owned.tensor("passports"), task))
    x = parts.attacker.x[:8]
    assert torch.equal(free(x), opened(V2, task, owned, model).private(x))
    net.raw_scales().sum().backward()
    for value, name in zip(free.values, net.passports, strict=True):
        direct = value.detach().clone().requires_grad_()
        models.layer(model, name)(direct)[0].flatten(1).mean(1).sum().backward()
        assert torch.allclose(value.grad, direct.grad, atol=1e-7)
        assert value.grad[0].any()
        assert not value.grad[1].any()


# What they start from


@labels([AWARE, V1, V2])
def test_passports_near_the_owners_give_the_owners_branch(scheme, task, made_by, attacker_for, parts):
    model, owned = made_by(scheme)
    attack = PassportAmbiguityTwo(flipped=0.0, epochs=0)
    key, _, figures, _ = forged(attack, scheme, (model, owned), attacker_for)
    x = parts.attacker.x[:32]
    theirs, mine = (predict(opened(scheme, task, one, model).private, x) for one in (owned, key))
    assert torch.allclose(mine, theirs, atol=0.02 * float(theirs.std()))
    assert not torch.equal(mine, theirs)
    assert torch.equal(key.tensor("private"), owned.tensor("private"))
    assert figures["passport_cosine"] > 0.999
    assert figures["bits_changed"] < 0.05


@labels(SCHEMES)
def test_free_scales_are_the_branch_without_its_passports(scheme, task, made_by, attacker_for, parts):
    model, owned = made_by(scheme)
    net = opened(scheme, task, owned, model)
    with torch.no_grad():
        values = {name: (one.mlp or nn.Identity())(one.raw()) for name, one in net.passports.items()}
    x = parts.attacker.x[:16]
    assert torch.allclose(predict(FreeScales(net, values), x), predict(net.private, x), atol=1e-5)


@labels(SCHEMES)
def test_scales_and_shifts_become_passports_that_give_the_same_branch(scheme, task, made_by, attacker_for, parts):
    model, owned = made_by(scheme)
    trainer = attacker_for(PassportReverse())
    start = passport_key.uniform(scheme.shapes(task), Stream(("start",)))
    net = beside(model, start, scheme, trainer)
    chance = torch.Generator().manual_seed(3)
    wanted = {name: torch.randn(2, width, generator=chance) for name, width in scheme.widths(task).items()}
    free = FreeScales(net, wanted)
    made = realised(net, scheme.passports_of(start, task), wanted)
    x = parts.attacker.x[:16]
    answers = predict(free, x)
    assert torch.allclose(predict(net.private, x), answers, atol=1e-3 * float(answers.std()))
    assert [one.shape for one in made] == list(map(torch.Size, scheme.shapes(task).values()))
    assert torch.equal((net.raw_scales() > 0), torch.cat([one[0] for one in wanted.values()]) > 0)
    flat = torch.cat([one.flatten() for one in made])
    assert F.cosine_similarity(flat, owned.tensor("passports"), dim=0).abs() < 0.1


@labels([AWARE, V1, PassportAware(mlp=False)])
def test_an_insider_who_lacks_the_branch_takes_the_models_statistics(scheme, task, made_by, attacker_for):
    model, owned = made_by(scheme)
    net = beside(model, owned.tensor("passports"), scheme, attacker_for(PassportReverse()))
    for name, layer in net.passports.items():
        norm = models.layer(model, plan(task).norm_of[name])
        if scheme is not V1:
            assert torch.equal(layer.norm.running_mean, norm.running_mean)
            assert torch.equal(layer.norm.running_var, norm.running_var)
    x = torch.randn(4, *task.shape)
    plain = {name: torch.stack([n.weight, n.bias]).detach() for name, n in norms(model, task, net).items()}
    assert torch.allclose(predict(FreeScales(net, plain), x), predict(model, x), atol=1e-5)


def norms(model, task, net):
    return {name: models.layer(model, plan(task).norm_of[name]) for name in net.passports}


@pytest.mark.parametrize("flipped", [0.0, 0.25, 1.0])
def test_the_reverse_engineer_starts_from_the_signs_of_the_bits(flipped, task, made_by, attacker_for):
    for scheme in (AWARE, V1, V2):
        model, owned = made_by(scheme)
        attack = PassportReverse(flipped=flipped, epochs=0)
        key, _, figures, _ = forged(attack, scheme, (model, owned), attacker_for)
        bits = owned.tensor("signature")
        assert figures["bits_changed"] == pytest.approx(round(flipped * len(bits)) / len(bits))
        passports = scheme.passports_of(key.tensor("passports"), task)
        raw = torch.cat([raw_scale(model, name, one) for name, one in passports.items()])
        assert torch.allclose(raw.abs(), torch.ones(len(bits)), atol=1e-4)
        shift = torch.cat([raw_scale(model, name, one.flip(0)) for name, one in passports.items()])
        assert torch.allclose(shift, torch.zeros(len(bits)), atol=1e-4)


@labels([V1, V2, AWARE])
def test_the_sign_loss_reaches_the_bits_that_are_wanted(scheme, made_by, attacker_for):
    made = made_by(scheme)
    for flipped in (0.25, 1.0):
        found = forged(PassportAmbiguityTwo(flipped=flipped, epochs=20, learning_rate=3.0), scheme, made, attacker_for)
        assert found.figures["bits_changed"] == pytest.approx(flipped, abs=0.1)
        assert found.figures["passport_cosine"] < 0.99


def test_maximising_is_the_second_attack_where_the_branch_is_its_passports_alone(made_by, attacker_for):
    for scheme in (V1, V2):
        one = forged(PassportMaximise(epochs=2), scheme, made_by(scheme), attacker_for)
        other = forged(PassportAmbiguityTwo(epochs=2), scheme, made_by(scheme), attacker_for)
        assert torch.equal(one.key.tensor("passports"), other.key.tensor("passports"))
        assert one.figures == other.figures


# The key


@pytest.mark.parametrize("scheme", [PassportV3(), PassportAware(passports="shuffled")], ids=lambda scheme: scheme.label)
def test_a_forged_key_has_all_that_the_scheme_draws_and_is_read(scheme, task, parts, made_by, attacker_for):
    trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))
    model, owned = protected_briefly(scheme, trainer)
    key, claimed_on, *_ = forged(PassportReverse(epochs=1), scheme, (model, owned), attacker_for)
    assert set(key.drawn) == set(owned.drawn)
    assert not torch.equal(key.tensor("passports"), owned.tensor("passports"))
    assert scheme.verify(Suspect.of(claimed_on), key, trainer).reason is None
    assert scheme._read(claimed_on, key, trainer, aligned=False).figures["signature_match"] == 1.0


def protected_briefly(scheme, trainer):
    key = scheme.draw(trainer.task, Stream(("key",)))
    if "passports" not in key.drawn:
        flat = passport_key.uniform(scheme.shapes(trainer.task), Stream(("images",)))
        key = key.complete(passports=flat)
    model = with_groups(trainer.new_model()) if scheme.norm == "group" else trainer.new_model()
    net = scheme.begun(model, key, trainer)
    return net.public.eval(), scheme.completed(key, net)


def test_each_says_where_it_cannot_be_tried():
    assert "'signature'" in PassportReverse().against(Uchida())
    assert "bottleneck" in PassportMaximise().against(AWARE)
    assert PassportMaximise().against(PassportAware(mlp=False)) is None
    assert PassportMaximise().against(V1) is None
    for kind in ("renewed", "trained"):
        for cls in (PassportAmbiguityOne, PassportAmbiguityTwo):
            assert repr(kind) in cls(bottleneck=kind).against(V2)
            assert cls(bottleneck=kind).against(AWARE) is None
    assert PassportAmbiguityOne().against(V2) is None


@pytest.mark.parametrize("cls", [PassportReverse, PassportMaximise, PassportAmbiguityTwo])
def test_shares_outside_of_zero_to_one_are_refused(cls):
    for flipped in (-0.1, 1.1):
        with pytest.raises(ValueError, match="expected flipped in"):
            cls(flipped=flipped)
    with pytest.raises(ValueError, match="learning_rate"):
        cls(learning_rate=0.0)
