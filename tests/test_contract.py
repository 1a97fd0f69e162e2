"""Every rule of the contract, on every registered plugin; and that each rule catches what it is there for."""

import dataclasses
import multiprocessing
import os
from pathlib import Path

import broken_attacks as attacking
import broken_plugins as broken
import holding
import pytest
from plugins import misbehaving

from attacks.admm_prune import AdmmPrune, AdmmStructured
from attacks.admm_quantize import AdmmPruneQuantize, AdmmQuantize
from attacks.channel_prune import ChannelPrune, ChannelShift
from attacks.cluster import Cluster
from attacks.crossbar import Crossbar
from attacks.distill import Distill
from attacks.extract_hard import CrossArchitecture, ExtractHard, Retrain, TransferLearn
from attacks.fine_tune import FineTune
from attacks.grinding import ChainGrind, Grind
from attacks.magnitude_prune import MagnitudePrune
from attacks.overwrite import Overwrite
from attacks.passport_affine import PassportAffine
from attacks.passport_ambiguity import PassportAmbiguityOne, PassportAmbiguityTwo, PassportMaximise
from attacks.passport_insider import PassportReverse
from attacks.quantize import Quantize
from attacks.reparametrise import Reparametrise
from attacks.scratch import Scratch
from attacks.ticket_growth import DenseRetrain, Regrow
from attacks.ticket_user import LockedUser, TicketUnlock
from attacks.transfer import Transfer
from attacks.transferable_triggers import TransferableTriggers
from attacks.trigger_forgery import FittedTriggers
from attacks.widening import DeadChannels
from bench import contract
from bench.contract import attacks, defenses, forgeries, memory, secrecy
from bench.contract.workshop import Workshop
from bench.key import Key
from bench.registry import discover
from bench.stream import Stream
from defenses.channel_rate import ChannelRate
from defenses.constant_weight_code import ConstantWeightCode
from defenses.passport_aware import PassportAware
from defenses.trigger_set import TriggerSet
from defenses.uchida import Uchida

# Attacks whose defaults take long, with few epochs.
QUICK = {
    "admm-prune": AdmmPrune(fractions=(0.9,), iterations=2, epochs=1, retrain_epochs=1),
    "admm-structured": AdmmStructured(fractions=(0.5,), iterations=2, epochs=1, retrain_epochs=1),
    "admm-quantize": AdmmQuantize(bits=(2,), iterations=2, epochs=1, snapped=0.8),
    "admm-prune-quantize": AdmmPruneQuantize(fractions=(0.9,), iterations=2, epochs=1, retrain_epochs=1, snapped=0.8),
    "channel-prune": ChannelPrune(fractions=(0.3,), retrain_epochs=1),
    "channel-shift": ChannelShift(most=3, retrain_epochs=1),
    "cluster": Cluster(clusters=(4, 2), sample=2000),
    "crossbar": Crossbar(draws=2, retrain_epochs=1),
    "scratch": Scratch(epochs=2),
    "fine-tune": FineTune(epochs=2, every=1),
    "distill": Distill(epochs=2, every=1),
    "extract-hard": ExtractHard(epochs=2, every=1),
    "retrain": Retrain(epochs=2, every=1),
    "cross-architecture": CrossArchitecture(epochs=1),
    "transfer-learn": TransferLearn(share=0.2, epochs=2, every=1, pretraining=1),
    "overwrite": Overwrite(epochs=2),
    "fitted-triggers": FittedTriggers(steps=3),
    "transferable-triggers": TransferableTriggers(models=2, held_out=1, own_epochs=1, steps=2, tries=2),
    "grind": Grind(trials=5),
    "chain-grind": ChainGrind(trials=50),
    "passport-affine": PassportAffine(epochs=2),
    "passport-reverse": PassportReverse(epochs=2),
    "passport-maximise": PassportMaximise(epochs=2),
    "passport-ambiguity-i": PassportAmbiguityOne(epochs=2),
    "passport-ambiguity-ii": PassportAmbiguityTwo(bottleneck="trained", epochs=2),
    "regrow": Regrow(shares=(0.1, 0.2), epochs=1),
    "dense-retrain": DenseRetrain(epochs=2, every=1, retrain_epochs=1),
    "locked-user": LockedUser(epochs=2, every=1),
    "ticket-unlock": TicketUnlock(epochs=2, every=1),
    "transfer": Transfer(epochs=2, every=1),
}


# Its mark is there before any training.
QUICK_DEFENSES = {"channel-rate": ChannelRate(epochs=2)}


