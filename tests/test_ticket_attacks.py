"""Attacks on pruned models: which weights go, come or move, exactly, and that masks hold."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_ticket import ToyTicket

import models
from attacks.ticket_growth import AddOn, DenseRetrain, Regrow, gradients, pruned_back
from attacks.ticket_pruning import TicketPrune, pool_of, pruned_further
from attacks.ticket_user import LockedUser, TicketUnlock
from attacks.tickets.pruned import live
from attacks.transfer import Transfer
from attacks.window_rewrite import Window, WindowForgery, WindowRewrite, rewrite
from bench import contract, data
from bench.attack import AmbiguityAttack
from bench.bundle import Bundle, bundle_to_key
from bench.contract.bout import cases as tried_on
from bench.contract.workshop import Skip, Workshop
from bench.planning import cells, suite
from bench.planning.dag import JobPlanner
from bench.stream import Stream
from bench.suspect import Target, predict
from bench.task import Task
from bench.trainer import OwnerTrainer
from defenses.none import Undefended
from defenses.tickets.lottery_ticket import prunable
from defenses.uchida import Uchida
from models import joined, parted
from tests.planned import Runner

SCHEME = ToyTicket()


@pytest.fixture(scope="module")
def made(task, parts):
    """The toy's protected model, completed key and release."""
    trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))
    return SCHEME.protect(trainer, SCHEME.draw(task, Stream(("key",))))


def attacked(attack, made, attacker_for, release=True):
    """Strengths and copies of the surrogates."""
    target = target_of(attack, made, release)
    trainer = attacker_for(attack, target)
    if isinstance(attack, AmbiguityAttack):
        found = [(0.0, attack.forge(target, trainer).model)]
    else:
        found = [(strength, copy.deepcopy(one)) for strength, one in attack.run(target, trainer)]
    assert len(found) == attack.surrogates()
    assert target.queries == 0
    assert trainer.labels_used == (100 if attack.data_used() == "labels" else 0)
    return found


def target_of(attack, made, release=True):
    knows, part = attack.knowledge != "none", getattr(attack, "part", None)
    public = copy.deepcopy(made.release) if release else None
    return Target(
        copy.deepcopy(made.model),
        attack.access_used(),
        public,
        SCHEME if knows else None,
        made.key.tensor(part) if part else None,
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second, names=None):
    mine, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in names or mine)


def alive(model):
    return {f"{name}.weight": weight.detach() != 0 for name, weight in models.weights_of(model).items()}


def within(small, large):
    return all(bool((~small[name] | large[name]).all()) for name in small)


# Reading a pruned model


def test_layers_without_a_zero_are_not_pruned(made):
    masks = live(made.model)
    assert list(masks) == list(prunable(made.model))
    assert all(torch.equal(mask, made.model.get_parameter(name) != 0) for name, mask in masks.items())
    again = parted(joined(masks), masks)
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())
    dense = models.build("resnet8", 10, (1, 8, 8))
    assert live(dense) == {}
    with torch.no_grad():
        dense.head.weight[0, 0] = 0.0
    assert list(live(dense)) == ["head.weight"]


# Pruning further


