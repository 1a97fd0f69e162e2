"""What finished jobs left for others: where it is, and when nothing needs it any more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bench.planning.job import Input, Job, Outcome, Plan
from bench.running import ranking
from bench.running.executor import Executor, Handle
from bench.storage.store import RunFolder


@dataclass
class Products:
    """The products of one run; each is on disk before anyone gets a handle.

    Attributes:
        plan: says which are kept in the end.
        store: where they lie.
        executor: makes the handles.
    """

    plan: Plan
    store: RunFolder
    executor: Executor
    _handles: dict[Input, Handle] = field(default_factory=dict)
    _waiting_for: dict[Input, int] = field(default_factory=Counter)
    _held: set[Input] = field(default_factory=set)

    def expect(self, job: Job) -> None:
        """A job that will need its inputs."""
        for source in job.inputs.values():
            self._waiting_for[source] += 1

    def handle(self, source: Input) -> Handle:
        """A handle; from disk where there is none.

        Raises:
            FileNotFoundError: the file is gone, or is not what was written.
        """
        if source not in self._handles:
            content = self.store.load(source.job, source.channel)
            if content is None:
                raise FileNotFoundError(f"product {source.channel} of job {source.job} vanished from {self.store.path}")
            self._handles[source] = self.executor.put(content)
        return self._handles[source]

    def save(self, job: Job, outcome: Outcome) -> dict[str, str]:
        """Put what a job left on disk, all of it or nothing; digests by channel.

        Raises:
            LookupError: some of it is lost.
        """
        contents = {channel: self.executor.get(handle) for channel, handle in outcome.products.items()}
        return {channel: self.store.save(job.id, channel, content) for channel, content in contents.items()}

    def offer(self, job: Job, outcome: Outcome) -> None:
        """Remember the handles of what a job left, once it is in the journal."""
        for channel, handle in outcome.products.items():
            self._handles[Input(job.id, channel)] = handle

    def forget(self, job: Job | None = None) -> None:
        """Drop handles, of which some may be lost; who needs one gets a new one from disk.

        Args:
            job: whose inputs; None: all.
        """
        for source in list(self._handles) if job is None else job.inputs.values():
            self._handles.pop(source, None)

    def release(self, job: Job, done: bool) -> None:
        """Let go of products that nothing waits for; delete those that are used up and not to be kept.

        Args:
            job: has ended, or will not be run.
            done: it ended well.
        """
        for source in job.inputs.values():
            self._waiting_for[source] -= 1
            if not done:
                # The next run will try this job again, and needs it then.
                self._held.add(source)
        for source in {*job.inputs.values(), *(Input(job.id, c) for c in ("public", "secret"))}:
            if self._waiting_for.get(source, 0) <= 0:
                self._handles.pop(source, None)
                keep = source in self._held or ranking.keeps(self.plan, self.plan.jobs[source.job])
                if not keep and self.store.succeeded(source.job):
                    self.store.drop(source.job, source.channel)
