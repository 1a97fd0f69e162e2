"""The curve of the suite `weights`: wrong positions of each code against the fraction pruned, as SVG.

python -m tests.perf.curve results/weights
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

SCOPES = {"layer": "pruned layer by layer", "global": "pruned globally"}


def pruned(folder: Path) -> pd.DataFrame:
    """One row per code, scope and fraction: what pruning alone left of the code that is made for that scope."""
    rows = pd.read_parquet(folder / "records.parquet")
    rows = rows[(rows.defense == "constant-weight-code") & (rows.attack == "magnitude-prune")]
    rows = rows[(rows.attack_kind == "removal") & (rows.status == "ok")]
    defense, attack = rows.defense_params.map(json.loads), rows.attack_params.map(json.loads)
    figures = rows.figures.map(dict)
    table = pd.DataFrame(
        {
            "rate": defense.str["rate"],
            "scope": defense.str["pool"],
            "pruned_by": attack.str["scope"],
            "retrained": attack.str["retrain_epochs"] > 0,
            "canonical": defense.str["canonical"],
            "fraction": rows.strength,
            "wrong_positions": figures.str["wrong_positions"],
            "bit_error": figures.str["bit_error"],
            "log10_p": rows.log10_p,
            "accuracy": rows.accuracy,
            "claim": rows.claim,
        }
    )
    own = (table.scope == table.pruned_by) & ~table.retrained & ~table.canonical
    return table[own].drop(columns=["pruned_by", "retrained", "canonical"]).sort_values(["scope", "rate", "fraction"])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Wrong positions over the share of weights that is left, on a logarithmic axis; one panel a scope."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "ownbench"
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for panel, (scope, title) in zip(panels, SCOPES.items(), strict=True):
        for (rate, found), mark in zip(table[table.scope == scope].groupby("rate"), "os^", strict=True):
            panel.plot(1 - found.fraction, found.wrong_positions, marker=mark, label=f"R* = {rate:g}")
            panel.axvline(1 - rate, color="0.7", linewidth=0.8, linestyle="--")
        panel.set(xscale="log", xlabel="share of weights left", title=title)
        panel.invert_xaxis()
    panels[0].set_ylabel("wrong positions of the word")
    panels[0].legend(loc="upper left")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(pruned(source), source / "curve.svg")
