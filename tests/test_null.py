"""Models without a mark: which are planned, what is asked of them, which p-values are lies, who is marked for it."""

import dataclasses
import io
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from bench.bundle import Bundle, key_to_bundle
from bench.commands import boards
from bench.commands.run import Options, narrowed, run
from bench.errors import InputError
from bench.planning import cells, suite
from bench.planning.job import Job, Plan, Trial
from bench.running import work
from bench.statistics import clustered_share, holm
from bench.stream import Stream
from bench.tables import null, records
from bench.tables.calibration import marked
from bench.text import nulls
from defenses.uchida import Uchida
from tests.synthetic import started
from tests.test_protocols import as_version_2

TEXT = {
    "name": "small",
    "seeds": [0, 1],
    "tasks": [{"dataset": "digits", "recipe": {"epochs": 1}}],
    "defenses": [{"name": "none"}, {"name": "uchida", "canonical": [False, True]}, {"name": "trigger-set"}],
    "attacks": [{"name": "none"}],
    "null": {"models": 7, "architectures": ["resnet8"], "data": 1, "stolen": 3, "decoys": 20},
}


def planned(**changes):
    return cells.make(suite.parse({**TEXT, **changes}, "here", "here"))


# The grammar


def test_the_defaults_are_what_a_calibration_needs():
    found = suite.parse({**TEXT, "null": {}}, "here", "here").null
    assert (found.models, found.decoys, found.same, found.data, found.stolen) == (20, 1000, 10, 5, 5)
    assert suite.parse({k: v for k, v in TEXT.items() if k != "null"}, "here", "here").null is None


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"model": 20}, ["unknown parameter 'model'", "Did you mean 'models'?"]),
        ({"models": "many"}, ["key 'models'", "expected int"]),
        ({"models": 0}, ["models >= 1"]),
        ({"decoys": 0}, ["decoys >= 1"]),
        ({"stolen": -1}, ["stolen >= 0"]),
        ({"models": 9}, ["got 9: 0 architectures, 5 data, 5 stolen"]),
        ({"architectures": ["resnet9"]}, ["unknown model 'resnet9'", "Did you mean"]),
        ({"architectures": ["vgg8"]}, ["expected others than that of digits/vgg8"]),
        ({"architectures": ["lenet5"]}, ["key 'architectures'", "16x16", "8x8"]),
        (["models"], ["[null]", "expected a table"]),
    ],
)
def test_bad_tables_say_where_expected_and_got(table, words):
    with pytest.raises(InputError) as error:
        suite.parse({**TEXT, "null": table}, "my.toml", "here")
    for word in ["my.toml, [null]", *words]:
        assert word in str(error.value)


def test_a_suite_that_protects_nothing_has_nothing_to_calibrate():
    with pytest.raises(InputError, match=r"\[null\]: expected a defense that protects"):
        suite.parse({**TEXT, "defenses": [{"name": "none"}]}, "here", "here")


def test_an_owner_is_no_stranger():
    with pytest.raises(InputError, match="expected seeds below 1000"):
        planned(seeds=[0, 3000])


# The plan


def test_the_shipped_suite_asks_what_a_calibration_needs():
    chosen = suite.read("null")
    plan = cells.make(chosen)
    families = {type(one).family for one in chosen.defenses if not one.undefended}
    assert families == {type(one).family for one in suite.read("digits").defenses if not one.undefended}
    defenses = {one.label for one in chosen.defenses if not one.undefended}
    by_defense = Counter(trial.defense_label for trial in plan.trials)
    assert set(by_defense) == defenses
    assert min(by_defense.values()) >= 20
    strangers = {trial.stranger: trial for trial in plan.trials}
    made = {plan.jobs[trial.job].inputs["target"].job for trial in plan.trials}
    assert len(made) == len(strangers) >= 20
    assert {trial.kind for trial in strangers.values()} == {"same", "architecture", "data", "stolen"}
    # Whole draws of fresh keys, an eighth of all: a thousand for each defense.
    assert all(trial.decoys * by_defense[trial.defense_label] >= 8_000 for trial in plan.trials)
    assert all(len(trial.owners) >= 5 for trial in plan.trials)
    # Each is made once for all defenses, and by nobody whose key is held against it.
    owners = {one.job for trial in plan.trials for role, one in plan.jobs[trial.job].inputs.items() if role != "target"}
    assert not made & owners
    assert len(owners) == 5 * len({plan.jobs[job].label for job in owners})


