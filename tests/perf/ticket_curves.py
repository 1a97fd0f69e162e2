"""The curves of a suite of tickets as SVG: what attacks leave of the code, and what the key is worth in accuracy.

python -m tests.perf.ticket_curves results/tickets
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

ATTACKS = {
    "ticket-prune": ("order", {"magnitude": "smallest pruned", "random": "random ones pruned"}),
    "add-on": ("scale", {0.1: "added, N(0, 0.1²)", 1e-4: "added, N(0, 0.0001²)"}),
}


def attacked(folder: Path) -> pd.DataFrame:
    """One row per attack, setting and strength: what is left of the keyed code in the ticket of 8, or 7, rounds."""
    rows = pd.read_parquet(folder / "records.parquet")
    rows = rows[(rows.defense == "ticket-qr") & rows.attack.isin(ATTACKS) & (rows.attack_kind == "removal")]
    rows = rows[rows.status == "ok"]
    defense, attack = rows.defense_params.map(json.loads), rows.attack_params.map(json.loads)
    rounds = defense.str["rounds"].str[0]
    chosen = (defense.str["flavour"] == "keyed") & ~defense.str["canonical"] & rounds.isin([7, 8])
    setting = [params[ATTACKS[name][0]] for name, params in zip(rows.attack, attack, strict=True)]
    figures = rows.figures.map(dict)
    table = pd.DataFrame(
        {
            "attack": rows.attack,
            "setting": setting,
            "strength": rows.strength,
            "module_error": figures.str["module_error"],
            "decoded": figures.str["decoded"],
            "log10_p": rows.log10_p,
            "accuracy": rows.accuracy,
        }
    )
    return table[chosen].sort_values(["attack", "setting", "strength"])


def keys(folder: Path) -> pd.DataFrame:
    """One row per rounds and share: accuracy of the published ticket; share 0 is the unlocked one, with its key."""
    rows = pd.read_parquet(folder / "records.parquet")
    rows = rows[(rows.defense == "ticket-key") & (rows.attack == "none") & (rows.attack_kind == "none")]
    rows = rows[rows.status == "ok"]
    defense = rows.defense_params.map(json.loads)
    plain = (defense.str["score"] == "ewp-max") & (defense.str["flavour"] == "half") & ~defense.str["canonical"]
    locked = defense.str["publish"] == "locked"
    table = pd.DataFrame(
        {
            "rounds": defense.str["rounds"].str[0],
            "share": defense.str["share"].where(locked, 0.0),
            "accuracy": rows.accuracy_protected,
            "clean": rows.accuracy_clean,
        }
    )
    return table[plain].groupby(["rounds", "share"], as_index=False).mean()


def draw(code: pd.DataFrame, worth: pd.DataFrame, path: Path) -> None:
    """Wrong data modules against strength, filled where the code still decodes; accuracy against the key's share."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "ownbench"
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for panel, (name, (_, settings)) in zip(panels, ATTACKS.items(), strict=False):
        for (setting, label), mark in zip(settings.items(), "os", strict=True):
            found = code[(code.attack == name) & (code.setting == setting)]
            (line,) = panel.plot(found.strength, 100 * found.module_error, marker=mark, mfc="white", label=label)
            read = found[found.decoded == 1]
            panel.plot(read.strength, 100 * read.module_error, mark, color=line.get_color())
        panel.set(xlabel=f"{name}: share", ylabel="wrong data modules in %", ylim=(0, 55))
        panel.axhline(50, color="0.7", linewidth=0.8, linestyle="--")
        panel.legend(loc="upper left")
    for (rounds, found), mark in zip(worth.groupby("rounds"), "os^v", strict=False):
        panels[2].plot(100 * found.share, 100 * found.accuracy, marker=mark, label=f"{rounds} rounds")
    panels[2].axhline(100 * worth.clean.mean(), color="0.7", linewidth=0.8, linestyle="--")
    panels[2].set(xlabel="share of the ticket withheld in % (0: with the key)", ylabel="test accuracy in %")
    panels[2].legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(attacked(source), keys(source), source / "curves.svg")
