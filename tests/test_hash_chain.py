"""Triggers that follow from a seed: the chain, what is made of a link, and that nothing else is kept."""

import hashlib

import clouds
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.key import Key
from bench.stream import Stream
from bench.suspect import Suspect
from defenses import hash_chain
from defenses.hash_chain import HashChain, accepted, label, links, raw_input

KEY = Stream(("key",))
SEED = bytes(range(32))


def seeded(seed):
    return Key({"seed": torch.tensor(list(seed), dtype=torch.uint8)})


def test_each_link_is_the_hash_of_the_one_before():
    first, second, third = links(SEED, 3)
    assert first == hashlib.sha256(SEED).digest()
    assert second == hashlib.sha256(first).digest()
    assert third == hashlib.sha256(second).digest()


def test_the_same_triggers_come_of_a_seed_on_every_machine(task):
    """Fixed digests, of raw bytes and labels on digits and on points."""

    def digest(task, top):
        found = list(links(SEED, 64))
        raw = torch.stack([raw_input(link, task) for link in found])
        if task.kind == "points":
            raw = (raw + 1) / 2
        content = (raw * top).round().to(torch.uint8).numpy().tobytes()
        return hashlib.sha256(content + bytes(label(link, task.classes) for link in found)).hexdigest()

    assert digest(task, 255) == "777ee0a9b93d0c1d3b2d3c5c36865ac83f71c516efbea071146108b538fe0d83"
    assert digest(clouds.task(), 255) == "ff39df67420871cfc65c32af32e5a449344f8f02570308bb2424ab719754a8c0"


def test_what_is_made_of_a_link_is_said_by_its_hash(task):
    (link,) = links(SEED, 1)
    content = hashlib.shake_256(b"hash-chain input" + link).digest(64)
    assert raw_input(link, task).flatten().mul(255).round().tolist() == list(content)
    word = int.from_bytes(hashlib.shake_256(b"hash-chain label" + link).digest(4), "big")
    # Ten divides 2 ** 32 - 6.
    assert word < 2**32 - 6 and label(link, 10) == word % 10


def test_a_trigger_depends_on_its_link_alone(task):
    """Whoever is shown a link can make all that follow, whatever came before."""
    whole = HashChain(triggers=20).derived(seeded(SEED), task)
    seventh = list(links(SEED, 7))[-1]
    rest = HashChain(triggers=13).derived(seeded(seventh), task)
    for name in ("inputs", "labels"):
        assert torch.equal(rest.tensor(name), whole.tensor(name)[7:])
    shorter = HashChain(triggers=8).derived(seeded(SEED), task)
    assert torch.equal(shorter.tensor("inputs"), whole.tensor("inputs")[:8])


@pytest.mark.parametrize("kind", ["image", "points"])
def test_inputs_fill_the_raw_range(task, kind):
    task = task if kind == "image" else clouds.task()
    raw = torch.stack([raw_input(link, task) for link in links(SEED, 200)])
    low = -1 if kind == "points" else 0
    assert raw.shape == (200, *task.shape) and raw.dtype == torch.float32
    assert (float(raw.min()), float(raw.max())) == (low, 1)
    steps = ((raw - low) / (1 - low) * 255).round().long().flatten().numpy()
    assert stats.chisquare(np.bincount(steps, minlength=256)).pvalue > 1e-4
    derived = HashChain(triggers=64).derived(seeded(SEED), task)
    assert torch.equal(derived.tensor("inputs"), task.normalised(raw[:64]))


def test_labels_of_many_seeds_are_uniform_at_each_place_and_without_memory():
    drawn = np.array(
        [[label(one, 10) for one in links(seed.to_bytes(32, "big"), 4)] for seed in range(5000)], dtype=np.int64
    )
    for place in range(4):
        assert stats.chisquare(np.bincount(drawn[:, place], minlength=10)).pvalue > 1e-4
    pairs = 10 * drawn[:, :3].flatten() + drawn[:, 1:].flatten()
    assert stats.chisquare(np.bincount(pairs, minlength=100)).pvalue > 1e-4


@given(st.integers(1, 300).flatmap(lambda words: st.tuples(st.just(words), st.integers(1, words))))
def test_each_label_belongs_to_equally_many_words(sizes):
    words, classes = sizes
    found = [accepted(word, classes, words) for word in range(words)]
    counted = np.bincount([one for one in found if one is not None], minlength=classes)
    assert counted.tolist() == [words // classes] * classes
    assert found.count(None) == words % classes


def test_a_word_that_is_not_accepted_is_followed_by_the_next():
    """With as many classes nearly every second word is refused."""
    classes, more = 2**31 + 1, 0
    for link in links(SEED, 50):
        content = hashlib.shake_256(hash_chain.LABEL + link).digest(200)
        words = [int.from_bytes(content[at : at + 4], "big") for at in range(0, 200, 4)]
        first = next(place for place, word in enumerate(words) if word < classes)
        more += first > 0
        assert label(link, classes) == words[first]
    assert more > 10


def test_more_classes_than_words_are_refused():
    with pytest.raises(ValueError, match="1 to 4 classes, got 5"):
        accepted(0, 5, 4)


def test_the_key_is_the_seed_and_training_sees_what_verifying_asks(task, owner, monkeypatch):
    seen, asked = [], []

    def fit(model, data, recipe=None, *, hooks, **_):
        seen.extend(hooks.extra_inputs(step) for step in range(8))
        return model

    monkeypatch.setattr(owner, "fit", fit)
    defense = HashChain()
    key = defense.draw(task, KEY)
    assert {name: (part.dtype, part.shape) for name, part in key.drawn.items()} == {"seed": (torch.uint8, (32,))}
    model, completed, release = defense.protect(owner, key)
    assert completed is key and not completed.facts
    assert not release.tensors and not release.models and not release.values
    inputs, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))

    def answer(x):
        asked.append(x)
        return torch.nn.functional.one_hot(labels, 10).float()

    found = defense.verify(Suspect(answer, None, "black-box"), completed, owner)
    assert torch.equal(torch.cat(asked), inputs)
    assert found.statistic == 64 and found.log10_p == pytest.approx(-64) == pytest.approx(defense.capacity(task))


def test_other_seeds_agree_with_any_answers_as_the_binomial_says(task, owner):
    """A suspect that answers everything alike: right are the triggers with that label."""
    suspect = Suspect(lambda x: torch.eye(10)[torch.full((len(x),), 3)], None, "black-box")
    defense = HashChain(triggers=16, per_batch=1)
    p = np.array([defense.verify(suspect, defense.draw(task, KEY.child(n)), owner).log10_p for n in range(500)])
    for share in (0.1, 0.01):
        assert (p <= np.log10(share)).sum() <= stats.binom.ppf(0.999, 500, share)


def test_it_is_added_to_the_clean_model_where_asked(task, owner, monkeypatch):
    clean, started = owner.clean().conv1.weight, {}

    def fit(model, data, recipe=None, **_):
        started[recipe.epochs, recipe.learning_rate] = model.conv1.weight.clone()
        return model

    monkeypatch.setattr(owner, "fit", fit)
    defense = HashChain(mode="fine-tune", epochs=2, learning_rate=0.03)
    defense.protect(owner, defense.draw(task, KEY))
    assert torch.equal(started[2, 0.03], clean)
    assert defense.stages() and not HashChain().stages()
    with pytest.raises(ValueError, match="per_batch <= triggers"):
        HashChain(triggers=4)
