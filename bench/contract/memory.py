"""Looking for bytes in the memory of another process of this user. Linux only: it reads /proc."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

_CHUNK = 1 << 16
# Of pieces of memory, by address and length.
Picture = Mapping[tuple[int, int], int]
# Of an entry of /proc/PID/pagemap: the page is in memory, or in swap.
_THERE = np.uint64(0b11 << 62)


def picture(pid: int, longest: int) -> Picture:
    """Digests of what the process could have written by now, with which `search` tells what has changed since.

    Args:
        pid: of a process that this one may read, such as its child.
        longest: as many bytes as are searched for at most.

    Raises:
        OSError: as for `search`.
    """
    return {(start, len(piece)): hash(piece) for start, piece in _pieces(pid, longest)}


def search(
    pid: int, wanted: Mapping[str, bytes], longest: int | None = None, before: Picture | None = None
) -> frozenset[str]:
    """The names of those bytes that stand somewhere in what the process could have written.

    Args:
        pid: of a process that this one may read, such as its child.
        wanted: bytes by name, each at least one.
        longest: as many bytes as they have at most; None to look it up.
        before: of a time at which they stood nowhere, with the same `longest`: what has not changed is not searched.

    Raises:
        OSError: this system does not show memory, or not to this user.
    """
    longest = max((len(content) for content in wanted.values()), default=0) if longest is None else longest
    known, found = before or {}, set[str]()
    for start, piece in _pieces(pid, longest):
        if not known or known.get((start, len(piece))) != hash(piece):
            found.update(n for n, content in wanted.items() if n not in found and content in piece)
    return frozenset(found)


def _pieces(pid: int, longest: int) -> Iterator[tuple[int, bytes]]:
    """All that the process could have written, with the addresses; pieces overlap by `longest` bytes."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(f"/proc/{pid}/pagemap", "rb") as pages:
        for start, end in _written(pid):
            for first, last in _present(pages, start, end):
                yield from _chunks(memory, first, last, longest)


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


def _chunks(memory: IO[bytes], start: int, end: int, longest: int) -> Iterator[tuple[int, bytes]]:
    """The memory of a range, in pieces that overlap by one searched content and end at the same places each time."""
    while start < end:
        memory.seek(start)
        length = _CHUNK - start % _CHUNK
        try:
            chunk = memory.read(min(length + longest, end - start))
        except OSError:
            # A mapping of a device; nothing of ours can stand there.
            return
        if not chunk:
            return
        yield start, chunk
        start += length
