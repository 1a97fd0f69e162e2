"""Looking for bytes in the memory of another process of this user. Linux only: it reads /proc."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

_CHUNK = 1 << 23
# Of an entry of /proc/PID/pagemap: the page is in memory, or in swap.
_THERE = np.uint64(0b11 << 62)


def search(pid: int, wanted: Mapping[str, bytes]) -> frozenset[str]:
    """The names of those bytes that stand somewhere in what the process could have written.

    Args:
        pid: of a process that this one may read, such as its child.
        wanted: bytes by name, each at least one.

    Raises:
        OSError: this system does not show memory, or not to this user.
    """
    longest = max((len(content) for content in wanted.values()), default=0)
    found: set[str] = set()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(f"/proc/{pid}/pagemap", "rb") as pages:
        for start, end in _written(pid):
            for first, last in _present(pages, start, end):
                for chunk in _chunks(memory, first, last, longest):
                    found.update(n for n, content in wanted.items() if n not in found and content in chunk)
    return frozenset(found)


def _written(pid: int) -> Iterator[tuple[int, int]]:
    """The address ranges that can be read and are not just files."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, rights, _, _, inode, *name = line.split(maxsplit=5)
        special = bool(name) and name[0].startswith(("[vvar", "[vsyscall"))
        if rights[0] == "r" and not special and ("w" in rights or inode == "0"):
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16)


def _present(pages: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs of pages in the range that were ever touched."""
    pages.seek(start // mmap.PAGESIZE * 8)
    entries = np.frombuffer(pages.read((end - start) // mmap.PAGESIZE * 8), dtype=np.uint64)
    there = np.concatenate([[False], (entries & _THERE) != 0, [False]])
    edges = np.flatnonzero(there[1:] != there[:-1])
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        yield start + int(first) * mmap.PAGESIZE, start + int(last) * mmap.PAGESIZE


def _chunks(memory: IO[bytes], start: int, end: int, longest: int) -> Iterator[bytes]:
    """The memory of a range, in pieces that overlap by one searched content."""
    while start < end:
        memory.seek(start)
        try:
            chunk = memory.read(min(_CHUNK + longest, end - start))
        except OSError:
            # A mapping of a device; nothing of ours can stand there.
            return
        if not chunk:
            return
        yield chunk
        start += _CHUNK
