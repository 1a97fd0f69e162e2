"""Whether two runs of a suite agree in claim, row by row: say, one on a GPU and one on a CPU.

python -m tests.perf.agree results/digits /tmp/digits-on-gpu
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

ROW = ["task", "defense", "defense_params", "attack", "attack_params", "attack_kind", "judged_key", "seed", "strength"]


def compare(first: Path, second: Path) -> pd.DataFrame:
    """The rows of both, side by side, with `agree`: both are ok and claim alike."""
    read = [pd.read_parquet(folder / "records.parquet") for folder in (first, second)]
    sides = [one[[*ROW, "status", "claim", "log10_p", "accuracy"]] for one in read]
    both = sides[0].merge(sides[1], on=ROW, how="inner", suffixes=("_first", "_second"), validate="one_to_one")
    # A cell that does not apply has no claim on either side.
    none = both.claim_first.isna() & both.claim_second.isna()
    both["agree"] = (both.status_first == both.status_second) & (none | (both.claim_first == both.claim_second))
    return both


def main() -> int:
    """Print the share that agrees and the rows that do not."""
    both = compare(*(Path(path) for path in sys.argv[1:3]))
    gap = (both.accuracy_first - both.accuracy_second).abs()
    print(f"{len(both)} rows in both, {both.agree.mean():.1%} agree in claim; mean gap of accuracies {gap.mean():.3f}")
    columns = ["defense", "attack", "attack_params", "strength", "seed", "log10_p_first", "log10_p_second"]
    print(both[~both.agree][columns].to_string(index=False) if not both.agree.all() else "no row differs")
    return int(not both.agree.all())


if __name__ == "__main__":
    sys.exit(main())
