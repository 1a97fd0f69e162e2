"""What the command line says of a run. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Where runs go that name no folder.
RUNS = Path("results") / "runs"


@dataclass(frozen=True)
class Options:
    """What the command line said; see `ownbench run --help`."""

    suite: str
    out: Path | None = None
    workers: int | None = None
    seeds: tuple[int, ...] | None = None
    only: tuple[str, ...] = ()
    device: str = "auto"
    fresh: bool = False
    local: bool = False
    address: str | None = None
    gpus_per_job: float | None = None
