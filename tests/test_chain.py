"""Attacks one after another: what a suite may write, where each link starts, what it costs, and its control."""

import math

import pytest
import torch

from attacks.distill import Distill
from attacks.extract_hard import ExtractHard
from attacks.extraction.true_labels import TrueLabels
from attacks.fine_tune import FineTune
from attacks.magnitude_prune import MagnitudePrune
from attacks.reparametrise import Permute
from attacks.scratch import Scratch
from bench.bundle import Bundle
from bench.chain import Chain, links_of
from bench.errors import InputError
from bench.planning import cells, suite
from bench.running import jobs, work
from bench.stream import Stream
from bench.suspect import Target
from bench.tables import records
from tests.planned import Runner
from tests.synthetic import Suite, evidence_of

PRUNED = {"name": "magnitude-prune", "fractions": [0.25, 0.5]}
STUDENT = {"name": "distill", "epochs": 2, "every": 1}
TUNED = {"name": "fine-tune", "epochs": 1}


def parsed(*attacks, defenses=({"name": "trigger-set", "triggers": 16},)):
    text = {
        "name": "chains",
        "tasks": [{"dataset": "digits", "recipe": {"epochs": 1}}],
        "defenses": list(defenses),
        "attacks": list(attacks),
    }
    return suite.parse(text, "here", "here")


@pytest.fixture(scope="module")
def chosen():
    return parsed(PRUNED, {"chain": [STUDENT, TUNED]}, {"chain": [PRUNED, STUDENT]}, STUDENT)


@pytest.fixture(scope="module")
def plan(chosen):
    return cells.make(chosen)


@pytest.fixture(scope="module")
def done(plan):
    """Runs a job with all that it rests on, once."""
    return Runner(plan.jobs)


def cell_of(plan, label, defense="trigger-set", kind="removal"):
    (found,) = (c for c in plan.cells if (c.attack_label, c.defense, c.attack_kind) == (label, defense, kind))
    return found


LATER = "distill[epochs=2,every=1] then fine-tune[epochs=1]"
SECOND = "magnitude-prune[fractions=0.25+0.5] then distill[epochs=2,every=1]"


class TestSuites:
    def test_lists_in_a_chain_are_values_and_nothing_is_crossed(self, chosen):
        chains = [one for one in chosen.attacks if isinstance(one, Chain)]
        assert [one.label for one in chains] == [LATER, SECOND]
        assert chains[1].links[0].fractions == (0.25, 0.5)
        assert chains[0].params == {"chain": [{"name": x.name, **x.params} for x in chains[0].links]}

    @pytest.mark.parametrize(
        ("attack", "words"),
        [
            ({"chain": [STUDENT], "epochs": 3}, "nothing beside 'chain', got epochs"),
            ({"chain": [STUDENT]}, "at least two links"),
            ({"chain": "distill"}, "expected a list of tables"),
            ({"chain": [STUDENT, {"name": "scratch"}]}, "'scratch' starts anew"),
            ({"chain": [STUDENT, {"name": "overwrite"}]}, "removal attacks in a chain, got 'overwrite'"),
            ({"chain": [{"name": "none"}, STUDENT]}, "removal attacks in a chain, got 'none'"),
            ({"chain": [STUDENT, {"name": "fine-tun"}]}, "link 2, key 'name'.*fine-tune"),
            ({"chain": [{**STUDENT, "temperatur": 1.0}, TUNED]}, "link 1 .*temperature"),
            ({"chain": [{**STUDENT, "temperature": [1.0, 3.0]}, TUNED]}, "expected float"),
        ],
    )
    def test_what_is_no_chain_is_refused_with_its_place(self, attack, words):
        with pytest.raises(InputError, match=words):
            parsed(attack)


class TestDeclarations:
    def test_class_access_data_and_knowledge_are_the_strongest(self):
        chain = Chain((Distill(), FineTune()))
        assert (chain.attack_class, chain.access_used(), chain.data_used()) == ("extraction", "white-box", "labels")
        assert (chain.knowledge, chain.kind, chain.changes_task) == ("none", "removal", False)
        chain = Chain((Permute(), MagnitudePrune(fractions=(0.1, 0.2))))
        assert (chain.attack_class, chain.access_used(), chain.data_used()) == ("in-place", "white-box", "none")
        assert Chain((Distill(), ExtractHard())).access_used() == "black-box"

    def test_strengths_are_those_of_the_last_link(self):
        chain = Chain((FineTune(), MagnitudePrune(fractions=(0.1, 0.2, 0.3))))
        assert (chain.surrogates(), chain.strength_unit) == (3, MagnitudePrune.strength_unit)

    def test_effort_adds_up(self, task):
        first, second = Distill(), FineTune()
        assert Chain((first, second)).effort(task) == first.effort(task) + second.effort(task)

    def test_it_applies_where_every_link_does(self, task):
        reason = Chain((FineTune(), Distill(share=0.001))).applies_to(task)
        assert reason == "distill: " + Distill(share=0.001).applies_to(task)
        assert Chain((FineTune(), Distill())).applies_to(task) is None

    def test_any_other_attack_is_one_link(self):
        assert links_of(Scratch()) == (Scratch(),)


