"""The archive of a submission: a zip of known members that is not compressed, and how a stranger's is opened.

Nothing is unpacked to disk. As members are stored as they are, no archive holds more than its own size.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import __version__
from bench.errors import InputError
from bench.tables import schema

FORMAT, VERSION = "ownbench submission", 1
TABLES = ("records", "decoys", "leaderboard", "matrix")
MANIFEST, SUITE, ENVIRONMENT = "manifest.json", "suite.json", "environment.json"
MEMBERS = tuple(sorted([MANIFEST, SUITE, ENVIRONMENT, *(f"{name}.parquet" for name in TABLES)]))
# Bytes. A million records with their decoys take some 100 MB.
LARGEST_ARCHIVE, LARGEST_JSON = 256 * 2**20, 16 * 2**20
# Zip has no earlier time.
_TIME = (1980, 1, 1, 0, 0, 0)
# Of APPNOTE.TXT: the end of central directory record without a comment (4.3.16), the locator of zip64 (4.3.15).
_END, _END_SIGN = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
_LOCATOR_SIZE, _LOCATOR_SIGN = 20, b"PK\x06\x07"
# A local header (4.3.7) and an entry of the directory (4.3.12), beside the name that each of them holds.
_LOCAL, _CENTRAL = 30, 46
_LARGEST_DIRECTORY = 4096


def packed(members: Mapping[str, bytes]) -> bytes:
    """The archive of all members but the manifest, which is made of them; a function of these bytes alone."""
    digests = {name: {"sha256": _sha256(content), "size": len(content)} for name, content in members.items()}
    head = {"format": FORMAT, "version": VERSION, "schema_version": schema.VERSION, "ownbench": __version__}
    whole = {**members, MANIFEST: as_json({**head, "members": digests})}
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(whole):
            info = zipfile.ZipInfo(name, _TIME)
            # Of Unix, whatever it is packed on.
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, whole[name])
    return sink.getvalue()


def unpacked(path: Path) -> dict[str, bytes]:
    """The members of an archive that anybody may have made, in memory, with the digests of its manifest.

    Raises:
        InputError: no such file, too large, anything but the members that are known, each once, a file, stored as it
            is and of the size that both headers say; bytes beside them; a manifest that says something else.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: expected a file")
        if size > LARGEST_ARCHIVE:
            raise InputError(f"{path}: expected at most {LARGEST_ARCHIVE:,} bytes, got {size:,}")
        _require_end(path, size)
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _require_members(infos, size)
            members = {info.filename: _content(archive, info) for info in infos}
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    # zipfile raises these for what it does not take.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise InputError(f"{path}: expected a zip archive that can be read: {error}") from error
    _require_digests(members, path)
    return members


def as_json(value: Any) -> bytes:
    """A value as JSON for people, the same bytes from equal values."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def from_json(content: bytes, name: str) -> dict[str, Any]:
    """An object of JSON that anybody may have written.

    Raises:
        InputError: no JSON or no object, a name twice, NaN, nested too deep, too large.
    """
    if len(content) > LARGEST_JSON:
        raise InputError(f"{name}: expected at most {LARGEST_JSON:,} bytes, got {len(content):,}")
    try:
        found = json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise InputError(f"{name}: expected an object of JSON, got {type(found).__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _require_end(path: Path, size: int) -> None:
    """Look at the end before zipfile does, which reads a directory of any size."""
    with path.open("rb") as file:
        file.seek(max(0, size - _END.size - _LOCATOR_SIZE))
        tail = file.read(_END.size + _LOCATOR_SIZE)
    if len(tail) < _END.size or not tail[-_END.size :].startswith(_END_SIGN):
        raise InputError("expected a zip archive, whole and with nothing after its end")
    _, _, _, _, entries, directory, _, comment = _END.unpack(tail[-_END.size :])
    if tail.startswith(_LOCATOR_SIGN) or comment or directory > _LARGEST_DIRECTORY:
        raise InputError(f"expected a zip archive of {len(MEMBERS)} members, got a larger directory or a comment")
    if entries > 2 * len(MEMBERS):
        raise InputError(f"expected {len(MEMBERS)} members, got {entries}")


def _require_members(infos: Sequence[zipfile.ZipInfo], size: int) -> None:
    names = [info.orig_filename for info in infos]
    for info, name in zip(infos, names, strict=True):
        if wrong := _wrong_name(name) or _wrong_entry(info):
            raise InputError(f"member {name[:80]!r}: {wrong}")
        if names.count(name) > 1:
            raise InputError(f"member {name!r}: expected once, got {names.count(name)} of it")
    if missing := [name for name in MEMBERS if name not in names]:
        raise InputError(f"expected the members {', '.join(MEMBERS)}; missing {', '.join(missing)}")
    told = _END.size + sum(_LOCAL + _CENTRAL + 2 * len(name) for name in names) + sum(info.file_size for info in infos)
    if told != size:
        raise InputError(f"expected nothing but its members, {told:,} bytes in all, got {size:,}")


def _wrong_name(name: str) -> str | None:
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        return "expected a plain name, got an absolute path or one of another system"
    if ".." in name.split("/"):
        return "expected a plain name, got one that leads outside"
    return None if name in MEMBERS else f"not expected; known: {', '.join(MEMBERS)}"


def _wrong_entry(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return f"expected a file, got {'a link' if kind == stat.S_IFLNK else 'something else'}"
    if info.compress_type != zipfile.ZIP_STORED:
        return (
            f"expected members that are not compressed, got one that unfolds {info.compress_size:,} bytes "
            f"to {info.file_size:,}"
        )
    if info.compress_size != info.file_size:
        return f"expected one size, got {info.compress_size:,} and {info.file_size:,} bytes"
    return f"expected no flags, got {info.flag_bits:#x} (encrypted or streamed)" if info.flag_bits else None


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise InputError(f"member {info.filename}: expected {info.file_size:,} bytes, got {len(content):,}")
    return content


def _require_digests(members: Mapping[str, bytes], path: Path) -> None:
    said = from_json(members[MANIFEST], f"{path}: {MANIFEST}")
    keys = {"format", "version", "schema_version", "ownbench", "members"}
    if said.keys() != keys or said["format"] != FORMAT or said["version"] != VERSION:
        raise InputError(f"{path}: {MANIFEST}: expected {FORMAT!r} of version {VERSION}, got {str(said)[:120]!r}")
    found = {
        name: {"sha256": _sha256(content), "size": len(content)}
        for name, content in members.items()
        if name != MANIFEST
    }
    if said["members"] == found:
        return
    known = said["members"] if isinstance(said["members"], dict) else {}
    wrong = sorted(name for name in {*known, *found} if known.get(name) != found.get(name))
    raise InputError(f"{path}: {wrong[0][:80]!r}: not what {MANIFEST} gives the size and the SHA-256 of")
