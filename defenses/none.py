"""No defense: the clean model that everything is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.defense import Defense, Protected
from bench.effort import Effort
from bench.evidence import Evidence
from bench.key import Key
from bench.plugin import Access
from bench.stage import CleanModel, Stage
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import Task
from bench.trainer import OwnerTrainer


@dataclass(frozen=True)
class Undefended(Defense):
    """Publishes the clean model; there is nothing to verify."""

    name: ClassVar[str] = "none"
    family: ClassVar[str] = "none"
    access: ClassVar[Access] = "none"
    undefended: ClassVar[bool] = True

    def stages(self) -> tuple[Stage, ...]:
        """The clean model."""
        return (CleanModel(),)

    def capacity(self, task: Task) -> float:
        """Nothing can be claimed."""
        del task
        return 0.0

    def effort(self, task: Task) -> Effort:
        """Nothing beside the clean model."""
        del task
        return Effort()

    def draw(self, task: Task, stream: Stream) -> Key:
        """An empty key."""
        del task, stream
        return Key({})

    def protect(self, trainer: OwnerTrainer, key: Key) -> Protected:
        """The clean model as it is."""
        return Protected(trainer.clean(), key)

    def verify(self, suspect: Suspect, key: Key, trainer: OwnerTrainer) -> Evidence:
        """No evidence."""
        del suspect, key, trainer
        return Evidence.unreadable("no scheme, no evidence")
