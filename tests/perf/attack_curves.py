"""What attacks leave of marks: accuracy against log10_p as SVG, a panel a defense, and prices as Markdown.

    python -m tests.perf.attack_curves results/compression
    python -m tests.perf.attack_curves results/passports --defense passport-v2 --attack fine-tune --attack permute

Reads records.parquet of the folder, writes evidence.svg into it (evidence-1.svg, evidence-2.svg … where there are more
panels than one figure takes) and prints the table. Several seeds are one curve: the mean accuracy and the median
log10_p at each strength. Insiders and forgeries are left out, of the figures also attacks after which the model is for
another task.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from bench.tables import records as recorded
from bench.tables.leaderboard import boards
from bench.text.grids import cell_text
from bench.text.layout import Grid, shorten, to_markdown

JUDGED = ["attack_kind", "attack_access", "knowledge", "judged_key", "status", "strength", "strength_unit", "accuracy"]
GROUP = ["task", "model", "defense", "defense_params"]
ATTACK = ["attack", "attack_params"]
# What is as far along at each of its strengths makes no line.
UNORDERED = ("readings",)
# Okabe and Ito's colours without the yellow, which is too light for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX*<>phd"
STYLES = ("-", "--", ":")
PANELS, COLUMNS = 9, 3
# Points of accuracy below the best that the axis names about, and to what each is rounded; values of log10_p.
LOSSES = {0: 1, 1: 1, 2: 1, 5: 5, 10: 5, 20: 10, 40: 10, 90: 10}
POWERS = (0, -20, -50, -100, -200, -500, -1000)


@dataclass
class Panel:
    """One defense; accuracies in per cent.

    Attributes:
        title: the label of the defense, and the model where there are several.
        protected: accuracy and log10_p of the protected model; None where it was not judged.
        budget: the accuracy at which the budget is spent.
        ceiling: accuracy of a model that is trained without the protected one; None where none was.
        curves: strength, accuracy and log10_p by the label of an attack, in the order in which it took them.
        scattered: the labels whose strengths make no line.
    """

    title: str
    protected: tuple[float, float] | None
    budget: float
    ceiling: float | None
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)
    scattered: set[str] = field(default_factory=set)


def panels(records: pa.Table) -> list[Panel]:
    """A panel for each defense with a key, in the order of the records."""
    budget = float(recorded.metadata(records)["accuracy_budget"])
    board = {tuple(row[name] for name in GROUP): row for row in boards(records).leaderboard.to_pylist()}
    columns = [*GROUP, *ATTACK, *JUDGED, "accuracy_reference", "accuracy_protected", "log10_p"]
    frame = records.select(columns).to_pandas()
    frame = frame[(frame.status == "ok") & (frame.judged_key == "owner") & frame.log10_p.notna()]
    frame = frame.assign(accuracy=100 * frame.accuracy)
    labels, several = recorded.labels(records)["attack"], frame.model.nunique() > 1
    made = []
    for key, rows in frame.groupby(GROUP, sort=False):
        row = board[key]
        if row["reference"]:
            continue
        own, best = rows[rows.attack_kind == "none"], 100 * row["accuracy_protected"]
        panel = Panel(
            f"{row['model']}: {row['defense_label']}" if several else row["defense_label"],
            (own.accuracy.mean(), own.log10_p.median()) if len(own) else None,
            best - budget,
            None if row["ceiling"] is None else best - row["ceiling"],
        )
        removals = rows[(rows.attack_kind == "removal") & (rows.attack_access != "none")]
        removals = removals[(removals.knowledge != "insider") & _same_task(removals)]
        for name, found in removals.groupby(ATTACK, sort=False):
            label = labels.get(recorded.name_of(*name), " ".join(name))
            averaged = {"accuracy": ("accuracy", "mean"), "log10_p": ("log10_p", "median")}
            panel.curves[label] = found.groupby("strength", as_index=False, sort=False).agg(**averaged)
            if found.strength_unit.isin(UNORDERED).any():
                panel.scattered.add(label)
        made.append(panel)
    return made


def _same_task(rows: pd.DataFrame) -> pd.Series:
    return rows.accuracy_reference == rows.accuracy_protected


def table(records: pa.Table) -> str:
    """A row for each defense with a key, a column for each removal attack; what stands in it is of the matrix."""
    rows = [row for row in boards(records).matrix.to_pylist() if row["attack_kind"] == "removal"]
    rows = [row for row in rows if not row["reference"] and row["knowledge"] != "insider"]
    # Training anew, which bounds the others, comes last.
    attacks = dict.fromkeys(_attack(row) for row in sorted(rows, key=lambda row: row["yardstick"]))
    cells = {(_defense(row), _attack(row)): _told(row) for row in rows}
    several = len({row["model"] for row in rows}) > 1
    grid = Grid(["", *shorten([label for _, _, label in attacks], 30)])
    for defense in dict.fromkeys(_defense(row) for row in rows):
        _, model, _, _, label = defense
        said = [cells.get((defense, attack), "") for attack in attacks]
        grid.rows.append([f"{model}: {label}" if several else label, *said])
    return to_markdown(grid)


def _attack(row: dict) -> tuple[str, str, str]:
    return row["attack"], row["attack_params"], row["attack_label"]


def _defense(row: dict) -> tuple[str, str, str, str, str]:
    return (*(row[name] for name in GROUP), row["defense_label"])


def _told(row: dict) -> str:
    """The price; `survived` where the claim was in no seed lost below the ceiling."""
    never = row["price"] is None or (row["ceiling"] is not None and row["price"] >= row["ceiling"] - 1e-9)
    if row["verdict"] == "survived" and row["price_censored"] and never:
        return "survived"
    return cell_text(row)


def draw(shown: list[Panel], alpha: float, path: Path) -> None:
    """One figure; attacks look the same in all panels, also apart from their colour."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "ownbench"
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    labels = list(dict.fromkeys(label for panel in shown for label in panel.curves))
    size = (3.7 * columns, 2.5 * rows + 0.22 * math.ceil(len(labels) / columns) + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False,
                                layout="constrained")  # fmt: skip
    lowest = _lowest(shown, alpha)
    for axis, panel in zip(axes.flat, shown, strict=False):
        _fill(axis, panel, labels, alpha, lowest)
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    _scale(axes[0][0], shown, alpha, lowest)
    for place, axis in enumerate(axes.flat[: len(shown)]):
        # Where the panel below is missing, this one is the last of its column.
        below = place + columns >= len(shown)
        axis.tick_params(labelbottom=below)
        axis.set_xlabel("accuracy in %" if below else "")
        axis.set_ylabel("" if place % columns else "log10 p")
    named = dict(zip(labels, shorten(labels, 44), strict=True))
    handles = {}
    for axis in axes.flat[: len(shown)]:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [*labels, *(label for label in handles if label not in named)]
    figure.legend([handles[label] for label in order], [named.get(label, label) for label in order],
                  loc="outside lower center", ncols=columns, fontsize="small", frameon=False)  # fmt: skip
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _lowest(shown: list[Panel], alpha: float) -> float:
    """The least log10_p that is drawn as what it is; evidence without end lies at the edge."""
    every = [value for panel in shown for curve in panel.curves.values() for value in curve.log10_p]
    every += [panel.protected[1] for panel in shown if panel.protected]
    return min([2 * math.log10(alpha), *(value for value in every if math.isfinite(value))])


