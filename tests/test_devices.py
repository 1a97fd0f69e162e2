"""Nothing takes it for granted that numbers lie in the host's memory: each plugin runs on a device apart."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry

ROOT = Path(__file__).parent.parent
# What a GPU refuses, and what it takes.
REFUSED = {
    "x + torch.ones(2, 3)": "same device",
    "torch.cat([x, torch.ones(2, 3)])": "same device",
    "torch.ones(2, 3)[x[:, 0].long()]": "same device",
    "x.normal_(generator=torch.Generator())": "generator",
    "torch.rand(2, generator=torch.Generator(), device='card')": "generator",
    "x.numpy()": "numpy",
}
TAKEN = [
    "x + torch.tensor(2.0)",
    "x[torch.tensor([1])]",
    "x.copy_(torch.ones(2, 3))",
    "torch.tensor([1.0], device='card')",
]


def here(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )


def test_the_card_refuses_what_a_gpu_refuses():
    text = f"""
import torch
from tests import card
card.install()
for line in {[*REFUSED, *TAKEN]!r}:
    x = torch.zeros(2, 3).to("card")
    try:
        print(eval(line).device)
    except Exception as error:
        print(error)
"""
    done = here("-c", text)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert all(words in line for words, line in zip(REFUSED.values(), said, strict=False)), said
    assert said[len(REFUSED) :] == ["card:0"] * len(TAKEN)


@pytest.fixture(scope="module")
def ran():
    done = here("-m", "tests.on_card", "digits-full")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_plugin_runs_on_a_device_apart(ran):
    failed = {one["job"]: one["error"] for one in ran if one["error"]}
    assert not failed, "\n".join(failed.values())
    known = registry.discover()
    # Random keys are a kind of job, `decoys`.
    assert {one["plugin"] for one in ran} >= (set(known.defense) | set(known.attack)) - {"none", "random-key"}
    kinds = {"stage", "protect", "disclose", "attack", "forge", "measure", "judge", "decoys"}
    assert {one["kind"] for one in ran} == kinds


def test_it_makes_there_what_it_makes_on_the_cpu(ran):
    """To the bit where PyTorch takes an operation apart alike for both; it does not for all, and rounds otherwise."""
    assert {one["job"]: one["apart"] for one in ran if not one["error"] and one["apart"] > 1e-4} == {}
    assert sum(one["apart"] == 0.0 for one in ran) > 0.9 * len(ran)
