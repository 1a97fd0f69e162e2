"""The scheduler against an executor of its own: no Ray, no torch, no time."""

import dataclasses
import time
from collections import Counter

import pytest

from bench.planning.job import Input, Job, Outcome, Plan
from bench.running.executor import Finished
from bench.running.scheduler import Scheduler
from bench.storage.store import RunFolder


def job(name, *parents, side="owner", kind="attack"):
    inputs = {f"in{i}": Input(parent, "public") for i, parent in enumerate(parents)}
    return Job(name, kind, side, f"label {name}", {}, inputs, "digest")


def plan_of(*jobs, **changes):
    values = {
        "suite": "s", "source": "s", "alpha": 1e-6, "accuracy_budget": 5.0, "seeds": (0,), "keep": "protected",
        "timeout": 60.0, "threads": 1, "data_digests": {}, "jobs": {j.id: j for j in jobs}, "cells": [],
    }  # fmt: skip
    return Plan(**{**values, **changes})


class FakeExecutor:
    """Ends jobs one a call of `wait`, the oldest first; `behave` maps a job to a list of what its tries do."""

    def __init__(self, devices=("cpu",), behave=None):
        self._devices = list(devices)
        self.behave = behave or {}
        self.limits = {}
        self.running = {}
        self.order = []
        self.seen_inputs = {}
        self.together = Counter()
        self.killed = []
        self.since = {}

    def devices(self):
        return self._devices

    def memory(self):
        return self.limits

    def idle(self):
        return [slot for slot in range(len(self._devices)) if slot not in self.running]

    def start(self, slot, job, inputs):
        assert slot in self.idle()
        self.running[slot] = job
        self.since[slot] = time.perf_counter()
        self.order.append(job.id)
        self.seen_inputs[job.id] = dict(inputs)
        on_device = [j for s, j in self.running.items() if self._devices[s] == self._devices[slot]]
        for one in on_device:
            self.together[one.id] = max(self.together[one.id], len(on_device))

    def wait(self, timeout):
        for slot, one in list(self.running.items()):
            tries = self.behave.get(one.id, [])
            act = tries[0] if tries else "ok"
            if act == "hang":
                if slot not in self.killed:
                    continue
                act = "lost"
            if tries:
                tries.pop(0)
            del self.running[slot]
            if act == "lost":
                return [Finished(slot, one.id, None, "exit code 3")]
            if act == "ok":
                outcome = Outcome("ok", {"n": 1}, {"public": one.id.encode()}, seconds=1.0)
            else:
                outcome = Outcome.failure(act, "message")
            return [Finished(slot, one.id, outcome)]
        return []

    def begun(self, slot):
        return self.since.get(slot)

    def kill(self, slot):
        self.killed.append(slot)

    def put(self, data):
        return data

    def get(self, handle):
        return handle

    def close(self):
        pass


class Notes:
    def __init__(self):
        self.notes = []
        self.failed = {}

    def begin(self, total, done, slots):
        self.begun = (total, done, slots)

    def started(self, job):
        pass

    def ended(self, job, outcome):
        if outcome.status == "failed":
            self.failed[job.id] = outcome

    def note(self, text):
        self.notes.append(text)

    def tick(self, remaining):
        pass

    def end(self):
        pass


@pytest.fixture
def go(tmp_path):
    def run(plan, executor=None, between=None):
        executor, notes = executor or FakeExecutor(), Notes()
        with RunFolder.open_for_writing(tmp_path / "run") as folder:
            if between:
                between(folder)
            totals = Scheduler(plan, folder, executor, notes).run()
        return executor, notes, folder, totals

    return run


def test_parents_come_first_and_their_products_arrive(go):
    executor, _, folder, totals = go(plan_of(job("a"), job("b", "a"), job("c", "b", "a")))
    assert executor.order == ["a", "b", "c"]
    assert executor.seen_inputs["c"] == {"in0": b"b", "in1": b"a"}
    assert all(folder.succeeded(name) for name in "abc")
    assert (totals.ran, totals.failed, totals.work) == (3, 0, 3.0)


def test_the_longest_chain_starts_first(go):
    jobs = [job("x", kind="judge"), job("y", kind="judge"), job("long", kind="protect"), job("after", "long")]
    executor, *_ = go(plan_of(*jobs))
    assert executor.order[0] == "long"
    assert executor.order[1] == "after"


def test_a_failure_stops_what_hangs_on_it_and_nothing_else(go):
    jobs = [job("a"), job("b", "a"), job("c", "b"), job("other"), job("last", "other")]
    executor, notes, folder, totals = go(plan_of(*jobs), FakeExecutor(behave={"a": ["ValueError"]}))
    assert set(executor.order) == {"a", "other", "last"}
    assert folder.entries["a"]["error_type"] == "ValueError"
    assert "b" not in folder.entries
    assert totals.failed == 1