class TestJobs:
    def test_the_first_link_is_the_job_of_the_attack_alone(self, plan):
        after = plan.jobs[cell_of(plan, LATER).jobs["attack"]]
        assert after.inputs["target"].job == cell_of(plan, "distill[epochs=2,every=1]").jobs["attack"]
        second = plan.jobs[cell_of(plan, SECOND).jobs["attack"]]
        pruned = cell_of(plan, "magnitude-prune[fractions=0.25+0.5]").jobs["attack"]
        # It is the surrogate that answers, too.
        (stage,) = (plan.jobs[one.job] for role, one in second.inputs.items() if role.startswith("stage:"))
        assert stage.inputs["target"].job == pruned
        assert "target" not in second.inputs or second.inputs["target"].job == pruned

    def test_no_link_takes_a_secret(self, plan):
        for job in plan.jobs.values():
            if job.kind == "attack":
                assert {one.channel for one in job.inputs.values()} <= {"public"}

    def test_a_link_starts_from_the_last_surrogate_of_the_one_before(self, task):
        before = {str(number): task.new_model(Stream((str(number),))) for number in range(12)}
        met = work.target_of(work.Work(task, "s", torch.device("cpu"), {"target": Bundle(before)}))
        assert met.module is before["11"] and not met.release.models

    def test_a_link_changes_what_the_one_before_left(self, plan, done):
        """Half of the weights are gone before a student is made, and a pruned model stays pruned under pruning."""
        twice = cells.make(parsed({"chain": [PRUNED, {"name": "magnitude-prune", "fractions": [0.1]}]}))
        run = Runner(twice.jobs)

        label = "magnitude-prune[fractions=0.25+0.5] then magnitude-prune[fractions=0.1]"
        left = run(cell_of(twice, label).jobs["attack"])
        model = Bundle.from_bytes(left.products["public"]).models["0"]
        zeros = torch.cat([one.flatten() for name, one in model.named_parameters() if one.dim() > 1]) == 0
        assert float(zeros.double().mean()) == pytest.approx(0.5, abs=0.01)

    def test_what_a_link_draws_is_not_what_the_one_before_drew(self, task):
        twice = cells.make(parsed({"chain": [STUDENT, STUDENT]}))
        first, second = (
            job for job in twice.jobs.values() if job.label.startswith("attack distill") and "trigger-set" in job.label
        )
        assert first.spec["seed"] == second.spec["seed"]
        assert "options" not in first.spec and second.spec["options"] == {"link": 1}
        parts = [jobs._surroundings(one, {}, torch.device("cpu")) for one in (first, second)]
        streams = [work.attacker(one, Target(None, "none"), "inputs").stream for one in parts]
        assert streams[0].seed != streams[1].seed


@pytest.fixture(scope="module")
def rows(plan, done):
    entries = {}
    for name, job in plan.jobs.items():
        out = done(name)
        entries[name] = {
            "status": out.status,
            "result": out.result,
            "seconds": 10.0 if job.kind == "attack" else 1.0,
            "label": job.label,
            "created_at": "2026-01-01T00:00:00+00:00",
        }
    table, _ = records.build(plan, entries)
    return table.to_pylist()


class TestRows:
    def of(self, rows, attack, kind="removal", defense="trigger-set"):
        return [r for r in rows if (r["attack"], r["attack_kind"], r["defense"]) == (attack, kind, defense)]

    def test_links_before_count_and_queries_are_of_the_first(self, rows, plan):
        chain = self.of(rows, "chain")
        (tuned,) = (r for r in chain if '"fine-tune"' in r["attack_params"])
        assert tuned["seconds"] > 10.0
        assert (tuned["queries"], tuned["data_inputs"], tuned["data_labels"]) == (300, 300, 100)
        pruned_first = [r for r in chain if "magnitude-prune" in r["attack_params"]]
        assert len(pruned_first) == 2 and {r["queries"] for r in pruned_first} == {0}
        assert {r["data_inputs"] for r in pruned_first} == {300}

    def test_evidence_of_the_control_stands_beside_that_of_the_extraction(self, rows):
        found = self.of(rows, "distill")
        control = self.of(rows, "true-labels", kind="control")
        assert [r["strength"] for r in found] == [r["strength"] for r in control] == [1.0, 2.0]
        for row, beside in zip(found, control, strict=True):
            figures = dict(row["figures"])
            assert figures["control.log10_p"] == beside["log10_p"]
            assert figures["control.trigger_accuracy"] == dict(beside["figures"])["trigger_accuracy"]
            assert figures["control.accuracy"] == beside["accuracy"]

    def test_a_chain_has_the_control_of_its_last_extraction_and_what_follows(self, rows):
        (row,) = (r for r in self.of(rows, "chain") if '"fine-tune"' in r["attack_params"])
        (beside,) = self.of(rows, "chain", kind="control")[-1:]
        assert "true-labels" in beside["attack_params"]
        assert dict(row["figures"])["control.log10_p"] == beside["log10_p"]


