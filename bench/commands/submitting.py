"""The `pack` and `accept` commands: a run as one archive, and such an archive of a stranger beside our own rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from bench.errors import InputError
from bench.publishing import archive, folder, sets, submission
from bench.storage.store import write_whole
from bench.tables import origins
from bench.tables import records as recorded

# Below the folder of a set.
PLACE = "submissions"
ABOUT = "submission.json"
# Seconds that the checks may take.
TIMEOUT = 600
REFUSED = 3


def pack(run: Path, to: Path | None) -> str:
    """Make an archive of a run; returns what was written.

    Args:
        run: a run folder or a set of one's own runs.
        to: the file; by default the run's name and `.zip` in the current folder.

    Raises:
        InputError: no records, an archive that `accept` would refuse, or a file that cannot be written.
    """
    to = to or Path(f"{run.resolve().name}.zip")
    content = archive.packed(submission.members(run))
    with tempfile.TemporaryDirectory() as aside:
        trial = Path(aside) / "archive.zip"
        trial.write_bytes(content)
        try:
            found = submission.checked(trial)
        except InputError as error:
            told = str(error).removeprefix(f"{trial}: ")
            raise InputError(f"{run}: would not be accepted: {told}") from error
    try:
        changed = folder.put(to, content)
    except OSError as error:
        raise InputError(f"--to: expected a file that can be written, got {to}: {error}") from error
    rows = found.records.num_rows
    lines = [f"{'written' if changed else 'as it was'}: {to}, {len(content):,} bytes, {rows:,} records"]
    if traces := pc.sum(pc.is_valid(found.records["traceback"])).as_py():
        lines.append(f"note: {traces} records hold tracebacks, in which paths of this machine may stand")
    return "\n".join([*lines, f"SHA-256 {found.digest}"]) + "\n"


def accept(path: Path, to: Path, origin: str | None) -> str:
    """Check an archive in a process of its own, and publish its rows beside those of a set; returns what was written.

    Args:
        path: of the archive.
        to: folder of the set; one that is not there yet is made.
        origin: who submitted it; by default the name of the file without its ending.

    Raises:
        InputError: what is wrong with the archive; another submission of this origin; a set under another protocol.
    """
    origin = origins.require_origin(path.stem if origin is None else origin)
    place = to / PLACE / origin
    if place.exists():
        return _again(path, place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{origin}."))
    except OSError as error:
        raise InputError(f"--to: expected a folder that can be written, got {to}: {error}") from error
    try:
        _check(path, origin, aside)
        made = folder.files(sets.gather([*([to] if (to / "records.parquet").exists() else []), aside]))
        aside.chmod(0o755)
        aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    changed = folder.write(made, to)
    lines = [f"accepted from {origin}: {place}"]
    lines += [f"{'written' if to / name in changed else 'as it was'}: {to / name}" for name in made]
    return "\n".join(lines) + "\n"


def store(found: submission.Submission, origin: str, to: Path) -> None:
    """Write what was checked, marked with its origin, by our own writer: no byte of a stranger's file is kept."""
    recorded.write(origins.marked(found.records, origin), to / "records.parquet")
    recorded.write(origins.marked(found.decoys, origin), to / "decoys.parquet")
    about = {"origin": origin, "sha256": found.digest, "suite": found.suite, "environment": found.environment}
    write_whole(to / ABOUT, archive.as_json(about))


def unnamed(runs: Sequence[Path], to: Path) -> list[str]:
    """Submissions to a set that publishing these runs to it would drop."""
    there = sorted(path.parent for path in (to / PLACE).glob(f"*/{ABOUT}") if not path.parent.name.startswith("."))
    named = {run.resolve() for run in runs}
    if not there or to.resolve() in named:
        return []
    return [str(path) for path in there if path.resolve() not in named]


def _again(path: Path, place: Path) -> str:
    """An archive that was accepted before changes nothing; another one of the same origin replaces nothing."""
    try:
        known = json.loads((place / ABOUT).read_text(encoding="utf-8"))["sha256"]
        found = submission.digest_of(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{place}: expected a submission that was accepted: {error}") from error
    if found != known:
        raise InputError(
            f"{place}: another submission of this origin is there; nothing is replaced. Choose another --origin, or "
            "move that one away"
        )
    return f"as it was: {place}, accepted before\n"


def _check(path: Path, origin: str, to: Path) -> None:
    # A reader of Parquet that a made-up file crashes or fills takes that process with it and nothing else.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.commands.confined", str(path), origin, str(to)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path}: refused: checking it took more than {TIMEOUT} s") from error
    if done.returncode == REFUSED:
        told = done.stdout.strip()[:2000]
        raise InputError(f"refused: {''.join(sign if sign.isprintable() else '?' for sign in told)}")
    if done.returncode:
        last = ascii(done.stderr.strip().rpartition("\n")[2])[:200]
        raise InputError(f"{path}: refused: the check of it ended with {done.returncode} and no verdict: {last}")
