"""What a run shows while it runs: a live display on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from bench.planning.job import Job, Outcome


@dataclass
class _Counts:
    """What both displays count."""

    total: int = 0
    done: int = 0
    failed: int = 0
    slots: int = 1
    since: float = field(default_factory=time.monotonic)

    def take(self, outcome: Outcome) -> None:
        self.done += 1
        self.failed += outcome.status == "failed"


class PlainProgress:
    """A line when it starts, one for each job that takes long or fails, one every few seconds otherwise."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console = console
        self.every = every
        self.counts = _Counts()
        self._last = 0.0

    def begin(self, total: int, done: int, slots: int) -> None:
        """The run starts."""
        self.counts = _Counts(total, done, slots=slots)
        self._last = time.monotonic()
        self._say(f"{total} jobs, {done} of them finished before, {slots} at a time")

    def started(self, job: Job) -> None:
        """A job starts."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended."""
        self.counts.take(outcome)
        if outcome.status == "failed":
            self._say(f"failed: {job.label}: {outcome.error_type}: {outcome.error}")

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self._say(text)

    def tick(self, remaining: float) -> None:
        """Time passes."""
        if time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            counts = self.counts
            left = remaining / counts.slots
            self._say(f"{counts.done} of {counts.total} jobs done, {counts.failed} failed, about {left:.0f} s left")

    def end(self) -> None:
        """The run is over."""
        counts = self.counts
        took = time.monotonic() - counts.since
        self._say(f"{counts.done} of {counts.total} jobs done, {counts.failed} failed, {took:.0f} s")

    def _say(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)


class LiveProgress:
    """A bar with what is done, running and failed, and the time left."""

    def __init__(self, console: Console) -> None:
        self.counts = _Counts()
        self._running: dict[str, tuple[str, float]] = {}
        self._bars = Bars(
            TextColumn("[bold]jobs"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bars.add_task("jobs", total=None, failed=0, left="")
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)
        self._console = console

    def begin(self, total: int, done: int, slots: int) -> None:
        """The run starts."""
        self.counts = _Counts(total, done, slots=slots)
        self._bars.update(self._task, total=total, completed=done)
        self._live.start()

    def started(self, job: Job) -> None:
        """A job starts."""
        self._running[job.id] = (job.label, time.monotonic())

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended."""
        self._running.pop(job.id, None)
        self.counts.take(outcome)
        self._bars.update(self._task, completed=self.counts.done, failed=self.counts.failed)
        if outcome.status == "failed":
            message = f"{job.label}: {outcome.error_type}: {outcome.error}"
            self._console.print(f"[red]failed[/red] {escape(message)}", highlight=False)

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self._console.print(f"[yellow]note[/yellow] {escape(text)}", highlight=False)

    def tick(self, remaining: float) -> None:
        """Time passes."""
        left = remaining / self.counts.slots
        self._bars.update(self._task, left=f"about {left:.0f} s left" if left >= 1 else "")

    def end(self) -> None:
        """The run is over."""
        self._live.stop()

    def _render(self) -> Group:
        running = Table.grid(padding=(0, 2))
        for label, since in self._running.values():
            running.add_row("  running", escape(label), f"{time.monotonic() - since:.0f} s")
        return Group(self._bars, running)


def for_console(console: Console) -> PlainProgress | LiveProgress:
    """The display that fits the console."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)
