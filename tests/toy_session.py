"""Opens and closes a pool in a process of its own, and tells on stdout what it had started."""

from __future__ import annotations

import ipaddress
import json
import os
import stat
import sys
from pathlib import Path

import bench.workers.cluster
import bench.workers.pool

EARLY = "ray" in sys.modules
_LISTENS = "0A"


def descendants() -> list[int]:
    """All processes below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def _target(link):
    # A process may close a file between its listing and this.
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return None


def listening(processes: list[int]) -> list[str]:
    """The addresses at which these processes wait for connections over TCP."""
    sockets = {target for one in processes for link in _descriptors(one) if (target := _target(link))}
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and f"socket:[{fields[9]}]" in sockets:
                found.append(_address(fields[1].partition(":")[0]))
    return found


def _descriptors(process: int) -> list[Path]:
    return [link for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()]


def _address(digits: str) -> str:
    # The kernel writes words of 32 bits, each in the order of the machine.
    words = (int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8))
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def main() -> None:
    """Open, look, close."""
    bench.workers.cluster._STORE_BYTES = 2**27
    pool = bench.workers.pool.RayPool("toy_runner:run", workers=2, threads=1, device="cpu")
    processes = descendants()
    logs = pool._cluster.logs
    assert logs is not None
    directory = logs.parents[2]
    seen = {
        "imported early": EARLY,
        "processes": processes,
        "listening": listening([os.getpid(), *processes]),
        "directory": str(directory),
        "mode": stat.S_IMODE(directory.stat().st_mode),
    }
    # More than the store takes, so that some of it spills to disk.
    handles = [pool.put(bytes(2**25)) for _ in range(5)]
    seen["spilled"] = len(list(directory.glob("ray/*/ray_spilled_objects*/*")))
    del handles
    pool.close()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
