"""A finished run of a big suite, without the hours: every job of a real plan has a good entry with made-up numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bench.planning import cells, suite
from bench.planning.job import Job, Outcome, Plan
from bench.storage.store import RunFolder, line_of

# 20 defenses x 101 attacks x 5 seeds, controls and the undefended model not counted.
SUITE = """
name = "big"
seeds = [0, 1, 2, 3, 4]
[[tasks]]
dataset = "digits"
[[defenses]]
name = "trigger-set"
triggers = [16, 32, 48, 64, 96]
mode = ["scratch", "fine-tune"]
[[defenses]]
name = "uchida"
bits = [16, 32, 48, 64, 96]
projection = ["random", "direct"]
[[attacks]]
name = "none"
[[attacks]]
name = "scratch"
[[attacks]]
name = "fine-tune"
variant = ["FTLL", "FTAL", "RTLL", "RTAL"]
learning_rate = [0.02, 0.05, 0.15]
epochs = [20, 40, 80]
[[attacks]]
name = "magnitude-prune"
scope = ["global", "layer"]
retrain_epochs = [0, 10, 20, 40]
learning_rate = [0.01, 0.02, 0.05]
[[attacks]]
name = "distill"
temperature = [1.0, 2.0, 3.0, 5.0, 8.0, 12.0]
epochs = [20, 30, 40, 60, 80, 120]
[[attacks]]
name = "random-key"
decoys = [1000, 1001]
"""
# About a protected model of the default task.
PRODUCT = b"p" * 700_000
VERSIONS = {"ownbench": "0.1.0", "python": "3.11.2", "torch": "2.11.0", "numpy": "2.4.1"}


def counted(plan: Plan) -> int:
    """Cells that are neither controls nor of the undefended model."""
    return sum(cell.attack_kind != "control" and cell.defense != "none" for cell in plan.cells)


def make(folder: Path) -> tuple[Path, Path, Plan]:
    """The suite's file, the run folder of its finished run, and the plan."""
    path = folder / "big.toml"
    path.write_text(SUITE)
    plan = cells.make(suite.read(str(path)))
    with RunFolder.open_for_writing(folder / "run") as run:
        lines = []
        for job in plan.jobs.values():
            kept = job.kind in ("stage", "protect")
            products = {channel: run.save(job.id, channel, PRODUCT[:size]) for channel, size in _products(job) if kept}
            gone = {} if kept else {"public": hashlib.sha256(b"").hexdigest()}
            result = _result(job, plan)
            outcome = Outcome("ok", result, {}, None, None, None, 1.5, 300.0, "cpu", 1, VERSIONS)
            entry = run.entry_of(job.id, job.kind, job.label, outcome, products or gone)
            lines.append(line_of({**entry, "source_digest": job.source_digest}))
        (run.path / "journal.jsonl").write_bytes(b"".join(lines))
    return path, folder / "run", plan


def _products(job: Job) -> list[Any]:
    if job.kind == "stage":
        return [("secret", len(PRODUCT))] if job.side == "owner" else [("public", 12_240)]
    return [("public", len(PRODUCT)), ("secret", 4_096)]


def _result(job: Job, plan: Plan) -> dict[str, Any]:
    # Numbers that differ from job to job, and are the same in every process.
    chance = int(job.id[:6], 16) / 16**6
    if job.kind == "attack":
        count = _surrogates(job)
        steps = [float(i + 1) for i in range(count)]
        return {"strengths": steps, "seconds": steps, "inputs_used": 300, "labels_used": 100, "queries": 0}
    if job.kind == "decoys":
        drawn = [-(i % 70) / 10 for i in range(job.spec["options"]["decoys"])]
        return {"statistic": [-p for p in drawn], "log10_p": drawn}
    if job.kind not in ("measure", "judge"):
        return {}
    count = _surrogates(plan.jobs[job.inputs["surrogates"].job])
    if job.kind == "measure":
        return {"accuracy": [0.9 + 0.08 * chance - 0.001 * i for i in range(count)]}
    evidence = {"statistic": 40.0, "figures": {"bit_error": chance}, "reason": None, "queries": 0, "seconds": 0.01}
    chances = [-1.0 if _never_marked(job) else -30.0 + 24.0 * chance + i for i in range(count)]
    return {"evidence": [{**evidence, "log10_p": log10_p} for log10_p in chances]}


def _never_marked(job: Job) -> bool:
    return " on none" in job.label or "attack scratch" in job.label


def _surrogates(job: Job) -> int:
    from bench.running.jobs import plugin_of

    return int(plugin_of(job.spec["plugin"]).surrogates())