def test_a_trial_is_the_owners_job_and_holds_the_keys_of_all_owners():
    plan = planned()
    for trial in plan.trials:
        job = plan.jobs[trial.job]
        assert (job.kind, job.side) == ("null", "owner")
        assert {role: one.channel for role, one in job.inputs.items()} == {
            "target": "public",
            "key:0": "secret",
            "key:1": "secret",
        }
        assert job.spec["options"] == {"decoys": 20, "owners": ["0", "1"]}
        # A seed of its own, so that no two models meet the same fresh keys.
        assert int(job.spec["seed"]) >= 1000
    assert len({plan.jobs[trial.job].spec["seed"] for trial in plan.trials}) == 7
    judging = {plan.jobs[c.jobs["judge"]].source_digest for c in plan.cells if c.defense == "uchida"}
    assert {trial.source for trial in plan.trials if trial.defense == "uchida"} == judging


def test_models_of_a_kind_do_not_depend_on_the_others_or_on_what_is_left_of_the_suite():
    def made(plan):
        return {trial.stranger: plan.jobs[trial.job].inputs["target"].job for trial in plan.trials}

    whole = made(planned())
    more = made(planned(null={**TEXT["null"], "models": 9, "data": 2}))
    assert whole.items() < more.items()
    assert len(more) == 9
    chosen = suite.parse(TEXT, "here", "here")
    assert made(cells.make(narrowed(chosen, ["defense=trigger-set"]))) == whole
    # Two schemes in turn; readings of one mark are one scheme.
    assert sorted(name.split("[")[0].split(",")[0] for name in whole if ", seed 4" in name) == [
        "trigger-set",
        "uchida",
        "uchida",
    ]


def test_a_plan_with_trials_comes_back_as_it_was():
    plan = planned()
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    old = json.loads(json.dumps(plan.to_json()))
    del old["trials"]
    assert Plan.from_json(old).trials == []


# What a job asks


def test_fresh_keys_have_the_facts_of_the_owners_in_turn_and_each_model_its_own(task, parts, monkeypatch):
    defense, seen = Uchida(bits=16), []
    whole = Uchida.verify

    def watch(self, suspect, key, trainer):
        seen.append((key.facts["owner"], key.tensor("message").tolist(), trainer.stream.path[0]))
        return whole(self, suspect, key, trainer)

    monkeypatch.setattr(Uchida, "verify", watch)
    keys = {seed: defense.draw(task, Stream((seed, "key"))).complete(owner=seed) for seed in ("3", "4")}
    bundles = {f"key:{seed}": key_to_bundle(key) for seed, key in keys.items()}
    model = task.new_model(Stream(("a stranger",)))

    def asked(seed, target):
        seen.clear()
        options = {"decoys": 5, "owners": ["3", "4"]}
        around = work.Work(task, seed, torch.device("cpu"), {**bundles, "target": target}, plugin=defense)
        around = dataclasses.replace(around, train=parts.train, heldout=parts.heldout, options=options)
        return work.null(around)[0], list(seen)

    found, first = asked("1000", Bundle(models={"model": model}))
    assert (len(found["owners"]), len(found["decoys"])) == (2, 5)
    assert [one[0] for one in first] == [*"3333", *"444"]
    assert [one[2] for one in first] == [*"3333", *"444"]
    assert [first[0][1], first[4][1]] == [key.tensor("message").tolist() for key in keys.values()]
    assert len({str(one[1]) for one in first}) == len(first)
    again, second = asked("1001", Bundle(models={"0": task.new_model(Stream(("early",))), "1": model}))
    # The last of what an attack left is the same model: the owners' evidence stays, fresh keys are others.
    assert again["owners"] == found["owners"]
    assert {str(one[1]) for one in first} & {str(one[1]) for one in second} == {str(first[0][1]), str(first[4][1])}


