"""Shared fixtures: the digits task with few epochs, and trainers on it. Nothing here needs a network."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

# Before anything imports ray: tests need no token in the home folder, and no word to anyone.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch

from bench import data
from bench.stream import Stream
from bench.task import Parts, Task
from bench.trainer import AttackerTrainer, OwnerTrainer

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parts() -> Parts:
    return data.load("digits")


@pytest.fixture(scope="session")
def task() -> Task:
    """Digits with a recipe of three epochs."""
    info = data.info("digits")
    return Task(info, info.model, dataclasses.replace(info.recipe, epochs=3))


@pytest.fixture
def owner(task, parts) -> OwnerTrainer:
    return OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0).child("owner"))


@pytest.fixture
def attacker_for(task, parts):
    """Makes an attacker's trainer for an attack and a target."""

    def make(attack, target=None) -> AttackerTrainer:
        return AttackerTrainer(
            task,
            parts.attacker.x,
            parts.attacker.take(parts.labelled),
            Stream.root(0).child("attacker"),
            target=target,
            data=attack.data_used(),
        )

    return make


@pytest.fixture(scope="session")
def full_clean(parts):
    """A clean model of the whole recipe, for what needs an accurate one."""
    info = data.info("digits")
    whole = Task(info, info.model, info.recipe)
    trainer = OwnerTrainer(whole, parts.train, parts.heldout, Stream.root(7).child("owner"))
    return trainer.fit(trainer.new_model(), trainer.train)
