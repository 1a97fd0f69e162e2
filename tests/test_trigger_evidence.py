"""The evidence of a trigger set against every draw of its labels, counted one by one."""

import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.key import Key
from bench.suspect import Suspect
from defenses.triggers.answers import TRUE, right_answers

CASES = st.integers(2, 4).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.integers(0, classes - 1), min_size=1, max_size=4 if classes < 4 else 3),
        st.integers(0, 2**30),
    )
)


class Judge:
    """As much of a trainer as judging needs."""

    def __init__(self, task, classes):
        self.task = dataclasses.replace(task, info=dataclasses.replace(task.info, classes=classes))
        self.device = torch.device("cpu")


def found(answers, labels, judge, **facts):
    """What is claimed of a suspect with these answers, for labels as they are drawn."""
    classes = judge.task.classes
    suspect = Suspect(lambda x: torch.eye(classes)[torch.tensor(answers)], None, "black-box")
    key = Key({"inputs": torch.zeros(len(answers), 1), "labels": torch.tensor(labels)}).complete(**facts)
    return right_answers(suspect, key, judge)


def shares(every):
    """For each statistic that occurs, how many draws have at least as much, as a share of all."""
    counted = Counter(one.statistic for one in every)
    return {least: sum(n for other, n in counted.items() if other >= least) / len(every) for least in counted}


@settings(max_examples=12)
@given(CASES)
def test_a_claim_is_the_share_of_all_labels_that_agree_as_well(task, case):
    classes, answers, _ = case
    judge = Judge(task, classes)
    every = [found(answers, labels, judge) for labels in itertools.product(range(classes), repeat=len(answers))]
    share = shares(every)
    for one in every:
        assert one.log10_p == pytest.approx(math.log10(share[one.statistic]), abs=1e-9)


@settings(max_examples=12)
@given(CASES)
def test_of_training_inputs_it_is_that_share_or_more_and_that_share_where_no_answer_is_true(task, case):
    classes, answers, seed = case
    classes += 1
    judge = Judge(task, classes)
    chance = torch.Generator().manual_seed(seed)
    for true in (torch.randint(classes, (len(answers),), generator=chance), (torch.tensor(answers) + 1) % classes):
        never_true = not (true == torch.tensor(answers)).any()
        steps = itertools.product(range(1, classes), repeat=len(answers))
        every = [found(answers, drawn, judge, **{TRUE: true}) for drawn in steps]
        share = shares(every)
        for one in every:
            exact = math.log10(share[one.statistic])
            assert one.log10_p >= exact - 1e-9
            assert not never_true or one.log10_p == pytest.approx(exact, abs=1e-9)
