"""Jobs of a plan, run in this process."""

from __future__ import annotations

from collections.abc import Callable

from bench.planning.job import Outcome, Plan
from bench.running import jobs


def runner(plan: Plan) -> Callable[[str], Outcome]:
    """Runs a job by its id with all that it rests on, each once; fails where one does."""
    outcomes: dict[str, Outcome] = {}

    def run(name: str) -> Outcome:
        if name not in outcomes:
            job = plan.jobs[name]
            inputs = {role: run(one.job).products[one.channel] for role, one in job.inputs.items()}
            outcomes[name] = jobs.run(job, inputs, "cpu")
            assert outcomes[name].status == "ok", outcomes[name].traceback
        return outcomes[name]

    return run