def every_defense():
    """Every defense with its defaults, and those whose other parameters take another path."""
    for name, cls in sorted(discover().defense.items()):
        yield QUICK_DEFENSES.get(name, cls())
    yield from other_forms()


def other_forms():
    """Of defenses that are asked with their defaults too: a fifth of the keys is enough."""
    yield TriggerSet(mode="fine-tune", epochs=3)
    yield TriggerSet(old_head=True)
    yield TriggerSet(inputs="relabelled")
    yield Uchida(projection="direct", strength=0.1)
    yield Uchida(projection="diff", bits=32, strength=0.1)
    yield ConstantWeightCode(
        length=5000, layers=("conv6", "hidden"), pool="layer", mode="fine-tune", epochs=2, every=5, canonical=True
    )
    yield Uchida(canonical=True)
    yield PassportAware(canonical=True)
    yield ChannelRate(form="nearest", bits=4, dense=True, spare=2, epochs=2, canonical=True)


def every_attack():
    """Likewise; and the forgery and the insider that the tests of the harness use."""
    for name, cls in sorted(discover().attack.items()):
        yield QUICK.get(name, cls())
    for variant in ("FTLL", "RTLL", "RTAL"):
        yield FineTune(variant=variant, epochs=2)
    yield Distill(widths="published", alpha=0.5, epochs=2)
    yield Distill(widths="drawn", share=0.2, epochs=2)
    yield ExtractHard(architecture="resnet8", epochs=1)
    yield MagnitudePrune(fractions=(0.5,), scope="layer", retrain_epochs=1)
    yield Quantize(bits=(4,), granularity="tensor", mode="affine")
    yield Reparametrise(moves=("rescale", "sign-flip"), spread=2.0)
    yield DeadChannels(hide="pairs")
    yield FittedTriggers(start="own", steps=2)
    yield ChannelPrune(fractions=(0.3,), choice="random", importance="scale", retrain_epochs=0)
    yield misbehaving.FreeMessage()
    yield misbehaving.Insider()


def cases():
    return list(every_case())


def every_case():
    for role, plugins in (("defense", every_defense()), ("attack", every_attack())):
        for plugin in plugins:
            for rule in contract.rules_for(plugin):
                yield pytest.param(plugin, rule, id=f"{role} {plugin.label}-{rule.id}")


@pytest.fixture(scope="module")
def brief(workshop):
    """Fresh keys enough to see what is grossly wrong."""
    with Workshop(epochs=3, claim=-3.0, keys=100, sharing=workshop) as made:
        yield made


OTHER_FORMS = {form.label for form in other_forms()}


@pytest.mark.parametrize(("plugin", "rule"), cases())
def test_contract(plugin, rule, workshop, brief):
    verdict = contract.judge(rule, plugin, brief if plugin.label in OTHER_FORMS else workshop)
    if verdict.status == "skipped":
        pytest.skip(verdict.detail)
    assert verdict.status == "ok", f"{rule.demand}: {verdict.detail}"
    assert verdict.detail


@pytest.fixture(scope="module")
def bare(workshop):
    """One epoch, and the sound toy as the only scheme."""
    with Workshop(epochs=1, claim=-6.0, schemes=[broken.Sound()], sharing=workshop) as made:
        yield made


SOUND = [broken.Sound(), attacking.SoundAttack(), attacking.Holds(), attacking.SoundForgery(), attacking.ForgesInside()]


@pytest.mark.parametrize("plugin", SOUND, ids=lambda p: p.name)
def test_what_is_sound_violates_nothing(plugin, bare):
    verdicts = [contract.judge(rule, plugin, bare) for rule in contract.rules_for(plugin)]
    assert not [(one.rule.id, one.detail) for one in verdicts if one.status == "violated"]
    skipped = {one.rule.id for one in verdicts if one.status == "skipped"}
    assert skipped <= {"asks-only", "attacks-other-models"}


