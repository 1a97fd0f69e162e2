"""What is told of a lost worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.workers import loss

DIED = RuntimeError(
    "The actor died unexpectedly before finishing this task.\n\tpid: 41\n\tip: 127.0.0.1\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) a guess."
)
FACTS = "SYSTEM_ERROR: Worker unexpectedly exits with a connection error code 2. End of file."


def test_facts_without_guesses() -> None:
    assert loss.reason(DIED, None, 0) == FACTS
    assert loss.reason(RuntimeError("the actor is dead"), None, 0) == "the actor is dead"
    assert len(loss.reason(RuntimeError("x" * 5000), None, 0)) == 1000


def test_a_crash_is_read_from_the_log_of_its_process(tmp_path: Path) -> None:
    trace = 'Fatal Python error: Aborted\n\nStack (most recent call first):\n  File "a.py", line 3 in f'
    (tmp_path / "worker-ab-01-41.err").write_text(f":actor\n{trace}\n\nExtension modules: numpy")
    (tmp_path / "worker-ab-01-42.err").write_text("Fatal Python error: Segmentation fault")
    assert loss.reason(DIED, tmp_path, loss.kernel_kills()) == f"{FACTS}\n{trace}"


def test_want_of_memory_is_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "kernel_kills", lambda: 3)
    assert loss.reason(DIED, tmp_path, 3) == FACTS
    assert "for want of memory" in loss.reason(DIED, tmp_path, 2)
    assert "for want of memory" not in loss.reason(DIED, None, 2)
