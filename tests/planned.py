"""Jobs of a plan, run in this process; and suites and jobs made so brief that each takes no time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from bench.planning.job import Job, Outcome
from bench.running import jobs as running


class Runner:
    """Runs a job by its id with all that it rests on, each once; fails where one does.

    Args:
        jobs: of a plan, by id.
        changed: what is run in a job's place.
    """

    def __init__(self, jobs: Mapping[str, Job], changed: Callable[[Job], Job] = lambda job: job) -> None:
        self._jobs = jobs
        self._changed = changed
        self.outcomes: dict[str, Outcome] = {}

    def inputs(self, name: str) -> dict[str, bytes]:
        """What a job is handed, by role."""
        return {role: self(one.job).products[one.channel] for role, one in self._jobs[name].inputs.items()}

    def __call__(self, name: str) -> Outcome:
        """What comes out of a job."""
        if name not in self.outcomes:
            outcome = running.run(self._changed(self._jobs[name]), self.inputs(name), "cpu")
            assert outcome.status == "ok", outcome.traceback
            self.outcomes[name] = outcome
        return self.outcomes[name]


def shrunk(chosen):
    """The suite on a few inputs for one epoch, or as many as its tickets rewind to."""
    few = {"train": 60, "heldout": 100, "attacker": 60, "labelled": 50, "test": 100}
    tasks = []
    for task in chosen.tasks:
        sizes = dataclasses.replace(task.sizes, **{n: min(k, getattr(task.sizes, n)) for n, k in few.items()})
        least = max(getattr(defense, "rewind_epoch", 1) for defense in chosen.defenses)
        recipe = dataclasses.replace(task.recipe, epochs=least)
        tasks.append(dataclasses.replace(task, recipe=recipe, parts=sizes))
    shorter = [dataclasses.replace(one, round_epochs=1) if hasattr(one, "rounds") else one for one in chosen.defenses]
    small = dataclasses.replace(chosen, tasks=tuple(tasks), defenses=tuple(shorter))
    if chosen.null is None:
        return small
    # Of models without a mark one of each kind, and of owners one.
    kinds = {"architectures": chosen.null.architectures[:1], "data": 1, "stolen": 1}
    null = dataclasses.replace(chosen.null, models=3 + len(kinds["architectures"]), **kinds)
    header = dataclasses.replace(chosen.header, seeds=chosen.header.seeds[:1])
    return dataclasses.replace(small, null=null, header=header, schemes=tuple(shorter[1:2]))


SHORT = {"epochs", "every", "retrain_epochs", "steps", "trials", "pretraining", "iterations", "draws"}
# Of lists the last one is enough.
LAST = {"fractions", "bits", "clusters"}


def brief(job):
    """The job with parameters that end soon."""
    spec = job.spec
    params = dict(spec.get("plugin", {}).get("params", {}))
    for name in params.keys() & SHORT:
        params[name] = min(params[name], 1)
    for name in params.keys() & LAST:
        params[name] = params[name][-1:] if isinstance(params[name], list) else params[name]
    if "snapped" in params:
        params["snapped"] = 1.0
    changes = {"plugin": {**spec["plugin"], "params": params}} if params else {}
    if "decoys" in spec.get("options", {}):
        changes["options"] = {**spec["options"], "decoys": 2}
    return dataclasses.replace(job, spec={**spec, **changes})