def test_a_model_that_cannot_be_read_counts_as_no_evidence(task, parts):
    import models

    key = key_to_bundle(Uchida().draw(task, Stream(("key",))))
    bundles = {"key:0": key, "target": Bundle(models={"model": models.build("alexnet-small", 10, (1, 8, 8))})}
    around = work.Work(task, "1000", torch.device("cpu"), bundles, plugin=Uchida(layer="conv6"))
    around = dataclasses.replace(around, train=parts.train, heldout=parts.heldout)
    around = dataclasses.replace(around, options={"decoys": 3, "owners": ["0"]})
    found, _ = work.null(around)
    assert (found["owners"], found["decoys"]) == ([0.0], [0.0] * 3)
    assert (found["unreadable_owners"], found["unreadable_decoys"]) == (1, 3)
    assert found["reason"]


# Intervals


def test_holm_on_a_known_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def column(*counts):
    return np.array(counts).reshape(-1, 1)


def test_without_hits_the_interval_is_that_of_clopper_and_pearson():
    found = clustered_share(column(0, 0, 0), column(100, 100, 100))
    assert (found.effective, found.low, found.exceeding(0.01)) == (300.0, 0.0, 1.0)
    assert found.high == pytest.approx(stats.binomtest(0, 300).proportion_ci(method="exact").high)
    # Keys that meet every model count once each where nothing is known of their variance.
    crossed = clustered_share(np.zeros((20, 5), dtype=int), np.ones((20, 5), dtype=int), crossed=True)
    assert crossed.high == pytest.approx(stats.binomtest(0, 5).proportion_ci(method="exact").high)


def test_equal_clusters_lose_what_little_the_quantile_takes():
    found = clustered_share(np.full((20, 1), 10), np.full((20, 1), 100))
    ratio = stats.t.ppf(0.975, 1999) / stats.t.ppf(0.975, 19)
    assert found.effective == pytest.approx(2000 * ratio**2)
    plain = stats.binomtest(200, 2000).proportion_ci(method="exact")
    assert found.low < plain.low < 0.1 < plain.high < found.high


def test_clusters_that_hit_as_one_count_as_one():
    found = clustered_share(column(*[100] * 4, *[0] * 16), np.full((20, 1), 100))
    assert found.effective < 20
    # A key that every model agrees with is one draw and not twenty.
    hits = np.zeros((20, 5), dtype=int)
    hits[:, 0] = 1
    crossed = clustered_share(hits, np.ones((20, 5), dtype=int), crossed=True)
    assert crossed.effective < 5
    assert crossed.low < 0.1 < crossed.high


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=30),
    confidence=st.sampled_from([0.5, 0.95, 0.999]),
)
def test_the_interval_holds_the_share_and_is_never_narrower_than_of_independent_tries(counts, confidence):
    hits, tries = column(*counts), np.full((len(counts), 1), 50)
    found = clustered_share(hits, tries, confidence=confidence)
    assert 0 < found.effective <= found.tries == 50 * len(counts)
    assert found.low <= found.rate <= found.high
    plain = stats.binomtest(found.hits, found.tries).proportion_ci(confidence, method="exact")
    assert found.low <= plain.low + 1e-9
    assert found.high >= plain.high - 1e-9
    # The test says the same as the lower limit.
    tail = (1 - confidence) / 2
    if found.low > 1e-100:
        assert found.exceeding(found.low) == pytest.approx(tail, rel=1e-6)


@pytest.mark.parametrize(("hits", "tries"), [([3], [2]), ([-1], [2]), ([0], [0])])
def test_shares_that_cannot_be_are_refused(hits, tries):
    with pytest.raises(ValueError, match="expected hits"):
        clustered_share(column(*hits), column(*tries))


