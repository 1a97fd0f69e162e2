"""Runs on real workers that are really killed: what finished is not redone, and the rows are the same bit for bit."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest
from click.testing import CliRunner
from test_end_to_end import PLUGINS, comparable, rows, suite_text

from bench.commands.cli import main

DEFENSES = [
    'name = "uchida"\nbits = 16\nstrength = 0.1',
    'name = "trigger-set"\ntriggers = 16\nold_head = true',
]
ATTACKS = [
    'name = "scratch"\nepochs = 2',
    'name = "fine-tune"\nepochs = 4\nevery = 2',
    'name = "magnitude-prune"\nfractions = [0.5, 0.99]',
    'name = "distill"\nepochs = 2\nevery = 1',
    'name = "random-key"\ndecoys = 50',
]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "small.toml"
    path.write_text(suite_text(DEFENSES, ATTACKS, epochs=3))
    return path


@pytest.fixture
def start():
    """`ownbench run` in a process group of its own; one that still runs when its test ends, is ended with its group."""
    begun = []

    def run(path, out, *options):
        command = [sys.executable, "-m", "bench", "run", str(path), "--out", str(out), "--device", "cpu", *options]
        env = {**os.environ, "OWNBENCH_PLUGINS": str(PLUGINS), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process, timeout=240):
    told, _ = process.communicate(timeout=timeout)
    return process.returncode, told


def journal(out):
    """The whole lines of a journal that may be growing."""
    path = out / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(json.loads(line)["entry"]) for line in lines]


def wait_for(out, count, process, timeout=240):
    deadline = time.monotonic() + timeout
    while len(journal(out)) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run did not get that far"
        time.sleep(0.02)


def workers_of(process):
    """The processes of the pool, which Ray renames after their class."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        # Ray's own agents have such titles too.
        if title.startswith("ray::Worker"):
            found.append(child)
    return found


@pytest.fixture(scope="module")
def undisturbed(suite, tmp_path_factory):
    """The run in one process, this one, without Ray."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    result = CliRunner().invoke(main, ["run", str(suite), "--out", str(out), "--device", "cpu", "--local"])
    assert result.exit_code == 0, result.output
    return out


def test_two_workers_a_killed_driver_and_a_killed_worker_give_the_same_rows_and_leave_no_process_behind(
    suite, undisturbed, start, tmp_path
):
    """Nothing that was finished is lost or done again."""
    out = tmp_path / "out"
    process = start(suite, out, "--workers", "2")
    wait_for(out, 6, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = [entry["job_id"] for entry in journal(out)]
    assert len(before) >= 6
    # Again; now a worker is killed at its work.
    process = start(suite, out, "--workers", "2")
    wait_for(out, len(before) + 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4
    victims = []
    while not victims:
        assert process.poll() is None, "the run ended before a worker was seen at work"
        victims = [worker for worker in workers_of(process) if worker.cpu_percent(0.1) > 20]
    victims[0].send_signal(signal.SIGKILL)
    code, told = finish(process)
    assert code == 0, told
    assert f"{len(before)} of them finished before" in told
    assert "tried once more" in told
    after = [entry["job_id"] for entry in journal(out)]
    assert after[: len(before)] == before
    assert len(after) == len(set(after)), "a finished job was done again"
    assert comparable(out) == comparable(undisturbed)
    assert not list(out.rglob("*.tmp")), "half-written files were left where results are"
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


def test_plugins_that_exit_never_end_or_spy(start, tmp_path):
    """The first two are failed rows; the third searches all objects of its process for keys and finds none."""
    path = tmp_path / "small.toml"
    names = ("exits", "never-ends", "spying")
    attacks = [*(f'name = "{name}"' for name in names), 'name = "magnitude-prune"\nfractions = [0.5]', ATTACKS[0]]
    text = suite_text(DEFENSES[:1], attacks, epochs=2)
    path.write_text(text.replace("timeout = 200.0", "timeout = 15.0"))
    code, told = finish(start(path, tmp_path / "out", "--workers", "2"))
    assert code == 1, told
    frame = rows(tmp_path / "out").set_index("attack")
    assert frame.status["exits"] == "failed"
    assert frame.error_type["exits"] == "WorkerLost"
    assert "twice" in frame.error["exits"]
    assert frame.error_type["never-ends"] == "Timeout"
    assert "15 s" in frame.error["never-ends"]
    assert (frame.loc[["none", "magnitude-prune", "scratch", "spying"]].status == "ok").all()
    assert "x never-ends (seed 0): Timeout" in told
    assert len(frame.loc["spying"]) == 3
    assert (frame.loc["spying"].strength == 0).all()


BAD = [
    (["run", "digitz"], "Did you mean 'digits'"),
    (["run", "digits", "--only", "defense=uchidda"], "Did you mean"),
    (["run", "digits", "--seeds", "2", "--seed", "1"], "expected one of them"),
    (["run", "digits", "--out", "/proc/nowhere"], "--out"),
    (["run", "digits", "--workers", "4000", "--out", "OUT"], "4000"),
    (["leaderboard", "OUT"], "no such file"),
    (["show", "OUT", "abc"], "run.json"),
    (["list", "uchidda"], "Did you mean 'uchida'"),
]


@pytest.mark.parametrize(
    ("arguments", "word"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_ends_with_code_two_and_one_line(arguments, word, tmp_path):
    arguments = [str(tmp_path / "out") if one == "OUT" else one for one in arguments]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_commands_that_train_nothing_start_without_torch(undisturbed):
    code = """
import sys
from bench.commands.cli import main
try:
    main({arguments!r}, standalone_mode=False)
except SystemExit as end:
    assert not end.code
heavy = {{"torch", "pandas", "ray"}} & set(sys.modules)
assert not heavy, heavy
"""
    job = rows(undisturbed).job_id.iloc[-1]
    for arguments in (["--help"], ["leaderboard", str(undisturbed)], ["show", str(undisturbed), job]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stderr)
        assert done.stdout


def test_the_repeat_command_of_a_record_gives_the_record(suite, undisturbed, tmp_path):
    frame = rows(undisturbed)
    row = frame[(frame.defense == "uchida") & (frame.attack == "magnitude-prune")].iloc[0]
    told = subprocess.run(
        [sys.executable, "-m", "bench", "show", str(undisturbed), row.job_id],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    command = shlex.split(told.strip().splitlines()[-1])
    assert command[:2] == ["ownbench", "run"]
    out = tmp_path / command.pop()
    assert command.pop() == "--out"
    result = CliRunner().invoke(main, [*command[1:], "--out", str(out), "--local", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    mine = [one for one in comparable(out) if row.job_id in one]
    assert mine == [one for one in comparable(undisturbed) if row.job_id in one]
    assert len(mine) == 2
