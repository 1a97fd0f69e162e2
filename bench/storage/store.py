"""The run folder: a journal that grows line by line, artifacts that appear whole, and tables made of both."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bench.errors import InputError
from bench.planning.job import Channel, Outcome, Plan

# Of the folder's layout and of a journal line.
SCHEMA_VERSION = 1

Entry = dict[str, Any]


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat()


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file so that it appears whole or not at all: aside, synced, renamed; with a mode, less the umask."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def line_of(entry: Entry) -> bytes:
    """A journal line: the entry as text, with the checksum of that text."""
    text = json.dumps(entry, separators=(",", ":"))
    return json.dumps({"sum": _sum(text), "entry": text}, separators=(",", ":")).encode() + b"\n"


class RunFolder:
    """What a run leaves on disk, and what an earlier run left there.

    Use `open_for_writing` or `open_for_reading`.

    Attributes:
        path: the folder.
        run_id: made when the folder was made.
        entries: the journal: for each job its last successful line, else its last one.
        torn: journal lines that could not be read.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self.run_id = run_id
        self.entries: dict[str, Entry] = {}
        self.torn = 0
        for line in self._lines():
            self._take(line)

    @classmethod
    @contextlib.contextmanager
    def open_for_writing(cls, path: Path, fresh: bool = False) -> Iterator[RunFolder]:
        """The folder, made where it is missing, locked against a second writer.

        Args:
            path: of the folder.
            fresh: set an existing folder aside (renamed, never deleted) and start a new one.

        Raises:
            InputError: not writable, of another schema version, no run folder, or in use.
        """
        try:
            if fresh and path.exists():
                _set_aside(path)
            path.mkdir(parents=True, exist_ok=True)
            (path / "artifacts").mkdir(exist_ok=True)
            lock = open(path / "lock", "a")  # noqa: SIM115 - held open until the run ends
        except OSError as error:
            raise InputError(f"--out: expected a folder that can be written, got {path}: {error}") from error
        with lock:
            _lock(lock, path)
            if not (path / "run.json").exists():
                head = {
                    "schema_version": SCHEMA_VERSION,
                    "run_id": secrets.token_hex(6),
                    "created_at": now(),
                }
                write_whole(path / "run.json", json.dumps(head, indent=1).encode())
            yield cls(path, _head(path)["run_id"])

    @classmethod
    def open_for_reading(cls, path: Path) -> RunFolder:
        """An existing folder.

        Raises:
            InputError: no run folder, or one of another schema version.
        """
        return cls(path, _head(path)["run_id"])

    # Journal

    def append(self, entry: Entry) -> None:
        """Put one line on disk; it is there when this returns."""
        line = line_of(entry)
        with open(self.path / "journal.jsonl", "ab") as file:
            # A line torn by a kill has no end; the next one must not continue it.
            if file.tell() and self._last_byte() != b"\n":
                file.write(b"\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def entry_of(self, job_id: str, kind: str, label: str, outcome: Outcome, artifacts: dict[str, str]) -> Entry:
        """The journal line of an outcome; `artifacts` maps channels to the digests of their files."""
        return {
            "v": SCHEMA_VERSION,
            "job_id": job_id,
            "kind": kind,
            "label": label,
            "status": outcome.status,
            "result": outcome.result,
            "artifacts": artifacts,
            "error_type": outcome.error_type,
            "error": outcome.error,
            "traceback": outcome.traceback,
            "seconds": outcome.seconds,
            "peak_memory_mb": outcome.peak_memory_mb,
            "device": outcome.device,
            "threads": outcome.threads,
            "versions": outcome.versions,
            "run_id": self.run_id,
            "created_at": now(),
        }

    def succeeded(self, job_id: str) -> bool:
        """Whether the job ended well, now or in an earlier run."""
        return self.entries.get(job_id, {}).get("status") == "ok"

    def _lines(self) -> list[bytes]:
        path = self.path / "journal.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            outer = json.loads(line)
            if _sum(outer["entry"]) != outer["sum"]:
                raise ValueError("checksum")
            entry: Entry = json.loads(outer["entry"])
            job_id = entry["job_id"]
        except (ValueError, KeyError, TypeError):
            self.torn += 1
            return
        if entry["status"] == "ok" or not self.succeeded(job_id):
            self.entries[job_id] = entry

    def _last_byte(self) -> bytes:
        with open(self.path / "journal.jsonl", "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1)

    # Artifacts

    def artifact(self, job_id: str, channel: Channel) -> Path:
        """Where a product lies."""
        return self.path / "artifacts" / f"{job_id}.{channel}.safetensors"

    def save(self, job_id: str, channel: Channel, content: bytes) -> str:
        """Store a product; returns its digest for the journal line."""
        write_whole(self.artifact(job_id, channel), content)
        return hashlib.sha256(content).hexdigest()

    def load(self, job_id: str, channel: Channel) -> bytes | None:
        """A stored product; None where it is missing or not what the journal says."""
        expected = self.entries.get(job_id, {}).get("artifacts", {}).get(channel)
        path = self.artifact(job_id, channel)
        if expected is None or not path.exists():
            return None
        content = path.read_bytes()
        return content if hashlib.sha256(content).hexdigest() == expected else None

    def stored(self) -> set[str]:
        """The names of all files of products; of thousands of jobs, one look at the folder."""
        folder = self.path / "artifacts"
        return {path.name for path in folder.iterdir()} if folder.exists() else set()

    def corrupted(self, job_id: str) -> list[Channel]:
        """The channels of a successful job whose files are there but not what was written."""
        channels: list[Channel] = list(self.entries.get(job_id, {}).get("artifacts", {}))
        return [c for c in channels if self.artifact(job_id, c).exists() and self.load(job_id, c) is None]

    def drop(self, job_id: str, channel: Channel) -> None:
        """Delete a product that nothing needs any more."""
        self.artifact(job_id, channel).unlink(missing_ok=True)

    # Plan

    def save_plan(self, plan: Plan) -> None:
        """Make this the current plan; the leaderboard takes its cells."""
        write_whole(self.path / "plan.json", json.dumps(plan.to_json()).encode())

    def plan(self) -> Plan:
        """The current plan.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        try:
            return Plan.from_json(json.loads((self.path / "plan.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise InputError(f"{self.path}: expected a plan.json that can be read: {error}") from error


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"--out: another run is writing to {path}") from error


def _set_aside(path: Path) -> None:
    """Rename a run folder that nobody writes to."""
    if not (path / "run.json").exists() and any(path.iterdir()):
        raise InputError(f"--fresh: expected a run folder at {path}, got a folder of other things")
    with open(path / "lock", "a") as lock:
        _lock(lock, path)
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        path.rename(path.with_name(f"{path.name}.before-{stamp}-{secrets.token_hex(2)}"))


def _head(path: Path) -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))
        version = head["schema_version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a run folder with run.json: {error}") from error
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: expected a run folder of schema version {SCHEMA_VERSION}, got {version}; "
            "read it with the version of ownbench that wrote it, or choose another --out"
        )
    return head


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