def test_the_interval_covers_a_share_that_differs_from_model_to_model():
    """Rates of models from a beta distribution of mean 0.1: nominal 95 %, where independent tries would give less."""
    drawn = np.random.default_rng(1)
    tries, covered, naive = np.full((20, 1), 200), 0, 0
    for _ in range(250):
        rates = drawn.beta(4, 36, size=(20, 1))
        hits = drawn.binomial(tries, rates)
        found = clustered_share(hits, tries)
        covered += found.low <= 0.1 <= found.high
        plain = stats.binomtest(int(hits.sum()), 4000).proportion_ci(method="exact")
        naive += plain.low <= 0.1 <= plain.high
    assert covered >= 0.92 * 250
    assert naive < 0.80 * 250


def test_the_interval_is_about_as_wide_as_a_bootstrap_over_models():
    drawn = np.random.default_rng(2)
    tries = np.full((20, 1), 500)
    hits = drawn.binomial(tries, drawn.beta(4, 36, size=(20, 1)))
    found = clustered_share(hits, tries)
    again = [hits[drawn.integers(0, 20, 20)].mean() / 500 for _ in range(4000)]
    low, high = np.quantile(again, [0.025, 0.975])
    assert (found.high - found.low) / (high - low) == pytest.approx(1.15, abs=0.2)


# Verdicts


def trial(defense, place, **params):
    return Trial(
        **{"task": "toy", "defense": defense, "defense_params": params, "defense_label": defense},
        **{"stranger": f"seed {1000 + place}", "kind": "same", "model": "net", "owners": (0, 1, 2, 3, 4)},
        **{"decoys": 1000, "source": "source of judge", "job": f"{defense} {place}"},
    )


def tables(schemes, models=20, lost=()):
    """The null tables of made-up schemes: a function from uniform p-values (models, keys) to those that it claims."""
    drawn = np.random.default_rng(5)
    made = started().plan
    trials, entries, jobs = [], {}, {}
    for name, claimed in schemes.items():
        found = {"decoys": claimed(drawn.random((models, 1000))), "owners": claimed(drawn.random((models, 5)))}
        for place in range(models):
            one = trial(name, place)
            trials.append(one)
            jobs[one.job] = Job(one.job, "null", "owner", one.job, {}, {}, "s")
            result = {reading: np.log10(p[place]).tolist() for reading, p in found.items()}
            result |= {"unreadable_decoys": 0, "unreadable_owners": 0, "reason": None}
            entries[one.job] = {"status": "ok", "result": result}
            if one.job in lost:
                entries[one.job] = {"status": "failed", "error_type": "ValueError", "error": "boom", "result": {}}
    plan = dataclasses.replace(made, trials=trials, jobs={**made.jobs, **jobs})
    return null.build(plan, entries, records.build(plan, {})[0].schema.metadata), plan, entries


def only_on(place, change):
    def claimed(p):
        found = p.copy()
        found[place] = change(p[place])
        return found

    return claimed


def table_size(p):
    """p-values of counts: steps, and on the safe side of the level."""
    return stats.binom.sf(stats.binom.ppf(1 - p, 16, 0.5) - 1, 16, 0.5)


SCHEMES = {
    "honest": lambda p: p,
    "steps": table_size,
    "cautious": np.sqrt,
    "mute": np.ones_like,
    "liar": lambda p: p / 3,
    "liar-on-one-model": only_on(3, lambda p: p**4),
    # A key that agrees well enough with every model, once in five owners: no lie, and no twenty of them.
    "unlucky": lambda p: np.where(np.arange(p.shape[1]) == 2, 0.05, p) if p.shape[1] == 5 else p,
    "claimant": lambda p: np.where(np.arange(p.shape[1]) == 2, 1e-9, p) if p.shape[1] == 5 else p,
}
LIARS = {"liar", "liar-on-one-model", "claimant"}


@pytest.fixture(scope="module")
def judged():
    return tables(SCHEMES)


def test_liars_are_found_and_nobody_else(judged):
    frame = judged[0].null.to_pandas()
    verdicts = frame.groupby("defense").calibration.unique()
    assert {name: list(words) for name, words in verdicts.items()} == {
        name: ["unreliable"] if name in LIARS else ["reliable"] for name in SCHEMES
    }
    exceeded = frame[frame.verdict == "exceeded"]
    # A factor of three shows at every level; one model of twenty does not move the share of all.
    assert set(exceeded[exceeded.defense == "liar"].level) >= {0.1, 0.01, 0.001}
    one = exceeded[exceeded.defense == "liar-on-one-model"]
    assert set(one.worst_model) == {"seed 1003"}
    assert (one.p_worst < one.p_pooled).all()
    assert set(exceeded[exceeded.defense == "claimant"].reading) == {"owners"}


