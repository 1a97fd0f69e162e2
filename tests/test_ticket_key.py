"""The key mask of a lottery ticket: what is withheld, what it proves, and what forging it after the fact costs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from attacks.fake_key import FakeKey
from bench.contract.workshop import contents
from bench.statistics import hypergeometric_tail
from bench.stream import Stream
from bench.suspect import Suspect, Target
from bench.trainer import OwnerTrainer
from defenses.ticket_key import TicketKey
from defenses.tickets.lottery_ticket import prunable
from defenses.tickets.sparse_mask import masked
from models import joined, parted

KEY = Stream(("key",))
# Three short trainings; half of what is left goes twice.
QUICK = TicketKey(rates=(0.5,), rounds=(3,), round_epochs=1)
SCORES = ("omp", "ewp-walk", "ewp-sum", "ewp-max", "random-path", "betweenness")


def verify(defense, model, key, trainer):
    return defense.verify(Suspect.of(model), key, trainer)


def alive(model):
    return joined({name: weight != 0 for name, weight in prunable(model).items()})


@pytest.fixture(scope="module")
def rounds(task, parts):
    """The stages, computed once for all schemes here."""
    trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))
    for stage in QUICK.stages():
        trainer.stage(stage)
    return trainer


@pytest.fixture(scope="module")
def made(task, rounds):
    found = {}

    def get(defense):
        if defense.label not in found:
            found[defense.label] = defense.protect(rounds, defense.draw(task, KEY))
        return found[defense.label]

    return get


class TestWhatIsPublished:
    @pytest.mark.parametrize("score", SCORES)
    def test_it_lacks_exactly_the_key(self, made, task, rounds, score):
        defense = dataclasses.replace(QUICK, score=score, pivots=20 if score == "betweenness" else 0)
        model, key, release = made(defense)
        size = defense.size(task)
        n = round(0.05 * size)
        places, values = key.tensor("withheld")
        places = places.long()
        assert len(places) == n == len(set(places.tolist()))
        assert len(set(key.tensor("candidates").tolist())) == 2 * n
        ticket = key.tensor("ticket")
        assert int(ticket.sum()) == size and ticket[key.tensor("candidates")].all()
        locked = ticket.clone()
        locked[places] = False
        rewound = defense.ticket(rounds).rewound
        all_values = joined({name: weight.double() for name, weight in prunable(rewound).items()})
        assert torch.equal(values, all_values[places])
        for given in (model, release.models["rewind"]):
            assert not alive(given)[~locked].any()
            assert alive(given)[locked].double().mean() > 0.999

    def test_the_rewound_weights_are_those_of_the_stage_elsewhere_too(self, made, rounds):
        _, _, release = made(QUICK)
        rewound = QUICK.ticket(rounds).rewound.state_dict()
        pruned = set(prunable(release.models["rewind"]))
        for name, value in release.models["rewind"].state_dict().items():
            there = value != 0 if name in pruned else torch.ones_like(value, dtype=torch.bool)
            assert torch.equal(value[there], rewound[name][there])

    def test_unlocked_it_is_the_whole_ticket_and_the_release_is_locked_all_the_same(self, made):
        unlocked = dataclasses.replace(QUICK, publish="unlocked")
        model, key, release = made(unlocked)
        assert alive(model)[key.tensor("ticket")].double().mean() > 0.999
        assert not alive(release.models["rewind"])[key.tensor("withheld")[0].long()].any()

    def test_half_of_the_candidates_is_the_key_and_each_half_is_as_likely(self, task):
        defense = dataclasses.replace(QUICK, share=0.001)
        counts, n = {}, 2
        for number in range(1200):
            chosen = defense.chosen(defense.draw(task, Stream((str(number),))), n)
            assert int(chosen.sum()) == n
            counts[tuple(chosen.tolist())] = counts.get(tuple(chosen.tolist()), 0) + 1
        assert len(counts) == math.comb(4, 2)
        assert max(abs(count - 200) for count in counts.values()) < 4 * math.sqrt(200)


class TestEvidence:
    def test_the_locked_ticket_reaches_the_capacity(self, made, task, rounds):
        model, key, _ = made(QUICK)
        found = verify(QUICK, model, key, rounds)
        assert found.figures["key_live"] == 0.0
        assert found.log10_p == pytest.approx(QUICK.capacity(task), rel=0.02)
        assert found.log10_p >= QUICK.capacity(task)

    def test_an_unlocked_copy_gives_none(self, made, rounds):
        unlocked = dataclasses.replace(QUICK, publish="unlocked")
        model, key, _ = made(unlocked)
        with torch.no_grad():
            for weight in prunable(model).values():
                weight[weight == 0] = 0.0
        found = verify(unlocked, model, key, rounds)
        assert found.log10_p == pytest.approx(0.0, abs=0.5)
        assert found.figures["candidates_live"] > 0.999

    def test_it_is_the_share_of_all_halves(self, task, rounds, made):
        """Two candidates in each half, and every state of the four: counted out."""
        defense = dataclasses.replace(QUICK, share=2 / QUICK.size(task))
        model, key, _ = made(defense)
        assert len(key.tensor("candidates")) == 4
        shapes = prunable(model)
        for states in itertools.product([False, True], repeat=4):
            one = torch.ones(sum(weight.numel() for weight in shapes.values()))
            one[key.tensor("candidates")] = torch.tensor(states, dtype=one.dtype)
            # Whatever else the suspect has, none of it is larger than the candidates.
            flatly = {name: part for name, part in parted(one * key.tensor("ticket"), shapes).items()}
            with torch.no_grad():
                for name, part in flatly.items():
                    model.get_parameter(name).copy_(part)
            live = torch.tensor(states)
            left = int(live[~defense.chosen(key, 2)].sum())
            as_good = [
                sum(states[place] for place in range(4) if place not in half) >= left
                for half in itertools.combinations(range(4), 2)
            ]
            found = verify(defense, model, key, rounds)
            assert found.log10_p == pytest.approx(math.log10(np.mean(as_good)), abs=1e-9)
            assert found.statistic == left

    def test_added_tiny_weights_change_nothing(self, made, rounds):
        model, key, _ = made(QUICK)
        before = verify(QUICK, model, key, rounds)
        grown = Target(model, "white-box").copy()
        chance = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in prunable(grown).values():
                weight.add_((weight == 0) * 1e-7 * torch.randn(weight.shape, generator=chance))
        after = verify(QUICK, grown, key, rounds)
        # As many as the key has are let in by the density, wherever they are.
        assert after.log10_p < 0.9 * before.log10_p

    def test_the_clean_net_and_its_own_ticket_without_a_key_give_none(self, made, rounds):
        _, key, _ = made(QUICK)
        ticket = QUICK.ticket(rounds)
        for model in (rounds.clean(), masked(ticket.rewound, ticket.masks)):
            assert verify(QUICK, model, key, rounds).log10_p > -3

    def test_on_an_independent_ticket_p_values_are_no_lies(self, made, task, parts, rounds):
        """Tickets of one architecture overlap far beyond chance: under fresh halves, and under owners' own keys."""
        other = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(1).child("owner"))
        stranger, theirs, _ = QUICK.protect(other, QUICK.draw(task, Stream(("other key",))))
        model, key, _ = made(QUICK)
        overlap = int((alive(stranger) & alive(model)).sum())
        n, first, second = len(alive(model)), int(alive(model).sum()), int(alive(stranger).sum())
        assert hypergeometric_tail(overlap, n, first, second) < -20
        for canonical in (False, True):
            defense = dataclasses.replace(QUICK, canonical=canonical)
            assert verify(defense, stranger, key, rounds).log10_p > -3
            assert verify(defense, model, theirs, rounds).log10_p > -3
        found = []
        for number in range(400):
            fresh = QUICK.draw(task, Stream(("null", str(number))))
            found.append(verify(QUICK, stranger, key.redraw(fresh, QUICK.uniform), rounds).log10_p)
        for level in (0.1, 0.01):
            hits = sum(log10_p <= math.log10(level) for log10_p in found)
            assert stats.binom.sf(hits - 1, len(found), level) > 1e-4
        # And it can be small by chance: the test is not of a constant.
        assert min(found) < -1

    def test_the_order_of_channels_is_undone_by_the_reference(self, made, rounds, task, attacker_for):
        from attacks.reparametrise import Permute

        model, key, _ = made(QUICK)
        attack, target = Permute(), Target(model, "white-box")
        (_, moved), *_ = attack.run(target, attacker_for(attack, target))
        raw = verify(QUICK, moved, key, rounds)
        canonical = dataclasses.replace(QUICK, canonical=True)
        both = verify(canonical, moved, key, rounds)
        assert raw.log10_p > -6 and both.log10_p < 0.9 * canonical.capacity(task)

    def test_retraining_is_a_figure_and_changes_no_evidence(self, made, rounds, task):
        model, key, _ = made(QUICK)
        trained = dataclasses.replace(QUICK, retrain=True)
        before = contents(model)
        found, plain = verify(trained, model, key, rounds), verify(QUICK, model, key, rounds)
        assert found.log10_p == plain.log10_p
        assert {"retrained_with_key", "retrained_without_key"} == set(found.figures) - set(plain.figures)
        assert min(found.figures["retrained_with_key"], found.figures["retrained_without_key"]) > 0.5
        assert all(torch.equal(value, before[name]) for name, value in contents(model).items())