def test_a_second_run_does_only_what_is_missing_or_failed(go):
    jobs = [job("a"), job("b", "a"), job("c", "a")]
    go(plan_of(*jobs, keep="all"), FakeExecutor(behave={"b": ["ValueError"]}))
    executor, notes, folder, totals = go(plan_of(*jobs, keep="all"))
    assert executor.order == ["b"]
    assert executor.seen_inputs["b"] == {"in0": b"a"}
    assert (totals.ran, totals.reused) == (1, 2)
    executor, *_ = go(plan_of(*jobs, keep="all"))
    assert executor.order == []


@pytest.mark.parametrize("act", ["lost", "OutOfMemoryError"])
def test_a_lost_worker_or_no_memory_is_tried_once_more_and_alone(go, act):
    jobs = [job(name) for name in "abcdef"]
    executor = FakeExecutor(devices=["gpu0", "gpu0", "gpu1"], behave={"c": [act]})
    executor, notes, folder, totals = go(plan_of(*jobs), executor)
    assert executor.order.count("c") == 2
    assert folder.succeeded("c")
    assert any("alone on its device" in note for note in notes.notes)
    assert totals.failed == 0


def test_the_second_try_really_has_its_device_to_itself(go):
    jobs = [job("a")] + [job(f"j{i}") for i in range(8)]
    executor = FakeExecutor(devices=["gpu0", "gpu0"], behave={"a": ["lost"]})
    watched = {}
    start = executor.start

    def spy(slot, one, inputs):
        start(slot, one, inputs)
        if one.id == "a" and executor.order.count("a") == 2:
            watched["with"] = len(executor.running)

        elif "a" in [j.id for j in executor.running.values()] and executor.order.count("a") == 2:
            watched["with"] = 99

    executor.start = spy
    go(plan_of(*jobs), executor)
    assert watched["with"] == 1
    assert len(executor.order) == 10


@pytest.mark.parametrize(("act", "error"), [("lost", "WorkerLost"), ("OutOfMemoryError", "OutOfMemoryError")])
def test_twice_is_a_failed_row(go, act, error):
    executor, notes, folder, totals = go(plan_of(job("a"), job("b")), FakeExecutor(behave={"a": [act, act]}))
    assert executor.order.count("a") == 2
    assert folder.entries["a"]["status"] == "failed"
    assert folder.entries["a"]["error_type"] == error
    assert folder.succeeded("b")


def test_a_job_beyond_its_limit_is_killed_once_and_fails(go):
    executor = FakeExecutor(devices=["cpu", "cpu"], behave={"a": ["hang"]})
    executor, notes, folder, totals = go(plan_of(job("a"), job("b"), job("c", "a"), timeout=0.2), executor)
    assert folder.entries["a"]["error_type"] == "Timeout"
    assert "0.2 s" in folder.entries["a"]["error"]
    assert executor.order.count("a") == 1
    assert folder.succeeded("b")


@pytest.mark.parametrize(
    ("keep", "left"),
    [("all", {"clean", "attack", "judge"}), ("protected", {"clean"}), ("none", set())],
)
def test_what_is_kept(go, keep, left):
    jobs = [job("clean", kind="protect"), job("attack", "clean"), job("judge", "attack", kind="judge")]
    _, _, folder, _ = go(plan_of(*jobs, keep=keep))
    kept = {path.name.split(".")[0] for path in (folder.path / "artifacts").iterdir()}
    assert kept - {"judge"} == left - {"judge"}


def test_surrogates_live_until_all_that_judge_them_are_done(go):
    jobs = [job("a"), job("j1", "a", kind="judge"), job("j2", "a", kind="judge")]
    _, _, folder, _ = go(plan_of(*jobs), FakeExecutor(behave={"j2": ["ValueError"]}))
    assert folder.artifact("a", "public").exists()
    executor, notes, folder, _ = go(plan_of(*jobs))
    assert executor.order == ["j2"]
    assert not folder.artifact("a", "public").exists()


def test_judging_again_without_the_surrogates_redoes_the_attack_and_says_so(go):
    jobs = [job("a"), job("j1", "a", kind="judge")]
    go(plan_of(*jobs))
    executor, notes, folder, _ = go(plan_of(*jobs, job("edited", "a", kind="judge")))
    assert executor.order == ["a", "edited"]
    assert notes.notes == ["label a: its product was not kept and is needed; redone"]


def test_a_corrupted_product_is_detected_and_redone(go):
    jobs = [job("a", kind="protect"), job("b", "a")]
    go(plan_of(*jobs))

    def spoil(folder):
        folder.artifact("a", "public").write_bytes(b"spoilt")

    executor, notes, folder, _ = go(plan_of(*jobs), between=spoil)
    assert executor.order == ["a"]
    assert any("corrupted" in note for note in notes.notes)
    assert folder.load("a", "public") == b"a"


def test_the_order_of_jobs_does_not_depend_on_chance(go, tmp_path):
    jobs = [job(f"{i:02}") for i in range(30)]
    first, *_ = go(plan_of(*jobs))
    shuffled = plan_of(*[dataclasses.replace(j) for j in reversed(jobs)])
    with RunFolder.open_for_writing(tmp_path / "other") as folder:
        second = FakeExecutor()
        Scheduler(shuffled, folder, second, Notes()).run()
    assert first.order == second.order
