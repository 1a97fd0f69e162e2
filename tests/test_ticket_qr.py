"""Tickets with a QR code in their kernels: writing, choosing a window, reading, and what it is worth."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

import models
from attacks.reparametrise import drawn as drawn_moves
from attacks.window_rewrite import WindowForgery
from bench.errors import Unreadable
from bench.key import Key
from bench.stream import Stream
from bench.suspect import Suspect, Target, predict
from bench.trainer import OwnerTrainer
from defenses.ticket_qr import TicketQr, text_of, window_of
from defenses.tickets import qr_pattern
from defenses.tickets.kernel_pattern import (
    Window,
    kernel_pattern,
    most_similar,
    sites,
    window_at,
    written,
    written_as_released,
)
from defenses.tickets.lottery_ticket import prunable
from defenses.tickets.qr_pattern import encode, function_patterns, restored_by_released_code, side
from defenses.tickets.sparse_mask import masked
from models.channels import channels
from models.frames import reframe

SHORT = {"rates": (0.5,), "rounds": (3,), "round_epochs": 1, "rewind_epoch": 1}
FLAVOURS = ("keyed", "paper", "code")
SEEDS = st.integers(0, 2**32 - 1)


def short(**changes):
    return TicketQr(**{**SHORT, **changes})


def fresh(defense, task, number):
    return defense.draw(task, Stream(("null", str(number))))


def require_honest(log10_p):
    """No more small p-values than come by chance, once in ten thousand."""
    for level in (0.1, 0.01):
        hits = sum(one <= math.log10(level) + 1e-9 for one in log10_p)
        assert stats.binom.sf(hits - 1, len(log10_p), level) > 1e-4, f"{hits} of {len(log10_p)} at {level}"


def as_kernels(pattern, task, layer="conv5.weight", window=(0, 0)):
    """A model of the task whose kernels live as in a pattern, in one layer's window, and nothing else does."""
    model = models.build(task.model, task.classes, task.shape)
    with torch.no_grad():
        for name in prunable(model):
            model.get_parameter(name).zero_()
        row, column = window
        n = len(pattern)
        part = model.get_parameter(layer)[row : row + n, column : column + n]
        part[:, :, 1, 1] = torch.tensor(pattern, dtype=torch.float32)
    return model


@pytest.fixture(scope="module")
def rounds(task, parts):
    """An owner's trainer that computes each round of pruning once."""
    return OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))


@pytest.fixture(scope="module")
def made(task, rounds):
    """A trained marked ticket and its key for each scheme that is asked for."""
    known = {}

    def get(defense):
        if defense not in known:
            known[defense] = defense.protect(rounds, fresh(defense, task, "own"))[:2]
        return known[defense]

    return get


def untrained(defense, key, rounds):
    """A marked ticket as it is before training, and its key."""
    ticket = defense.ticket(rounds)
    masks, completed = defense.marked(ticket.masks, key, rounds)
    return masked(ticket.rewound, masks).eval(), completed