class TestTop:
    """The flavour of the source: the best by score, and nothing of it uniform."""

    TOP = dataclasses.replace(QUICK, flavour="top", decoys=999)

    def test_the_key_is_the_first_by_score(self, made):
        _, key, _ = made(self.TOP)
        n = len(key.tensor("candidates")) // 2
        assert torch.equal(key.tensor("withheld")[0].long(), key.tensor("candidates")[:n])

    def test_evidence_is_a_rank_among_decoys_and_says_how_low_it_goes(self, made, rounds, task):
        model, key, _ = made(self.TOP)
        found = verify(self.TOP, model, key, rounds)
        assert found.log10_p == self.TOP.capacity(task) == found.figures["log10_p_floor"] == -3.0

    def test_an_unlocked_copy_is_no_better_than_decoys(self, made, rounds):
        unlocked = dataclasses.replace(self.TOP, publish="unlocked")
        model, key, _ = made(unlocked)
        assert verify(unlocked, model, key, rounds).log10_p > -1


class TestFakeKey:
    def test_chosen_after_the_fact_it_claims_on_the_published_model(self, made, task, rounds, attacker_for):
        model, key, release = made(QUICK)
        target = Target(model, "white-box", release, QUICK)
        attack = FakeKey()
        forged = attack.forge(target, attacker_for(attack, target))
        assert all(torch.equal(v, model.state_dict()[n]) for n, v in forged.model.state_dict().items())
        found = verify(QUICK, forged.model, forged.key, rounds)
        assert found.log10_p == pytest.approx(QUICK.capacity(task))
        # What it calls withheld has the stated values, and is no part of the owner's key by more than chance.
        places, values = forged.key.tensor("withheld")
        assert not alive(model)[places.long()].any()
        assert float(values.std()) == pytest.approx(0.01, rel=0.2)
        shared = len(set(places.tolist()) & set(key.tensor("withheld")[0].tolist()))
        assert shared < 0.05 * len(places)

    def test_schemes_without_such_a_key_are_not_tried(self):
        from defenses.uchida import Uchida

        assert FakeKey().against(QUICK) is None
        assert "uchida has linear in a dense model" in FakeKey().against(Uchida())


class TestParameters:
    @pytest.mark.parametrize("changes", [{"share": 0.0}, {"share": 0.6}, {"pivots": -1}, {"decoys": 0}])
    def test_what_is_no_key_is_refused(self, changes):
        with pytest.raises(ValueError, match=r"share in \(0, 0.5\]"):
            dataclasses.replace(QUICK, **changes)

    def test_a_share_of_nothing_has_its_reason(self, task):
        assert "is none" in dataclasses.replace(QUICK, share=1e-6).applies_to(task)
