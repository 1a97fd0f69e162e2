"""What every plugin is: a frozen dataclass whose fields are its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from bench import parameters
from bench.effort import Effort

Access = Literal["none", "black-box", "white-box"]
# From the least to the most.
ACCESSES: tuple[Access, ...] = get_args(Access)


@dataclass(frozen=True)
class Plugin:
    """A defense or an attack. Subclasses are frozen dataclasses; class attributes declare what they are.

    Attributes:
        name: how suites call it, in kebab-case.
        family: the family of methods that it belongs to; one file a family.
        source: the paper, with its section or equation.
    """

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @property
    def params(self) -> dict[str, Any]:
        """All parameters as plain JSON values."""
        return parameters.values_of(self)

    @property
    def label(self) -> str:
        """The name with the parameters that differ from their defaults."""
        return parameters.label(self.name, self)

    def applies_to(self, task: Any) -> str | None:
        """Why this plugin cannot run on the task, or None where it can."""
        del task
        return None

    def architectures(self) -> tuple[str, ...]:
        """Names of the models that it builds beside the task's own; their sources are part of its identity."""
        return ()

    def files(self) -> tuple[str, ...]:
        """Paths of files whose content the plugin depends on."""
        return ()

    def stages(self) -> tuple[Any, ...]:
        """The shared stages (`bench.stage`) that it wants computed beforehand."""
        return ()

    def effort(self, task: Any) -> Effort | None:
        """How much it computes in all, for forecasts of a run's time; None where it does not say."""
        del task
        return None
