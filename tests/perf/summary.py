"""What `make perf` measured, as one small table without the names of machines.

make perf ARGS='--benchmark-json /tmp/perf.json' && python -m tests.perf.summary /tmp/perf.json results/speed
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import pandas as pd
import torch


def table(report: dict) -> pd.DataFrame:
    """One row per benchmark: best and mean seconds, rounds, and what the benchmark says of itself as JSON."""
    cpu = report["machine_info"].get("cpu", {})
    where = f"{cpu.get('brand_raw', platform.machine())}, {len(os.sched_getaffinity(0))} cores"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    rows = [
        {
            "benchmark": one["name"],
            "group": one["group"],
            "seconds": one["stats"]["min"],
            "mean_seconds": one["stats"]["mean"],
            "rounds": one["stats"]["rounds"],
            "figures": json.dumps(one["extra_info"], sort_keys=True),
            "cpu": where,
            "gpu": gpu,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        for one in report["benchmarks"]
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Write `harness.parquet` and print it."""
    report, to = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    found = table(report)
    to.mkdir(parents=True, exist_ok=True)
    found.to_parquet(to / "harness.parquet", index=False)
    print(found[["benchmark", "seconds", "rounds", "figures"]].to_string(index=False))


if __name__ == "__main__":
    main()
