"""Image folders: one folder a class, below `train` and `test` or directly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.data.parquet import ParquetImages, holds
from bench.data.source import TEST, EncodedImages, Labels, Rows
from bench.errors import InputError
from bench.images import SUFFIXES

_TRAIN = ("train", "training")


class FolderImages(EncodedImages):
    """`train/CLASS/*.png` with or without `test/CLASS/*.png`, or `CLASS/*.png`; classes in order of their names."""

    def __init__(self, path: Path) -> None:
        """List the files; no image is read yet.

        Raises:
            InputError: no class folders, no images, or a test split with a class that training lacks.
        """
        self.where = str(path)
        train = next((path / name for name in _TRAIN if (path / name).is_dir()), None)
        test = next((path / name for name in TEST if (path / name).is_dir()), None) if train else None
        folders = {"train": train or path} | ({"test": test} if test else {})
        self.classes = _classes(folders["train"])
        self._files: dict[str, list[tuple[Path, int]]] = {}
        for split, folder in folders.items():
            strange = sorted(set(_classes(folder)) - set(self.classes))
            if strange:
                raise InputError(f"{folder}: expected classes {', '.join(self.classes)}, got {', '.join(strange)}")
            self._files[split] = [
                (file, number) for number, name in enumerate(self.classes) for file in _images(folder / name)
            ]

    def splits(self) -> tuple[str, ...]:
        """`train`, and `test` where there is one."""
        return tuple(self._files)

    def labels(self, split: str) -> Labels:
        """The label of each image of a split."""
        return np.array([number for _, number in self._files[split]], dtype=np.int64)

    def encoded(self, split: str, rows: Rows) -> Iterator[tuple[str, bytes]]:
        """The files of the rows."""
        for row in rows:
            file = self._files[split][int(row)][0]
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                raise InputError(f"{file}: expected a file that can be read: {error}") from error


def images_at(path: Path) -> ParquetImages | FolderImages:
    """The set at a path: a Parquet file or a folder of them, else an image folder.

    Raises:
        InputError: it is none of these.
    """
    return ParquetImages(path) if path.is_file() or holds(path) else FolderImages(path)


def _classes(folder: Path) -> tuple[str, ...]:
    below = [sub for sub in _listed(folder) if sub.is_dir()]
    found = tuple(sorted(sub.name for sub in below if _images(sub)))
    if len(found) < 2:
        raise InputError(
            f"{folder}: expected a folder of images for each of at least two classes, got "
            f"{', '.join(found) or 'none'}; the other layout is Parquet files with columns 'image' and 'label'"
        )
    return found


def _images(folder: Path) -> list[Path]:
    return sorted(f for f in _listed(folder) if f.suffix.lower() in SUFFIXES and f.is_file()) if folder.is_dir() else []


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, without what systems and editors put there."""
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be read: {error}") from error
