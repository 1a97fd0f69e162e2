"""What a job in a worker must hold to, whatever its plugin does."""

import dataclasses
import os
import re

import pytest
import torch

import models
from bench import parameters, registry
from bench.bundle import Bundle, bundle_to_key, key_to_bundle
from bench.defense import Protected
from bench.errors import Unreadable
from bench.planning import cells, suite
from bench.running import jobs, work
from bench.stream import Stream
from bench.suspect import Suspect
from defenses.trigger_set import TriggerSet
from defenses.uchida import Uchida
from tests.planned import Runner, brief, shrunk

TEXT = {
    "name": "small",
    "tasks": [{"dataset": "digits", "recipe": {"epochs": 1}}],
    "defenses": [{"name": "uchida", "bits": 16}],
    "attacks": [{"name": "fine-tune", "epochs": 1}, {"name": "distill", "epochs": 1}, {"name": "scratch", "epochs": 1}],
}


@pytest.fixture(scope="module")
def plan():
    return cells.make(suite.parse(TEXT, "here", "here"))


def find(plan, kind, word=""):
    return next(job for job in plan.jobs.values() if job.kind == kind and word in job.label)


@pytest.fixture(scope="module")
def done(plan):
    return Runner(plan.jobs)


def test_a_job_run_again_after_others_gives_the_same_bytes(plan, done):
    for kind in ("protect", "attack"):
        job = find(plan, kind)
        inputs = done.inputs(job.id)
        first = jobs.run(job, inputs, "cpu")
        torch.manual_seed(99)
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        assert jobs.run(job, inputs, "cpu").products == first.products


def test_a_plugin_that_spoils_its_data_spoils_nobody_elses(plan, done, monkeypatch):
    job = find(plan, "attack", "scratch")
    expected = jobs.run(job, {}, "cpu").products
    whole = work.attack

    def spoil(surroundings):
        surroundings.labelled.x.zero_()
        surroundings.inputs.x.zero_()
        surroundings.labelled.y.zero_()
        return whole(surroundings)

    monkeypatch.setattr(work, "attack", spoil)
    assert jobs.run(job, {}, "cpu").products != expected
    monkeypatch.setattr(work, "attack", whole)
    assert jobs.run(job, {}, "cpu").products == expected


def test_no_job_of_the_attackers_side_takes_a_secret_or_the_seed(plan):
    for job in plan.jobs.values():
        if job.side == "attacker":
            assert all(one.channel == "public" for one in job.inputs.values())
            assert len(job.spec["seed"]) == 32
        elif job.kind == "attack":
            # A control, which begins as the attack does.
            assert len(job.spec["seed"]) == 32
            assert not any(one.channel == "secret" for one in job.inputs.values())
        else:
            assert job.spec["seed"] == "0"


def test_the_data_of_a_job_are_those_of_its_side(plan, done):
    attacked = jobs._surroundings(find(plan, "attack", "scratch"), {}, torch.device("cpu"))
    assert attacked.train is attacked.heldout is attacked.test is None
    assert (len(attacked.inputs), len(attacked.labelled)) == (300, 100)
    # Storage of their own: a view would carry the whole dataset.
    assert attacked.inputs.stored.untyped_storage().nbytes() == 300 * 64
    assert attacked.labelled.y.untyped_storage().nbytes() == 100 * 8
    owned = jobs._surroundings(find(plan, "stage", "clean"), {}, torch.device("cpu"))
    assert owned.inputs is owned.labelled is owned.test is None
    measured = find(plan, "measure")
    inputs = done.inputs(measured.id)
    seen = jobs._surroundings(measured, inputs, torch.device("cpu"))
    assert seen.train is seen.inputs is None
    assert len(seen.test) == 597


def test_what_each_surrogate_takes_is_measured_with_its_accuracy(plan, done):
    job = find(plan, "measure", "fine-tune")
    outcome = done(job.id)
    assert len(outcome.result["figures"]) == len(outcome.result["accuracy"]) == 1
    (found,) = outcome.result["figures"]
    assert found["weights"] == found["weights_kept"] == 172_576
    assert found["stored_bits"] == found["stored_bits_indexed"] == 32 * 172_576
    assert found["multiply_adds"] == 1_821_952


def test_an_outcome_names_the_processor_by_whose_kernels_its_numbers_are_rounded(plan, done):
    found = re.fullmatch(r"cpu \((.+), (.+)\)", done(find(plan, "measure", "fine-tune").id).device)
    assert found.group(1).strip()
    assert found.group(2) == torch.backends.cpu.get_cpu_capability()


