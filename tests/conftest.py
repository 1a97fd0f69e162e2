"""Shared fixtures: the digits task with few epochs, and trainers on it. Nothing here needs a network."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

# Before anything imports ray: tests need no token in the home folder, and no word to anyone.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from bench import data
from bench import training as loop
from bench.contract import Workshop
from bench.stream import Stream
from bench.task import Parts, Task
from bench.trainer import AttackerTrainer, OwnerTrainer

# A machine that others use too has no deadlines; what passes today passes tomorrow. New examples:
# pytest --hypothesis-profile=explore
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("steady")

# Two processes share the tests. Those that start Ray stay together, since two Rays at once would starve each other;
# so do those that use the workshop, which takes long to fill, and those that plan all suites, for which each dataset is
# checked once in a process. They begin first, because they take longest.
GROUPS = {
    "ray": ("test_faults", "test_gpu_shares", "test_nodes", "test_packages", "test_pool", "test_pool_gpu"),
    "workshop": ("test_contract", "test_check", "test_docs"),
    "suites": ("test_work", "test_forecast"),
}
GROUP_OF = {file: group for group, files in GROUPS.items() for file in files}
# Long files next, so that no process is left alone with one at the end.
LONG = ("test_points", "test_end_to_end")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (item.path.stem not in GROUP_OF, item.path.stem not in LONG))


class ByGroup(LoadScopeScheduling):
    """Tests of one group, and else of one file, run in one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.split("::", 1)[0]).stem
        return GROUP_OF.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


# Here as well as before each test: fixtures of whole files come first, and two processes with two threads each starve.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parts() -> Parts:
    info = data.info("digits")
    return data.whole(Task(info, info.model, info.recipe))


@pytest.fixture(scope="session")
def task() -> Task:
    """Digits with a recipe of three epochs."""
    info = data.info("digits")
    return Task(info, info.model, dataclasses.replace(info.recipe, epochs=3))


@pytest.fixture(scope="session")
def workshop():
    """What the contract's rules work with. Three epochs, after which 1e-3 can be asked for; suites ask for 1e-6."""
    with Workshop(epochs=3, claim=-3.0) as made:
        # The spying process starts beside the first rules.
        made.start_spy()
        yield made


@pytest.fixture
def owner(task, parts) -> OwnerTrainer:
    return OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))


@pytest.fixture(scope="module")
def protected(task, parts):
    """A protected model and its key for each scheme that is asked for, made once."""
    made = {}

    def get(defense):
        if defense.label not in made:
            trainer = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))
            made[defense.label] = defense.protect(trainer, defense.draw(task, Stream(("key",))))[:2]
        return made[defense.label]

    return get


@pytest.fixture
def attacker_for(task, parts):
    """Makes an attacker's trainer for an attack and a target."""

    def make(attack, target=None) -> AttackerTrainer:
        return AttackerTrainer(
            task,
            parts.attacker.inputs,
            parts.attacker.take(parts.labelled),
            Stream.root(0).child("attacker"),
            target=target,
            data=attack.data_used(),
        )

    return make


@pytest.fixture
def counted(monkeypatch) -> dict[str, int]:
    """Counts the inputs of all training steps, under `inputs`."""
    seen = {"inputs": 0}
    loss = loop._Step._loss

    def counting(self, x, y):
        seen["inputs"] += len(x)
        return loss(self, x, y)

    monkeypatch.setattr(loop._Step, "_loss", counting)
    return seen


@pytest.fixture(scope="session")
def full_clean(parts):
    """A clean model of the whole recipe, for what needs an accurate one."""
    info = data.info("digits")
    whole = Task(info, info.model, info.recipe)
    trainer = OwnerTrainer(whole, parts.train, parts.heldout, Stream.root(7).child("owner"))
    return trainer.fit(trainer.new_model(), trainer.train)
