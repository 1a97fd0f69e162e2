"""The process that opens a stranger's archive: with little memory and time, and of which little is believed.

Run as `python -m bench.commands.confined ARCHIVE ORIGIN FOLDER` by `ownbench accept`; exit code 3 and a reason on
stdout where the archive is refused.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

# Bytes of address space, libraries included: a million records take 2.9 GiB. Seconds of computing; bytes of any file
# that it writes.
MEMORY, SECONDS, FILE = 4 * 2**30, 540, 2**30


def confine() -> None:
    """Take from this process what reading an archive does not need."""
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))


def main(path: Path, origin: str, to: Path) -> int:
    """Check an archive and store what is in it; the exit code."""
    confine()
    from bench.commands.submitting import REFUSED, store
    from bench.errors import InputError
    from bench.publishing.submission import checked

    try:
        store(checked(path), origin, to)
    except InputError as error:
        sys.stdout.write(str(error))
        return REFUSED
    except MemoryError:
        sys.stdout.write(f"{path}: reading it takes more than {MEMORY // 2**30} GiB of memory")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
