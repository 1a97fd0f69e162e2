"""The `game` command: the game between the owners and the attackers of run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.commands import boards
from bench.tables.schema import Protocol
from bench.text import equilibria


def show(runs: Sequence[Path], form: str, protocol: Protocol | None = None) -> str:
    """The games of each task of run folders; arguments and errors as for `bench.commands.boards.show`.

    Args:
        runs, form: likewise.
        protocol: as for `bench.tables.game.contest`.
    """
    tables = boards.read(runs)
    return equilibria.render(tables.leaderboard, tables.matrix, form, protocol)