CAUGHT = [
    (broken.NoFamily(), "says-what-it-is", "family"),
    (broken.NoDocstring(), "says-what-it-is", "docstring"),
    (broken.Elsewhere(), "says-what-it-is", "needs points"),
    (broken.NothingUniform(), "says-what-it-is", "uniform"),
    (broken.BadParameter(), "parameters-can-be-recorded", "limit"),
    (broken.ObjectParameter(), "parameters-can-be-recorded", "table"),
    (broken.GlobalDraw(), "draws-from-the-stream", "another message"),
    (broken.FixedKey(), "draws-from-the-stream", "the same"),
    (broken.FailsToProtect(), "protects", "RuntimeError: no such luck (broken_plugins.py, line"),
    (broken.NotANumber(), "protects", "head.bias"),
    (broken.NoSuchPart(), "protects", "projection"),
    (broken.UndeclaredStage(), "protects", "clean-model' was not declared"),
    (broken.PicksItsKey(), "keeps-the-drawn-key", "another message"),
    (broken.EditsItsKey(), "keeps-the-drawn-key", "another message"),
    (broken.GlobalNoise(), "same-bits-from-the-same-seed", "head.bias"),
    (broken.SpoilsTraining(), "leaves-the-data-alone", "trainer.train"),
    (broken.SpoilsHeldout(), "leaves-the-data-alone", "trainer.heldout"),
    (broken.OnTheObject(), "survives-storage", "same evidence"),
    (broken.OddLayer(), "publishes-a-plain-model", "act7"),
    (broken.NeverFinds(), "verifies-the-protected-model", "got 0.0"),
    (broken.ModestCapacity(), "stays-above-its-capacity", ">= -1.00"),
    (broken.IgnoresItsKey(), "a-fresh-key-does-not-verify", "never embedded"),
    (broken.RaisesOnForeign(), "reads-foreign-models", "KeyError"),
    (broken.ClaimsForeign(), "reads-foreign-models", "no claim"),
    (broken.EmptyReason(), "reads-foreign-models", "empty"),
    (broken.ChangesTheSuspect(), "verifying-changes-nothing", "head.bias"),
    (broken.TossesACoin(), "verifying-changes-nothing", "twice"),
    (broken.OpensUnasked(), "reads-as-it-declares", "AccessError"),
    (broken.OpensInSecret(), "reads-as-it-declares", "raised AttributeError"),
    (broken.SmallPValues(), "p-values-are-no-lies", "share of 0.1"),
    (broken.LoadedCoins(), "p-values-are-no-lies", "share of 0.1"),
    (broken.CountsFacts(), "no-claim-on-independent-models", "owner's own key"),
    (broken.Releases(), "a-spy-finds-no-key", "in whose memory stands message (as float32)"),
    (broken.ReleasesText(), "a-spy-finds-no-key", "handed message (as digits)"),
    (broken.TellsTheSpec(), "a-spy-finds-no-key", "handed message (as a list)"),
    (broken.FixedKey(), "a-spy-finds-no-key", "handed message (as it is)"),
    (attacking.NoUnit(), "says-what-it-is", "strength_unit"),
    (attacking.NoClass(), "says-what-it-is", "sideways"),
    (attacking.NoAnswers(), "says-what-it-is", "hints"),
    (attacking.SecretInsider(), "says-what-it-is", "InsiderAttack"),
    (attacking.BadLimit(), "parameters-can-be-recorded", "limit"),
    (attacking.YieldsNothing(), "attacks", "at least one surrogate"),
    (attacking.YieldsNaN(), "attacks", "conv1.weight"),
    (attacking.TakesMore(), "attacks", "labels with declared data 'none'"),
    (attacking.AsksForMore(), "attacks", "declared answers 'labels'"),
    (attacking.OpensByStage(), "attacks", "stage 'opened' has access 'white-box'"),
    (attacking.GlobalAttack(), "same-surrogates-from-the-same-stream", "conv1.weight"),
    (attacking.InPlace(), "leaves-the-target-alone", "the protected model (conv1.weight)"),
    (attacking.ShufflesLabels(), "leaves-the-target-alone", "attacker's data"),
    (attacking.DeclaresMore(), "uses-what-it-declares", "used 'inputs'"),
    (attacking.Wandering(), "strengths-go-one-way", "[1.0, 0.5, 0.7]"),
    (attacking.Unstorable(), "surrogates-can-be-stored", "cannot describe"),
    (attacking.OnlyVgg(), "attacks-other-models", "conv6"),
    (attacking.Peeks(), "asks-only", "state_dict"),
    (attacking.PeeksQuietly(), "asks-only", "rest on answers alone"),
    (attacking.Nameless(), "says-what-it-is", "kebab-case"),
    (attacking.SecretForger(), "says-what-it-is", "InsiderForgery"),
    (attacking.Partless(), "says-what-it-is", "expected `part`"),
    (attacking.BadForgeryLimit(), "parameters-can-be-recorded", "limit"),
    (attacking.ForgesNaN(), "attacks", "head.bias"),
    (attacking.GlobalForgery(), "same-forgery-from-the-same-stream", "same key"),
    (attacking.ForgesInPlace(), "leaves-the-target-alone", "hidden.weight"),
    (attacking.ForgesWithLess(), "uses-what-it-declares", "used 'none'"),
    (attacking.HalfAKey(), "forges-what-verify-takes", "'message'"),
    (attacking.FewDecoys(), "draws-enough", "got 100"),
]