@given(
    fraction=st.floats(0, 0.99),
    already=st.floats(0, 0.95),
    random=st.booleans(),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_exactly_the_stated_share_of_the_live_weights_goes(fraction, already, random, ties, seed):
    chance = torch.Generator().manual_seed(seed)
    pool = {str(n): torch.randn(n, n + 1, generator=chance) + 3e-3 for n in (3, 9, 20)}
    pool = {name: one * (torch.rand(one.shape, generator=chance) >= already) for name, one in pool.items()}
    if ties:
        pool = {name: one.round(decimals=1) for name, one in pool.items()}
    stream = Stream((str(seed),)) if random else None
    masks = pruned_further(pool, fraction, stream)
    before, left = joined(pool), joined(masks)
    count = int((before != 0).sum())
    assert not left[before == 0].any()
    assert int(left.sum()) == count - round(fraction * count)
    dropped = before[(before != 0) & ~left].abs()
    if not random and len(dropped) and left.any():
        assert dropped.max() <= before[left].abs().min()
    assert within(pruned_further(pool, (fraction + 0.99) / 2, stream), masks)


@pytest.mark.parametrize("order", ["magnitude", "random"])
def test_the_first_convolution_is_pruned_and_the_classifier_is_not(order, made, attacker_for):
    found = attacked(TicketPrune(order=order), made, attacker_for)
    assert [strength for strength, _ in found] == list(TicketPrune().fractions)
    pool = set(pool_of(made.model))
    assert {"conv1.weight", "hidden.weight"} <= pool
    assert "head.weight" not in pool
    before = alive(made.model)
    count = sum(int(before[name].sum()) for name in pool)
    for fraction, model in found:
        left = alive(model)
        assert sum(int(left[name].sum()) for name in pool) == count - round(fraction * count)
        for name, value in model.state_dict().items():
            old = made.model.state_dict()[name]
            assert torch.equal(value, old * left[name] if name in pool else old)
    if order == "random":
        assert not left["conv1.weight"].all()


@pytest.mark.parametrize("order", ["magnitude", "random"])
def test_what_was_pruned_further_stays_zero_while_it_trains(order, made, attacker_for):
    plain = attacked(TicketPrune(fractions=(0.3,), order=order), made, attacker_for)
    trained = attacked(TicketPrune(fractions=(0.3,), order=order, retrain_epochs=2), made, attacker_for)
    for (_, one), (_, other) in zip(plain, trained, strict=True):
        assert all(torch.equal(alive(one)[name], alive(other)[name]) for name in pool_of(one))
        assert not torch.equal(one.conv3.weight, other.conv3.weight)


# Growth


@pytest.mark.parametrize("scale", [0.1, 1e-4])
def test_added_weights_are_where_none_were_and_as_many_as_by_chance(scale, made, attacker_for):
    found = attacked(AddOn(scale=scale), made, attacker_for)
    before = live(made.model)
    pruned = int((~joined(before)).sum())
    last = made.model
    for share, model in found:
        now = live(model)
        added = joined(now) & ~joined(before)
        assert within(live(last), now)
        assert abs(int(added.sum()) - share * pruned) < 5 * (share * (1 - share) * pruned) ** 0.5
        values = joined({name: model.get_parameter(name) for name in before})[added]
        assert abs(values.mean()) < 5 * scale / len(values) ** 0.5
        assert abs(values.std() / scale - 1) < 5 / (2 * len(values)) ** 0.5
        for name, value in model.state_dict().items():
            old = made.model.state_dict()[name]
            assert torch.equal(torch.where(before[name], value, 0.0) if name in before else value, old)
        # The same weights at each share, and more.
        for name, mask in live(last).items():
            assert torch.equal(model.get_parameter(name)[mask], last.get_parameter(name)[mask])
        last = model


def test_tiny_additions_change_no_answer(made, attacker_for, parts):
    ((_, tiny), (_, large)) = (
        attacked(AddOn(shares=(0.1,), scale=scale), made, attacker_for)[0] for scale in (1e-4, 0.1)
    )
    x = parts.test.x
    assert torch.equal(predict(tiny, x).argmax(1), predict(made.model, x).argmax(1))
    assert not torch.equal(predict(large, x).argmax(1), predict(made.model, x).argmax(1))


@pytest.mark.parametrize("criterion", ["random", "gradient"])
@pytest.mark.parametrize("start", ["published", "rewound"])
def test_growth_has_the_stated_size_and_its_mask_holds(criterion, start, made, attacker_for):
    attack = Regrow(shares=(0.1, 0.5), criterion=criterion, start=start, epochs=2)
    found = attacked(attack, made, attacker_for)
    begun = made.release.models["rewind"] if start == "rewound" else made.model
    before = live(begun)
    count = int(joined(before).sum())
    last = before
    for share, model in found:
        now = {name: model.get_parameter(name).detach() != 0 for name in before}
        assert int(joined(now).sum()) == count + round(share * count)
        assert within(last, now)
        assert not torch.equal(model.conv3.weight, begun.conv3.weight)
        last = now


def test_all_that_is_pruned_can_grow_and_no_more(made, attacker_for):
    ((_, model),) = attacked(Regrow(shares=(1000.0,), epochs=1), made, attacker_for)
    assert live(model) == {}


def test_growth_by_gradient_takes_the_steepest(made, attacker_for, monkeypatch):
    attack = Regrow(shares=(0.2,), criterion="gradient", scale=0.0, epochs=1)
    target = target_of(attack, made)
    trainer = attacker_for(attack, target)
    held = {}
    whole = trainer.training

    def training(model, *args, **options):
        held.update(options["masks"])
        held["state"] = state(model)
        return whole(model, *args, **options)

    monkeypatch.setattr(trainer, "training", training)
    list(attack.run(target, trainer))
    before = live(made.model)
    # At zero until they are trained.
    assert all(torch.equal(held["state"][name], value) for name, value in made.model.state_dict().items())
    model = copy.deepcopy(made.model).eval()
    labelled = trainer.labelled
    F.cross_entropy(model(labelled.x), labelled.y).backward()
    slopes = joined({name: model.get_parameter(name).grad for name in before})
    by_hand = gradients(copy.deepcopy(made.model), list(before), trainer)
    torch.testing.assert_close(joined(by_hand), slopes, rtol=1e-4, atol=1e-7)
    pruned = ~joined(before)
    chosen = joined({name: held[name] for name in before}) & pruned
    assert slopes[chosen].abs().min() >= slopes[pruned & ~chosen].abs().max() * 0.999


@given(share=st.floats(0, 1), ties=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_pruning_back_keeps_exactly_the_largest(share, ties, seed):
    chance = torch.Generator().manual_seed(seed)
    pool = {str(n): torch.randn(n, n, generator=chance) for n in (4, 11)}
    if ties:
        pool = {name: one.round() for name, one in pool.items()}
    whole = joined(pool)
    count = round(share * len(whole))
    kept = joined(pruned_back(pool, count))
    assert int(kept.sum()) == count
    if 0 < count < len(whole):
        assert whole[kept].abs().min() >= whole[~kept].abs().max()


@pytest.mark.parametrize("after", [0, 2])
def test_a_dense_training_ends_as_sparse_as_it_began_and_elsewhere(after, made, attacker_for):
    attack = DenseRetrain(epochs=6, every=3, learning_rate=0.2, retrain_epochs=after)
    found = attacked(attack, made, attacker_for)
    assert [strength for strength, _ in found] == [3.0, 6.0]
    before = joined(live(made.model))
    for _, model in found:
        now = joined({name: model.get_parameter(name).detach() != 0 for name in live(made.model)})
        assert int(now.sum()) == int(before.sum())
        assert not torch.equal(now, before)


# Users


def test_the_locked_user_trains_what_was_released(made, attacker_for):
    ((strength, model),) = attacked(LockedUser(epochs=2, every=2), made, attacker_for)
    released = made.release.models["rewind"]
    assert strength == 2.0
    assert {n: m.tolist() for n, m in live(model).items()} == {n: m.tolist() for n, m in live(released).items()}
    assert not same(model, released)


@pytest.mark.parametrize("start", ["rewound", "published"])
def test_the_unlocked_copy_has_the_whole_ticket_and_the_withheld_values(start, made, attacker_for, monkeypatch):
    attack = TicketUnlock(start=start, epochs=2, every=2)
    target = target_of(attack, made)
    trainer = attacker_for(attack, target)
    begun = {}
    whole = trainer.training

    def training(model, *args, **options):
        begun["model"] = copy.deepcopy(model)
        return whole(model, *args, **options)

    monkeypatch.setattr(trainer, "training", training)
    found = [(strength, copy.deepcopy(one)) for strength, one in attack.run(target, trainer)]
    assert [strength for strength, _ in found] == ([2.0] if start == "rewound" else [0.0, 2.0])
    source = made.release.models["rewind"] if start == "rewound" else made.model
    places, values = made.key.tensor("withheld")
    before = joined(prunable(source))
    before[places.long()] = values.float()
    assert torch.equal(joined(prunable(begun["model"])), before)
    others = [name for name in source.state_dict() if name not in prunable(source)]
    assert same(begun["model"], source, others)
    for _, model in found:
        assert torch.equal(joined(prunable(model)) != 0, before != 0)


def test_users_without_and_with_the_key_see_the_same_batches(made, attacker_for):
    ((_, one),) = attacked(LockedUser(epochs=1, every=1), made, attacker_for)
    nothing = made.key.complete(withheld=torch.zeros(2, 0, dtype=torch.float64))
    ((_, other),) = attacked(TicketUnlock(epochs=1, every=1), made._replace(key=nothing), attacker_for)
    assert same(one, other)


def test_without_a_release_there_is_nothing_to_train(made, attacker_for):
    for attack in (LockedUser(), TicketUnlock()):
        with pytest.raises(ValueError, match="expected a model 'rewind' in the release, got none"):
            attacked(attack, made, attacker_for, release=False)


# Transfer


@pytest.mark.parametrize("start", ["rewound", "published"])
@pytest.mark.parametrize("release", [True, False])
def test_transfer_starts_from_the_ticket_with_new_ends(start, release, made, attacker_for, monkeypatch, task):
    attack = Transfer(start=start, epochs=1, every=1)
    target = target_of(attack, made, release)
    trainer = attacker_for(attack, target)
    begun = {}
    whole = trainer.training

    def training(model, split, *args, **options):
        begun.update(state=state(model), y=split.y)
        return whole(model, split, *args, **options)

    monkeypatch.setattr(trainer, "training", training)
    ((_, model),) = attack.run(target, trainer)
    source = made.release.models["rewind"] if start == "rewound" and release else made.model
    renewed = {"head.weight", "head.bias", "conv1.weight"}
    changed = {name for name, value in source.state_dict().items() if not torch.equal(value, begun["state"][name])}
    assert changed == renewed
    assert begun["y"].tolist() == [label // 2 for label in trainer.labelled.y.tolist()]
    assert model.head.out_features == task.classes
    assert {n: m.tolist() for n, m in live(model).items()} == {n: m.tolist() for n, m in live(source).items()}


def test_transfer_leaves_the_first_layer_where_that_is_wanted(made, attacker_for):
    attack = Transfer(first=False, epochs=1, learning_rate=1e-9)
    ((_, model),) = attacked(attack, made, attacker_for)
    released = made.release.models["rewind"]
    torch.testing.assert_close(model.conv1.weight, released.conv1.weight, atol=1e-6, rtol=0)
    assert not torch.allclose(model.head.weight, released.head.weight, atol=1e-3)
    nowhere = dataclasses.replace(data.info("digits"), second=())
    assert "no second task" in Transfer().applies_to(Task(nowhere, "vgg8", nowhere.recipe))


def test_a_changed_task_is_measured_on_its_labels_against_the_clean_model():
    text = {
        "name": "small",
        "tasks": [{"dataset": "digits", "recipe": {"epochs": 6}}],
        "defenses": [{"name": "uchida", "bits": 16}],
        "attacks": [{"name": "transfer", "epochs": 30, "every": 15}, {"name": "ticket-prune"}],
    }
    plan = cells.make(suite.parse(text, "here", "here"))
    run = Runner(plan.jobs)

    found = {(cell.attack, cell.defense, cell.attack_kind): cell for cell in plan.cells}
    cell = found["transfer", "uchida", "removal"]
    for role in ("measure", "reference"):
        accuracy = run(cell.jobs[role]).result["accuracy"]
        assert len(accuracy) == 2
        # Of ten labels a tenth would be right by chance, of five a fifth.
        assert accuracy[-1] > 0.8
    assert run(cell.jobs["judge"]).result["evidence"][0]["reason"] is None
    assert ("transfer", "uchida", "control") in found
    # The clean model is not sparse, so it has no control of this attack.
    assert found["ticket-prune", "uchida", "removal"].status == "not applicable"
    assert ("ticket-prune", "uchida", "control") not in found


# The window


@given(seed=st.integers(0, 999), careful=st.booleans(), density=st.sampled_from([0.05, 0.2, 0.6, 1.0]))
@settings(max_examples=30)
def test_a_rewritten_window_has_the_pattern_and_nothing_else_changes(seed, careful, density):
    chance = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(9, 10, 3, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(model[0].weight.shape, generator=chance) < density)
    before = model[0].weight.detach().clone()
    window, code = Window("0.weight", 2, 1, 6), torch.randint(-1, 2, (6, 6), generator=chance)
    rewrite(model, window, code, Stream((str(seed),)), careful=careful)
    after = model[0].weight.detach()
    old, new = window.kernels(before), window.kernels(after)
    pattern = torch.where(code < 0, (old != 0).flatten(2).any(2), code == 1)
    assert torch.equal((new != 0).flatten(2).any(2), pattern)
    outside = torch.ones_like(before, dtype=torch.bool)
    window.kernels(outside)[:] = False
    assert torch.equal(before[outside], after[outside])
    kept, was = pattern[:, :, None, None] & (old != 0), (old != 0).flatten(2).any(2)
    if careful:
        assert torch.equal(new[kept], old[kept])
        added = new[pattern & ~was]
        assert ((added != 0).flatten(1).sum(1) == 1).all()
        typical = before[before != 0].abs().median() if before.any() else torch.tensor(0.1)
        assert (added[added != 0].abs() == typical).all()
        assert int((new != 0).sum()) == int(kept.sum()) + len(added)
    else:
        assert bool((~kept | (new != 0)).all())
        assert not (new[kept] == old[kept]).any()
        room = 9 * int(pattern.sum())
        least = int(kept.sum()) + int((pattern & ~was).sum())
        assert int((new != 0).sum()) == min(room, max(least, int((old != 0).sum())))


@pytest.mark.parametrize("careful", [True, False])
def test_a_rewrite_takes_the_owners_code_away(careful, made, attacker_for, owner):
    attack = WindowRewrite(careful=careful, retrain_epochs=2)
    found = attacked(attack, made, attacker_for)
    assert [strength for strength, _ in found] == [0.0, 2.0]
    assert SCHEME.verify(target_of(attack, made), made.key, owner).log10_p < -6
    for _, model in found:
        assert SCHEME.verify(Target(model, "white-box"), made.key, owner).log10_p > -3
    (_, before), (_, after) = found
    assert all(torch.equal(live(after)[name], mask) for name, mask in live(before).items())


@pytest.fixture(scope="module")
def forged(task):
    """A protected toy and a forgery on it as the harness makes them: each job's inputs and outcome."""
    planner = JobPlanner(task, 0, 1, "cpu", data.prepare(task.info, task.sizes), {})
    name = planner.attack(SCHEME, WindowForgery())
    run = Runner(planner.jobs)
    return planner.jobs[name], (run.inputs(name), run(name)), run(planner.protect(SCHEME))


def test_an_insider_claims_its_own_code_and_the_owner_no_longer_does(forged, owner):
    job, (_, outcome), protected = forged
    made = Bundle.from_bytes(outcome.products["public"])
    model, theirs = made.models["0"], bundle_to_key(made)
    own = bundle_to_key(Bundle.from_bytes(protected.products["secret"]))
    evidence = {
        name: SCHEME.verify(Target(model, "white-box"), key, owner).log10_p
        for name, key in (("forger", theirs), ("owner", own))
    }
    assert evidence["forger"] < -30
    assert evidence["owner"] > -3
    assert not torch.equal(own.tensor("bits"), theirs.tensor("bits"))
    assert job.kind == "forge"


def test_an_insider_who_forges_is_handed_the_part_and_no_key(forged):
    job, (inputs, _), protected = forged
    assert {role: one.channel for role, one in job.inputs.items()} == {"target": "public", "part": "public"}
    part = Bundle.from_bytes(inputs["part"])
    assert list(part.tensors) == ["part"]
    key = bundle_to_key(Bundle.from_bytes(protected.products["secret"]))
    assert torch.equal(part.tensors["part"], key.tensor("window"))
    bits = key.tensor("bits").numpy().tobytes()
    assert bits in protected.products["secret"]
    assert not any(bits in content for content in inputs.values())


def test_codes_that_nobody_can_write_are_not_forged():
    class Silent(ToyTicket):
        pattern = None

    assert "does not say what the code of a key is" in WindowForgery().against(Silent())
    assert "needs the part 'window'" in WindowForgery().against(Uchida())


def test_a_window_that_is_not_there_is_told(made, attacker_for):
    for window in ([3, 60, 0, 12], [5, 0, 0, 12]):
        moved = made.key.complete(window=torch.tensor(window))
        with pytest.raises(ValueError, match="expected 12x12 kernels from"):
            attacked(WindowRewrite(), made._replace(key=moved), attacker_for)


# What they have in common

ATTACKS = [
    TicketPrune(fractions=(0.2,), order="random", retrain_epochs=1),
    AddOn(shares=(0.05,)),
    Regrow(shares=(0.1,), epochs=1),
    Regrow(shares=(0.1,), criterion="gradient", start="rewound", epochs=1),
    DenseRetrain(epochs=2, every=1, retrain_epochs=1),
    LockedUser(epochs=2, every=1),
    TicketUnlock(start="published", epochs=2, every=1),
    Transfer(epochs=2, every=1),
    WindowRewrite(careful=False, retrain_epochs=1),
    WindowForgery(retrain_epochs=1),
]


@pytest.fixture(scope="module")
def bare():
    with Workshop(epochs=2, schemes=[Uchida(bits=16), SCHEME]) as made:
        yield made


@pytest.mark.parametrize(
    ("attack", "rule"),
    [pytest.param(a, rule, id=f"{a.label}-{rule.id}") for a in ATTACKS for rule in contract.rules_for(a)],
)
def test_each_holds_to_the_contract_on_a_sparse_scheme(attack, rule, bare):
    verdict = contract.judge(rule, attack, bare)
    skipped = verdict.status == "skipped" and rule.id in ("attacks-other-models", "asks-only")
    assert verdict.status == "ok" or skipped, verdict.detail


class Slow(ToyTicket):
    """Needs three epochs."""

    def applies_to(self, task):
        return None if task.recipe.epochs >= 3 else "needs three epochs"


def test_a_scheme_that_does_not_allow_a_brief_training_is_trained_as_usual(bare):
    quick = tried_on(AddOn(), bare)
    assert [case.scheme for case in quick] == [SCHEME]
    assert quick[0].task == bare.quick
    with Workshop(epochs=3, schemes=[Uchida(bits=16), Slow()], sharing=bare) as made:
        (case,) = tried_on(AddOn(), made)
        assert (case.scheme, case.task, case.task.recipe.epochs) == (Slow(), made.task, 3)
        # What can be tried on anything is tried on a plain model.
        (case,) = tried_on(Transfer(), made)
        assert case.scheme is None
    with Workshop(epochs=2, schemes=[Slow()], sharing=bare) as made, pytest.raises(Skip, match="needs three epochs"):
        tried_on(AddOn(), made)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.label)
def test_the_declared_effort_is_what_is_trained(attack, made, attacker_for, counted, task):
    attacked(attack, made, attacker_for)
    more = 100 if getattr(attack, "criterion", "") == "gradient" else 0
    assert counted["inputs"] + more == attack.effort(task).trained


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.label)
def test_dense_models_and_whole_tickets_are_left_to_others(attack):
    assert attack.against(SCHEME) is None
    for scheme in (Uchida(), Undefended()):
        reason = attack.against(scheme)
        assert (reason is None) == (attack.name == "transfer")
        assert reason is None or scheme.name in reason


WRONG = [
    (TicketPrune, {"fractions": ()}),
    (TicketPrune, {"fractions": (0.2, 0.1)}),
    (TicketPrune, {"fractions": (0.5, 1.0)}),
    (TicketPrune, {"fractions": (0.0,)}),
    (TicketPrune, {"retrain_epochs": -1}),
    (AddOn, {"shares": (1.5,)}),
    (AddOn, {"scale": 0.0}),
    (AddOn, {"scale": float("nan")}),
    (Regrow, {"shares": (float("inf"),)}),
    (Regrow, {"scale": -1.0}),
    (Regrow, {"epochs": 0}),
    (DenseRetrain, {"every": 0}),
    (DenseRetrain, {"learning_rate": 0.0}),
    (LockedUser, {"every": 0}),
    (TicketUnlock, {"epochs": 0}),
    (Transfer, {"every": 0}),
    (WindowRewrite, {"retrain_epochs": -1}),
]


@pytest.mark.parametrize(("cls", "values"), WRONG)
def test_parameters_are_checked(cls, values):
    with pytest.raises(ValueError, match=r"expected .*got"):
        cls(**values)
