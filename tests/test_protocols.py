"""One forged claim under three protocols: what is counted, what is unknown, and real forgeries of each kind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.grinding import Grind
from bench.bundle import Bundle
from bench.derivation import FORGER, derived_stream, is_derived
from bench.key import Key
from bench.planning import cells, suite
from bench.planning.job import Cell, Plan
from bench.running import jobs
from bench.tables import merge, protocols, records, schema
from bench.tables.game import contest
from bench.tables.leaderboard import boards
from bench.task import Task
from bench.text.report import render
from defenses.uchida import Uchida
from tests.planned import Runner
from tests.synthetic import HELD, LOST, Suite, board, cell, started

AFTER, BEFORE = "after the fact", "committed before"
RESULTS = Path(__file__).parent.parent / "results"
COUNTS = list(schema.WITHSTOOD.values())
FLAGS = list(schema.FORGED.values())


def forging(*forgeries: tuple[float, str | None, bool | None], **values: Any) -> Suite:
    """A suite with forgeries (evidence, time model, derived), called f0, f1, …"""
    made = started(**values)
    for number, (log10_p, time_model, derived) in enumerate(forgeries):
        made.cell(attack=f"f{number}", kind="ambiguity", log10_p=log10_p, time_model=time_model, derived=derived)
    return made


def told(made: Suite) -> list[list[bool | None]]:
    """What the matrix tells of each forgery under the three protocols, in the order of their names."""
    return [[row[flag] for flag in FLAGS] for row in boards(made.records).matrix.to_pylist() if row["attack"][0] == "f"]


def test_each_protocol_refuses_more() -> None:
    made = forging((HELD, AFTER, False), (HELD, AFTER, True), (HELD, BEFORE, False), (HELD, BEFORE, True))
    each = told(made)
    assert each == [[True, False, False], [True, False, False], [True, True, False], [True, True, True]]
    row = board(made)
    assert ([row[name] for name in COUNTS], row["forgeries"]) == ([0, 2, 3], 4)
    assert cell(made, "f2", kind="ambiguity")["time_model"] == BEFORE


def test_what_fails_on_evidence_fails_under_every_protocol_and_what_is_unknown_stays_so() -> None:
    made = forging((LOST, None, None), (HELD, None, None), (HELD, AFTER, None), (HELD, BEFORE, None))
    each = told(made)
    assert each == [[False] * 3, [True, None, None], [True, False, False], [True, True, None]]
    row = board(made)
    assert [row[name] for name in COUNTS] == [1, None, None]
    # Of a key made after the fact nobody has to know more.
    assert [board(forging((HELD, AFTER, None)))[name] for name in COUNTS] == [0, 1, 1]
    assert [board(started())[name] for name in COUNTS] == [0, 0, 0]


def test_insiders_are_not_counted_and_an_owners_key_is_no_forgery() -> None:
    made = forging((HELD, BEFORE, True))
    made.cell(attack="inside", kind="ambiguity", knowledge="insider", log10_p=HELD, time_model=BEFORE, derived=True)
    made.cell(attack="again", kind="ambiguity", judged_key="owner", log10_p=HELD, time_model=AFTER)
    assert [board(made)[name] for name in COUNTS] == [0, 0, 0]
    assert cell(made, "inside", kind="ambiguity")["forged_derived"] is True
    owner = cell(made, "again", kind="ambiguity")
    assert [owner[flag] for flag in FLAGS] == [None] * 3
    assert owner["time_model"] == AFTER
    assert [row["time_model"] for row in made.records.to_pylist() if row["attack_kind"] != "ambiguity"] == [None, None]


FORGERIES = st.lists(
    st.tuples(
        st.sampled_from([HELD, LOST]), st.sampled_from([AFTER, BEFORE, None]), st.sampled_from([True, False, None])
    ),
    min_size=1,
    max_size=4,
)


def held(one: tuple[float, str | None, bool | None]) -> list[bool | None]:
    """A forgery under the three protocols, told anew."""
    log10_p, time_model, derived = one
    if log10_p == LOST or time_model == AFTER:
        return [log10_p == HELD, False, False]
    return [True, None, None if derived is None or derived else False] if time_model is None else [True, True, derived]


@given(FORGERIES)
def test_over_seeds_a_forgery_holds_where_it_does_in_one(seeds: list[tuple[float, str | None, bool | None]]) -> None:
    columns = {"claims": [float(log10_p == HELD) for log10_p, _, _ in seeds]}
    columns |= {"time_model": [one for _, one, _ in seeds], "derived": [one for _, _, one in seeds]}
    lines = pd.DataFrame({"judged_key": "forger", "ok": True, "cell": 7, **columns})
    lines["derived"] = lines["derived"].astype("float64")
    each = [None if pd.isna(flag.loc[7]) else bool(flag.loc[7]) for flag in protocols.forged(lines).values()]
    expected = [True if True in one else None if None in one else False for one in zip(*map(held, seeds), strict=True)]
    assert each == expected
    table = pd.DataFrame({"group": 1, **protocols.forged(lines)})
    counts = [None if pd.isna(count.loc[1]) else int(count.loc[1]) for count in protocols.withstood(table).values()]
    assert counts == [None if one is None else int(not one) for one in each]
    known = [one for one in counts if one is not None]
    assert known == sorted(known)


def test_the_text_tells_the_three_counts_in_words() -> None:
    made = forging((HELD, AFTER, False), (HELD, BEFORE, False), (HELD, BEFORE, True), (LOST, BEFORE, False))
    text = str(render(*boards(made.records)))
    told = " ".join(text.split())
    assert "3·2·1/4" in text
    assert "of n tried a on evidence alone, b if the key must have been committed to before" in told
    after, before = (text.index(f"Forging a second proof{which}") for which in (" after the fact", ", committed to"))
    assert [text[after:before].count(name) for name in ("f0", "f1")] == [1, 0]
    below = text[before : text.index("claim: log10")].splitlines()
    cells_of = {line.split()[0]: line.split()[-1] for line in below if line.startswith("  f")}
    assert cells_of == {"f1": "FORGED°", "f2": "FORGED", "f3": "withstood"}
    assert "°: by a key that is not derived" in told
    assert max(map(len, text.splitlines())) <= 100


def test_where_nothing_is_known_beside_the_evidence_the_text_tells_that_alone() -> None:
    text = str(render(*boards(forging((HELD, None, None), (LOST, None, None)).records)))
    assert "1/2" in text and "·" not in text and "committed" not in text and "°" not in text


def test_in_a_game_under_a_protocol_a_forged_mark_is_worth_nothing() -> None:
    made = forging((HELD, AFTER, True), (HELD, None, False))
    made.cell(log10_p=HELD)
    made.base("print")
    made.yardstick("print")
    made.cell("print", log10_p=HELD)
    made.cell("print", attack="f0", kind="ambiguity", log10_p=HELD, time_model=AFTER)
    leaders, matrix = (table.to_pylist() for table in boards(made.records))
    plain = contest(leaders, matrix, "price")
    assert (plain.worthless, plain.left_out) == ({}, {})
    on_evidence = contest(leaders, matrix, "price", "evidence")
    assert on_evidence.worthless == {"mark": "2 of 2 forgeries accepted", "print": "1 of 1 forgeries accepted"}
    assert on_evidence.games[0].payoff.tolist() == [[0.0], [0.0]]
    committed = contest(leaders, matrix, "price", "committed")
    assert committed.left_out == {"mark": "its records do not say when forged keys were there"}
    assert (committed.worthless, committed.games[0].payoff.tolist()) == ({}, [[12.0]])


def as_version_2(table: pa.Table) -> pa.Table:
    later = ("time_model", "derived", "calibration", "worth", "compression", "compression_indexed", *COUNTS[1:], *FLAGS)
    old = table.drop_columns([name for name in later if name in table.column_names])
    return old.replace_schema_metadata({**table.schema.metadata, b"ownbench.schema_version": b"2"})


def without_worth(leaderboard: pa.Table) -> pa.Table:
    """What a leaderboard of before version 4 has, in an order that does not depend on worth."""
    return leaderboard.drop_columns(["worth"]).sort_by([("task", "ascending"), ("defense_label", "ascending")])


def test_files_of_version_2_tell_what_follows_from_evidence_alone(tmp_path: Path) -> None:
    made = forging((HELD, BEFORE, True), (LOST, BEFORE, True))
    made.base("print")
    made.cell("print", attack="f0", kind="ambiguity", log10_p=LOST, time_model=AFTER, derived=False)
    made.cell("print", attack="f1", kind="ambiguity", status="not applicable", time_model=AFTER)
    tables = dict(zip(("leaderboard", "matrix"), boards(made.records), strict=True)) | {"records": made.records}
    for kind, table in tables.items():
        records.write(as_version_2(table), tmp_path / f"{kind}.parquet")
        tables[kind] = records.read(tmp_path / f"{kind}.parquet", kind)
    assert (
        tables["records"]["time_model"].null_count == tables["records"]["derived"].null_count == made.records.num_rows
    )
    counts = {row["defense"]: [row[name] for name in COUNTS] for row in tables["leaderboard"].to_pylist()}
    assert counts == {"mark": [1, None, None], "print": [1, 1, 1]}
    again = boards(tables["records"])
    assert without_worth(again.leaderboard).equals(without_worth(tables["leaderboard"]))
    assert again.matrix.equals(tables["matrix"])


def test_runs_of_both_versions_go_together(tmp_path: Path) -> None:
    old, new = forging((HELD, BEFORE, True), (HELD, BEFORE, True)), forging((HELD, BEFORE, True))
    for entry in new.entries.values():
        entry |= {"created_at": entry["created_at"].replace("2030", "2031"), "run_id": "run2"}
    records.write(as_version_2(old.records), tmp_path / "records.parquet")
    whole = merge.merge([records.read(tmp_path / "records.parquet"), new.records])
    rows = {row["attack"]: [row[flag] for flag in FLAGS] for row in boards(whole).matrix.to_pylist()}
    assert (rows["f0"], rows["f1"]) == ([True, True, True], [True, None, None])
    assert records.metadata(whole)["schema_version"] == str(schema.VERSION)


@pytest.mark.parametrize("name", ["digits", "digits-full", "cifar10-small"])
def test_what_is_published_reads_as_it_is_built_from_its_records(name: str) -> None:
    kinds = ("records", "leaderboard", "matrix")
    found = {kind: records.read(RESULTS / name / f"{kind}.parquet", kind) for kind in kinds}
    made = boards(found["records"])
    assert made.leaderboard.equals(found["leaderboard"])
    assert made.matrix.equals(found["matrix"])
    for row in found["leaderboard"].to_pylist():
        assert row["forgeries_withstood"] <= row["forgeries_withstood_committed"] <= row["forgeries_withstood_derived"]


def test_plans_of_before_are_read_without_a_time_model() -> None:
    plan = forging((HELD, BEFORE, True)).plan
    values = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(values) == plan
    place = values["cells"]["columns"].index("time_model")
    for row in (values["cells"]["columns"], *values["cells"]["rows"]):
        del row[place]
    assert {one.time_model for one in Plan.from_json(values).cells} == {None}


# Real forgeries


TEXT = {
    "name": "small",
    "alpha": 1e-3,
    "tasks": [{"dataset": "digits", "recipe": {"epochs": 2}}],
    "defenses": [{"name": "trigger-set", "inputs": ["noise", "relabelled"], "triggers": 32}],
    "attacks": [
        {"name": "own-triggers"},
        {"name": "grind", "trials": 5},
        {"name": "random-key", "decoys": 5},
        {"name": "transferable-triggers", "start": "own", "budget": 0.5}
        | {"models": 3, "held_out": 1, "own_epochs": 10, "steps": 10, "tries": 1},
    ],
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return cells.make(suite.parse(TEXT, "here", "here"))


@pytest.fixture(scope="module")
def done(plan: Plan) -> Runner:
    """Runs a job with all that it rests on, once."""
    return Runner(plan.jobs)


def forger(plan: Plan, attack: str, inputs: str = "noise") -> Cell:
    """The cell of a forger's key."""
    wanted = (attack, inputs, "forger")
    (found,) = [c for c in plan.cells if (c.attack, c.defense_params.get("inputs"), c.judged_key) == wanted]
    return found


