"""Clouds of points in files: point lists, and meshes whose surface is sampled."""

from __future__ import annotations

import hashlib
import io
from types import ModuleType
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError
from bench.solids import in_unit_ball, on_surface

_MESHES = frozenset({".off", ".obj", ".ply"})
_TEXTS = frozenset({".txt", ".pts"})
SUFFIXES = _MESHES | _TEXTS | {".npy"}

# The stored number that stands for a coordinate of 1.
TOP = 10_000.0


def decoded(name: str, data: bytes, points: int) -> NDArray[np.int16]:
    """The cloud of a file's bytes, in the unit ball, as stored coordinates of shape (3, points).

    A mesh is sampled by area; of a longer list of points so many are taken, of a shorter one some stand twice. What is
    drawn for that depends on the bytes alone.

    Args:
        name: of the file, for messages and by its suffix.
        data: its content.
        points: how many.

    Raises:
        InputError: not what the suffix says.
    """
    chance = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(data).digest()[:16], "big")))
    vertices, faces = _read(name, data)
    if len(faces):
        try:
            return quantised(name, on_surface((vertices, faces), points, chance))
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error
    if len(vertices) < points:
        more = chance.integers(0, len(vertices), points - len(vertices))
        return quantised(name, vertices[np.concatenate([np.arange(len(vertices)), more])])
    return quantised(name, vertices[chance.permutation(len(vertices))[:points]])


def quantised(name: str, points: NDArray[np.float64]) -> NDArray[np.int16]:
    """Points of shape (count, 3), moved and scaled into the unit ball, as stored coordinates of shape (3, count).

    Raises:
        InputError: coordinates that are not finite.
    """
    if not np.isfinite(points).all():
        raise InputError(f"{name}: expected finite coordinates, got NaN or infinity")
    # In double precision numbers up to 1e150 can be squared.
    if np.abs(points).max(initial=0) > 1e100:
        raise InputError(f"{name}: expected coordinates of sensible size, got {np.abs(points).max():.0e}")
    return np.round(in_unit_ball(points).T * TOP).astype(np.int16)


def held(name: str, data: bytes) -> int | None:
    """How many points a file holds; None for a mesh, which has as many as are asked for.

    Raises:
        InputError: as for `decoded`.
    """
    vertices, faces = _read(name, data)
    return None if len(faces) else len(vertices)


def optional(module: str) -> ModuleType:
    """A library that only points need.

    Raises:
        InputError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"expected the package {module!r} for these files, which is not installed: pip install 'ownbench[points]'"
        ) from error


def _read(name: str, data: bytes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices or points of shape (V, 3), and triangles of shape (F, 3), none for a list of points."""
    suffix = "." + name.rpartition(".")[2].lower()
    faces = np.empty((0, 3), dtype=np.int64)
    if suffix == ".off":
        vertices, faces = _off(name, data)
    elif suffix in _MESHES:
        vertices, faces = _mesh(name, data, suffix[1:])
    else:
        vertices = _array(name, data) if suffix == ".npy" else _text(name, data)
    if not len(vertices):
        raise InputError(f"{name}: expected points, got none")
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise InputError(
            f"{name}: expected faces of vertices 0 to {len(vertices) - 1}, got {faces.min()}, {faces.max()}"
        )
    return vertices, faces


def _off(name: str, data: bytes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Not by trimesh, which takes a file whose end is missing for a whole one."""
    try:
        stripped = (line.partition("#")[0].strip() for line in data.decode("ascii").splitlines())
        lines = [line for line in stripped if line]
        # Of ModelNet some have the counts on the first line, without a space: `OFF490 518 0`.
        if not lines or not lines[0].startswith("OFF"):
            raise ValueError(f"the first line is {lines[0][:20]!r}" if lines else "it is empty")
        body = [rest, *lines[1:]] if (rest := lines[0][3:].strip()) else lines[1:]
        points, polygons = (int(count) for count in body[0].split()[:2])
        if len(body) < 1 + points + polygons:
            raise ValueError(f"{points} vertices and {polygons} faces need as many lines, there are {len(body) - 1}")
        vertices = np.array([line.split()[:3] for line in body[1 : 1 + points]], dtype=np.float64).reshape(-1, 3)
        rows = [[int(one) for one in line.split()] for line in _cut(body[1 + points : 1 + points + polygons])]
        # A polygon as a fan of triangles.
        fans = [(row[1], row[k], row[k + 1]) for row in rows for k in range(2, row[0])]
        return vertices, np.array(fans, dtype=np.int64).reshape(-1, 3)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: expected a mesh in the format off: {error}") from error


def _cut(faces: list[str]) -> list[str]:
    """Lines of faces without the colours that may follow the corners."""
    return [" ".join(parts[: int(parts[0]) + 1]) for line in faces if (parts := line.split())]


def _mesh(name: str, data: bytes, kind: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    trimesh = optional("trimesh")
    try:
        found = trimesh.load(io.BytesIO(data), file_type=kind, process=False)
        vertices = np.asarray(found.vertices, dtype=np.float64).reshape(-1, 3)
        faces = np.asarray(getattr(found, "faces", []), dtype=np.int64).reshape(-1, 3)
    # Its readers raise whatever the file makes them stumble over.
    except Exception as error:
        raise InputError(f"{name}: expected a mesh in the format {kind}: {type(error).__name__}: {error}") from error
    return vertices, faces


def _array(name: str, data: bytes) -> NDArray[np.float64]:
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, BadZipFile) as error:
        raise InputError(f"{name}: expected an array of numbers in the format npy: {error}") from error
    number = isinstance(found, np.ndarray) and found.dtype.kind in "fiu"
    if not number or found.ndim != 2 or found.shape[1] < 3:
        got = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise InputError(f"{name}: expected numbers of shape (points, 3 or more), got {got}")
    points: NDArray[np.float64] = found[:, :3].astype(np.float64)
    return points


def _text(name: str, data: bytes) -> NDArray[np.float64]:
    try:
        lines = data.decode("ascii").replace(",", " ").splitlines()
        return np.loadtxt(lines, usecols=(0, 1, 2), ndmin=2, dtype=np.float64) if lines else np.empty((0, 3))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: expected lines of at least three numbers: {error}") from error
