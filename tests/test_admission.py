"""Which jobs share a GPU, told by an executor that has none: jobs end one at a time, the oldest first."""

import dataclasses

import pytest
from test_scheduler import FakeExecutor, Notes, job, plan_of

from bench.planning.job import Outcome
from bench.running.admission import kind_of
from bench.running.executor import Finished
from bench.running.scheduler import Scheduler
from bench.storage.store import RunFolder


class FakeGpus(FakeExecutor):
    """Notes which jobs were ever on a device at one time; a job's peak is what its name says after the dash."""

    def __init__(self, limits, slots=8, behave=None):
        super().__init__([name for name in limits for _ in range(slots)], behave)
        self.limits = dict(limits)
        self.sights = []

    def start(self, slot, one, inputs):
        super().start(slot, one, inputs)
        device = self._devices[slot]
        self.sights.append((device, sorted(o.id for s, o in self.running.items() if self._devices[s] == device)))

    def wait(self, timeout):
        finished = super().wait(timeout)
        for one in finished:
            if one.outcome is not None:
                one.outcome.device = "cuda (toy)"
                one.outcome.peak_memory_mb = float(one.job.rpartition("-")[2])
        return finished

    def most(self, device=None):
        return max(len(jobs) for where, jobs in self.sights if device in (None, where))

    def with_job(self, name):
        return [jobs for _, jobs in self.sights if name in jobs]


def like(plugin, count, peak, model="vgg8", first=0):
    """Jobs of one kind, whose peaks are given in MiB."""
    spec = {"plugin": {"path": f"attacks:{plugin}", "params": {}}, "task": {"dataset": "digits", "model": model}}
    names = [f"{plugin}-{model}{i:02}-{peak}" for i in range(first, first + count)]
    return [dataclasses.replace(job(name), spec=spec) for name in names]


@pytest.fixture
def go(tmp_path):
    def run(executor, *jobs, out="run"):
        notes = Notes()
        with RunFolder.open_for_writing(tmp_path / out) as folder:
            totals = Scheduler(plan_of(*jobs), folder, executor, notes).run()
        assert totals.failed == 0 and totals.ran == len(executor.order) - len(notes.notes)
        return executor

    return run


def test_the_first_of_a_kind_runs_alone_and_its_peak_sets_the_share(go):
    # 1.25 x 1000 + 256 = 1506 MiB: six in 10000.
    executor = go(FakeGpus({"gpu0": 10_000.0}), *like("a", 20, 1000))
    assert executor.sights[0] == ("gpu0", ["a-vgg800-1000"])
    assert len(executor.sights[1][1]) == 1
    assert all(jobs == ["a-vgg800-1000"] for jobs in executor.with_job("a-vgg800-1000"))
    assert executor.most() == 6


def test_each_kind_is_measured(go):
    executor = go(FakeGpus({"gpu0": 10_000.0}), *like("a", 12, 100), *like("b", 12, 100), *like("a", 12, 100, "wide"))
    for name in ("a-vgg800-100", "b-vgg800-100", "a-wide00-100"):
        assert executor.with_job(name) == [[name]]
    assert executor.most() == 8


def test_kinds_of_different_size_share_what_there_is(go):
    # 3000 -> 4006, 100 -> 381.
    executor = go(FakeGpus({"gpu0": 5_000.0}), *like("large", 4, 3000), *like("small", 12, 100))
    for _, jobs in executor.sights:
        taken = sum({"3000": 4006, "100": 381}[name.rpartition("-")[2]] for name in jobs)
        assert len(jobs) == 1 or taken <= 5_000
    assert executor.most() >= 3


def test_a_gpu_each_measures_at_once(go):
    executor = go(FakeGpus({"gpu0": 10_000.0, "gpu1": 10_000.0}), *like("a", 10, 1000))
    assert executor.sights[:2] == [("gpu0", ["a-vgg800-1000"]), ("gpu1", ["a-vgg801-1000"])]


def test_what_an_earlier_run_measured_is_used_at_once(go):
    go(FakeGpus({"gpu0": 10_000.0}), *like("a", 2, 1000))
    executor = go(FakeGpus({"gpu0": 10_000.0}), *like("a", 9, 1000, first=2))
    assert executor.sights[1][1] == ["a-vgg802-1000", "a-vgg803-1000"]
    assert executor.most() == 6