def _fill(axis, panel: Panel, labels: list[str], alpha: float, lowest: float) -> None:
    axis.fill_between([panel.budget, 200], math.log10(alpha), 10, color="0.92", label="removed within the budget")
    axis.axhline(math.log10(alpha), color="0.35", linewidth=0.9, label=f"alpha = {alpha:g}: claims lie below")
    axis.axvline(panel.budget, color="0.35", linewidth=0.9, linestyle="--", label="the budget")
    if panel.ceiling is not None:
        axis.axvline(panel.ceiling, color="0.6", linewidth=0.9, linestyle=":", label="trained without the model")
    for label, curve in panel.curves.items():
        place = labels.index(label)
        x, y = curve.accuracy.to_numpy(), curve.log10_p.to_numpy()
        if label in panel.scattered:
            style = "none"
        else:
            style = STYLES[place // len(COLOURS) % len(STYLES)]
            if panel.protected:
                x, y = np.append(panel.protected[0], x), np.append(panel.protected[1], y)
        axis.plot(x, y.clip(min=lowest), linestyle=style, linewidth=1, color=COLOURS[place % len(COLOURS)],
                  marker=MARKERS[place % len(MARKERS)], markersize=4, markerfacecolor="none", label=label)  # fmt: skip
    if panel.protected:
        axis.plot(panel.protected[0], max(panel.protected[1], lowest), "o", color="0.35", markersize=7, zorder=5,
                  label="protected")  # fmt: skip
    axis.set_title("\n".join(_folded(panel.title)), fontsize="medium")


def _folded(title: str) -> list[str]:
    name, bracket, inside = title.partition("[")
    return [title] if len(title) <= 40 else [name, *shorten([bracket + inside], 44)]


def _scale(axis, shown: list[Panel], alpha: float, lowest: float) -> None:
    """Both axes are spread where marks and models die: near the best accuracy, and down to twice log10 alpha."""
    every = [value for panel in shown for curve in panel.curves.values() for value in curve.accuracy]
    every += [panel.protected[0] for panel in shown if panel.protected] + [panel.budget for panel in shown]
    best, least = math.ceil(max(every)), min(every)
    axis.set_xscale("function", functions=(
        lambda x: -np.log1p(np.maximum(best - np.asarray(x, dtype=float), -0.9)),
        lambda y: best - np.expm1(-np.asarray(y, dtype=float)),
    ))  # fmt: skip
    axis.set_xlim(max(0.0, least - 3), best + 0.3)
    named = {round((best - loss) / unit) * unit for loss, unit in LOSSES.items()}
    axis.set_xticks(sorted(accuracy for accuracy in named if accuracy >= max(0.0, least - 3)))
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")
    threshold = math.log10(alpha)
    axis.set_yscale("symlog", linthresh=-2 * threshold, linscale=1.5)
    axis.set_ylim(1.15 * lowest, 0.8)
    axis.set_yticks(sorted({threshold, *(power for power in POWERS if power >= 1.15 * lowest)}))
    axis.set_yticks([], minor=True)
    axis.yaxis.set_major_formatter("{x:g}")


def chosen(records: pa.Table, role: str, wanted: list[str]) -> pa.Table:
    """The rows of the defenses or attacks named, by name or label, and those that all others are read by."""
    if not wanted:
        return records
    labels = recorded.labels(records)[role]
    rows = records.select([role, f"{role}_params", "attack_kind", "attack_access", "defense_access"]).to_pylist()
    kept = []
    for row in rows:
        given = row["attack_kind"] == "none" or row["attack_access"] == "none"
        always = given if role == "attack" else row["defense_access"] == "none"
        label = labels.get(recorded.name_of(row[role], row[f"{role}_params"]))
        kept.append(always or row[role] in wanted or label in wanted)
    return records.filter(pa.array(kept))


def figures(shown: list[Panel]) -> list[list[Panel]]:
    """As few figures as hold all panels, of about equally many."""
    count = math.ceil(len(shown) / PANELS)
    return [list(part) for part in np.array_split(np.array(shown, dtype=object), count)] if count else []


def main() -> None:
    """Draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with records.parquet")
    parser.add_argument("--to", type=Path, help="folder of the figures; default: the same")
    parser.add_argument("--defense", action="append", default=[], help="name or label; repeatable; default: all")
    parser.add_argument("--attack", action="append", default=[], help="likewise")
    options = parser.parse_args()
    records = recorded.read(options.folder / "records.parquet")
    for role in ("defense", "attack"):
        records = chosen(records, role, getattr(options, role))
    parts = figures(panels(records))
    for number, part in enumerate(parts, 1):
        name = f"evidence-{number}.svg" if len(parts) > 1 else "evidence.svg"
        draw(part, float(recorded.metadata(records)["alpha"]), (options.to or options.folder) / name)
    print(table(records))


if __name__ == "__main__":
    main()