class TestWriting:
    """Masks of a layer, by themselves."""

    @settings(max_examples=60)
    @given(seed=SEEDS, version=st.sampled_from((1, 2, 3)), density=st.floats(0.01, 0.95), data=st.data())
    def test_it_changes_the_stated_kernels_and_keeps_the_number_of_weights(self, seed, version, density, data):
        chance, n = np.random.default_rng(seed), side(version)
        shape = data.draw(st.integers(n, n + 4)), data.draw(st.integers(n, n + 4))
        row, column = (data.draw(st.integers(0, length - n)) for length in shape)
        window, counted = Window("layer", row, column), np.zeros(shape, bool)
        counted[row : row + n, column : column + n] = ~function_patterns(version)
        mask = torch.from_numpy(chance.random((*shape, 3, 3)) < density)
        before, wanted = mask.clone(), chance.random(shape) < 0.5
        asked = wanted[row : row + n, column : column + n], ~function_patterns(version)
        live = mask.flatten(2).sum(2).numpy()
        must = counted & wanted
        gained, lost = int((must & (live == 0)).sum()), int(live[counted & ~wanted].sum())
        after = np.where(must, live.clip(1), np.where(counted, 0, live))
        most = (after - 1).clip(0) if gained > lost else np.where(after > 0, 9 - after, 0)
        inside, difference = int(most[must].sum()), abs(gained - lost)
        if difference > most.sum():
            with pytest.raises(ValueError, match="without changing which kernels live"):
                written(mask, window, *asked, chance)
            return
        new = written(mask, window, *asked, chance)
        assert torch.equal(mask, before)
        assert int(new.sum()) == int(mask.sum())
        assert np.array_equal(kernel_pattern(new).numpy(), np.where(counted, wanted, live > 0))
        others = torch.from_numpy(~counted)
        # Around the window and in its function patterns weights change only when those within it do not suffice.
        came, went = new & ~mask, mask & ~new
        assert int((went if gained > lost else came)[others].sum()) == max(0, difference - inside)
        kept, reborn = torch.from_numpy(must & (live > 0)), torch.from_numpy(must & (live == 0))
        if gained >= lost:
            assert not came[others].any() and not came[kept].any()
            assert (new[reborn].flatten(1).sum(1) == 1).all()
        else:
            assert not went[others].any() and not went[kept].any()

    @pytest.mark.parametrize("full", [False, True])
    def test_what_cannot_be_kept_is_said(self, full):
        mask = torch.full((21, 21, 3, 3), full, dtype=torch.bool)
        wanted, counted = encode("abc", 1, 0), ~function_patterns(1)
        with pytest.raises(ValueError, match=f"to switch {'on' if full else 'off'} without changing"):
            written(mask, Window("layer", 0, 0), wanted, counted, np.random.default_rng(0))

    @settings(max_examples=30)
    @given(seed=SEEDS, density=st.floats(0.02, 0.5))
    def test_the_released_code_is_that_of_a_loop(self, seed, density):
        """The embedding of the released code, transcribed from its steps, with the same draws."""
        code = encode("signature", 3, 1)
        mask = torch.from_numpy(np.random.default_rng(seed).random((29, 29, 3, 3)) < density)
        window = mask.flatten(2).numpy()
        chance = np.random.default_rng(seed + 1)
        place = chance.integers(0, 9, (29, 29))
        live, new = window.any(2), window.copy()
        for i, j in itertools.product(range(29), repeat=2):
            if code[i, j] and not live[i, j]:
                new[i, j, place[i, j]] = True
            elif not code[i, j] and live[i, j]:
                new[i, j] = False
        new[0:9, 0:9] = window[0:9, 0:9]
        new[-9:, 0:9] = window[-9:, 0:9]
        new[0:9, -9:] = window[0:9, -9:]
        new[20:25, 20:25] = window[20:25, 20:25]
        new[21, 21, :] = True
        new[6, :] = window[6, :]
        new[:, 6] = window[:, 6]
        deficit = int(window.sum()) - int(new.sum())
        if deficit >= 0:
            free = [
                (i, j, k)
                for i, j, k in itertools.product(range(29), range(29), range(9))
                if code[i, j] and live[i, j] and not new[i, j, k]
            ]
            places = chance.permutation([np.ravel_multi_index(at, new.shape) for at in free])[:deficit]
            new.reshape(-1)[places] = True
        found = written_as_released(mask, code, np.random.default_rng(seed + 1))
        assert np.array_equal(found.flatten(2).numpy(), new)
        # The density is kept, or grows: never does it fall.
        assert int(found.sum()) == int(mask.sum()) + max(0, -deficit)


