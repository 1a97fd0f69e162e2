"""Jobs an hour of runs that were never broken off, and how many ran at a time: one to a GPU against packed slots, say.

python -m tests.perf.packing results/runs/alone results/runs/packed
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import pandas as pd

from bench.storage.store import RunFolder


def measured(folder: Path) -> dict[str, float | str]:
    """One row: what a run's journal says of its jobs."""
    entries = RunFolder.open_for_reading(folder).entries.values()
    ends = [datetime.fromisoformat(entry["created_at"]).timestamp() for entry in entries]
    # From the start of the first job, so that starting Ray does not count.
    wall = max(ends) - min(end - entry["seconds"] for end, entry in zip(ends, entries, strict=True))
    work = sum(entry["seconds"] for entry in entries)
    return {
        "run": folder.name,
        "jobs": len(entries),
        "seconds": wall,
        "seconds_in_jobs": work,
        "at_a_time": work / wall,
        "jobs_per_hour": 3600 * len(entries) / wall,
        "peak_memory_mb": max(entry["peak_memory_mb"] or 0.0 for entry in entries),
    }


def main() -> int:
    """Print a row for each run folder, and write them to packing.parquet in the folder that holds the first."""
    folders = [Path(one) for one in sys.argv[1:]]
    table = pd.DataFrame([measured(folder) for folder in folders])
    table.to_parquet(folders[0].parent / "packing.parquet", index=False)
    print(table.round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
