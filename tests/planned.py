"""Jobs of a plan, run in this process."""

from __future__ import annotations

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
