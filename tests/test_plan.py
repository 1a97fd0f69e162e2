"""A plan on disk: what many jobs share stands once, and comes back as it was."""

import json
import re

import pytest

from bench.errors import InputError
from bench.planning import cells, suite
from bench.planning.job import Job, Plan
from bench.storage.store import RunFolder


@pytest.fixture(scope="module")
def plan():
    return cells.make(suite.read("digits"), seeds=(0, 1))


def test_a_plan_comes_back_as_it_was(plan, tmp_path):
    with RunFolder.open_for_writing(tmp_path / "run") as folder:
        folder.save_plan(plan)
        back = folder.plan()
    assert back == plan
    assert list(back.jobs) == list(plan.jobs)


def test_tasks_and_plugins_stand_once(plan):
    text = json.dumps(plan.to_json())
    assert text.count('"batch_size"') == 1
    assert len(re.findall(r'"path": "attacks.distill:Distill"', text)) == 1
    # What many jobs have in common does not grow with their number.
    assert len(text) < 800 * len(plan.jobs)


def test_equal_tables_that_are_different_objects_are_one(plan):
    jobs = {
        name: Job(name, "attack", "owner", name, {"task": {"a": [1, 2]}, "seed": name, "x": {}}, {}, "")
        for name in ("p", "q")
    }
    made = Plan(**{**vars(plan), "jobs": jobs, "cells": []})
    values = json.loads(json.dumps(made.to_json()))
    assert values["shared"] == [{"a": [1, 2]}, {}]
    assert Plan.from_json(values) == made


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values.pop("shared"),
        lambda values: values["shared"].clear(),
        lambda values: values["jobs"]["columns"].reverse(),
        lambda values: values["cells"]["rows"][0].pop(),
        lambda values: values.update(jobs=[]),
    ],
)
def test_a_plan_of_another_form_is_refused(plan, tmp_path, spoil):
    with RunFolder.open_for_writing(tmp_path / "run") as folder:
        values = json.loads(json.dumps(plan.to_json()))
        spoil(values)
        (folder.path / "plan.json").write_text(json.dumps(values))
        with pytest.raises(InputError, match=r"expected a plan\.json that can be read"):
            folder.plan()


def test_planning_asks_a_plugin_once(monkeypatch):
    from defenses.uchida import Uchida

    asked = []
    applies = Uchida.applies_to
    monkeypatch.setattr(Uchida, "applies_to", lambda self, task: asked.append(self) or applies(self, task))
    chosen = suite.read("digits")
    cells.make(chosen, seeds=(0, 1, 2))
    named = sum(isinstance(defense, Uchida) for defense in chosen.defenses)
    assert len(asked) == 3 * named > 0
