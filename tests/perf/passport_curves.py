"""The curves of the suite `passports` as SVG: accuracy, bits and private branch through fine-tuning and pruning.

python -m tests.perf.passport_curves results/passports
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

SCHEMES = {
    ("passport-aware", "together"): "passport-aware",
    ("passport-aware", "alternate"): "passport-aware, in turn",
    ("passport-v1", None): "passport-v1",
}
ATTACKS = {"fine-tune": "epochs", "magnitude-prune": "fraction"}
LINES = {"accuracy": "accuracy", "bits": "bits that agree", "branch": "private branch"}


def followed(folder: Path) -> pd.DataFrame:
    """One row per scheme, attack and strength, averaged over seeds; strength 0 is the protected model."""
    rows = pd.read_parquet(folder / "records.parquet")
    rows = rows[rows.attack.isin(["none", "fine-tune", "magnitude-prune"]) & (rows.status == "ok")]
    rows = rows[(rows.attack_kind != "control") & (rows.judged_key == "owner")]
    defense, attack = rows.defense_params.map(json.loads), rows.attack_params.map(json.loads)
    figures = rows.figures.map(dict)
    schedule = [one.get("schedule") for one in defense]
    plain = ~defense.str["canonical"].fillna(value=False).astype(bool)
    usual = attack.map(lambda one: one.get("variant", "FTAL") == "FTAL" and one.get("learning_rate", 0.05) == 0.05)
    retrained = attack.map(lambda one: one.get("retrain_epochs", 0) > 0)
    table = pd.DataFrame(
        {
            "scheme": [SCHEMES.get(one) for one in zip(rows.defense, schedule, strict=True)],
            "attack": rows.attack,
            "strength": rows.strength.where(rows.attack != "none", 0.0),
            "accuracy": rows.accuracy,
            "bits": figures.str["signature_match"],
            "branch": figures.str["private_accuracy"],
        }
    )
    table = table[plain & (usual | (rows.attack == "magnitude-prune")) & ~retrained].dropna(subset=["scheme"])
    return table.groupby(["scheme", "attack", "strength"], as_index=False).mean()


def draw(table: pd.DataFrame, path: Path) -> None:
    """A row of panels for each attack, a panel for each scheme, a line for each of the three figures."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "ownbench"
    figure, panels = plt.subplots(2, len(SCHEMES), figsize=(11, 5.6), sharey=True, layout="constrained")
    for row, (attack, label) in zip(
        panels, {"fine-tune": "epochs", "magnitude-prune": "fraction"}.items(), strict=True
    ):
        for panel, scheme in zip(row, SCHEMES.values(), strict=True):
            of_scheme = table[(table.scheme == scheme) & table.attack.isin(["none", attack])].sort_values("strength")
            for (column, name), mark in zip(LINES.items(), "os^", strict=True):
                panel.plot(of_scheme.strength, 100 * of_scheme[column], marker=mark, label=name)
            panel.set(xlabel=f"{attack}: {label}", title=scheme, ylim=(0, 103))
        row[0].set_ylabel("%")
    panels[1][0].legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(followed(source), source / "curves.svg")
