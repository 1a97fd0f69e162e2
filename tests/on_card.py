"""Each kind of job of a suite with each plugin, briefly, on the CPU and on the card; a line of JSON for each.

python -m tests.on_card digits-full
"""

from __future__ import annotations

import json
import sys

from safetensors.torch import load

from bench.planning import cells, suite
from bench.running import jobs
from tests import card
from tests.planned import Runner, brief, shrunk


def compared(name):
    """What became of each job on the card, and whether it is what the CPU makes."""
    plan = cells.make(shrunk(suite.read(name)))
    on_cpu, seen = Runner(plan.jobs, brief), set()
    for job in plan.jobs.values():
        plugin, scheme = (job.spec.get(role) or {} for role in ("plugin", "scheme"))
        # A stage is named by its label; judging and forging depend on the scheme as well.
        of = scheme.get("name") if job.kind in ("judge", "decoys", "forge") else job.label * (job.kind == "stage")
        what = job.kind, plugin.get("name"), of
        if what in seen:
            continue
        seen.add(what)
        expected, found = on_cpu(job.id), jobs.run(brief(job), on_cpu.inputs(job.id), card.NAME)
        yield {
            "job": job.label,
            "kind": job.kind,
            "plugin": plugin.get("name"),
            "error": found.traceback if found.status != "ok" else None,
            "apart": apart(found, expected) if found.status == "ok" else None,
        }


def apart(found, expected):
    """How far numbers of two outcomes lie apart at the most: 0 where all is the same, infinity where more differs."""
    if untimed(found.result) != untimed(expected.result) or found.products.keys() != expected.products.keys():
        return float("inf")
    return max((distance(made, expected.products[channel]) for channel, made in found.products.items()), default=0.0)


def distance(made, expected):
    """The largest difference between the tensors of two bundles."""
    if made == expected:
        return 0.0
    ours, theirs = load(made), load(expected)
    if {n: one.shape for n, one in ours.items()} != {n: one.shape for n, one in theirs.items()}:
        return float("inf")
    largest = max(float((one.double() - theirs[n].double()).abs().max()) for n, one in ours.items() if one.numel())
    # Where the bytes differ and no tensor does, something else does.
    return largest or float("inf")


def untimed(result):
    """A result without the times that it took."""
    if isinstance(result, dict):
        return {name: untimed(value) for name, value in result.items() if not name.startswith("seconds")}
    return [untimed(one) for one in result] if isinstance(result, list) else result


if __name__ == "__main__":
    card.install()
    for line in compared(sys.argv[1]):
        print(json.dumps(line), flush=True)