def test_rows_are_counts_of_what_the_jobs_found(judged):
    (found, models), _, entries = judged
    frame = found.to_pandas().set_index(["defense", "reading", "level"])
    row = frame.loc["honest", "decoys", 0.01]
    p = [one for name, entry in entries.items() if name.startswith("honest ") for one in entry["result"]["decoys"]]
    assert (row.pairs, row.exceeding, row.expected) == (20_000, sum(one <= -2 for one in p), 200.0)
    assert row.low < row.rate < row.high
    assert row.log10_p_min == min(p)
    alpha = frame.loc["honest", "decoys", 1e-6]
    assert alpha.is_alpha
    assert alpha.high == pytest.approx(1 - 0.025 ** (1 / 20_000))
    assert frame.loc["honest", "owners", 0.1].pairs == 100
    told = models.to_pylist()
    assert len(told) == 2 * 20 * len(SCHEMES)
    assert {len(one["log10_p"]) for one in told if one["reading"] == "owners"} == {5}
    first = next(one for one in told if one["reading"] == "decoys")
    values = sorted(entries[first["job_id"]]["result"]["decoys"])
    assert first["log10_p"][0] == values[0]
    assert first["log10_p"][-1] == values[-1]
    assert set(first["log10_p"]) <= set(values)


def test_p_values_that_are_a_level_are_at_it():
    frame = tables({"rank": lambda p: np.ceil(p * 100) / 100})[0].null.to_pandas()
    row = frame[(frame.reading == "decoys") & (frame.level == 0.01)].iloc[0]
    assert row.exceeding > 100
    assert row.calibration == "reliable"


def test_a_trial_that_failed_is_no_gap(tmp_path):
    found, plan, entries = tables({"honest": SCHEMES["honest"], "liar": SCHEMES["liar"]}, lost=("honest 4", "liar 4"))
    frame = found.null.to_pandas()
    assert set(frame.models_failed) == {1}
    assert set(frame[frame.defense == "honest"].calibration) == {"not tested"}
    assert set(frame[frame.defense == "liar"].calibration) == {"unreliable"}
    written = boards.write(SimpleNamespace(path=tmp_path, entries=entries), plan)
    assert "honest on a model without its mark (seed 1004): ValueError: boom" in written.failures()
    told = nulls.render(found.null, "table")
    assert "FAILED (1)" in told
    assert "boom" in told
    everything = tables({"honest": SCHEMES["honest"]}, models=1, lost=("honest 0",))[0].null
    assert set(everything.to_pandas().calibration) == {"not tested"}
    assert "FAILED (1)" in nulls.render(everything, "markdown")


def test_honest_schemes_are_rarely_called_liars():
    drawn = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        below = drawn.random((20, 5)) <= 0.1
        share = clustered_share(below.astype(int), np.ones((20, 5), dtype=int), crossed=True)
        # Keys that agree with all models alike, the worst of what owners' keys can do.
        alike = np.broadcast_to(drawn.random((1, 5)) <= 0.1, (20, 5))
        hanging = clustered_share(alike.astype(int), np.ones((20, 5), dtype=int), crossed=True)
        alarms += share.exceeding(0.1) <= 0.005
        alarms += hanging.exceeding(0.1) <= 0.005
    assert alarms <= 4


# For people


def test_the_table_for_people_fits_and_says_who_lies(judged):
    told = nulls.render(judged[0].null, "table")
    assert max(map(len, told.splitlines())) <= 100
    lines = {line.split()[0]: line for line in reversed(told.splitlines()) if line.startswith("  ")}
    assert lines["liar"].endswith("TOO MANY")
    assert lines["honest"].endswith("ok")
    assert "20,000 pairs of a key and a model" in told
    assert "UNRELIABLE: liar, liar-on-one-model, claimant." in told
    assert "| **The 5 owners' own keys: 100 pairs each** |" in nulls.render(judged[0].null, "markdown")


