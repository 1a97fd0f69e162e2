"""Submissions: packed the same every time, refused for every reason, shown as what they are and never as ours."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.attack import AttackClass, Knowledge, TimeModel
from bench.commands import submitting
from bench.commands.cli import main
from bench.errors import InputError
from bench.planning.job import Status
from bench.plugin import ACCESSES
from bench.publishing import agreement, archive, declared, figures, folder, intake, numbers, sets, submission
from bench.tables import origins, records, schema
from tests.synthetic import HELD, LOST, Suite, replaced

ROOT = Path(__file__).parent.parent
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>"
Members = dict[str, bytes]


def example(seeds: int = 2, strength: float = LOST, **values: Any) -> Suite:
    """Defenses with a removal, a control, a forgery, decoys and a failure each."""
    suite = Suite(**values)
    for seed in range(seeds):
        nothing: dict[str, Any] = {"log10_p": 0.0, "reason": "nothing", "capacity": 0.0, "defense_access": "none"}
        suite.base("bare", seed=seed, protected=0.98, **nothing)
        for name in ("soft", "hard"):
            suite.base(name, seed=seed)
            suite.yardstick(name, seed=seed)
            held = HELD if name == "hard" else strength
            suite.cell(name, "wear", seed=seed, log10_p=[HELD, held], accuracy=[0.96, 0.95], attack_params={"k": 2})
            suite.cell(name, "wear", kind="control", seed=seed, log10_p=[-1.0, -2.0], accuracy=[0.9, 0.9])
            suite.cell(name, "draw", kind="ambiguity", seed=seed, decoys=[-0.3, -1.2, -2.5, -2.5])
        broken = suite.cell("hard", "copy", seed=seed, cls="extraction")
        suite.fail(broken.jobs["attack"], "out of luck")
        suite.cell("soft", "copy", seed=seed, cls="extraction", status="not applicable")
    for entry in suite.entries.values():
        # Nobody submits what will be run one day.
        entry["created_at"] = entry["created_at"].replace("2030", "2024")
    return suite


def saved(suite: Suite, path: Path) -> Path:
    """A folder with what a run leaves of its records."""
    path.mkdir(parents=True)
    for name, table in zip(("records", "decoys"), records.build(suite.plan, suite.entries), strict=True):
        records.write(table, path / f"{name}.parquet")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(example(), tmp_path_factory.mktemp("run") / "toy-run")


@pytest.fixture(scope="module")
def good(run: Path) -> Members:
    """The members of an archive that is accepted, without its manifest."""
    return submission.members(run)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take most of the time; they depend on nothing but the tables."""
    monkeypatch.setattr(figures, "draw", lambda leaderboard, matrix: {})


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks in this process, which saves the start of another for each archive."""
    monkeypatch.setattr(
        submitting, "_check", lambda path, origin, to: submitting.store(submission.checked(path), origin, to)
    )


def invoked(*arguments: Any, code: int = 0) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return str(done.output)


def refused(content: bytes, tmp_path: Path) -> str:
    """Why an archive is refused."""
    (tmp_path / "sent.zip").write_bytes(content)
    with pytest.raises(InputError) as caught:
        submission.checked(tmp_path / "sent.zip")
    return str(caught.value)


def zipped(members: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as made:
        for name, content in members:
            made.writestr(name, content)
    return sink.getvalue()


def whole(members: Members) -> list[tuple[str, bytes]]:
    """All members of the archive that would be made of these."""
    with zipfile.ZipFile(io.BytesIO(archive.packed(members))) as made:
        return [(name, made.read(name)) for name in made.namelist()]


def edited(members: Members, change: Callable[[pa.Table], pa.Table], kind: str = "records") -> Members:
    """The members with one table changed and everything else as it was."""
    table = pq.ParquetFile(io.BytesIO(members[f"{kind}.parquet"])).read()
    return {**members, f"{kind}.parquet": records.to_bytes(change(table))}


def put(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A change of one value."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        place = table.schema.get_field_index(column)
        return table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))

    return change


def stated(name: str, value: str) -> Callable[[pa.Table], pa.Table]:
    """A change of the metadata."""
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, f"ownbench.{name}".encode(): value})


def test_a_run_is_packed_accepted_and_shown_under_its_origin(run: Path, tmp_path: Path, undrawn: None) -> None:
    ours = saved(example(seeds=1, strength=HELD), tmp_path / "ours")
    place = tmp_path / "set"
    invoked("publish", ours, "--to", place)
    before = sets.gather([ours])
    told = invoked("pack", run, "--to", tmp_path / "lab-x.zip")
    assert hashlib.sha256((tmp_path / "lab-x.zip").read_bytes()).hexdigest() in told
    assert "tracebacks" in told
    # The one test that starts the process of the command.
    assert f"accepted from lab-x: {place / 'submissions' / 'lab-x'}" in invoked(
        "accept", tmp_path / "lab-x.zip", "--to", place
    )
    found = sets.gather([place])
    assert set(found.leaderboard["defense"].to_pylist()) == {
        *("bare", "hard", "soft"),
        *("bare@lab-x", "hard@lab-x", "soft@lab-x"),
    }
    assert [row for row in found.matrix.to_pylist() if "@" not in row["defense"]] == before.matrix.to_pylist()
    assert "soft@lab-x" in (place / "LEADERBOARD.md").read_text()
    assert "Submitted by others and not run again here: what bears @lab-x" in (place / "LEADERBOARD.md").read_text()
    page = (place / "index.html").read_text()
    assert "soft@lab-x" in page and "submitted by lab-x, not run again here" in page
    assert "soft@lab-x" in invoked("leaderboard", place)
    about = json.loads((place / "submissions" / "lab-x" / "submission.json").read_text())
    assert about["origin"] == "lab-x" and about["sha256"] in told
    kept = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert "as it was" in invoked("accept", tmp_path / "lab-x.zip", "--to", place)
    assert kept == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_packing_the_same_run_twice_gives_the_same_bytes_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    invoked("pack", run, "--to", tmp_path / "a.zip")
    again = saved(example(), tmp_path / "elsewhere" / "copy")
    time.sleep(0.01)
    invoked("pack", again, "--to", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert "as it was" in invoked("pack", again, "--to", tmp_path / "b.zip")


def test_a_published_set_is_packed_like_the_run_it_is_of(
    run: Path, good: Members, tmp_path: Path, undrawn: None
) -> None:
    folder.write(folder.files(sets.gather([run])), tmp_path / "set")
    assert submission.members(tmp_path / "set") == good


def test_an_archive_holds_records_suite_environment_and_digests_and_nothing_compressed(good: Members) -> None:
    with zipfile.ZipFile(io.BytesIO(archive.packed(good))) as made:
        assert made.namelist() == sorted(archive.MEMBERS)
        assert {info.compress_type for info in made.infolist()} == {zipfile.ZIP_STORED}
        manifest = json.loads(made.read("manifest.json"))
        suite, environment = json.loads(made.read("suite.json")), json.loads(made.read("environment.json"))
    assert manifest["members"]["records.parquet"] == {
        "sha256": hashlib.sha256(good["records.parquet"]).hexdigest(),
        "size": len(good["records.parquet"]),
    }
    assert [one["defense"] for one in suite["defenses"]] == ["bare", "hard", "soft"]
    assert (suite["alpha"], suite["seeds"]) == (1e-6, [0, 1])
    assert sum(one["records"] for one in environment["environments"]) == 34
    assert {"torch": "2.13", "python": "3.11"} in [one["versions"] for one in environment["environments"]]


def test_what_a_plan_says_of_training_is_sent_with_a_run_folder(tmp_path: Path) -> None:
    suite = example(seeds=1)
    run = saved(suite, tmp_path / "run")
    plan = suite.plan
    for job in plan.jobs.values():
        job.spec["task"] = {"dataset": "toy-set", "recipe": {"epochs": 3}}
    (run / "run.json").write_text(json.dumps({"schema_version": 1, "run_id": "run1"}))
    (run / "plan.json").write_text(json.dumps(plan.to_json()))
    found = submission.members(run)
    planned = json.loads(found["suite.json"])["planned"]
    assert planned["tasks"] == [{"dataset": "toy-set", "recipe": {"epochs": 3}}]
    assert (planned["seeds"], planned["threads"]) == ([0], 1)
    (tmp_path / "a.zip").write_bytes(archive.packed(found))
    assert submission.checked(tmp_path / "a.zip").suite["planned"] == planned


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda suite: replaced(suite, suite.cells[2], defense="so ft", defense_label="so ft"), "label of defense"),
        (lambda suite: replaced(suite, suite.cells[2], attack_family="\x1b[2J"), "column attack_family"),
        (lambda suite: suite.entries[suite.cells[2].jobs["measure"]]["result"].update(accuracy=[1.5]), "accuracy"),
    ],
)
def test_a_run_that_would_not_be_accepted_is_not_packed(
    change: Callable[[Suite], Any], told: str, tmp_path: Path
) -> None:
    suite = example(seeds=1)
    change(suite)
    message = invoked("pack", saved(suite, tmp_path / "run"), "--to", tmp_path / "a.zip", code=2)
    assert "would not be accepted" in message and told in message
    assert not (tmp_path / "a.zip").exists()


def named(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ([("../../evil.txt", b"x")], r"'../../evil.txt': expected a plain name, got one that leads outside"),
        ([("records.parquet/../../x", b"x")], "leads outside"),
        ([("/etc/passwd", b"x")], "got an absolute path"),
        ([("C:evil.txt", b"x")], "got an absolute path"),
        ([("..\\evil.txt", b"x")], "got an absolute path or one of another system"),
        ([("model.pkl", pickle.dumps({"a": 1}))], "member 'model.pkl': not expected; known: decoys.parquet"),
        ([("index.html", b"<script>")], "'index.html': not expected"),
        ([("\x1b[31mred", b"x")], r"'\\x1b\[31mred': not expected"),
        ([("records.parquet\0.txt", b"x")], "not expected"),
    ],
)
def test_members_that_are_not_known_are_refused(
    good: Members, tmp_path: Path, extra: list[tuple[str, bytes]], told: str
) -> None:
    known = whole(good)
    if "\0" in extra[0][0]:
        known = [(name, content) for name, content in known if name != "records.parquet"]
        made = zipped([*known, ("records.parquetX.txt", b"x")]).replace(b"parquetX", b"parquet\0")
    else:
        made = zipped([*known, *extra])
    message = refused(made, tmp_path)
    assert re.search(told, message), message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sent.zip"]


def test_a_link_is_refused(good: Members, tmp_path: Path) -> None:
    known = [one for one in whole(good) if one[0] != "decoys.parquet"]
    link = (named("decoys.parquet", stat.S_IFLNK | 0o777), b"/etc/passwd")
    assert "expected a file, got a link" in refused(zipped([*known, link]), tmp_path)
    pipe = (named("decoys.parquet", stat.S_IFIFO | 0o644), b"")
    assert "got something else" in refused(zipped([*known, pipe]), tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice_and_a_member_that_lacks_are_refused(good: Members, tmp_path: Path) -> None:
    known = whole(good)
    assert "'suite.json': expected once, got 2" in refused(zipped([*known, ("suite.json", b"{}")]), tmp_path)
    assert "missing decoys.parquet" in refused(zipped(known[1:]), tmp_path)
    many = [(f"{place}.txt", b"") for place in range(60_000)]
    assert re.search("larger directory|members, got 6", refused(zipped(many), tmp_path))


def peak(script: str, *arguments: Any) -> tuple[str, float, float]:
    """What a script in a process of its own prints, its seconds, and the most megabytes that it held beside imports."""
    code = "import resource, sys\nfrom pathlib import Path\nfrom bench.publishing import submission\n"
    code += "def held(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\nbefore = held()\n" + script
    code += "\nprint(held() - before)"
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    *lines, last = done.stdout.strip().splitlines()
    return "\n".join(lines), time.monotonic() - start, float(last)


REFUSE = "try: submission.checked(Path(sys.argv[1]))\nexcept Exception as error: print(type(error).__name__, error)"


def test_a_zip_bomb_is_refused_before_a_byte_of_it_is_unpacked(good: Members, tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in whole(good):
            made.writestr(name, content if name != "decoys.parquet" else bytes(64 * 2**20))
    bomb = sink.getvalue()
    # 64 MB of zeros that the directory says to be 4 GB.
    size = struct.pack("<L", 64 * 2**20)
    assert bomb.count(size) == 2 and len(bomb) < 2**20
    (tmp_path / "bomb.zip").write_bytes(bomb.replace(size, struct.pack("<L", 2**32 - 2**20)))
    told, seconds, megabytes = peak(REFUSE, tmp_path / "bomb.zip")
    assert told.startswith("InputError") and "expected members that are not compressed" in told
    assert "to 4,293,918,720" in told
    assert megabytes < 20


def test_a_parquet_bomb_is_refused_with_little_memory(good: Members, tmp_path: Path) -> None:
    # One text of 150,000 signs in 300,000 rows: 45 GB when written out, some kB as it is sent.
    rows = 300_000
    columns = {field.name: pa.nulls(rows, field.type) for field in schema.RECORDS}
    columns["traceback"] = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), ["x" * 150_000])
    meta = pq.ParquetFile(io.BytesIO(good["records.parquet"])).schema_arrow.metadata
    table, sink = pa.table(columns), io.BytesIO()
    # As text, and not as the words of a dictionary that it was here.
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key.decode(): value.decode() for key, value in meta.items()})
    assert len(sink.getvalue()) < 2**20
    (tmp_path / "bomb.zip").write_bytes(archive.packed({**good, "records.parquet": sink.getvalue()}))
    told, _, megabytes = peak(REFUSE, tmp_path / "bomb.zip")
    assert "column traceback: expected texts of at most" in told
    assert megabytes < 1500


def test_what_takes_more_memory_than_the_process_of_the_check_has_is_refused(good: Members, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive.packed(good))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from bench.commands import confined\nfrom bench.publishing import submission\n"
        "def greedy(path): return bytearray(2**40)\nsubmission.checked = greedy\n"
        "sys.exit(confined.main(Path(sys.argv[1]), 'lab', Path(sys.argv[2])))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "a.zip"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == submitting.REFUSED
    assert "reading it takes more than" in done.stdout


def test_a_check_that_crashes_is_a_refusal(good: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab.zip").write_bytes(archive.packed(good))

    def crashed(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], -11, "", "Fatal Python error: Segmentation fault")

    monkeypatch.setattr(subprocess, "run", crashed)
    told = invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set", code=2)
    assert "ended with -11 and no verdict" in told
    assert list((tmp_path / "set" / "submissions").iterdir()) == []


def test_sizes_and_headers_that_lie_are_refused(good: Members, tmp_path: Path) -> None:
    made = archive.packed(good)
    size = struct.pack("<L", len(good["decoys.parquet"]))
    central = made.index(b"PK\x01\x02")
    directory = made[central:]
    assert directory.count(size + size) == 1
    larger = struct.pack("<L", len(good["decoys.parquet"]) + 999)
    one = directory.replace(size + size, size + larger)
    assert "decoys.parquet': expected one size" in refused(made[:central] + one, tmp_path)
    both = directory.replace(size + size, larger + larger)
    assert "expected nothing but its members" in refused(made[:central] + both, tmp_path)
    renamed = made[:central].replace(b"decoys.parquet", b"decoys.parqueT", 1) + directory
    assert "differ" in refused(renamed, tmp_path)
    streamed = directory.replace(b"PK\x01\x02" + directory[4:8] + b"\0\0", b"PK\x01\x02" + directory[4:8] + b"\1\0", 1)
    assert "encrypted" in refused(made[:central] + streamed, tmp_path)
    for wrong in (made + b"\0", b"#!/bin/sh\n" + made, made[:-2] + b"\1\0x"):
        assert re.search("nothing after its end|nothing but its members|comment", refused(wrong, tmp_path))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_an_archive_that_is_cut_off_or_has_other_content_is_refused(
    good: Members, tmp_path: Path, data: st.DataObject
) -> None:
    made = archive.packed(good)
    place = data.draw(st.integers(0, len(made) - 1))
    refused(made[:place], tmp_path)
    # Headers have bytes that nothing depends on, such as the time: then the members are what they were.
    other = made[:place] + bytes([made[place] ^ data.draw(st.integers(1, 255))]) + made[place + 1 :]
    (tmp_path / "sent.zip").write_bytes(other)
    try:
        found = archive.unpacked(tmp_path / "sent.zip")
    except InputError:
        return
    assert found == dict(whole(good))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip" * 100, b"\x80\x04\x95" + bytes(100)])
def test_what_is_no_zip_is_refused(content: bytes, tmp_path: Path) -> None:
    assert "expected a zip archive" in refused(content, tmp_path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.zip", tmp_path):
        with pytest.raises(InputError, match=re.escape(str(path))):
            submission.checked(path)


def test_a_pickle_under_the_name_of_a_table_is_not_read(good: Members, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    message = refused(archive.packed({**good, "records.parquet": pickle.dumps(Evil())}), tmp_path)
    assert "records.parquet: expected Parquet that can be read" in message
    assert not (tmp_path / "made").exists()


def test_digests_that_do_not_fit_are_refused(good: Members, tmp_path: Path) -> None:
    other = [(name, b"{}" if name == "suite.json" else content) for name, content in whole(good)]
    assert "'suite.json': not what manifest.json gives" in refused(zipped(other), tmp_path)
    for wrong in (b"[]", b"{}", b"nonsense", b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"format": NaN}'):
        other = [(name, wrong if name == "manifest.json" else content) for name, content in whole(good)]
        assert "manifest.json: expected" in refused(zipped(other), tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns(["attack"]), "records.parquet: missing the columns attack"),
        (lambda table: table.append_column("extra", pa.nulls(table.num_rows, pa.string())), "no column 'extra'"),
        (
            lambda table: table.set_column(7, "seed", table["seed"].cast(pa.float64())),
            "column seed: expected the type int64, got double",
        ),
        (
            lambda table: table.set_column(8, "defense", table["defense"].cast(pa.binary())),
            "column defense: expected the type string, got binary",
        ),
        (stated("schema_version", "99"), "expected schema version"),
        (stated("schema_version", "x"), "expected a schema version"),
        (stated("alpha", "2.0"), r"expected alpha in \(0, 1\), got 2.0"),
        (stated("alpha", "nan"), r"expected alpha in \(0, 1\), got nan"),
        (stated("suite", "digits; rm -rf ~"), "expected a name as suite"),
        (stated("created_at", "2999-01-01T00:00:00+00:00"), "expected a time with its zone from 2020 until now"),
        (stated("labels", "[]"), "labels: expected an object"),
        (stated("labels", '{"attack": {}, "defense": {"soft {}": "hard"}}'), "label of defense: expected its name"),
        (stated("labels", '{"attack": {"evil {}": "wear"}, "defense": {}}'), "label of attack: expected its name"),
        (stated("labels", '{"attack": {}, "defense": {"soft {}": "soft[\\u001b[2J]"}}'), "label of defense"),
    ],
)
def test_a_wrong_schema_is_refused(
    good: Members, tmp_path: Path, change: Callable[[pa.Table], pa.Table], told: str
) -> None:
    message = refused(archive.packed(edited(good, change)), tmp_path)
    assert re.search(told, message), message


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("claim", False, "column claim: expected what log10_p and alpha 1e-06 give, got True|got False"),
        ("log10_p", -5.0, "column claim"),
        ("log10_p", 0.5, "column log10_p: expected a number from -inf to 0, got 0.5"),
        ("log10_p", math.nan, "column log10_p: expected a number"),
        ("log10_p", None, "column log10_p: expected a value where the status is ok"),
        ("accuracy", 1.5, "column accuracy: expected a number from 0 to 1, got 1.5"),
        ("accuracy", math.inf, "column accuracy"),
        ("accuracy_clean", -0.1, "column accuracy_clean"),
        ("statistic", math.nan, "column statistic"),
        ("seconds", -1.0, "column seconds"),
        ("status", "perfect", "column status: expected one of 'ok'"),
        ("status", "failed", "column accuracy: expected nothing where the status is not ok"),
        ("attack_kind", "hug", "column attack_kind"),
        ("defense", "soft@ours", "column defense: expected a name of letters"),
        ("defense", "soft\n", "column defense: expected signs that are printed"),
        ("defense", HOSTILE, "column defense: expected a name of letters"),
        ("suite", "a; rm -rf ~", "column suite: expected a name of letters"),
        ("task", "\x1b]0;evil\x07", "column task: expected signs that are printed"),
        ("task", "evil\u202etxt", "column task: expected signs that are printed"),
        ("task", "t" * 501, "column task: expected at most 500 characters, got 501"),
        ("defense_params", "{", "column defense_params: expected an object as canonical JSON"),
        ("defense_params", "[" * 9_000, "column defense_params: expected an object as canonical JSON"),
        ("created_at", 4_000_000_000_000_000, "column created_at: expected a time from 2020 until now"),
        ("attack_class", "extraction", "column attack_class: expected one value for soft"),
        ("defense_family", "others", "column defense_family: expected one value"),
        ("dataset", "other-set", "expected one value|with dataset"),
        ("data_digest", "d2", "task toy with data_digest"),
        ("run_id", "run1@ours", "column run_id: expected a name"),
        ("figures", [("log10_p_floor", 3.0)], "column figures: expected log10_p_floor from -inf to 0"),
        ("figures", [("compression", 1e12)], "column figures: expected compression from 0 to 1e\\+09"),
        ("seed", None, "column seed: expected a value"),
    ],
)
def test_impossible_numbers_are_refused_naming_row_and_column(
    good: Members, tmp_path: Path, column: str, value: Any, told: str
) -> None:
    table = pq.ParquetFile(io.BytesIO(good["records.parquet"])).read()
    rows = table.select(["defense", "attack", "attack_kind"]).to_pylist()
    row = rows.index({"defense": "soft", "attack": "wear", "attack_kind": "removal"})
    message = refused(archive.packed(edited(good, put(column, row, value))), tmp_path)
    assert re.search(told, message), message


def test_a_number_of_the_records_edited_alone_shows_in_the_tables_that_follow(good: Members, tmp_path: Path) -> None:
    table = pq.ParquetFile(io.BytesIO(good["records.parquet"])).read()
    row = next(i for i, one in enumerate(table.to_pylist()) if one["attack"] == "wear" and one["defense"] == "soft") + 1
    message = refused(archive.packed(edited(good, put("accuracy", row, 0.5))), tmp_path)
    assert re.search(r"leaderboard.parquet: row 2 \(soft\), column worth: expected 6.0, .* got 1.0", message), message


@pytest.mark.parametrize(
    ("kind", "column", "value"),
    [
        ("leaderboard", "price", 99.0),
        ("leaderboard", "claims", 7),
        ("leaderboard", "calibration", "reliable"),
        ("matrix", "verdict", "survived"),
        ("matrix", "log10_p_min", -99.0),
        ("matrix", "defense_label", "best"),
    ],
)
def test_an_edited_leaderboard_is_refused_naming_row_and_column(
    good: Members, tmp_path: Path, kind: str, column: str, value: Any
) -> None:
    table = pq.ParquetFile(io.BytesIO(good[f"{kind}.parquet"])).read()
    row = next(i for i, one in enumerate(table.to_pylist()) if one["defense"] == "soft" and one[column] != value)
    message = refused(archive.packed(edited(good, put(column, row, value), kind)), tmp_path)
    assert re.search(rf"{kind}.parquet: row {row + 1} \(soft.*\), column {column}: expected .*, got ", message), message
    fewer = edited(good, lambda table: table.slice(1), kind)
    assert "rows as the records give" in refused(archive.packed(fewer), tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("log10_p", 0, -3.0), "log10_p: expected"),
        (put("log10_p", 0, 1.0), "column log10_p: expected a number"),
        (put("log10_p", 1, -0.1), "share_1e-1: expected"),
        (put("decoy", 0, 9), "column decoy: expected 0 to 3, each once"),
        (put("seed", 0, 5), "column seed: expected 0"),
        (put("job_id", 0, "other"), "expected 0 to|no record is of its decoys|decoys: expected"),
        (lambda table: table.slice(4), "expected the decoys of job"),
        (lambda table: table.slice(1), "each once"),
        (lambda table: pa.concat_tables([table, put("log10_p", 0, -9.0)(table.slice(0, 1))]), "each once"),
    ],
)
def test_decoys_that_do_not_fit_their_record_are_refused(
    good: Members, tmp_path: Path, change: Callable[[pa.Table], pa.Table], told: str
) -> None:
    message = refused(archive.packed(edited(good, change, "decoys")), tmp_path)
    assert re.search(told, message), message


@pytest.mark.parametrize("name", ["suite.json", "environment.json"])
def test_a_suite_or_an_environment_that_the_records_do_not_say_is_refused(
    good: Members, tmp_path: Path, name: str
) -> None:
    other = {**json.loads(good[name]), "note": "trust me"}
    assert f"{name}: 'note': expected what the records say" in refused(
        archive.packed({**good, name: archive.as_json(other)}), tmp_path
    )


def test_more_cells_than_a_page_can_draw_are_refused(
    good: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, told in (("CELLS", "at most 9 cells, got 1"), ("DEFENSES", "at most 2 defenses with parameters, got 3")):
        with monkeypatch.context() as patched:
            patched.setattr(agreement, limit, int(told.split()[2]))
            assert told in refused(archive.packed(good), tmp_path)


def test_a_claim_under_a_control_that_shows_as_much_is_no_claim(good: Members, tmp_path: Path) -> None:
    table = pq.ParquetFile(io.BytesIO(good["records.parquet"])).read()
    row = next(i for i, one in enumerate(table.to_pylist()) if one["claim"])
    message = refused(archive.packed(edited(good, put("figures", row, [("control.log10_p", -99.0)]))), tmp_path)
    assert re.search(f"row {row + 1}, column claim", message), message


def test_scripts_in_texts_are_accepted_as_texts_and_shown_as_texts(
    tmp_path: Path, undrawn: None, unconfined: None
) -> None:
    suite = example(seeds=1)
    for cell in list(suite.cells):
        inside = f"x={HOSTILE}](http://evil.example)[y]"
        labels = {"defense_label": f"{cell.defense}[{inside}", "attack_label": f"{cell.attack}[{inside}"}
        replaced(suite, cell, **labels, defense_family=HOSTILE, error=HOSTILE if cell.error else None)
    broken = next(cell for cell in suite.cells if cell.attack == "copy" and cell.status == "ok")
    suite.fail(broken.jobs["attack"], f"{HOSTILE}\x1b[2J ``` {folder.END}")
    run = saved(suite, tmp_path / "run")
    invoked("pack", run, "--to", tmp_path / "lab.zip")
    invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set")
    page, board = ((tmp_path / "set" / name).read_text() for name in ("index.html", "LEADERBOARD.md"))
    assert "alert(1)" in page and "alert(1)" in board
    assert "<script>alert" not in page and "<img" not in page
    assert page.count("<script") == 2
    assert "<" not in board
    assert "](http" not in board and "evil.example" in board
    assert "\x1b" not in page + board + invoked("leaderboard", tmp_path / "set")
    readme = tmp_path / "README.md"
    readme.write_text(f"{folder.BEGIN}\n{folder.END}\n")
    assert folder.into_readme(readme, sets.gather([tmp_path / "set"]))
    assert not folder.into_readme(readme, sets.gather([tmp_path / "set"]))
    assert readme.read_text().count("```") == 2
    for name in (HOSTILE, "../up", "a/b", "", ".", "-x", "A", "a" * 25):
        told = invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set", f"--origin={name}", code=2)
        assert "--origin: expected 1 to 24" in told
    assert [path.name for path in (tmp_path / "set" / "submissions").iterdir()] == ["lab"]


def test_no_row_of_ours_is_another_beside_a_submission_of_the_same_jobs(
    tmp_path: Path, undrawn: None, unconfined: None
) -> None:
    # Their jobs have our ids, a later time, better numbers, no seconds, and other devices.
    theirs = example(strength=HELD)
    for entry in theirs.entries.values():
        entry |= {"created_at": entry["created_at"].replace("T00", "T05"), "seconds": 0.001, "device": "magic"}
    ours = saved(example(), tmp_path / "ours")
    (tmp_path / "lab.zip").write_bytes(archive.packed(submission.members(saved(theirs, tmp_path / "theirs"))))
    before = sets.gather([ours])
    folder.write(folder.files(before), tmp_path / "set")
    alone = invoked("game", tmp_path / "set", "--format", "json")
    invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set")
    after = sets.gather([tmp_path / "set"])
    for name in ("records", "decoys", "leaderboard", "matrix"):
        kept = [row for row in getattr(after, name).to_pylist() if "@" not in row["defense"]]
        assert kept == getattr(before, name).to_pylist(), name
    assert after.records.num_rows == 2 * before.records.num_rows
    assert after.decoys.num_rows == 2 * before.decoys.num_rows
    beside = invoked("game", tmp_path / "set", "--format", "json")
    games = [[one["games"] for one in json.loads(told)["games"]] for told in (alone, beside)]
    assert games[0] == games[1] and any(games[0])
    told = invoked("game", tmp_path / "set")
    assert "Left out: hard@lab (submitted by lab, not run here)" in told


def test_labels_of_attacks_are_ours_where_a_submission_has_others(
    tmp_path: Path, undrawn: None, unconfined: None
) -> None:
    theirs = example(seeds=1)
    for cell in list(theirs.cells):
        replaced(theirs, cell, attack_label=f"{cell.attack}[harmless]")
    ours = saved(example(seeds=1), tmp_path / "ours")
    (tmp_path / "lab.zip").write_bytes(archive.packed(submission.members(saved(theirs, tmp_path / "theirs"))))
    invoked("publish", ours, "--to", tmp_path / "set")
    invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set")
    found = sets.gather([tmp_path / "set"])
    assert not [label for label in found.matrix["attack_label"].to_pylist() if "harmless" in label]


def test_another_archive_replaces_no_submission_and_publishing_without_one_says_so(
    run: Path, tmp_path: Path, undrawn: None, unconfined: None
) -> None:
    place = tmp_path / "set"
    for name, suite in (("one", example(seeds=1)), ("two", example(seeds=2))):
        (tmp_path / f"{name}.zip").write_bytes(archive.packed(submission.members(saved(suite, tmp_path / name))))
    invoked("accept", tmp_path / "one.zip", "--to", place, "--origin", "lab")
    before = (place / "submissions" / "lab" / "records.parquet").read_bytes()
    told = invoked("accept", tmp_path / "two.zip", "--to", place, "--origin", "lab", code=2)
    assert "another submission of this origin is there; nothing is replaced" in told
    assert (place / "submissions" / "lab" / "records.parquet").read_bytes() == before
    invoked("accept", tmp_path / "two.zip", "--to", place)
    assert set(origins.origins(sets.gather([place]).records)) == {"lab", "two"}
    told = invoked("publish", run, place / "submissions" / "lab", "--to", place)
    assert f"{place / 'submissions' / 'two'} is not in this set any more" in told
    assert "submissions/lab is not" not in told
    assert set(origins.origins(sets.gather([place]).records)) == {None, "lab"}


def test_a_submission_under_another_protocol_is_refused_and_leaves_nothing(
    tmp_path: Path, undrawn: None, unconfined: None
) -> None:
    theirs = saved(example(seeds=1, alpha=1e-3), tmp_path / "theirs")
    (tmp_path / "lab.zip").write_bytes(archive.packed(submission.members(theirs)))
    invoked("publish", saved(example(seeds=1), tmp_path / "ours"), "--to", tmp_path / "set")
    before = {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    told = invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set", code=2)
    assert "got alpha 1e-06 and 0.001" in told
    assert {path: path.read_bytes() for path in (tmp_path / "set").iterdir() if path.is_file()} == before
    assert list((tmp_path / "set" / "submissions").iterdir()) == []


def test_rows_of_others_are_not_packed_as_ones_own(
    run: Path, good: Members, tmp_path: Path, undrawn: None, unconfined: None
) -> None:
    (tmp_path / "lab.zip").write_bytes(archive.packed(good))
    invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set")
    told = invoked("pack", tmp_path / "set", "--to", tmp_path / "mine.zip", code=2)
    assert "expected runs of one's own, got rows that lab submitted" in told


def test_a_submission_is_compared_with_our_rows_under_the_names_that_it_came_with(
    run: Path, good: Members, tmp_path: Path, undrawn: None, unconfined: None
) -> None:
    (tmp_path / "lab.zip").write_bytes(archive.packed(good))
    invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set")
    told = json.loads(invoked("compare", run, tmp_path / "set" / "submissions" / "lab", "--format", "json"))
    assert told["counts"]["missing in A"] == told["counts"]["missing in B"] == 0
    assert told["counts"]["same"] == sum(told["counts"].values()) > 0


def test_a_cell_of_a_submission_names_the_command_by_which_anybody_runs_it(
    good: Members, tmp_path: Path, undrawn: None, unconfined: None
) -> None:
    from bench.publishing.content import content

    (tmp_path / "lab.zip").write_bytes(archive.packed(good))
    invoked("accept", tmp_path / "lab.zip", "--to", tmp_path / "set")
    (task,) = content(sets.gather([tmp_path / "set"]))["tasks"]
    only = task["defenses"]["columns"]["only"]["values"]
    assert sorted(only) == ["--only defense=bare", "--only defense=hard", "--only defense=soft"]


def test_an_archive_of_an_older_schema_is_migrated(good: Members, tmp_path: Path) -> None:
    before = {"records": ["time_model", "derived"], "decoys": [], "matrix": [], "leaderboard": []}
    before["leaderboard"] = ["forgeries_withstood_committed", "forgeries_withstood_derived", "calibration", "worth"]
    before["matrix"] = ["time_model", "forged", "forged_committed", "forged_derived"]
    before["matrix"] += ["compression", "compression_indexed"]
    older = dict(good)
    for kind, gone in before.items():
        older = edited(older, lambda table, gone=gone: stated("schema_version", "2")(table.drop_columns(gone)), kind)
    (tmp_path / "a.zip").write_bytes(archive.packed(older))
    found = submission.checked(tmp_path / "a.zip")
    assert found.records.schema.names == schema.RECORDS.names
    assert pc.all(pc.is_null(found.records["derived"])).as_py()


@pytest.mark.parametrize(
    ("label", "fits"),
    [("uchida & trigger-set[mode=a]", True), ("uchida", False), ("uchida & other", False), ("a & b & c", False)],
)
def test_the_label_of_a_pair_is_made_of_those_of_its_members(label: str, fits: bool) -> None:
    known = 'pair {"pair":[{"name":"uchida"},{"name":"trigger-set"}]}'
    assert declared._is_of(label, "defense", known) is fits
    assert not declared._is_of(label, "attack", known)


def test_a_pair_that_was_submitted_keeps_its_label_with_the_origin_behind_it(tmp_path: Path) -> None:
    suite = example()
    members = [{"name": "uchida"}, {"name": "trigger-set"}]
    cell = suite.base("pair", defense_params={"pair": members}, seed=0)
    label = "uchida & trigger-set"
    replaced(suite, cell, defense_label=label)
    table = suite.records
    marked = origins.marked(table, "lab")
    known = {one for one in recorded_labels(marked) if "pair" in one}
    assert {recorded_labels(marked)[one] for one in known} == {f"{label}@lab"} and known == {
        one.replace("pair ", "pair@lab ", 1) for one in recorded_labels(table) if one.startswith("pair ")
    }
    assert origins.plain_label({"defense": "pair@lab", "defense_label": f"{label}@lab"}) == label
    assert recorded_labels(origins.unmarked(marked)) == recorded_labels(table)


def recorded_labels(table: pa.Table) -> dict[str, str]:
    return records.labels(table)["defense"]


def test_the_words_are_those_of_the_contracts() -> None:
    assert set(numbers.WORDS["attack_class"]) == {*get_args(AttackClass), ""}
    assert set(numbers.WORDS["knowledge"]) == set(get_args(Knowledge))
    assert set(numbers.WORDS["time_model"]) == set(get_args(TimeModel))
    assert set(numbers.WORDS["status"]) == set(get_args(Status))
    assert set(numbers.WORDS["defense_access"]) == set(ACCESSES)


@pytest.mark.parametrize("name", ["shapes", "passports", "pairs"])
def test_committed_sets_pass_every_check(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive.packed(submission.members(ROOT / "results" / name)))
    found = submission.checked(tmp_path / "a.zip")
    assert found.records.equals(records.read(ROOT / "results" / name / "records.parquet"))


@given(st.text(st.sampled_from("ab[]=,@. -"), max_size=12), st.sampled_from(["lab", "a.b-c"]))
def test_a_label_without_its_origin_is_the_label_that_was_submitted(inside: str, origin: str) -> None:
    label = f"soft[{inside}]" if inside else "soft"
    row = {"defense": f"soft@{origin}", "defense_label": f"soft@{origin}{label[4:]}"}
    assert origins.plain_label(row) == label
    assert origins.origin_of(row["defense"]) == origin
    assert origins.plain_label({"defense": "soft", "defense_label": label}) == label


def test_no_plugin_has_a_name_that_an_origin_could_be_read_from() -> None:
    from bench import registry

    found = registry.discover()
    names = [*found.of("defense"), *found.of("attack")]
    assert names and all(numbers.NAME.fullmatch(name) and origins.origin_of(name) is None for name in names)
    assert intake.ROWS >= 1_000_000
