"""In a process of its own: read records, make both tables, print the leaderboard; seconds and memory on stderr."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()


def main(path: str) -> None:
    """Make the leaderboards of a records.parquet."""
    from bench.tables import records
    from bench.tables.leaderboard import boards
    from bench.text.report import render

    table = records.read(path)
    sys.stdout.write(str(render(*boards(table))))
    seen = {"rows": table.num_rows, "seconds": time.perf_counter() - STARTED, "memory_mb": most_memory()}
    sys.stderr.write(json.dumps(seen))


def most_memory() -> float:
    """MB that this program has taken at most; `ru_maxrss` would remember the process that started it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1])
