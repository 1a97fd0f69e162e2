"""Whole runs on real data with short recipes, in one process: what the rows say, and what a second run does."""

import io
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bench import registry
from bench.commands.run import Options, run
from bench.planning import sources

PLUGINS = Path(__file__).parent / "plugins"
HEAD = """
    name = "small"
    seeds = [0]
    keep = "{keep}"
    timeout = 200.0
    [[tasks]]
    dataset = "digits"
    recipe = {{ epochs = {epochs} }}
"""
# Columns that say when and how long, and not what.
TIMES = ["run_id", "seconds_protect", "seconds", "seconds_verify", "peak_memory_mb", "created_at"]


def suite_text(defenses, attacks, keep="protected", epochs=4):
    if not any("scratch" in text for text in attacks):
        attacks = [*attacks, SCRATCH]
    tables = [f"[[defenses]]\n{text}" for text in defenses] + [f"[[attacks]]\n{text}" for text in attacks]
    return textwrap.dedent(HEAD).format(keep=keep, epochs=epochs) + "\n".join(tables)


def rows(folder):
    return pq.read_table(folder / "records.parquet").to_pandas(maps_as_pydicts="strict")


def comparable(folder):
    """The rows without times, as text, to be compared bit for bit."""
    return [repr(row) for row in pq.read_table(folder / "records.parquet").drop_columns(TIMES).to_pylist()]


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs a suite in this process; plugins of the tests folder are known."""
    monkeypatch.setenv("OWNBENCH_PLUGINS", str(PLUGINS))
    registry.discover.cache_clear()

    def execute(text, out="out", **options):
        path = tmp_path / "small.toml"
        path.write_text(text)
        console = Console(file=io.StringIO(), width=200)
        code = run(Options(str(path), out=tmp_path / out, device="cpu", local=True, **options), console)
        return code, tmp_path / out, console.file.getvalue()

    yield execute
    registry.discover.cache_clear()


DEFENSES = [
    'name = "uchida"\nbits = 16\nstrength = 0.1',
    'name = "trigger-set"\ntriggers = 16\nold_head = [false, true]',
]
SCRATCH = 'name = "scratch"\nepochs = 5'
ATTACKS = [
    SCRATCH,
    'name = "fine-tune"\nvariant = "RTLL"\nepochs = 4\nevery = 2',
    'name = "magnitude-prune"\nfractions = [0.5, 0.99]',
    'name = "distill"\nepochs = 4\nevery = 4',
    'name = "random-key"\ndecoys = 200',
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run of two defenses, one of them read in two ways, against four attacks."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.toml").write_text(suite_text(DEFENSES, ATTACKS))
    console = Console(file=io.StringIO(), width=200)
    code = run(Options(str(folder / "small.toml"), out=folder / "out", device="cpu", local=True), console)
    return code, folder / "out", console.file.getvalue()


def test_every_cell_is_there_once(whole):
    code, out, _ = whole
    assert code == 0
    frame = rows(out)
    assert (frame.status == "ok").all()
    defenses = ["none", "uchida", "trigger-set", "trigger-set"]
    assert frame[frame.attack_kind == "none"].defense.tolist() == defenses
    # The attack-free model, the ceiling, 2 + 2 + 1 surrogates; decoys for those that have a key.
    removal = frame[frame.attack_kind == "removal"]
    assert len(removal) == 4 * (1 + 2 + 2 + 1)
    assert (frame.attack_kind == "ambiguity").sum() == 3
    # The clean model and what the attacks leave of it, and the student that learnt from true labels.
    assert (frame.attack_kind == "control").sum() == 3 * (1 + 1 + 2 + 2 + 1 + 1)


def test_accuracies_are_those_of_the_right_models(whole):
    frame = rows(whole[1])
    own = frame[frame.attack_kind == "none"].drop_duplicates("defense").set_index("defense")
    assert (frame.accuracy_clean == own.accuracy["none"]).all()
    for defense in ("none", "uchida", "trigger-set"):
        part = frame[(frame.defense == defense) & frame.attack_kind.isin(["none", "removal", "ambiguity"])]
        assert (part.accuracy_protected == own.accuracy[defense]).all()
    controls = frame[frame.attack_kind == "control"]
    assert (controls.accuracy_protected == own.accuracy["none"]).all()
    assert (frame.accuracy_reference == frame.accuracy_protected).all()
    pruned = frame[(frame.attack == "magnitude-prune") & (frame.strength == 0.99)]
    assert (pruned.accuracy < 0.3).all()


def test_what_the_rows_claim(whole):
    frame = rows(whole[1])
    protecting = frame[frame.defense != "none"]
    assert (protecting[protecting.attack_kind == "none"].log10_p < -3).all()
    assert not frame[frame.attack_kind == "control"].claim.any()
    assert not frame[frame.attack_kind == "ambiguity"].claim.any()
    assert ((frame.log10_p <= -6) == frame.claim).all()
    assert not frame[frame.defense == "none"].claim.any()


def test_data_and_queries_are_counted(whole):
    frame = rows(whole[1])
    used = frame[frame.attack_kind == "removal"].groupby("attack")[["data_inputs", "data_labels", "queries"]].max()
    assert used.loc["distill"].tolist() == [300, 0, 300]
    assert used.loc["fine-tune"].tolist() == [100, 100, 0]
    assert used.loc["magnitude-prune"].tolist() == [0, 0, 0]
    assert used.loc["scratch"].tolist() == [100, 100, 0]


def test_stages_and_protected_models_are_shared(whole):
    import json

    kinds = [json.loads(json.loads(line)["entry"])["kind"] for line in (whole[1] / "journal.jsonl").open()]
    # One clean model, one protected model a defense, whatever the readings; answers once a protected model.
    assert kinds.count("protect") == 3
    assert kinds.count("stage") == 1 + 3
    # Scratch never touches a model, so that one job serves all; so does a student of true labels.
    assert kinds.count("attack") == 1 + 1 + 3 * 4


def test_random_keys_leave_their_p_values(whole):
    decoys = pq.read_table(whole[1] / "decoys.parquet").to_pandas()
    assert len(decoys) == 3 * 200
    for _, part in decoys.groupby(["defense", "defense_params"]):
        assert (part.log10_p <= -2).mean() <= 0.05
        assert part.log10_p.nunique() > 1


def test_only_the_protected_models_stay_on_disk(whole):
    names = {path.name.split(".", 1)[1] for path in (whole[1] / "artifacts").iterdir()}
    assert names == {"public.safetensors", "secret.safetensors"}
    assert len(list((whole[1] / "artifacts").iterdir())) == 3 * 2 + 4


def test_the_table_fits_a_hundred_columns(whole):
    text = whole[2]
    table = text[text.index("Task digits") :]
    assert max(len(line) for line in table.splitlines() if "parquet" not in line) <= 100
    for word in ("uchida", "trigger-set", "distill", "random-key"):
        assert word in table


def test_a_second_run_does_nothing_and_leaves_the_same_rows(whole, go):
    before = comparable(whole[1])
    console = Console(file=io.StringIO(), width=200)
    path = whole[1].parent / "small.toml"
    assert run(Options(str(path), out=whole[1], device="cpu", local=True), console) == 0
    assert "0 jobs run" in console.file.getvalue()
    assert comparable(whole[1]) == before


def test_a_run_of_its_own_gives_the_same_rows_bit_for_bit(whole, go):
    code, out, _ = go(suite_text(DEFENSES, ATTACKS))
    assert code == 0
    assert comparable(out) == comparable(whole[1])


def test_two_seeds_differ_and_only_narrows(whole, go):
    text = suite_text(DEFENSES, ATTACKS)
    code, out, _ = go(text, seeds=(0, 3), only=("defense=uchida[bits=16,strength=0.1]", "attack=distill"))
    frame = rows(out)
    assert code == 0
    assert set(frame.seed) == {0, 3}
    assert set(frame.attack) == {"none", "scratch", "distill", "true-labels"}
    assert set(frame.defense) == {"none", "uchida"}
    own = frame[(frame.attack_kind == "none") & (frame.defense == "none")]
    assert own.accuracy.nunique() == 2
    whole_frame = rows(whole[1])
    same = whole_frame.job_id.isin(set(frame[frame.seed == 0].job_id))
    assert same.sum() == len(frame[frame.seed == 0])


def test_misbehaving_plugins_are_rows_and_disturb_nobody(go):
    names = ["raises", "nan", "sys-exits", "magnitude-prune"]
    text = suite_text(
        ['name = "uchida"\nbits = 16', 'name = "spoilt"', 'name = "picky"'], [f'name = "{name}"' for name in names]
    )
    code, out, told = go(text)
    frame = rows(out)
    assert code == 1
    mine = frame[(frame.defense == "uchida") & (frame.attack_kind == "removal")].set_index("attack")
    assert (mine.loc[["raises", "nan", "sys-exits"]].status == "failed").all()
    assert mine.error_type[["raises", "nan", "sys-exits"]].tolist() == [
        "RuntimeError",
        "NonFiniteWeights",
        "SystemExit",
    ]
    assert "the attack gave up" in mine.error["raises"]
    assert "misbehaving.py" in mine.traceback["raises"]
    assert "head.weight" in mine.error["nan"]
    assert (mine.loc["magnitude-prune"].status == "ok").all()
    spoilt = frame[frame.defense == "spoilt"]
    assert (spoilt.status == "failed").all()
    own = spoilt[spoilt.attack != "raises"]
    assert own.error.str.contains("no such luck").sum() >= 7
    picky = frame[frame.defense == "picky"]
    assert (picky.status == "not applicable").all()
    assert picky.error.str.contains("needs points, digits has image").all()
    assert "failed: uchida[bits=16] x raises (seed 0): RuntimeError: the attack gave up" in told
    assert "spoilt" in told


def test_a_file_with_a_syntax_error_fails_its_cells_and_is_listed(go, tmp_path, monkeypatch):
    (tmp_path / "crooked_mark.py").write_text("class Crooked(\n")
    monkeypatch.setenv("OWNBENCH_PLUGINS", str(tmp_path / "crooked_mark.py"))
    registry.discover.cache_clear()
    code, out, _ = go(suite_text(['name = "crooked-mark"', 'name = "uchida"'], ['name = "magnitude-prune"']))
    frame = rows(out).set_index("defense")
    assert code == 1
    assert set(frame.loc["crooked-mark"].status) == {"failed"}
    assert set(frame.loc["crooked-mark"].error_type) == {"SyntaxError"}
    assert (frame.loc["uchida"].status == "ok").all()
    from bench.commands.listing import everything

    listed = everything()
    assert "crooked-mark" in listed
    assert "SyntaxError" in listed


def test_forgers_and_changed_tasks(go):
    text = suite_text(
        ['name = "uchida"\nbits = 16\nstrength = 0.1', 'name = "trigger-set"\ntriggers = 8'],
        ['name = "free-message"', 'name = "other-task"', 'name = "spying"'],
    )
    code, out, told = go(text)
    assert code == 0, told
    frame = rows(out)
    skipped = frame[(frame.defense == "trigger-set") & (frame.attack == "free-message")].iloc[0]
    assert (skipped.status, skipped.error) == ("not applicable", "needs a linear key, trigger-set has labels")
    frame = frame[frame.defense == "uchida"]
    forged = frame[frame.attack == "free-message"].set_index("judged_key")
    # 16 bits at 1/2 cannot reach 1e-6; every bit of the free message agrees all the same.
    assert forged.statistic["forger"] == 16
    assert forged.log10_p["owner"] < -3
    assert (forged.attack_kind == "ambiguity").all()
    other = frame[(frame.attack == "other-task") & (frame.attack_kind == "removal")].iloc[0]
    assert other.accuracy > 0.8
    assert other.accuracy_reference != other.accuracy_protected
    assert other.accuracy_reference > 0.8


def test_an_insider_gets_the_one_part_that_it_declares(go):
    text = suite_text(['name = "uchida"\nbits = 16\nstrength = 0.1'], ['name = "insider"'])
    code, out, told = go(text)
    assert code == 0, told
    frame = rows(out)
    inside = frame[frame.attack == "insider"]
    assert set(inside.knowledge) == {"insider"}
    assert (inside.log10_p > -3).all()
    assert set(inside.attack_kind) == {"removal"}
    assert "Insiders" in told


def test_judging_again_redoes_the_attack_only_without_its_surrogates(go, tmp_path, monkeypatch):
    """Editing `verify` alone repeats judging and nothing else where surrogates were kept."""
    source = (Path(sources.__file__).parent.parent.parent / "defenses" / "uchida.py").read_text()
    plugin = tmp_path / "my_mark.py"
    mine = source.replace('"uchida"', '"my-mark"').replace("class Uchida", "class MyMark")
    plugin.write_text(mine)
    text = suite_text(['name = "my-mark"\nbits = 16'], ['name = "magnitude-prune"'], keep="all")

    monkeypatch.setenv("OWNBENCH_PLUGINS", str(plugin))

    def forget():
        # All that a process knows of the plugin's file.
        sys.modules.pop("ownbench_plugins.my_mark", None)
        registry.discover.cache_clear()
        sources.forget()

    def execute(code):
        plugin.write_text(code)
        forget()
        try:
            done, _, told = go(text)
        finally:
            forget()
        assert done == 0, told
        return told

    def kinds():
        import json

        return [json.loads(json.loads(line)["entry"])["kind"] for line in (tmp_path / "out/journal.jsonl").open()]

    execute(mine)
    before = kinds()
    execute(mine.replace("# ", "# Another comment. ", 1))
    assert kinds() == before
    execute(mine.replace('{"bit_error": error_rate}', '{"bit_error": error_rate, "more": 1.0}'))
    again = kinds()[len(before) :]
    # Judged: the model and the pruned ones, the same two of the clean model, and scratch, which serves both.
    assert again == ["judge"] * 5
    execute(mine.replace('reduction="sum"', 'reduction="mean"'))
    third = kinds()[len(before) + len(again) :]
    assert sorted(set(third)) == ["attack", "judge", "measure", "protect"]
    assert third.count("protect") == 1
    assert third.count("attack") == 2
    assert "source" not in execute(mine.replace('reduction="sum"', 'reduction="mean"'))
