"""Images in files: what counts as one, and those of a folder or a Parquet file as raw inputs of a task."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})


def find(path: str) -> Path:
    """The path as given, else below the folder that OWNBENCH_DATA names.

    Raises:
        InputError: it is in neither place.
    """
    tried = [Path(path).expanduser()]
    if root := os.environ.get("OWNBENCH_DATA"):
        tried.append(Path(root).expanduser() / path)
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise InputError(
        f"expected data at {path!r}; looked at {', '.join(str(p) for p in tried)}. "
        "Give an absolute path, or set OWNBENCH_DATA to the folder that holds it."
    )


def files(path: str) -> list[Path]:
    """The image or Parquet files behind the path, in lexicographic order, the order in which they are read."""
    found = find(path)
    if found.is_file():
        return [found]
    chosen = [p for p in sorted(found.iterdir()) if p.suffix.lower() in SUFFIXES | {".parquet"}]
    if not chosen:
        raise InputError(f"expected images or Parquet files in {found}, found none")
    return chosen


def digest(path: str) -> str:
    """SHA-256 over the names and content of the files."""
    total = hashlib.sha256()
    for file in files(path):
        total.update(file.name.encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def read(path: str, count: int, shape: tuple[int, ...]) -> Tensor:
    """The first `count` images, cut to their centre without scaling (smaller ones are scaled up first).

    Args:
        path: an image folder, a Parquet file or a folder of them (column `image` or `img`: struct of bytes).
        count: how many.
        shape: (channels, height, width); one channel takes the luminance, three take colour.

    Returns:
        float32 in [0, 1] of shape (count, *shape).

    Raises:
        InputError: no such path, too few images, or a file that is not an image.
    """
    chosen: list[np.ndarray] = []
    for name, data in _encoded(files(path)):
        if len(chosen) == count:
            break
        chosen.append(_cut(opened(name, data), shape))
    if len(chosen) < count:
        raise InputError(f"{path}: expected at least {count} images, got {len(chosen)}")
    return torch.from_numpy(np.stack(chosen))


def opened(name: str, data: bytes) -> Image.Image:
    """The image of encoded bytes, its pixels not read yet.

    Raises:
        InputError: no image.
    """
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: expected an image of sensible size: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name}: expected an image, got {len(data)} bytes that are none") from error


def column_of(names: Sequence[str]) -> str | None:
    """The column of a Parquet file that holds images, in the Hugging Face layout."""
    return next((name for name in ("image", "img") if name in names), None)


def _encoded(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        if path.suffix.lower() != ".parquet":
            yield str(path), path.read_bytes()
            continue
        import pyarrow.parquet as pq

        names = pq.read_schema(path).names
        column = column_of(names)
        if column is None:
            raise InputError(f"{path}: expected a column 'image' or 'img', got {', '.join(names)}")
        for row, entry in enumerate(pq.read_table(path, columns=[column]).column(column).to_pylist()):
            yield f"{path} row {row}", entry["bytes"]


def _cut(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    channels, height, width = shape
    image = image.convert("L" if channels == 1 else "RGB")
    scale = max(height / image.height, width / image.width)
    if scale > 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255.0
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
