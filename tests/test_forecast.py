"""The forecast of a run: schedules by hand, sources of seconds, disk by what is kept, and the printed plan."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bench.commands import preview
from bench.commands.run import Options, folder_of
from bench.effort import Effort
from bench.errors import InputError
from bench.forecast import estimate
from bench.forecast.estimate import Devices
from bench.forecast.schedule import disk, schedule, uses
from bench.forecast.speed import Speed, probe
from bench.planning import cells, suite
from bench.planning.job import Input, Job, Plan
from bench.running import ranking
from bench.stage import CleanModel
from bench.storage.store import RunFolder

FOUR = Devices("cuda", ("cuda:0", "cuda:1", "cuda:2", "cuda:3"), at_hand=False)
SUITE = """
    name = "small"
    seeds = [0, 1]
    keep = "{keep}"
    [[tasks]]
    dataset = "digits"
    recipe = {{ epochs = 4 }}
    [[defenses]]
    name = "uchida"
    [[defenses]]
    name = "trigger-set"
    mode = "fine-tune"
    old_head = [false, true]
    [[attacks]]
    name = "magnitude-prune"
    fractions = [0.5, 0.9]
    [[attacks]]
    name = "distill"
    epochs = 4
    [[attacks]]
    name = "random-key"
    decoys = 100