def test_small_gpus_get_small_jobs(go):
    # 8000 -> 10256 MiB, which only the large card has; there a second one has no room.
    limits = {"small": 6_000.0, "large": 12_000.0}
    go(FakeGpus({"large": 12_000.0}), *like("big", 1, 8000), *like("little", 1, 100))
    executor = go(FakeGpus(limits), *like("big", 4, 8000, first=1), *like("little", 12, 100, first=1))
    places = {name: device for device, jobs in executor.sights for name in jobs}
    assert {places[name] for name in places if name.startswith("big")} == {"large"}
    assert "small" in places.values()
    assert max(sum(name.startswith("big") for name in jobs) for _, jobs in executor.sights) == 1
    assert executor.most("small") > 1


def test_a_job_that_fits_nowhere_runs_alone_on_the_largest(go):
    go(FakeGpus({"large": 99_000.0}), *like("big", 1, 50_000))
    executor = go(FakeGpus({"small": 6_000.0, "large": 12_000.0}), *like("big", 2, 50_000, first=1), *like("a", 3, 10))
    assert [sight for sight in executor.sights if any("big" in name for name in sight[1])] == [
        ("large", ["big-vgg801-50000"]),
        ("large", ["big-vgg802-50000"]),
    ]


def test_a_large_job_is_not_kept_waiting_by_small_ones(go):
    go(FakeGpus({"gpu0": 10_000.0}), *like("big", 1, 7000), *like("a", 1, 1000))
    first, *others = like("a", 30, 1000, first=1)
    # The large one becomes ready while small ones fill the card, and has a longer chain behind it than they have.
    large = dataclasses.replace(*like("big", 1, 7000, first=1), inputs=job("x", first.id).inputs)
    last = dataclasses.replace(*like("a", 1, 1000, first=40), inputs=job("x", large.id).inputs)
    executor = go(FakeGpus({"gpu0": 10_000.0}), first, *others, large, last)
    assert executor.most() == 6
    assert executor.order.index(large.id) == 6
    assert executor.with_job(large.id) == [[large.id]]


def test_without_a_limit_nothing_is_measured(go):
    executor = FakeGpus({"gpu0": 1.0})
    executor.limits = {}
    go(executor, *like("a", 20, 1000))
    assert executor.sights[7][1] == sorted(one.id for one in like("a", 8, 1000))


def test_want_of_memory_is_tried_again_alone_on_the_largest(go):
    jobs = like("a", 8, 100)
    go(FakeGpus({"large": 9_000.0}), *like("a", 1, 100, first=20))
    executor = FakeGpus({"gpu0": 5_000.0, "gpu1": 9_000.0}, behave={jobs[0].id: ["OutOfMemoryError"]})
    go(executor, *jobs)
    assert executor.sights[0] == ("gpu0", [jobs[0].id])
    assert [sight for sight in executor.sights if jobs[0].id in sight[1]][-1] == ("gpu1", [jobs[0].id])


def test_a_failed_job_measures_nothing(go, tmp_path):
    jobs = like("a", 6, 1000)
    executor = FakeGpus({"gpu0": 10_000.0}, behave={jobs[0].id: ["ValueError"]})
    with RunFolder.open_for_writing(tmp_path / "run") as folder:
        Scheduler(plan_of(*jobs), folder, executor, Notes()).run()
    assert executor.with_job(jobs[1].id) == [[jobs[1].id]]
    assert executor.most() > 1


def test_parameters_and_seeds_make_no_kind_but_work_plugin_and_task_do():
    one = like("a", 1, 1)[0]
    same = dataclasses.replace(one, id="other", spec={**one.spec, "seed": "1", "plugin": {"path": "attacks:a"}})
    assert kind_of(one) == kind_of(same)
    others = [like("b", 1, 1)[0], like("a", 1, 1, "wide")[0], dataclasses.replace(one, kind="measure")]
    assert len({kind_of(other) for other in [one, *others]}) == 4


# Losses


