"""Two defenses in one model: what a suite may write, how a plan embeds them, what either says, and who can forge."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from attacks.fine_tune import FineTune
from attacks.linear_forgery import LeastNorm
from attacks.random_key import RandomKey
from attacks.trigger_forgery import OwnTriggers
from bench.bundle import Bundle, bundle_to_key
from bench.commands import claims
from bench.errors import InputError
from bench.pair import Pair, faced, keeping_zeros, members_of, refusal
from bench.planning import cells, suite
from bench.planning.job import Plan
from bench.storage.store import RunFolder
from bench.stream import Stream
from bench.tables import records
from bench.tables.leaderboard import boards
from bench.task import Task
from defenses.none import Undefended
from defenses.trigger_set import TriggerSet
from defenses.uchida import Uchida
from tests.planned import Runner
from tests.synthetic import HELD, LOST, Suite, evidence_of

MARK = {"name": "uchida", "bits": 32}
TRIGGERS = {"name": "trigger-set", "triggers": 32}
LABEL = "uchida[bits=32] & trigger-set[triggers=32]"
STUDENT = {"name": "distill", "epochs": 2, "every": 2}
ATTACKS = (
    {"name": "fine-tune", "epochs": 1},
    STUDENT,
    {"name": "least-norm"},
    {"name": "own-triggers"},
    {"name": "random-key", "decoys": 3},
)


def parsed(*defenses: dict[str, Any], attacks: tuple[dict[str, Any], ...] = ATTACKS, **more: Any) -> suite.Suite:
    text = {
        "name": "pairs",
        "tasks": [{"dataset": "digits", "recipe": {"epochs": 4}}],
        "defenses": list(defenses),
        "attacks": list(attacks),
    }
    return suite.parse(text | more, "here", "here")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return cells.make(parsed(MARK, TRIGGERS, {"pair": [MARK, TRIGGERS]}))


@pytest.fixture(scope="module")
def done(plan: Plan) -> Any:
    return Runner(plan.jobs)


def cell_of(plan: Plan, attack: str, judged: str = "owner", kind: str | None = None) -> Any:
    (found,) = (
        one
        for one in plan.cells
        if (one.attack, one.defense_label, one.judged_key) == (attack, LABEL, judged)
        and kind in (None, one.attack_kind)
    )
    return found


class TestPair:
    def test_is_named_and_declares_what_its_members_do(self, task: Task) -> None:
        uchida, triggers = Uchida(bits=32), TriggerSet(triggers=32)
        both = Pair((uchida, triggers))
        assert both.label == LABEL
        assert both.params == {"pair": [{"name": one.name, **one.params} for one in both.members]}
        assert (both.access_used(), Pair((triggers, TriggerSet())).access_used()) == ("white-box", "black-box")
        assert both.capacity(task) == pytest.approx(triggers.capacity(task) + math.log10(2))
        assert members_of(both) == (uchida, triggers) and members_of(uchida) == (uchida,)

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ((Uchida(),), "expected two defenses in a pair, got 1"),
            ((Uchida(), Undefended()), "got 'none'"),
            ((Uchida(), Pair((Uchida(), TriggerSet()))), "got 'pair'"),
            ((Uchida(), Uchida()), "expected two different defenses in a pair, got 'uchida' twice"),
        ],
    )
    def test_refuses_what_is_no_pair(self, members: tuple[Any, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Pair(members)

    def test_is_faced_by_an_attack_as_the_member_that_it_can_be_tried_on(self) -> None:
        both = Pair((TriggerSet(), Uchida()))
        assert (faced(both, OwnTriggers()).name, faced(both, LeastNorm()).name) == ("trigger-set", "uchida")
        assert faced(both, FineTune()) == TriggerSet() and faced(Uchida(), LeastNorm()) == Uchida()
        assert refusal(both, LeastNorm()) is None and "rows of their own" in str(refusal(both, RandomKey()))
        assert refusal(Pair((Uchida(), Uchida(bits=8))), OwnTriggers()) == OwnTriggers().against(Uchida())


class TestSuite:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"pair": [MARK, TRIGGERS], "bits": 3}, "expected nothing beside 'pair', got bits"),
            ({"pair": [MARK, {"name": "trigger-st"}]}, "member 2.*trigger-set"),
            ({"pair": [MARK, {"name": "uchida", "bits": [1, 2]}]}, "member 2.*'bits'.*expected int"),
            ({"pair": [MARK]}, "expected two defenses"),
            ({"pair": "uchida"}, "expected a list of tables"),
        ],
    )
    def test_says_what_is_wrong(self, table: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            parsed(table)

    def test_null_models_are_for_members_alone(self) -> None:
        table = {"models": 2, "data": 0, "stolen": 1, "decoys": 4}
        chosen = parsed(MARK, {"pair": [MARK, TRIGGERS]}, attacks=({"name": "none"},), null=table)
        assert [one.label for one in chosen.schemes] == ["uchida[bits=32]"]
        assert {one.defense_label for one in cells.make(chosen).trials} == {"uchida[bits=32]"}


class TestPlan:
    def test_the_second_starts_from_what_the_first_published_and_the_first_is_shared(self, plan: Plan) -> None:
        made = [job for job in plan.jobs.values() if job.kind == "protect" and "none" not in job.label]
        assert len(made) == 3
        both = plan.jobs[cell_of(plan, "fine-tune", kind="removal").jobs["protect"]]
        (role,) = both.inputs
        assert (role, both.inputs[role].channel) == ("before", "public")
        assert plan.jobs[both.inputs[role].job].label == "protect uchida[bits=32]"
        assert "after protect uchida[bits=32]" in both.label

    def test_each_judges_with_its_own_key_and_a_forged_one_is_judged_by_its_scheme(self, plan: Plan) -> None:
        cell = cell_of(plan, "fine-tune", kind="removal")
        judges = [plan.jobs[cell.jobs[role]] for role in ("judge", "judge:1")]
        assert [job.spec["plugin"]["name"] for job in judges] == ["uchida", "trigger-set"]
        assert judges[1].inputs["key"].job == cell.jobs["protect"] != judges[0].inputs["key"].job
        for attack, scheme in (("least-norm", "uchida"), ("own-triggers", "trigger-set")):
            forged = cell_of(plan, attack, "forger")
            assert plan.jobs[forged.jobs["judge"]].spec["plugin"]["name"] == scheme
            assert plan.jobs[forged.jobs["forge"]].spec["scheme"]["name"] == scheme
            assert "judge:1" not in forged.jobs and forged.readings[0].startswith(scheme)
            assert {one.channel for one in plan.jobs[forged.jobs["forge"]].inputs.values()} == {"public"}
        assert cell_of(plan, "random-key", "forger").status == "not applicable"

    def test_survives_json(self, plan: Plan) -> None:
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.fixture(scope="module")
def rows(plan: Plan, done: Any) -> list[dict[str, Any]]:
    entries = {}
    for name, job in plan.jobs.items():
        out = done(name)
        seconds = 100.0 if job.kind == "protect" else 1.0
        entries[name] = {"status": out.status, "result": out.result, "seconds": seconds, "label": job.label}
    return list(records.build(plan, entries)[0].to_pylist())


class TestRows:
    def of(self, rows: list[dict[str, Any]], attack: str, defense: str = "pair", **more: str) -> list[dict[str, Any]]:
        wanted = {"attack": attack, "defense": defense, **more}
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]

    def test_both_marks_are_in_the_one_model_and_the_better_reading_is_paid_for(self, rows: Any) -> None:
        (own,) = self.of(rows, "none", attack_kind="none")
        figures = dict(own["figures"])
        read = [figures["log10_p.uchida[bits=32]"], figures["log10_p.trigger-set[triggers=32]"]]
        assert max(read) < -6
        assert own["log10_p"] == pytest.approx(min(read) + math.log10(2)) and own["claim"]
        (alone,) = self.of(rows, "none", "uchida", attack_kind="none")
        assert own["seconds_protect"] == pytest.approx(alone["seconds_protect"] + 100.0)

    def test_a_forged_key_for_one_of_them_is_as_good_less_what_the_choice_costs(self, rows: Any) -> None:
        for attack, scheme in (("least-norm", "uchida"), ("own-triggers", "trigger-set")):
            (row,) = self.of(rows, attack, judged_key="forger")
            (figure,) = (value for name, value in row["figures"] if name.startswith(f"log10_p.{scheme}"))
            assert row["claim"] and row["log10_p"] == pytest.approx(figure + math.log10(2))
        (linear,) = self.of(rows, "least-norm", judged_key="forger")
        assert dict(linear["figures"])["log10_p.trigger-set[triggers=32]"] == 0.0

    def test_controls_and_the_control_of_an_extraction_read_both(self, rows: Any) -> None:
        (beside,) = self.of(rows, "true-labels", attack_kind="control")
        (student,) = self.of(rows, "distill", attack_kind="removal")
        assert dict(student["figures"])["control.log10_p"] == beside["log10_p"]
        assert {name for name, _ in beside["figures"] if name.startswith("log10_p.")} == {
            "log10_p.uchida[bits=32]", "log10_p.trigger-set[triggers=32]"
        }  # fmt: skip
        assert not any(row["claim"] for row in rows if row["attack_kind"] == "control")

    def test_a_cell_fails_with_either_judge(self) -> None:
        made = Suite()
        cell = made.cell(log10_p=[HELD])
        cell.jobs["judge:1"] = made.job("judge", "judge again", {"evidence": [evidence_of(LOST)]})
        made.cells[0] = type(cell)(**{**vars(cell), "readings": ("one", "two")})
        (row,) = made.records.to_pylist()
        assert row["log10_p"] == pytest.approx(HELD + math.log10(2))
        assert dict(row["figures"]) == {"log10_p.one": HELD, "log10_p.two": LOST}
        assert row["seconds_verify"] == 1.0
        made.fail(cell.jobs["judge:1"])
        assert [one["status"] for one in made.records.to_pylist()] == ["failed"]

    def test_it_has_a_row_in_the_leaderboard(self, plan: Plan, done: Any) -> None:
        entries = {name: {"status": "ok", "result": done(name).result, "seconds": 1.0} for name in plan.jobs}
        board = {row["defense_label"]: row for row in boards(records.build(plan, entries)[0]).leaderboard.to_pylist()}
        assert board[LABEL]["verdict"] == "claim" and board[LABEL]["forgeries"] == 2
        assert board[LABEL]["price"] >= max(board[one]["price"] for one in ("uchida[bits=32]",))


def test_zeros_of_a_sparse_first_mark_are_held_while_the_second_is_embedded() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[0] = 0.0
    hooks = keeping_zeros(model)
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    dense, bias = other[2].weight.clone(), other[0].bias.clone()
    assert hooks.after_step is not None
    hooks.after_step(other, 0)
    assert not other[0].weight[0].any() and other[0].weight[1:].all()
    assert torch.equal(other[2].weight, dense) and torch.equal(other[0].bias, bias)


def test_a_ticket_is_still_one_under_triggers() -> None:
    ticket = {"name": "ticket-key", "rates": [0.75], "rounds": [1]}
    made = cells.make(parsed({"pair": [ticket, TRIGGERS]}, attacks=({"name": "none"},)))
    run = Runner(made.jobs)
    (job,) = (one for one in made.jobs.values() if one.kind == "protect" and "before" in one.inputs)
    first = Bundle.from_bytes(run(job.inputs["before"].job).products["public"]).models["model"]
    second = Bundle.from_bytes(run(job.id).products["public"]).models["model"]
    zeros = [weight == 0 for name, weight in first.named_parameters() if weight.dim() > 1]
    assert sum(int(zero.sum()) for zero in zeros) > 50_000
    again = [weight == 0 for name, weight in second.named_parameters() if weight.dim() > 1]
    assert all(bool(there[zero].all()) for zero, there in zip(zeros, again, strict=True))
    judged = [run(name).result["evidence"][0]["log10_p"] for name, one in made.jobs.items() if one.kind == "judge"]
    assert min(judged) < -50


def test_a_claim_is_committed_to_key_by_key(tmp_path: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = type("Folder", (), {"plan": lambda self: plan, "path": tmp_path})()
    monkeypatch.setattr(RunFolder, "open_for_reading", classmethod(lambda cls, run: folder))
    with pytest.raises(InputError, match="commit to each by itself"):
        claims.claim(tmp_path, LABEL, 0, "Ada", tmp_path / "to")


def test_keys_of_the_two_are_drawn_apart(plan: Plan, done: Any, task: Task) -> None:
    cell = cell_of(plan, "fine-tune", kind="removal")
    keys = [bundle_to_key(Bundle.from_bytes(done(job).products["secret"])) for job in (
        plan.jobs[cell.jobs["protect"]].inputs["before"].job, cell.jobs["protect"]
    )]  # fmt: skip
    streams = [Stream(("0", "owner", "key", name)) for name in ("uchida", "trigger-set")]
    for key, scheme, stream in zip(keys, (Uchida(bits=32), TriggerSet(triggers=32)), streams, strict=True):
        drawn = scheme.draw(task, stream)
        assert all(torch.equal(key.tensor(name), drawn.tensor(name)) for name in scheme.uniform)
