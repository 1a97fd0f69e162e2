"""Suites: what they say, what is refused, and with which words."""

import dataclasses
import textwrap

import pytest

from attacks.magnitude_prune import MagnitudePrune
from bench.commands.run import narrowed
from bench.errors import InputError
from bench.planning import suite

GOOD = """
    name = "example"
    alpha = 1e-6
    accuracy_budget = 5.0
    seeds = [0]
    threads = 1
    [[tasks]]
    dataset = "digits"
    [[defenses]]
    name = "uchida"
    bits = [32, 64]
    [[attacks]]
    name = "magnitude-prune"
    fractions = [0.3, 0.6, 0.9]
"""


@pytest.fixture
def read(tmp_path):
    def from_text(text):
        path = tmp_path / "suite.toml"
        path.write_text(textwrap.dedent(text))
        return suite.read(str(path))

    return from_text


def test_the_grammar_of_the_readme(read):
    found = read(GOOD)
    assert [d.label for d in found.defenses] == ["uchida[bits=32]", "uchida"]
    assert [a.fractions for a in found.attacks] == [(0.3, 0.6, 0.9)]
    assert found.tasks[0].model == "vgg8"
    assert found.tasks[0].recipe.shift == 1
    assert found.header.keep == "protected"


def test_a_task_can_name_its_model_and_change_its_recipe(read):
    found = read(GOOD.replace('dataset = "digits"', 'dataset = "digits"\nmodel = "resnet8"\nrecipe = { epochs = 2 }'))
    assert (found.tasks[0].model, found.tasks[0].recipe.epochs, found.tasks[0].recipe.shift) == ("resnet8", 2, 1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "uchida"', 'name = "uchidda"', ["[[defenses]] number 1", "'uchidda'", "Did you mean 'uchida'?"]),
        ("magnitude-prune", "magnitude", ["[[attacks]] number 1", "Did you mean 'magnitude-prune'?"]),
        ("bits = [32, 64]", "bit = 32", ["(uchida)", "unknown parameter 'bit'", "Did you mean 'bits'?"]),
        ("bits = [32, 64]", 'bits = "32"', ["key 'bits'", "expected int", "'32'"]),
        ("bits = [32, 64]", "bits = []", ["key 'bits'", "empty list"]),
        ("bits = [32, 64]", "bits = 0", ["expected bits >= 1"]),
        ("fractions = [0.3, 0.6, 0.9]", "fractions = 0.3", ["key 'fractions'", "expected list of float"]),
        ("fractions = [0.3, 0.6, 0.9]", "fractions = [0.3, 1.6]", ["fractions in [0, 1)"]),
        ("alpha = 1e-6", "alfa = 1e-6", ["unknown key 'alfa'", "Did you mean 'alpha'?"]),
        ("alpha = 1e-6", "alpha = 2.0", ["alpha in (0, 1)"]),
        ("alpha = 1e-6", 'alpha = "x"', ["key 'alpha'", "expected float"]),
        ("seeds = [0]", "seeds = 3", ["key 'seeds'", "expected list of int"]),
        ("seeds = [0]", "seeds = [1, 1]", ["different seeds"]),
        ("threads = 1", "threads = 0", ["threads >= 1"]),
        ("threads = 1", 'threads = 1\nkeep = "some"', ["key 'keep'", "'some'", "protected"]),
        ('dataset = "digits"', 'dataset = "digit"', ["[[tasks]] number 1", "Did you mean 'digits'?"]),
        ('dataset = "digits"', 'dataset = "digits"\nmodel = "vgg"', ["unknown model 'vgg'", "vgg8"]),
        ('dataset = "digits"', 'dataset = "digits"\nmodel = "lenet5"', ["key 'model'", "16x16", "8x8"]),
        ('dataset = "digits"', 'dataset = "digits"\nepoch = 3', ["unknown key 'epoch'", "recipe"]),
        ('dataset = "digits"', 'dataset = "digits"\nrecipe = { epoch = 3 }', ["recipe", "Did you mean 'epochs'?"]),
        ("[[attacks]]", "[[atacks]]", ["unknown key 'atacks'", "Did you mean 'attacks'"]),
        ('name = "example"', "", ["missing key 'name'"]),
        ('name = "example"', "name = ", ["expected TOML"]),
    ],
)
def test_bad_suites_say_file_key_expected_got_and_nearest(read, old, new, words):
    assert old in GOOD
    with pytest.raises(InputError) as error:
        read(GOOD.replace(old, new))
    for word in ["suite.toml", *words]:
        assert word in str(error.value)


def test_a_suite_without_attacks_is_refused(read):
    with pytest.raises(InputError, match=r"at least one table \[\[attacks\]\]"):
        read(GOOD.split("[[attacks]]")[0])


def test_unknown_suites_and_files_are_named():
    with pytest.raises(InputError, match="Did you mean 'digits'"):
        suite.read("digit")
    with pytest.raises(InputError, match="does not exist"):
        suite.read("nowhere/at-all.toml")


@pytest.mark.parametrize("name", sorted(suite.shipped()))
def test_every_shipped_suite_can_be_read(name):
    found = suite.read(name)
    assert found.header.name == name
    assert found.header.description
    assert any(attack.kind == "none" for attack in found.attacks)


def test_only_narrows_by_name_and_by_label(read):
    whole = read(GOOD)
    assert len(narrowed(whole, ["defense=uchida"]).defenses) == 2
    assert [d.bits for d in narrowed(whole, ["defense=uchida[bits=32]"]).defenses] == [32]
    assert narrowed(whole, []) == whole
    with pytest.raises(InputError, match=r"Did you mean .*uchida"):
        narrowed(whole, ["defense=uchid"])
    for other in ("uchida", "model=vgg8"):
        with pytest.raises(InputError, match="expected task=NAME, defense=NAME or attack=NAME"):
            narrowed(whole, [other])


@pytest.mark.parametrize("name", ["cifar10/resnet18", "resnet18"])
def test_only_narrows_to_a_task_by_its_name_or_its_model(name):
    whole = suite.read("cifar10")
    one = narrowed(whole, [f"task={name}", "defense=uchida"])
    assert [task.name for task in one.tasks] == ["cifar10/resnet18"]
    assert {defense.name for defense in one.defenses} == {"none", "uchida"} and one.attacks == whole.attacks
    assert narrowed(whole, ["task=cifar10"]) == whole
    with pytest.raises(InputError, match=r"Did you mean .*resnet18"):
        narrowed(whole, ["task=resnet81"])


def test_a_suite_that_grew_since_it_was_published_says_so():
    chosen = suite.read("tickets")
    assert suite.published(chosen) == "whole"
    assert suite.published(dataclasses.replace(chosen, attacks=chosen.attacks[:2])) == "whole"
    grown = dataclasses.replace(chosen, attacks=(*chosen.attacks, MagnitudePrune(fractions=(0.12,))))
    assert suite.published(grown) == "older"
    header = dataclasses.replace(chosen.header, name="nobody-ran-it")
    assert suite.published(dataclasses.replace(chosen, header=header)) == "never"