def test_real_forgeries_are_told_apart(plan: Plan, done: Runner) -> None:
    forged = [one for one in plan.cells if one.judged_key == "forger" and one.jobs]
    entries = {}
    for one in forged:
        for name in one.jobs.values():
            outcome = done(name)
            entries[name] = {"status": outcome.status, "result": outcome.result}
    table, _ = records.build(dataclasses.replace(plan, cells=forged), entries)
    found = {
        (row["attack"], "relabelled" in row["defense_params"]): (row["time_model"], row["derived"], row["claim"])
        for row in table.to_pylist()
    }
    assert found == {
        ("own-triggers", False): (AFTER, False, True),
        ("own-triggers", True): (AFTER, False, True),
        ("grind", False): (AFTER, True, False),
        ("random-key", False): (BEFORE, True, False),
        ("random-key", True): (BEFORE, True, False),
        ("transferable-triggers", False): (BEFORE, False, True),
        # Inputs that are taken from data are facts: no seed binds them.
        ("transferable-triggers", True): (BEFORE, True, True),
    }
    for row in table.to_pylist():
        # These are claimed on the protected model itself, which random keys have no other than.
        original = dict(row["figures"]).get("original.log10_p")
        assert original == (None if row["attack"] == "random-key" else row["log10_p"])
    rows = boards(table).leaderboard.to_pylist()
    counts = {row["defense_label"]: [row["forgeries"] - row[name] for name in COUNTS] for row in rows}
    assert counts == {"trigger-set[triggers=32]": [2, 1, 0], "trigger-set[triggers=32,inputs=relabelled]": [2, 1, 1]}