@pytest.mark.parametrize(
    ("plugin", "rule_id", "word"), CAUGHT, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_each_rule_catches_what_breaks_it(plugin, rule_id, word, bare):
    rule = next(rule for rule in contract.rules_for(plugin) if rule.id == rule_id)
    verdict = contract.judge(rule, plugin, bare)
    assert verdict.status == "violated", verdict
    assert word in verdict.detail
    assert len(verdict.detail.splitlines()) == 1


def test_every_rule_has_something_that_it_catches():
    for rules, base in [
        (defenses.RULES, broken.Sound),
        (attacks.RULES, attacking.Quiet),
        (forgeries.RULES, attacking.SoundForgery),
    ]:
        caught = {rule_id for plugin, rule_id, _ in CAUGHT if isinstance(plugin, base)}
        assert caught == {rule.id for rule in rules}
    ids = [rule.id for rule in defenses.RULES]
    assert len(set(ids)) == len(ids)


def test_a_release_that_is_changed_is_caught_too():
    with Workshop(epochs=1, schemes=[broken.Releases()]) as made:
        rule = next(rule for rule in attacks.RULES if rule.id == "leaves-the-target-alone")
        assert "the release (hint)" in contract.judge(rule, attacking.EditsTheRelease(), made).detail


def test_what_rests_on_a_failure_is_skipped_and_says_on_which(bare):
    rules = {rule.id: rule for rule in defenses.RULES}
    verdict = contract.judge(rules["a-fresh-key-does-not-verify"], broken.FailsToProtect(), bare)
    assert (verdict.status, verdict.detail) == ("skipped", "protecting failed, see the rule 'protects'")
    rules = {rule.id: rule for rule in attacks.RULES}
    verdict = contract.judge(rules["strengths-go-one-way"], attacking.YieldsNaN(), bare)
    assert (verdict.status, verdict.detail) == ("skipped", "attacking failed, see the rule 'attacks'")


def test_an_attack_that_fits_no_scheme_is_skipped_with_the_reasons():
    with Workshop(epochs=1, schemes=[dataclasses.replace(broken.Sound(), bits=8)]) as made:
        rule = next(rule for rule in attacks.RULES if rule.id == "attacks")
        verdict = contract.judge(rule, misbehaving.Insider(), made)
    assert verdict.status == "skipped"
    assert "needs the part 'projection' of the key, sound has message" in verdict.detail


def test_short_parts_are_not_searched_for():
    message = Stream(("short",)).bits
    assert not list(secrecy.forms_of("message", message(16)))
    assert {one.form for one in secrecy.forms_of("message", message(64))} >= {"as it is", "as uint8", "as digits"}
    assert not list(secrecy.forms_of("layer", "conv6"))
    assert [one.content for one in secrecy.forms_of("phrase", "a long pass phrase")] == [b"a long pass phrase"]


def test_what_is_published_is_no_secret_unless_it_is_counted(bare):
    made = bare.protected(broken.Sound())
    facts = {"weights": made.model.hidden.weight.detach().clone(), "own": Stream(("own",)).bits(64)}
    completed = dataclasses.replace(made, key=Key(made.key.drawn, facts))
    _, names = secrecy.secrets_of(broken.Sound(), completed, completed.published)
    assert names == ["message", "own"]


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="memory can be read on Linux alone")
def test_memory_is_searched_over_the_ends_of_pieces(monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK", 4096)
    held = bytearray(os.urandom(100_000))
    wanted = {str(at): bytes(held[at : at + 64]) for at in range(0, 99_000, 1001)}
    turned = {f"not {name}": bytes(255 - byte for byte in content) for name, content in wanted.items()}
    # The searched bytes stand in `wanted` too; other bytes stand only once they are made, so they go to a child.
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=holding.hold, args=(theirs,))
    child.start()
    mine.send_bytes(held)
    assert mine.recv() == "held"
    try:
        assert memory.search(child.pid, wanted | turned) == frozenset(wanted)
    finally:
        mine.send("done")
        child.join()