class TestWindows:
    """Which window is taken."""

    @settings(max_examples=30)
    @given(seed=SEEDS, data=st.data())
    def test_the_most_similar_one_is_that_of_a_search_through_all(self, seed, data):
        chance, n = np.random.default_rng(seed), 5
        sizes = data.draw(st.lists(st.tuples(st.integers(4, 9), st.integers(4, 9)), min_size=1, max_size=4))
        assume(any(min(size) >= n for size in sizes))
        # Sparse ones tie often.
        density = data.draw(st.sampled_from((0.0, 0.05, 0.5)))
        patterns = {f"l{i}": torch.from_numpy(chance.random(size) < density) for i, size in enumerate(sizes)}
        wanted, counted = chance.random((3, n, n)) < 0.5, chance.random((n, n)) < 0.7
        expected = []
        for one in wanted:
            best, at = -1, None
            for name, pattern in patterns.items():
                for row in range(pattern.shape[0] - n + 1):
                    for column in range(pattern.shape[1] - n + 1):
                        part = pattern[row : row + n, column : column + n].numpy()
                        agreeing = int((part == one)[counted].sum())
                        if agreeing > best:
                            best, at = agreeing, Window(name, row, column)
            expected.append(at)
        assert most_similar(patterns, torch.from_numpy(wanted), torch.from_numpy(counted)) == expected

    def test_every_number_is_a_window_of_its_own(self):
        found = sites({"a": (30, 29, 3, 3), "b": (29, 28, 3, 3), "c": (31, 30, 1, 1), "d": (128, 256)}, 29)
        assert found == {"a": (2, 1), "c": (3, 2)}
        windows = [window_at(number, found) for number in range(8)]
        assert windows[0] == ("a", 0, 0) and windows[1] == ("a", 1, 0) and windows[7] == ("c", 2, 1)
        assert len(set(windows)) == 8
        with pytest.raises(IndexError):
            window_at(8, found)

    def test_a_keyed_window_is_uniform_over_all_and_no_part_of_the_evidence(self, task):
        defense = short(placement="keyed")
        found = sites({name: weight.shape for name, weight in prunable(task.skeleton).items()}, 29)
        count = sum(rows * columns for rows, columns in found.values())
        assert count == 4 * 4 + 36 * 4 + 3 * 36 * 36
        places = [int(fresh(defense, task, number).drawn["place"]) for number in range(2000)]
        assert min(places) >= 0 and max(places) < count
        assert stats.kstest(np.array(places) / count, "uniform").pvalue > 1e-3
        assert short().capacity(task) == pytest.approx(defense.capacity(task) + math.log10(count))
        assert defense.capacity(task) == pytest.approx(567 * math.log10(0.5))


class TestProtected:
    """A ticket that was marked and trained."""

    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_the_mark_is_in_one_window_and_the_rest_is_the_ticket(self, flavour, task, rounds):
        defense = short(flavour=flavour)
        key = fresh(defense, task, 0)
        before = defense.ticket(rounds).masks
        masks, completed = defense.marked(before, key, rounds)
        window, counted = window_of(completed), torch.from_numpy(defense.counted_modules)
        for name, mask in before.items():
            changed = masks[name] != mask
            if name == window.layer:
                window.of(changed, 29).fill_(False)
                # No kernel is born or dies there, and few change where the window has not enough to give.
                same = kernel_pattern(masks[name]) == kernel_pattern(mask)
                window.of(same, 29).fill_(True)
                assert same.all() and int(changed.sum()) < 100
            else:
                assert not changed.any()
        pattern = window.of(kernel_pattern(masks[window.layer]), 29)
        assert torch.equal(pattern[counted], torch.tensor(defense.wanted(key))[counted])
        live = sum(int(mask.sum()) for mask in masks.values())
        assert completed.facts["size"] == live
        assert live == defense.size(task) or flavour == "code"
        place, *rest = completed.tensor("window").tolist()
        assert [list(before)[place], *rest] == [*window, 29]
        assert completed.drawn == key.drawn

    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_the_published_model_holds_the_mask_and_all_modules(self, flavour, task, rounds, made):
        defense = short(flavour=flavour)
        model, key = made(defense)
        assert sum(int((weight != 0).sum()) for weight in prunable(model).values()) == key.facts["size"]
        found = defense.verify(Suspect.of(model), key, rounds)
        assert found.figures["module_error"] == 0 and found.figures["decoded"] == found.figures["rs_success"] == 1
        assert found.texts == {"decoded": text_of(key)} and len(text_of(key)) == 16
        assert found.statistic == {"code": 551}.get(flavour, 567)
        assert found.log10_p == pytest.approx(defense.capacity(task))

    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_the_code_is_read_once_its_function_patterns_are_back_and_not_before(self, flavour, task, made):
        defense = short(flavour=flavour)
        model, key = made(defense)
        masks = defense.read(model, task, key.facts["size"])
        pattern = window_of(key).of(kernel_pattern(masks[window_of(key).layer]), 29).numpy()
        data = pattern ^ defense.wanted(key) ^ defense.code(key)
        assert qr_pattern.decode(data) is None
        left = restored_by_released_code() if flavour == "code" else function_patterns(3)
        assert qr_pattern.decode(np.where(left, defense.code(key), data)) == text_of(key)
        if flavour == "keyed":
            assert qr_pattern.decode(qr_pattern.completed(pattern, 3, 1)) is None

    def test_protecting_leaves_the_rewind_point_alone(self, task, rounds, made):
        defense = short()
        _, key = made(defense)
        first = defense.ticket(rounds)
        models.layer(first.rewound, "conv4").weight.data.zero_()
        assert models.layer(defense.ticket(rounds).rewound, "conv4").weight.abs().max() > 0
        assert "pattern.conv5.weight" not in key.facts

    def test_a_named_layer_is_the_only_one(self, task, rounds):
        for flavour, placement in itertools.product(FLAVOURS, ("similar", "keyed")):
            defense = short(layer="conv4", flavour=flavour, placement=placement)
            key = fresh(defense, task, 1)
            _, completed = defense.marked(defense.ticket(rounds).masks, key, rounds)
            assert window_of(completed).layer == "conv4.weight"


