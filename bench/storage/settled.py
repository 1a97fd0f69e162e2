"""A finished run of which nothing has changed since, recognised without planning it: as `make` does, by files.

Planning imports PyTorch and every plugin, and digests data and sources; a run that is done and still current is told
by looking at the files that all of that depends on. Whatever is in doubt is planned.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from bench.planning.options import RUNS, Options
from bench.storage.store import write_whole

NAME = "settled.json"
_PACKAGES = ("bench", "defenses", "attacks", "models")
_OWN = ("run.json", "plan.json", "journal.jsonl")


def inputs(options: Options) -> str:
    """A digest of all that a plan is made of, data apart: suite, options, sources, plugins, packages, devices.

    Args:
        options: of the run; how many workers it has makes no difference to its result.
    """
    facts = {
        "suite": [options.suite, _suite_text(options.suite)],
        "folder": str(Path.cwd()),
        "options": [str(options.out), options.seeds, options.only, options.device],
        "environment": {
            n: v for n, v in os.environ.items() if n.startswith("OWNBENCH_") or n == "CUDA_VISIBLE_DEVICES"
        },
        "python": sys.version,
        "packages": [_state(Path(sysconfig.get_path(kind)), below=False) for kind in ("purelib", "platlib")],
        "gpus": sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*")),
        "sources": {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(set(_sources()))},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def finished(options: Options, known: str) -> tuple[Path, int] | None:
    """The folder of a run with these options that is whole and current, and the number of its jobs; else None.

    Args:
        options: of the run that is asked for.
        known: `inputs` of it.
    """
    out = options.out or _default(options)
    # What a cluster has can only be told by joining it.
    if options.fresh or options.address or out is None:
        return None
    try:
        stamp = json.loads((out / NAME).read_text(encoding="utf-8"))
        same = stamp["inputs"] == known and stamp["folder"] == _folder(out, stamp["files"])
        same = same and all(_state(Path(place)) == state for place, state in stamp["watched"].items())
        return (out, int(stamp["jobs"])) if same else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def watched(places: Iterable[Path]) -> dict[str, Any]:
    """The state of files and folders outside the project on which a plan depends: data, trigger images."""
    # Not resolved: a link may lead elsewhere tomorrow.
    return {os.path.abspath(place): _state(place) for place in places}  # noqa: PTH100


def forget(out: Path) -> None:
    """Say no longer that the folder's run is whole."""
    (out / NAME).unlink(missing_ok=True)


def stamp(out: Path, known: str, outside: dict[str, Any], jobs: int, tables: Iterable[Path]) -> None:
    """Say that the folder's run is whole.

    Args:
        out: the folder.
        known: `inputs`, taken before the plan was made.
        outside: `watched`, taken before the first job.
        jobs: their number.
        tables: the files that were written last.
    """
    files = [*_OWN, *(path.name for path in tables)]
    content = {"inputs": known, "watched": outside, "jobs": jobs, "files": files, "folder": _folder(out, files)}
    write_whole(out / NAME, json.dumps(content, indent=1).encode())


def _default(options: Options) -> Path | None:
    try:
        return RUNS / str(tomllib.loads(_suite_text(options.suite))["name"])
    except (tomllib.TOMLDecodeError, KeyError):
        return None


def _suite_text(name: str) -> str:
    """The text of a suite given by name or by path; empty where it cannot be read, which planning will say."""
    for path in (Path(__file__).parent.parent / "suites" / f"{name}.toml", Path(name)):
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                return ""
    return ""


def _sources() -> Iterator[Path]:
    """Every source file that could be part of a plan: the project's and those of plugins."""
    entries = [*entry_points(group="ownbench.defenses"), *entry_points(group="ownbench.attacks")]
    for package in {*_PACKAGES, *(entry.value.split(":")[0].split(".")[0] for entry in entries)}:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            for place in spec.submodule_search_locations:
                yield from _python(Path(place))
        elif spec is not None and spec.origin:
            yield Path(spec.origin)
    for part in filter(None, os.environ.get("OWNBENCH_PLUGINS", "").split(os.pathsep)):
        path = Path(part)
        yield from _python(path) if path.is_dir() else [path] if path.is_file() else []


def _python(folder: Path) -> list[Path]:
    # Editors leave links that lead nowhere, with names that begin with a dot.
    return [file for file in folder.rglob("*.py") if file.is_file() and not file.name.startswith(".")]


def _folder(out: Path, files: Iterable[str]) -> list[Any]:
    return [*(_state(out / name) for name in files), _state(out / "artifacts")]


def _state(path: Path, below: bool = True) -> Any:
    """Size and time of change of a file, or a digest of those of all that is in a folder; None where it is not."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not (below and path.is_dir()):
        return [found.st_size, found.st_mtime_ns]
    total = hashlib.sha256(str(path.resolve()).encode())
    seen: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(folders)
        seen.add(real)
        for name in sorted(names):
            total.update(f"{folder}/{name} {_mark(os.path.join(folder, name))}\n".encode())  # noqa: PTH118
    return total.hexdigest()


def _mark(file: str) -> str:
    try:
        # A data set can have a million files, too many for a Path each.
        one = os.stat(file)  # noqa: PTH116
    except OSError:
        return "leads nowhere"
    return f"{one.st_size} {one.st_mtime_ns}"
