"""How a worker process was lost, as exactly as can be told from outside it."""

from __future__ import annotations

import re
from pathlib import Path

# Ray's account of some losses lists every process of the machine.
_LONGEST = 1000


def reason(error: Exception, logs: Path | None, kernel_kills_before: int) -> str:
    """Why a process is gone.

    Args:
        error: Ray's account of it.
        logs: where the workers of this machine write; None where they run elsewhere.
        kernel_kills_before: `kernel_kills()` when the job started.
    """
    text = str(error)
    detail = re.search(r"Worker exit type: (\w+) Worker exit detail: (.*)", text, re.DOTALL)
    # What follows are guesses, the same for every loss.
    account = (f"{detail[1]}: {detail[2]}" if detail else text).partition("Some common causes")[0]
    lines = [account.strip()[:_LONGEST]]
    if logs is not None:
        if kernel_kills() > kernel_kills_before:
            lines.append("The kernel ended a process for want of memory while the job ran.")
        lines += _crash(text, logs)
    return "\n".join(lines)


def kernel_kills() -> int:
    """How many processes the kernel has ended for want of memory since the machine started."""
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", counters, re.MULTILINE)
    return int(found[1]) if found else 0


def _crash(text: str, logs: Path) -> list[str]:
    # Ray does not tell the signal, but a process that dies of its own fault writes it, with a trace, to its log.
    pid = re.search(r"pid: (\d+)", text)
    for log in logs.glob(f"worker-*-{pid[1]}.err") if pid else []:
        _, found, trace = log.read_text(errors="replace").partition("Fatal Python error:")
        if found:
            return [found + trace.partition("\n\nExtension modules")[0]]
    return []
