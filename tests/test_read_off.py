"""Claiming what a model happens to say, whatever the scheme: exact, and told from a real key by nothing in its form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import lived_in

import models
from attacks.forging.offers import Completes
from attacks.magnitude_prune import magnitude_masks
from attacks.read_off import ReadOff
from attacks.trigger_forgery import nothing
from bench.attack import DecoyAttack
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.errors import Unreadable
from bench.registry import discover
from bench.stream import Stream
from bench.suspect import Suspect, Target
from bench.trainer import AttackerTrainer
from defenses.channel_rate import ChannelRate
from defenses.constant_weight_code import ConstantWeightCode
from defenses.dm_qim import DmQim
from defenses.hash_chain import HashChain
from defenses.ingrain import Ingrain
from defenses.passport_aware import PassportAware
from defenses.ticket_qr import TicketQr
from defenses.ticket_trigger import TicketTrigger
from defenses.trigger_set import TriggerSet
from defenses.uchida import Uchida

SCHEMES = [
    Uchida(),
    Uchida(projection="direct"),
    Uchida(projection="diff", bits=32, layer="conv4"),
    Uchida(canonical=True),
    DmQim(),
    DmQim(transform="none", bits=40, step=1.0, layers=("conv3", "conv5")),
    TriggerSet(),
    TriggerSet(old_head=True, canonical=True),
    Ingrain(triggers=20),
    TicketQr(),
    TicketQr(placement="keyed", version=2, text_length=8, canonical=True),
    TicketTrigger(),
    ChannelRate(),
    ChannelRate(form="nearest", bits=4, dense=True, spare=2),
    ChannelRate(canonical=True),
]


def model_for(scheme, task, seed=0):
    """A model that has met no scheme, a third of whose weights are zero where the scheme marks such."""
    torch.manual_seed(seed)
    model = lived_in(models.build(task.model, task.classes, task.shape), seed)
    if scheme.sparse:
        for name, mask in magnitude_masks(model, 0.85, "global").items():
            model.get_parameter(name).data *= mask
    return model


def forged(attack, model, scheme, attacker_for):
    """The forged key as it comes back from storage, with the forgery, the target and the trainer."""
    target = Target(model, attack.access_used(), scheme=scheme)
    trainer = attacker_for(attack, target)
    made = attack.forge(target, trainer)
    key = bundle_to_key(Bundle.from_bytes(key_to_bundle(made.key).to_bytes()))
    return key, made, target, trainer


def form(values):
    """Names with types, of tensors with types and shapes."""
    return {n: (v.dtype, tuple(v.shape)) if isinstance(v, torch.Tensor) else type(v) for n, v in values.items()}


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda one: one.label)
def test_what_is_read_off_reaches_the_capacity_on_a_model_that_met_no_scheme(scheme, task, owner, attacker_for):
    model = model_for(scheme, task)
    key, made, target, trainer = forged(ReadOff(), model, scheme, attacker_for)
    evidence = scheme.verify(Suspect.of(made.model, scheme.access_used()), key, owner)
    assert evidence.log10_p == pytest.approx(scheme.capacity(task))
    assert evidence.log10_p <= -6
    drawn = scheme.draw(task, trainer.stream.child("key", scheme.name))
    assert form(key.drawn) == form(drawn.drawn)
    changed = {n for n, v in drawn.drawn.items() if isinstance(v, torch.Tensor) and not torch.equal(key.drawn[n], v)}
    assert changed <= set(scheme.uniform)
    assert 0 < made.figures["redrawn"] <= 1
    assert (trainer.inputs_used, trainer.labels_used) == (0, 0)
    assert target.queries == (len(key.tensor("labels")) if "labels" in key.drawn else 0)
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), model.parameters(), strict=True))


QUICK = [
    Uchida(),
    DmQim(),
    TriggerSet(),
    Ingrain(),
    TicketQr(round_epochs=1),
    ChannelRate(epochs=1),
    HashChain(),
    ConstantWeightCode(),
]


@pytest.mark.parametrize("scheme", QUICK, ids=lambda one: one.label)
def test_completing_adds_what_protecting_adds(scheme, task, protected):
    model, owned = protected(scheme)
    key = scheme.completed(scheme.draw(task, Stream(("forger",))), model, task)
    assert form(key.facts) == form(owned.facts)


@given(seed=st.integers(0, 10_000), bits=st.integers(1, 200), projection=st.sampled_from(["random", "direct", "diff"]))
@settings(max_examples=25)
def test_any_projection_of_any_model_says_a_message(task, seed, bits, projection):
    scheme = Uchida(bits=bits, projection=projection)
    target = Target(model_for(scheme, task, seed), "white-box", scheme=scheme)
    trainer = AttackerTrainer(task, torch.empty(0), nothing(task), Stream((str(seed),)), target=target, data="none")
    key = ReadOff().forge(target, trainer).key
    assert scheme.verify(target, key, trainer).figures["bit_error"] == 0.0


def test_what_cannot_be_read_off_says_why():
    against = ReadOff().against
    assert "see own-triggers" in against(TriggerSet(inputs="relabelled"))
    assert "see grind" in against(TicketQr(flavour="paper"))
    assert "kind passport" in against(PassportAware())
    assert "kind positions" in against(ConstantWeightCode())
    assert "kind labels" in against(HashChain())
    assert "owner's files" in against(TriggerSet(images="somewhere"))


def test_a_model_of_other_layers_is_not_read_off(task):
    scheme, other = ChannelRate(), models.build("resnet20", task.classes, task.shape)
    with pytest.raises(Unreadable):
        scheme.read_off(scheme.draw(task, Stream(("k",))), Suspect.of(other), task)


def test_forgers_are_told_why_a_scheme_withholds_its_key():
    for cls in discover().defense.values():
        scheme = cls()
        if isinstance(scheme, Completes):
            assert scheme.withheld() is None


def test_a_forgery_says_when_its_key_was_there():
    found = discover().attack.values()
    times = {cls.name: cls.time_model for cls in found if cls.kind == "ambiguity" and "attacks." in cls.__module__}
    before = {name for name, when in times.items() if when == "committed before"}
    assert before == {"random-key", "transferable-triggers"}
    assert set(times.values()) == {"committed before", "after the fact"}
    assert DecoyAttack.time_model == "committed before"
