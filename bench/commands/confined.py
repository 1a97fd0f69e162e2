"""The process that opens a stranger's archive: with little memory and time, and of which little is believed.

Run as `python -m bench.commands.confined ARCHIVE ORIGIN FOLDER` by `ownbench accept`; exit code 3 and a reason on
stdout where the archive is refused.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

# Bytes of address space, libraries included, for any archive, and beside these for each of its bytes; at most.
MEMORY, PER_BYTE, MOST = 2 * 2**30, 64, 8 * 2**30
# Seconds of computing; bytes of any file that it writes.
SECONDS, FILE = 540, 2**30


def confine(size: int) -> int:
    """Take from this process what reading an archive of so many bytes does not need; the bytes that it may use."""
    memory = min(MEMORY + PER_BYTE * size, MOST)
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))
    return memory


def main(path: Path, origin: str, to: Path) -> int:
    """Check an archive and store what is in it; the exit code."""
    memory = confine(path.stat().st_size if path.is_file() else 0)
    from bench.commands.submitting import REFUSED, store
    from bench.errors import InputError
    from bench.publishing.submission import checked

    try:
        store(checked(path), origin, to)
    except InputError as error:
        sys.stdout.write(str(error))
        return REFUSED
    except MemoryError:
        sys.stdout.write(f"{path}: reading it takes more than {memory / 2**30:.1f} GiB of memory")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