class TestEvidence:
    """What agreement is worth."""

    def test_it_is_the_binomial_tail_times_the_windows_searched(self, task):
        for placement, searched in (("similar", 4048), ("keyed", 1)):
            defense = short(placement=placement)
            key = fresh(defense, task, 3)
            wanted, counted = defense.wanted(key), np.argwhere(defense.counted_modules)
            for wrong in (0, 60, 250):
                pattern = wanted.copy()
                pattern[tuple(counted[:wrong].T)] ^= True
                model = as_kernels(pattern, task)
                facts = {"layer": "conv5.weight", "window": torch.tensor([3, 0, 0, 29]), "size": 30_000}
                found = defense.read_code(model, Key(key.drawn, facts), task)
                assert found.statistic == 567 - wrong
                assert found.figures["module_error"] == pytest.approx(wrong / 567)
                exact = stats.binom.logsf(567 - wrong - 1, 567, 0.5) if wrong else 567 * math.log(0.5)
                assert found.log10_p == pytest.approx(min(0, exact / math.log(10) + math.log10(searched)), rel=1e-9)

    @pytest.mark.parametrize("placement", ["similar", "keyed"])
    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_fresh_keys_have_uniform_or_conservative_p_values(self, flavour, placement, task, rounds):
        # The smallest layer, in which there are few windows to search.
        defense = short(flavour=flavour, placement=placement, decoys=99, layer="conv2")
        model, key = untrained(defense, fresh(defense, task, "own"), rounds)
        count = 60
        for suspect in (model, task.new_model(Stream(("stranger",)))):
            found = []
            for number in range(count):
                one = key.redraw(fresh(defense, task, number), defense.uniform)
                found.append(defense.read_code(suspect, one, task).log10_p)
            require_honest(found)

    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_an_owners_own_window_is_no_evidence_on_a_model_that_resembles_the_ticket(self, flavour, task, rounds):
        # The ticket without a mark: each owner has searched it for the window that agrees best.
        defense, found = short(flavour=flavour, decoys=99, layer="conv4"), []
        ticket = defense.ticket(rounds)
        model = masked(ticket.rewound, ticket.masks)
        modules, agreeing = int(defense.counted_modules.sum()), 0
        for number in range(40):
            _, key = defense.marked(ticket.masks, fresh(defense, task, number), rounds)
            evidence = defense.read_code(model, key, task)
            found.append(evidence.log10_p)
            agreeing += int(evidence.statistic)
        require_honest(found)
        # Taken alone they agree better than a fresh code would.
        assert agreeing / (40 * modules) > 0.52

    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_nets_without_a_mask_are_no_evidence(self, flavour, task, rounds, made):
        defense = short(flavour=flavour)
        _, key = made(defense)
        for value in (0.0, 1.0):
            model = task.new_model(Stream(("constant",)))
            for parameter in model.parameters():
                torch.nn.init.constant_(parameter, value)
            found = defense.verify(Suspect.of(model), key, rounds)
            assert found.log10_p > -3 and found.figures["decoded"] == 0

    def test_another_architecture_is_a_reason(self, task, rounds, made):
        defense = short(canonical=True)
        _, key = made(short())
        for name, shape in (("resnet8", (1, 8, 8)), ("lenet5", (3, 28, 28))):
            found = defense.verify(Suspect.of(models.build(name, 10, shape)), key, rounds)
            assert found.log10_p == 0 and "raw" in found.reason and "canonical" in found.reason
        narrow = models.build("vgg8", 10, (1, 8, 8))
        narrow.conv5 = torch.nn.Conv2d(64, 32, 3, padding=1, bias=False)
        assert "(64, 64, 3, 3)" in short().verify(Suspect.of(narrow), key, rounds).reason
        asked = Suspect(lambda x: predict(narrow, x), None)
        with pytest.raises(Unreadable, match="queried"):
            short().verify(asked, key, rounds)