"""


def job(name, *parents, kind="attack"):
    inputs = {f"in{i}": Input(parent, "public") for i, parent in enumerate(parents)}
    return Job(name, kind, "owner", f"label {name}", {}, inputs, "")


def plan_of(*jobs, **changes):
    values = {
        "suite": "s", "source": "s", "alpha": 1e-6, "accuracy_budget": 5.0, "seeds": (0,), "keep": "protected",
        "timeout": 60.0, "threads": 1, "data_digests": {}, "jobs": {j.id: j for j in jobs}, "cells": [],
    }  # fmt: skip
    return Plan(**{**values, **changes})


# b and c wait for a, d for b and c; e for nothing. The longest chain: a, c, d.
DIAMOND = (job("a", kind="protect"), job("b", "a"), job("c", "a"), job("d", "b", "c", kind="judge"), job("e"))
SECONDS = {"a": 2.0, "b": 1.0, "c": 3.0, "d": 1.0, "e": 4.0}


@pytest.mark.parametrize(
    ("slots", "ended"),
    [
        # A chain of 6 begins with a; then c and e begin chains of 4, and the id decides.
        (1, {"a": 2.0, "c": 5.0, "e": 9.0, "b": 10.0, "d": 11.0}),
        (2, {"a": 2.0, "e": 4.0, "c": 5.0, "b": 5.0, "d": 6.0}),
        (9, {"a": 2.0, "e": 4.0, "c": 5.0, "b": 3.0, "d": 6.0}),
    ],
)
def test_a_schedule_by_hand(slots, ended):
    made = schedule(plan_of(*DIAMOND), SECONDS.keys(), SECONDS, slots)
    assert made.ended == ended
    assert (made.work, made.wall) == (11.0, max(ended.values()))
    assert (made.chain, made.chain_seconds) == (("a", "c", "d"), 6.0)


def test_jobs_that_are_done_take_no_time():
    made = schedule(plan_of(*DIAMOND), {"b", "d"}, SECONDS, 1)
    assert made.ended == {"b": 1.0, "d": 2.0}
    assert (made.work, made.wall, made.chain) == (2.0, 2.0, ("b", "d"))
    nothing = schedule(plan_of(*DIAMOND), set(), SECONDS, 3)
    assert (nothing.work, nothing.wall, nothing.chain) == (0.0, 0.0, ())


@pytest.mark.parametrize(
    ("keep", "kept", "peak"),
    [
        ("all", 1 + 10 + 100 + 1000, 1 + 10 + 100 + 1000),
        # On two slots e ends at 4 and goes; b and c go with d, at 6, when a has long been there.
        ("protected", 1, 1 + 1000),
        ("none", 0, 1 + 1000),
    ],
)
def test_disk_by_what_is_kept(keep, kept, peak):
    plan = plan_of(*DIAMOND, keep=keep)
    made = schedule(plan, SECONDS.keys(), SECONDS, 2)
    size = {"a": 1, "b": 10, "c": 100, "d": 0, "e": 1000}
    found = disk(plan, made.ended, size)
    assert (found.kept, found.peak) == (kept, peak)
    assert found.tables > 0
    nothing = disk(plan, {}, {})
    assert (nothing.kept, nothing.peak, nothing.tables) == (0, 0, 0)


@pytest.mark.parametrize(("keep", "peak"), [("protected", 6 + 80 + 400), ("none", 6 + 80 + 400)])
def test_the_most_on_disk_is_in_between(keep, peak):
    # a is needed until both b and c are there, which d needs: a, b and c lie there together, e is gone.
    plan = plan_of(*DIAMOND, keep=keep)
    made = schedule(plan, SECONDS.keys(), SECONDS, 2)
    assert disk(plan, made.ended, {"a": 6, "b": 80, "c": 400, "d": 0, "e": 5}).peak == peak


def test_what_is_shared():
    found = uses(plan_of(*DIAMOND), ("protect", "attack"))
    assert found == {"label a": (1, 2), "label b": (1, 1), "label c": (1, 1), "label e": (1, 0)}


@pytest.fixture
def small(tmp_path):
    """The path of a small suite; what it keeps can be said."""

    def write(keep="protected"):
        path = tmp_path / "small.toml"
        path.write_text(textwrap.dedent(SUITE).format(keep=keep))
        return str(path)

    return write


@pytest.fixture
def fast(monkeypatch):
    """A machine on which an input takes a millisecond forward and backward, and a quarter of that forward."""
    monkeypatch.setattr("bench.forecast.speed.probe", lambda *args: Speed(1e-3, 0.25e-3))


def cost_of(plan, entries=None, kind="cpu"):
    speeds = dict.fromkeys(estimate.tasks(plan), Speed(1e-3, 0.25e-3))
    return estimate.costs(plan, entries or {}, speeds, Devices(kind, (kind,)))


def named(plan, label):
    return next(job.id for job in plan.jobs.values() if job.label == label)


def test_seconds_are_declared_effort_times_speed(small):
    plan = cells.make(suite.read(small()))
    cost = cost_of(plan)
    declared = {
        # 25 batches of 32 in each of 4 epochs; of 40 where 8 triggers are added, in 10 epochs.
        "stage clean-model": 4 * 25 * 32 * 1e-3,
        "protect trigger-set[mode=fine-tune]": 10 * 25 * 40 * 1e-3,
        "protect none": 0.0,
        "stage target-answers of uchida": 300 * 0.25e-3,
        "attack distill[epochs=4] on uchida": 4 * 9 * 32 * 1e-3,
        "measure attack magnitude-prune[fractions=0.5+0.9] on uchida": 2 * 597 * 0.25e-3,
    }
    for label, seconds in declared.items():
        found = cost[named(plan, label)]
        assert (found.source, found.seconds) == ("declared", pytest.approx(estimate._FIXED + seconds)), label
    assert cost[named(plan, "decoys random-key[decoys=100] for uchida")].source == "guessed"


def test_what_declares_nothing_is_taken_for_a_whole_training(small, monkeypatch):
    monkeypatch.setattr("attacks.distill.Distill.effort", lambda self, task: None)
    plan = cells.make(suite.read(small()))
    found = cost_of(plan)[named(plan, "attack distill[epochs=4] on uchida")]
    assert (found.source, found.seconds) == ("guessed", pytest.approx(estimate._FIXED + 4 * 800 * 1e-3))


def entry(label, seconds, device="cpu", status="ok"):
    return {"label": label, "seconds": seconds, "device": device, "status": status}


def test_an_earlier_run_on_the_same_kind_of_device_knows_best(small):
    plan = cells.make(suite.read(small()))
    label = "protect uchida"
    good = {"x": entry(label, 7.0), "y": entry(label, 9.0), "z": entry(label, 99.0, status="failed")}
    other = {"g": entry(label, 1.0, device="cuda (some GPU)")}
    for entries, expected in ((good, 8.0), ({**good, **other}, 8.0)):
        found = cost_of(plan, entries)[named(plan, label)]
        assert (found.seconds, found.source) == (expected, "measured")
    assert cost_of(plan, other)[named(plan, label)].source == "declared"
    assert cost_of(plan, {**good, **other}, "cuda")[named(plan, label)].seconds == 1.0


def test_with_two_tasks_a_label_alone_tells_nothing(small):
    chosen = suite.read(small())
    slow = dataclasses.replace(chosen.tasks[0], model="resnet8")
    plan = cells.make(dataclasses.replace(chosen, tasks=(chosen.tasks[0], slow)))
    mine, other = (job.id for job in plan.jobs.values() if job.label == "protect uchida" and job.spec["seed"] == "0")
    cost = cost_of(plan, {mine: entry("protect uchida", 5.0), "gone": entry("protect uchida", 77.0)})
    assert (cost[mine].seconds, cost[mine].source) == (5.0, "measured")
    assert cost[other].source == "declared"


def test_a_models_bytes_are_those_that_are_stored(task):
    from bench.bundle import Bundle
    from bench.stream import Stream

    model = task.new_model(Stream.root(0))
    stored = len(Bundle({"model": model}).to_bytes())
    assert stored - 8192 < estimate.model_bytes(task) < stored


def test_the_probe_leaves_the_threads_as_they_were(task):
    import torch

    before = torch.get_num_threads()
    found = probe(task, threads=2)
    assert torch.get_num_threads() == before
    assert min(found.answered, found.trained) > 0
    assert found.seconds(Effort(2, 4)) == pytest.approx(2 * found.trained + 4 * found.answered)


def test_effort_of_the_clean_model(task):
    assert CleanModel().effort(task) == Effort(trained=3 * 25 * 32)


def good_run(path, plan, ids):
    """A run folder in which these jobs ended well."""
    from bench.planning.job import Outcome

    with RunFolder.open_for_writing(path) as folder:
        for name in ids:
            one = plan.jobs[name]
            digest = {"public": folder.save(name, "public", b"p"), "secret": folder.save(name, "secret", b"s")}
            folder.append(folder.entry_of(name, one.kind, one.label, Outcome("ok", seconds=3.0, device="cpu"), digest))


def test_finished_jobs_count_as_done(small, tmp_path, fast):
    plan = cells.make(suite.read(small()))
    done = [one for one in list(plan.jobs)[:10]]
    good_run(tmp_path / "out", plan, done)
    options = Options(small(), out=tmp_path / "out", device="cpu")
    found = preview.preview(options)
    assert found.todo == set(plan.jobs) - set(done)
    assert set(found.schedule.ended) == found.todo
    assert found.there == 20
    # Set aside by --fresh, they still say how long they took.
    anew = preview.preview(dataclasses.replace(options, fresh=True))
    assert anew.todo == set(plan.jobs)
    assert anew.there == 0
    assert anew.cost[done[0]].source == "measured"
    good_run(tmp_path / "out", plan, plan.jobs)
    assert "nothing is left to do" in preview.text(options)


def test_slots_are_those_that_a_run_would_have(monkeypatch):
    monkeypatch.setattr("bench.commands.preview.cores", lambda: 6)
    assert preview.devices_of(Options("s", device="cpu"), 2) == Devices("cpu", ("cpu",) * 3, 2)
    assert preview.devices_of(Options("s", device="cpu", workers=5), 2).names == ("cpu",) * 5
    assert preview.devices_of(Options("s", device="cpu", local=True), 2).names == ("cpu",)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda gpu: ((10_000, 5_000)[gpu] * 2**20, 0))
    assert preview.devices_of(Options("s"), 1) == Devices("cuda", ("cuda:0", "cuda:0", "cuda:1"), 1)
    assert preview.devices_of(Options("s", gpus_per_job=0.5), 1).names == ("cuda:0", "cuda:0", "cuda:1", "cuda:1")
    assert preview.devices_of(Options("s", workers=3), 1).names == ("cuda:0", "cuda:0", "cuda:1")


def test_a_cluster_is_not_looked_at(monkeypatch):
    with pytest.raises(InputError, match="say --device and --workers too"):
        preview.devices_of(Options("s", address="host:6379", device="cuda"), 1)
    found = preview.devices_of(Options("s", address="host:6379", device="cuda", workers=2), 1)
    assert found == Devices("cuda", ("cuda:0", "cuda:1"), 1, at_hand=False)


def test_without_a_gpu_none_is_planned_for(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="expected a GPU"):
        preview.devices_of(Options("s", device="cuda"), 1)


def test_what_the_text_says(small, tmp_path, fast):
    options = Options(
        small("none"), out=tmp_path / "out", seeds=(3, 5), only=("attack=distill",), workers=3, device="cpu"
    )
    text = " ".join(preview.text(options).replace("\\\n", "").split())
    for words in (
        "Suite small: digits/vgg8; seeds 3, 5",
        "Devices: 3 workers x 1 thread on cpu",
        "on 3 slots",
        "1,000 inputs a second trained, 4,000 answered",
        "declared effort x measured speed (",
        "guesses (",
        "0 kB of models and other products stay (keep = 'none')",
        "stage clean-model 2 4",
        "--seed 3 --seed 5 --only attack=distill",
    ):
        assert words in text
    assert "random keys" not in text


def test_simulated_devices_are_said_to_be_such(small, fast, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = " ".join(preview.text(Options(small()), FOUR).split())
    assert "Devices: 4 slots: 4 x cuda with 1 each; 1 thread per slot" in text
    assert "this machine's cpu, 1 thread); none of the GPUs is at hand, and a GPU is faster" in text
    shared = dataclasses.replace(FOUR, names=("cuda:0", "cuda:0", "cuda:1", "cuda:1"))
    assert "4 slots: 2 x cuda with 2 each" in preview.text(Options(small()), shared)


@pytest.mark.parametrize("name", sorted(suite.shipped()))
def test_every_shipped_suite_on_four_simulated_gpus(name, tmp_path, fast):
    options = Options(name, out=tmp_path / "none")
    found = preview.preview(options, FOUR)
    assert found.todo == set(found.plan.jobs)
    assert found.schedule.chain_seconds <= found.schedule.wall < found.schedule.work
    assert found.schedule.work <= 4 * found.schedule.wall
    assert found.disk.kept <= found.disk.peak
    # As it reads without `--out`, with no second planning.
    usual = dataclasses.replace(options, out=None)
    text = preview.render(dataclasses.replace(found, out=folder_of(usual, found.suite)), usual)
    assert max(map(len, text.splitlines())) <= 100
    assert text.endswith(f"To run it:\n    ownbench run {name}\n")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_nothing_and_imports_no_ray(small, tmp_path):
    code = (
        "import sys; from click.testing import CliRunner; from bench.commands.cli import main\n"
        f"result = CliRunner().invoke(main, ['run', {small()!r}, '--plan', '--device', 'cpu', '--seeds', '1'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'ray' not in sys.modules\n"
        "print(result.output)"
    )
    place = tmp_path / "empty"
    place.mkdir()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "To run it:\n    ownbench run" in done.stdout
    assert not list(place.iterdir())


def test_a_reading_plan_takes_no_lock(small, tmp_path, fast):
    with RunFolder.open_for_writing(tmp_path / "out"):
        before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
        preview.text(Options(small(), out=tmp_path / "out", device="cpu"))
        assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


def test_ranks_are_the_longest_chains():
    assert ranking.ranks(plan_of(*DIAMOND), SECONDS) == {"a": 6.0, "b": 2.0, "c": 4.0, "d": 1.0, "e": 4.0}


def test_a_long_command_goes_on_with_a_backslash(small, fast):
    only = tuple(f"attack={name}" for name in ("distill", "magnitude-prune", "random-key") * 3)
    text = preview.text(Options(small(), only=only, device="cpu"))
    command = text.partition("To run it:\n")[2].replace(" \\\n", " ").split()
    assert command[:2] == ["ownbench", "run"] and command.count("--only") == 9 and command[-1] == "cpu"
    assert max(map(len, text.splitlines())) <= 100