def test_queries_of_a_stage_are_those_of_the_attack_that_rests_on_it(plan, done):
    outcome = done(find(plan, "attack", "distill").id)
    assert outcome.result["queries"] == 300
    assert (outcome.result["inputs_used"], outcome.result["labels_used"]) == (300, 0)


def test_a_key_that_was_picked_after_the_training_is_refused(plan, done, monkeypatch):
    whole = Uchida.protect

    def pick(self, trainer, key):
        model, key, release = whole(self, trainer, key)
        message = 1 - key.tensor("message")
        return Protected(model, dataclasses.replace(key, drawn={**key.drawn, "message": message}), release)

    monkeypatch.setattr(Uchida, "protect", pick)
    job = find(plan, "protect", "uchida")
    outcome = jobs.run(job, {}, "cpu")
    assert outcome.status == "failed"
    assert "drawn part of its key" in outcome.error


def test_running_out_of_memory_is_a_failure_and_not_a_mark_removed(owner, task):
    def no_memory(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken_device(x):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def other_shape(x):
        raise RuntimeError("expected input[64, 1, 8, 8] to have 3 channels")

    defense = TriggerSet()
    key = defense.draw(task, Stream(("k",)))
    with pytest.raises(torch.OutOfMemoryError):
        defense.verify(Suspect(no_memory, access="black-box"), key, owner)
    with pytest.raises(RuntimeError, match="illegal"):
        defense.verify(Suspect(broken_device, access="black-box"), key, owner)
    evidence = defense.verify(Suspect(other_shape, access="black-box"), key, owner)
    assert evidence.log10_p == 0
    assert "3 channels" in evidence.reason


def test_a_suspect_that_can_only_be_queried_is_no_evidence_for_a_white_box_reader(owner, task):
    defense = Uchida()
    key = defense.draw(task, Stream(("k",)))
    with pytest.raises(Unreadable):
        defense.verify(Suspect(lambda x: x), key, owner)
    surroundings = work.Work(task, "0", torch.device("cpu"), plugin=defense)

    class Shy:
        @staticmethod
        def of(model, access):
            return Suspect(lambda x: x, None, access)

    original, work.Suspect = work.Suspect, Shy
    try:
        judged = work._verify(surroundings, models.build("vgg8", 10, (1, 8, 8)), key, owner)
    finally:
        work.Suspect = original
    assert judged["log10_p"] == 0
    assert "only be queried" in judged["reason"]


def test_what_cannot_be_stored_fails_in_the_job_that_made_it(plan, done, monkeypatch):
    from attacks.scratch import Scratch

    def run(self, target, trainer):
        model = trainer.new_model()
        model.act1 = torch.nn.GELU()
        yield 1.0, model

    monkeypatch.setattr(Scratch, "run", run)
    outcome = jobs.run(find(plan, "attack", "scratch"), {}, "cpu")
    assert outcome.error_type == "ValueError"
    assert "GELU" in outcome.error


def test_keys_stay_where_they_were_drawn(plan, done):
    job = find(plan, "judge", "uchida")
    inputs = done.inputs(job.id)
    moved = []
    whole = Bundle.to

    def to(self, device):
        moved.append(sorted(self.values))
        return whole(self, device)

    Bundle.to = to
    try:
        jobs._surroundings(job, inputs, torch.device("cpu"))
    finally:
        Bundle.to = whole
    assert len(moved) == 1, "the key was moved with the surrogates"
    key = bundle_to_key(Bundle.from_bytes(inputs["key"]))
    assert key_to_bundle(key).to_bytes() == inputs["key"]


# What ran in another suite is not run twice. What an owner trains depends on the net and its layers; of everything else
# each kind of job runs on every net, and each plugin somewhere.
RAN: set[str] = set()


def work_of(job):
    plugin = job.spec.get("plugin", {})
    if job.side == "owner" and job.kind in ("stage", "protect"):
        return parameters.canonical([job.kind, plugin, job.spec["data"], job.spec["task"]["model"]])
    return parameters.canonical([job.kind, job.side, plugin.get("name")])


# Small nets first, on which a plugin costs least.
@pytest.mark.parametrize("name", sorted(suite.shipped(), key=lambda name: ("cifar10" in name, name)))
def test_one_job_of_each_kind_of_every_shipped_suite_runs(name):
    """Planned whole; run on few inputs for one epoch, so that a broken default shows here and not in an hour."""
    chosen = suite.read(name)
    for task in chosen.tasks:
        if task.info.name != "digits" and "OWNBENCH_DATA" not in os.environ:
            pytest.skip(f"OWNBENCH_DATA is not set, {task.info.name} would have to be downloaded")
    whole = cells.make(chosen)
    assert whole.cells
    assert not [cell for cell in whole.cells if cell.status == "failed"]
    whole = cells.make(shrunk(chosen))
    run, ran = Runner(whole.jobs, brief), set()
    nets = {task.model: task.skeleton for task in chosen.tasks}
    for name in chosen.null.architectures if chosen.null else ():
        nets[name] = models.skeleton(name, chosen.tasks[0].classes, chosen.tasks[0].shape)
    sizes = {name: sum(one.numel() for one in net.parameters()) for name, net in nets.items()}
    # Every plugin on the smallest net, and each kind of job on every net.
    for job in sorted(whole.jobs.values(), key=lambda job: sizes[job.spec["task"]["model"]]):
        what = {(job.kind, job.spec.get("plugin", {}).get("name")), (job.kind, job.spec["task"]["model"])}
        if what - ran:
            on_this_net = what - ran >= {(job.kind, job.spec["task"]["model"])}
            ran |= what
            if on_this_net or work_of(job) not in RAN:
                run(job.id)
    RAN.update(work_of(whole.jobs[done]) for done in run.outcomes)
    assert {kind for kind, _ in ran} == {job.kind for job in whole.jobs.values()}
    assert {kind for kind, _ in ran} >= {"stage", "protect", "attack", "measure", "judge"}


def test_planning_survives_a_plugin_that_raises_when_asked(monkeypatch):
    monkeypatch.setattr(Uchida, "applies_to", lambda self, task: 1 / 0)
    made = cells.make(suite.parse({**TEXT, "defenses": [{"name": "uchida"}, {"name": "trigger-set"}]}, "h", "h"))
    status = {(cell.defense, cell.status) for cell in made.cells}
    assert ("uchida", "failed") in status
    assert ("trigger-set", "ok") in status
    assert ("trigger-set", "failed") not in status
    assert {cell.error_type for cell in made.cells if cell.status == "failed"} == {"ZeroDivisionError"}


def test_the_identity_of_a_job_holds_what_it_depends_on_and_nothing_else():
    def ids(device="cpu", seeds=(0,), **changes):
        made = cells.make(suite.parse({**TEXT, **changes}, "h", "h"), device, seeds)
        return {job.label: job.id for job in made.jobs.values()}

    base = ids()
    assert ids(name="other", alpha=1e-3, accuracy_budget=1.0, keep="none", timeout=5.0) == base
    for changed in (
        ids(threads=2),
        ids(device="cuda"),
        ids(seeds=(1,)),
        ids(tasks=[{"dataset": "digits", "recipe": {"epochs": 2}}]),
        ids(tasks=[{"dataset": "digits", "model": "resnet8", "recipe": {"epochs": 1}}]),
    ):
        assert not set(changed.values()) & set(base.values())
    other = ids(attacks=[{"name": "fine-tune", "epochs": 2}, *TEXT["attacks"][1:]])
    assert {label for label in base if base[label] != other.get(label)} == {
        label for label in base if "fine-tune" in label
    }


def test_the_names_in_a_broken_family_file_are_known(tmp_path, monkeypatch):
    (tmp_path / "my_family.py").write_text('class First:\n    name: ClassVar[str] = "first-mark"\n\nclass Broken(\n')
    monkeypatch.setenv("OWNBENCH_PLUGINS", str(tmp_path))
    registry.discover.cache_clear()
    try:
        found = suite.parse({**TEXT, "defenses": [{"name": "first-mark"}]}, "h", "h")
        assert found.defenses[0].broken.error_type == "SyntaxError"
    finally:
        monkeypatch.delenv("OWNBENCH_PLUGINS")
        registry.discover.cache_clear()


def test_two_plugin_files_of_one_name_are_not_silently_one(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_stem.py").write_text("X = 1\n")
    monkeypatch.setenv("OWNBENCH_PLUGINS", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    registry.discover.cache_clear()
    try:
        assert [one.names[0] for one in registry.discover().broken] == ["same-stem"]
    finally:
        monkeypatch.delenv("OWNBENCH_PLUGINS")
        registry.discover.cache_clear()