def test_a_run_writes_its_null_tables_and_reads_them_back(judged, tmp_path):
    _, plan, entries = judged
    told = boards.write(SimpleNamespace(path=tmp_path, entries=entries), plan)
    assert {path.name for path in told.paths} > {"null.parquet", "null_models.parquet"}
    assert told.null.equals(judged[0].null)
    shown = boards.show([tmp_path], "table")
    assert "bear no mark" in shown
    values = json.loads(boards.show([tmp_path], "json"))
    assert len(values["null"]) == judged[0].null.num_rows
    with pytest.raises(InputError, match=r"expected a folder with null\.parquet"):
        boards.show([tmp_path], "table", tmp_path / "elsewhere")


def test_a_leaderboard_marks_what_the_null_table_tests_as_it_stands(judged, tmp_path):
    made = started()
    for name in ("honest", "liar"):
        made.base(name)
    made.base("honest", defense_params={"bits": 1})
    board = boards._boards(made.records)
    found = judged[0].null

    def words(null_table, table=board):
        rows = marked(table.leaderboard, table.records, null_table).to_pylist()
        return {row["defense_label"]: row["calibration"] for row in rows}

    expected = {"honest": "reliable", "liar": "unreliable", "honest[bits=1]": "not tested", "mark": "not tested"}
    assert words(found) == expected
    # Other sources of verify: nothing is known of them.
    place = found.schema.get_field_index("source_digest")
    other = found.set_column(place, found.schema.field(place), [["older"] * found.num_rows])
    assert set(words(other).values()) == {"not tested"}
    for folder, table in (("null", found), ("run", made.records)):
        (tmp_path / folder).mkdir()
        name = "null" if folder == "null" else "records"
        records.write(table, tmp_path / folder / f"{name}.parquet")
    for name in ("leaderboard", "matrix"):
        records.write(getattr(board, name), tmp_path / "run" / f"{name}.parquet")
    shown = boards.show([tmp_path / "run"], "table", tmp_path / "null")
    by_label = {line.split()[0]: line for line in reversed(shown.splitlines()) if line[:1].isalpha()}
    assert by_label["liar"].endswith("A LIE")
    assert by_label["honest"].endswith("ok")
    assert "unreliable" in shown
    assert "p is" not in boards.show([tmp_path / "run"], "table")


def test_a_leaderboard_of_before_the_column_can_be_read(tmp_path):
    board = boards._boards(started().records).leaderboard
    records.write(as_version_2(board), tmp_path / "leaderboard.parquet")
    assert records.read(tmp_path / "leaderboard.parquet", "leaderboard").equals(board)


RUN = """
name = "whole"
seeds = [0]
[[tasks]]
dataset = "digits"
recipe = { epochs = 1 }
parts = { train = 60, heldout = 60, attacker = 60, labelled = 50, test = 60 }
[[defenses]]
name = "uchida"
bits = 16
[[attacks]]
name = "scratch"
epochs = 1
[null]
models = 3
architectures = ["alexnet-small"]
data = 1
stolen = 1
decoys = 6
"""


def test_a_run_from_the_suite_to_the_table(tmp_path):
    (tmp_path / "whole.toml").write_text(RUN)
    options = Options(str(tmp_path / "whole.toml"), out=tmp_path / "out", device="cpu", local=True)
    told = io.StringIO()
    assert run(options, Console(file=told, width=120)) == 0, told.getvalue()
    assert "bear no mark of the owners" in told.getvalue()
    rows = records.read(tmp_path / "out" / "null.parquet", "null").to_pylist()
    assert {(row["reading"], row["pairs"], row["unreadable"]) for row in rows} == {("decoys", 18, 6), ("owners", 3, 1)}
    kinds = records.read(tmp_path / "out" / "null_models.parquet", "null_models").column("kind").to_pylist()
    assert Counter(kinds) == {"architecture": 2, "data": 2, "stolen": 2}
    again = io.StringIO()
    assert run(options, Console(file=again, width=120)) == 0
    assert "0 jobs run" in again.getvalue()