class TestAttacked:
    """What does no harm, and what does."""

    def test_permuted_channels_hide_the_code_from_a_raw_reading_alone(self, task, rounds, made):
        model, key = made(short())
        graph = channels(model)
        order, factors = drawn_moves(graph, ("permute",), 1.0, Stream(("order",)))
        moved = models.rebuild(models.describe(model), model.state_dict())
        reframe(moved, graph, order, factors)
        raw = short().verify(Suspect.of(moved), key, rounds)
        assert raw.log10_p > -3 and raw.figures["decoded"] == 0 and raw.figures["module_error"] > 0.3
        assert raw.texts == {}
        both = short(canonical=True).verify(Suspect.of(moved), key, rounds)
        assert both.figures["module_error"] == 0 and both.texts["decoded"] == text_of(key)
        assert both.log10_p == pytest.approx(short(canonical=True).capacity(task))

    def test_weights_of_next_to_nothing_are_not_read(self, task, rounds, made):
        model, key = made(short())
        added = models.rebuild(models.describe(model), model.state_dict())
        with torch.no_grad():
            for name in prunable(added):
                weight = added.get_parameter(name)
                weight[weight == 0] = 1e-8
        assert short().verify(Suspect.of(added), key, rounds) == short().verify(Suspect.of(model), key, rounds)

    @pytest.mark.parametrize("flavour", FLAVOURS)
    def test_who_knows_the_window_writes_and_claims_a_code_there(self, flavour, task, rounds, made, attacker_for):
        defense = short(flavour=flavour)
        model, key = made(defense)
        target = Target(model, "white-box", scheme=defense, part=key.tensor("window"))
        attack = WindowForgery()
        forged = attack.forge(target, attacker_for(attack, target))
        theirs = defense.verify(Suspect.of(forged.model), forged.key, rounds)
        ours = defense.verify(Suspect.of(forged.model), key, rounds)
        assert theirs.log10_p == pytest.approx(defense.capacity(task), rel=0.02)
        assert theirs.figures["decoded"] == 1.0 and theirs.figures["module_error"] == 0.0
        # What the published codes of two texts share are their function patterns, which are not counted.
        assert ours.figures["module_error"] > 0.3 and ours.figures["decoded"] == 0.0
        counted = torch.from_numpy(defense.counted_modules)
        assert torch.equal(defense.pattern(key) >= 0, counted)

    def test_alignment_does_not_read_the_window(self, task, made):
        defense = short()
        _, key = made(defense)
        (name, mask), window = next(iter(defense.counted(key, task).items())), window_of(key)
        assert name == window.layer and int(mask.sum()) == 29 * 29 * 9 and bool(window.of(mask, 29).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 7}, "version in 1..6"),
        ({"mask_pattern": 8}, "mask pattern in 0..7"),
        ({"flavour": "code", "version": 2}, "version 3 for the flavour 'code'"),
        ({"text_length": 25}, "text_length in 1..24 for version 3"),
        ({"text_length": 0}, "text_length in 1..24"),
        ({"decoys": 0}, "decoys >= 1"),
        ({"rates": ()}, "rates in"),
    ],
)
def test_wrong_parameters_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TicketQr(**changes)


def test_it_applies_where_a_convolution_has_room(task):
    assert TicketQr().applies_to(task) is None
    assert TicketQr(version=6).applies_to(task) is None
    assert "'conv1' is none of conv2" in TicketQr(layer="conv1").applies_to(task)
    assert "'hidden' is none of" in TicketQr(layer="hidden").applies_to(task)
    assert "29 x 29 kernels" in TicketQr(layers=("hidden",)).applies_to(task)
    assert "no layer" in TicketQr(layers=("conv9",)).applies_to(task)
    resnet8 = dataclasses.replace(task, model="resnet8")
    assert TicketQr().applies_to(resnet8) is None
    assert sorted(TicketQr()._sites(resnet8)) == [
        "layer2.0.conv2.weight",
        "layer3.0.conv1.weight",
        "layer3.0.conv2.weight",
    ]
    pixels = dataclasses.replace(task.info, shape=(1, 28, 28))
    lenet5 = dataclasses.replace(task, model="lenet5", info=pixels)
    assert "29 x 29 kernels" in TicketQr().applies_to(lenet5)
