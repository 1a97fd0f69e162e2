"""Jobs an hour of runs that were never broken off, and how many ran at a time: one to a GPU against packed slots, say.

python -m tests.perf.packing results/runs/alone results/runs/packed --to results/speed
"""

from __future__ import annotations

import argparse
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


def main() -> None:
    """Print a row for each run folder, and write them to packing.parquet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, default=Path("results/speed"))
    chosen = parser.parse_args()
    table = pd.DataFrame([measured(folder) for folder in chosen.runs])
    chosen.to.mkdir(parents=True, exist_ok=True)
    table.to_parquet(chosen.to / "packing.parquet", index=False)
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
