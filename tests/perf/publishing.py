"""In a process of its own: the `publish` command; the most memory it took goes to stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(run: str, to: str) -> None:
    """Publish a run folder."""
    from bench.commands.publishing import publish
    from tests.perf.leaderboards import most_memory

    sys.stdout.write(publish([Path(run)], Path(to), None))
    sys.stderr.write(json.dumps({"memory_mb": most_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