def test_a_false_seed_gives_no_derived_key_whatever_the_attack_says(plan: Plan, done: Runner) -> None:
    made = forger(plan, "grind").jobs
    judge = plan.jobs[made["judge"]]
    inputs = done.inputs(judge.id)
    whole = jobs.run(judge, inputs, "cpu").result
    evidence = [one["log10_p"] for one in whole["evidence"]]
    assert whole["derived"] is True
    bundle = Bundle.from_bytes(inputs["key"])
    seed = bytes.fromhex(bundle.values["seed"])
    for false in (seed[::-1].hex(), (bytes([seed[0] ^ 1]) + seed[1:]).hex(), None):
        bundle.values["seed"] = false
        found = jobs.run(judge, {**inputs, "key": bundle.to_bytes()}, "cpu").result
        assert found["derived"] is False
        assert [one["log10_p"] for one in found["evidence"]] == evidence


@settings(max_examples=20)
@given(place=st.integers(0, 31), bit=st.integers(0, 7), name=st.text(max_size=5))
def test_a_key_follows_from_one_seed_and_one_name(task: Task, place: int, bit: int, name: str) -> None:
    scheme = Uchida(bits=16)
    seed = bytes(range(32))
    key = scheme.draw(task, derived_stream(seed, FORGER, scheme))
    assert is_derived(key.complete(learnt=1.5), seed, FORGER, scheme, task)
    assert is_derived(key, seed, FORGER, Uchida(bits=16, canonical=True), task)
    other = bytes(one ^ (1 << bit) if i == place else one for i, one in enumerate(seed))
    assert not is_derived(key, other, FORGER, scheme, task)
    assert not is_derived(key, seed, FORGER + name + "?", scheme, task)
    message = key.tensor("message").clone()
    message[place % 16] ^= 1
    assert not is_derived(Key({**key.drawn, "message": message}), seed, FORGER, scheme, task)


def test_a_seed_of_another_length_is_refused_where_it_is_handed_over(
    plan: Plan, done: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan.jobs[forger(plan, "grind").jobs["forge"]]
    inputs = done.inputs(job.id)
    whole = Grind.forge
    monkeypatch.setattr(Grind, "forge", lambda *args: whole(*args)._replace(seed=b"short"))
    failed = jobs.run(job, inputs, "cpu")
    assert failed.status == "failed"
    assert failed.error == "expected grind[trials=5] to hand over a seed of 32 bytes, got 5"


def test_only_forgers_cells_tell_whether_a_key_is_derived(plan: Plan, done: Runner) -> None:
    for one in plan.cells:
        assert (one.time_model is None) == (one.attack_kind != "ambiguity")
    own = next(one for one in plan.cells if (one.attack, one.judged_key) == ("grind", "owner") and one.jobs)
    assert own.time_model == AFTER
    assert "derived" not in done(own.jobs["judge"]).result