class Losing(FakeExecutor):
    """Slots by device, of which some go; jobs there come back lost, and handles of before fail."""

    def __init__(self, devices, loses=(), products_fail=0):
        super().__init__(devices)
        self.gone = set()
        self.loses = list(loses)
        self.products_fail = products_fail
        self.put_again = []

    def idle(self):
        return [slot for slot in super().idle() if self._devices[slot] not in self.gone]

    def wait(self, timeout):
        if self.loses and len(self.order) >= self.loses[0][0]:
            self.gone.add(self.loses.pop(0)[1])
            lost = [slot for slot in self.running if self._devices[slot] in self.gone]
            ended = [Finished(slot, self.running.pop(slot).id, None, "its node is gone", True) for slot in lost]
            if ended:
                return ended
        return super().wait(timeout)

    def put(self, data):
        self.put_again.append(data)
        return data

    def get(self, handle):
        if self.products_fail:
            self.products_fail -= 1
            raise LookupError("a product is lost: its node died")
        return handle


def execute(tmp_path, executor, *jobs):
    notes = Notes()
    with RunFolder.open_for_writing(tmp_path / "run") as folder:
        totals = Scheduler(plan_of(*jobs, keep="all"), folder, executor, notes).run()
    return notes, folder, totals


def test_jobs_of_a_lost_node_go_elsewhere_with_inputs_from_disk(tmp_path):
    jobs = [job("a"), *(job(f"b{i}", "a") for i in range(8))]
    executor = Losing(["n1", "n1", "n2", "n2"], loses=[(4, "n1")])
    notes, folder, totals = execute(tmp_path, executor, *jobs)
    assert totals.failed == 0 and all(folder.succeeded(one.id) for one in jobs)
    assert len(notes.notes) == 2 and all("started again elsewhere" in note for note in notes.notes)
    assert executor.put_again == [b"a"]
    assert len(executor.order) == 11


def test_a_second_try_has_its_inputs_from_disk(tmp_path):
    executor = Losing(["n1"])
    executor.behave = {"b": ["lost"]}
    _, folder, totals = execute(tmp_path, executor, job("a"), job("b", "a"))
    assert executor.order == ["a", "b", "b"] and totals.failed == 0
    assert executor.put_again == [b"a"]


def test_a_lost_product_is_made_again(tmp_path):
    executor = Losing(["n1"], products_fail=1)
    notes, folder, totals = execute(tmp_path, executor, job("a"), job("b", "a"))
    assert executor.order == ["a", "a", "b"]
    assert notes.notes == ["label a: a product is lost: its node died; started again elsewhere"]
    assert (totals.ran, totals.failed) == (2, 0)


def test_a_job_that_is_always_lost_fails_in_the_end(tmp_path):
    executor = Losing(["n1"], products_fail=99)
    notes, folder, totals = execute(tmp_path, executor, job("a"), job("b", "a"))
    assert executor.order == ["a"] * 3
    assert folder.entries["a"]["error_type"] == "WorkerLost"
    assert folder.entries["a"]["error"].startswith("3 times: a product is lost")
    assert totals.failed == 1


def test_a_lost_node_is_not_the_first_of_two_tries(tmp_path):
    executor = Losing(["n1", "n2"], loses=[(2, "n1")])
    executor.behave = {"a": ["lost"], "b": ["lost"]}
    notes, folder, totals = execute(tmp_path, executor, job("a"), job("b"))
    assert totals.failed == 0 and folder.succeeded("a") and folder.succeeded("b")


def test_without_workers_the_run_ends_and_keeps_what_it_has(tmp_path):
    from bench.errors import NoWorkers

    jobs = [job(f"a{i}") for i in range(6)]
    executor = Losing(["n1", "n1"], loses=[(4, "n1")])
    with pytest.raises(NoWorkers, match=r"no worker is left to run 4 job\(s\)"):
        execute(tmp_path, executor, *jobs)
    with RunFolder.open_for_writing(tmp_path / "run") as folder:
        assert sum(folder.succeeded(one.id) for one in jobs) == 2
    notes, folder, totals = execute(tmp_path, FakeExecutor(), *jobs)
    assert (totals.ran, totals.reused) == (4, 2)


def test_outcomes_without_a_device_measure_nothing():
    from bench.running.admission import Admission

    admission = Admission(["gpu0", "gpu0"])
    one, two = like("a", 2, 1)
    admission.learn(one, Outcome("ok", device="cpu", peak_memory_mb=5.0))
    admission.enter(0, one, False, {"gpu0": 1e6})
    assert admission.slot(two, False, [1], {"gpu0": 1e6}) is None