class TestNotes:
    def test_what_an_attack_notes_stands_with_the_surrogate_yielded_next(self, task, parts, monkeypatch):
        def run(self, target, trainer):
            model = trainer.new_model()
            trainer.note({"first": 1})
            trainer.note({"second": 2.0})
            yield 1.0, model
            yield 2.0, model
            trainer.note({"first": 3.0})
            yield 3.0, model

        monkeypatch.setattr(Scratch, "run", run)
        known = parts.attacker.take(parts.labelled)
        device = torch.device("cpu")
        made = work.Work(task, "s", device, plugin=Scratch(), inputs=parts.attacker.inputs, labelled=known)
        result, _ = work.attack(made)
        assert result["figures"] == [{"first": 1.0, "second": 2.0}, {}, {"first": 3.0}]

    def test_in_records_it_is_under_attack(self):
        made = Suite()
        cell = made.cell(log10_p=[-7.0, -7.0])
        made.entries[cell.jobs["attack"]]["result"]["figures"] = [{"residual": 0.5}, {}]
        first, second = (dict(row["figures"]) for row in made.records.to_pylist())
        assert first["attack.residual"] == 0.5 and "attack.residual" not in second


class TestControls:
    def test_of_a_chain(self):
        student = TrueLabels(epochs=7, every=3)
        assert Distill(epochs=7, every=3).control() == student
        assert Chain((MagnitudePrune(), Distill(epochs=7, every=3))).control() == student
        tuned = Chain((MagnitudePrune(), Distill(epochs=7, every=3), FineTune())).control()
        assert tuned == Chain((student, FineTune()))
        assert Chain((MagnitudePrune(), FineTune())).control() is None

    def test_it_has_all_labels_and_begins_as_the_student_does(self, plan, done):
        job = plan.jobs[cell_of(plan, "true-labels[epochs=2,every=1]", kind="control").jobs["attack"]]
        assert job.side == "owner" and not job.inputs
        seen = jobs._surroundings(job, {}, torch.device("cpu"))
        assert (len(seen.inputs), len(seen.labelled), seen.train, seen.test) == (300, 300, None, None)
        assert done(job.id).result["labels_used"] == 300
        theirs = plan.jobs[cell_of(plan, "distill[epochs=2,every=1]").jobs["attack"]]
        assert theirs.side == "attacker" and theirs.spec["seed"] == job.spec["seed"]
        assert len(jobs._surroundings(theirs, {}, torch.device("cpu")).labelled) == 100

    def test_it_is_one_job_for_all_defenses_and_extractions_of_the_same_student(self):
        many = [{**STUDENT, "temperature": [1.0, 3.0]}, {**STUDENT, "name": "retrain"}]
        plan = cells.make(parsed(*many, defenses=[{"name": "trigger-set"}, {"name": "uchida", "bits": 16}]))
        assert len([job for job in plan.jobs.values() if job.label.startswith("attack true-labels")]) == 1
        controls = {(c.defense, c.attack) for c in plan.cells if c.attack == "true-labels"}
        assert controls == {("trigger-set", "true-labels"), ("uchida", "true-labels")}

    @pytest.mark.parametrize(("theirs", "claim"), [(-7.0, False), (-8.0, False), (-6.5, True)])
    def test_a_mark_survives_only_above_it(self, theirs, claim):
        made = Suite()
        cell = made.cell(log10_p=[-7.0])
        cell.jobs["control"] = made.job("judge", "judge control", {"evidence": [evidence_of(theirs)]})
        cell.jobs["control_measure"] = made.job("measure", "measure control", {"accuracy": [0.5]})
        (row,) = made.records.to_pylist()
        assert row["claim"] is claim
        assert dict(row["figures"])["control.log10_p"] == theirs and math.isclose(row["log10_p"], -7.0)
