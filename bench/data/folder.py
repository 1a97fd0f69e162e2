"""Folders of labelled files: one folder a class, below `train` and `test`, directly, or around them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from bench.data.source import TEST, Encoded, EncodedImages, Labels, Rows
from bench.errors import InputError
from bench.images import SUFFIXES

_TRAIN = ("train", "training")


class Files(Encoded):
    """A source of one file an input.

    Args:
        where: for messages.
        files: by split each file with its label.
        classes: their names.
    """

    def __init__(self, where: str, files: Mapping[str, list[tuple[Path, int]]], classes: tuple[str, ...]) -> None:
        self.where = where
        self.classes = classes
        self._files = files

    def splits(self) -> tuple[str, ...]:
        """`train`, and `test` where there is one."""
        return tuple(self._files)

    def labels(self, split: str) -> Labels:
        """The label of each file of a split."""
        return np.array([number for _, number in self._files[split]], dtype=np.int64)

    def encoded(self, split: str, rows: Rows) -> Iterator[tuple[str, bytes]]:
        """The files of the rows."""
        for row in rows:
            file = self._files[split][int(row)][0]
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                raise InputError(f"{file}: expected a file that can be read: {error}") from error


class FolderImages(Files, EncodedImages):
    """`train/CLASS/*.png` with or without `test/CLASS/*.png`, or `CLASS/*.png`; classes in order of their names."""

    def __init__(self, path: Path) -> None:
        """List the files; no image is read yet.

        Raises:
            InputError: no class folders, no images, or a test split with a class that training lacks.
        """
        files, classes = by_class(path, SUFFIXES)
        if len(classes) < 2:
            raise InputError(
                f"{_train(path) or path}: expected a folder of images for each of at least two classes, got "
                f"{', '.join(classes) or 'none'}; the other layout is Parquet files with columns 'image' and 'label', "
                "that of points in files is CLASS/train/*.off"
            )
        super().__init__(str(path), files, classes)


def by_class(path: Path, suffixes: Collection[str]) -> tuple[dict[str, list[tuple[Path, int]]], tuple[str, ...]]:
    """The files of these suffixes by split, each with its label, and the names of the classes in their order.

    Layouts: `train/CLASS/FILE` and `test/CLASS/FILE`; `CLASS/train/FILE` and `CLASS/test/FILE`; `CLASS/FILE`.

    Raises:
        InputError: a test split with a class that training lacks.
    """
    train = _train(path)
    if train is None:
        classes = _classes(path, suffixes, _TRAIN)
        if classes:
            _refuse_others(path, classes, _classes(path, suffixes, TEST))
            return _listed_by_class(path, classes, suffixes, {"train": _TRAIN, "test": TEST}), classes
        classes = _classes(path, suffixes)
        return _listed_by_class(path, classes, suffixes, {"train": ("",)}), classes
    classes = _classes(train, suffixes)
    found = _listed_by_class(train, classes, suffixes, {"train": ("",)})
    test = next((path / name for name in TEST if (path / name).is_dir()), None)
    if test and classes:
        _refuse_others(test, classes, _classes(test, suffixes))
        found |= _listed_by_class(test, classes, suffixes, {"test": ("",)})
    return found, classes


def holds_files(path: Path, suffixes: Collection[str]) -> bool:
    """Whether there are such files in the folders of classes at a path."""
    train = _train(path)
    return bool(_classes(train, suffixes) if train else _classes(path, suffixes, ("", *_TRAIN)))


def _refuse_others(where: Path, classes: tuple[str, ...], tested: tuple[str, ...]) -> None:
    strange = sorted(set(tested) - set(classes))
    if strange:
        raise InputError(f"{where}: expected classes {', '.join(classes)}, got {', '.join(strange)}")


def _train(path: Path) -> Path | None:
    return next((path / name for name in _TRAIN if (path / name).is_dir()), None)


def _listed_by_class(
    folder: Path, classes: tuple[str, ...], suffixes: Collection[str], below: Mapping[str, Collection[str]]
) -> dict[str, list[tuple[Path, int]]]:
    """By split the files of all classes, from the first of the folders below a class that is there."""
    found: dict[str, list[tuple[Path, int]]] = {}
    for split, names in below.items():
        files = []
        for number, one in enumerate(classes):
            place = next((folder / one / name for name in names if (folder / one / name).is_dir()), None)
            files += [(file, number) for file in (_files(place, suffixes) if place else [])]
        if files or split == "train":
            found[split] = files
    return found


def _classes(folder: Path, suffixes: Collection[str], below: Collection[str] = ("",)) -> tuple[str, ...]:
    """The folders with such files in them, or in one of the folders below them."""
    subs = [sub for sub in _listed(folder) if sub.is_dir()]
    return tuple(sorted(sub.name for sub in subs if any(_files(sub / name, suffixes) for name in below)))


def _files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    return sorted(f for f in _listed(folder) if f.suffix.lower() in suffixes and f.is_file()) if folder.is_dir() else []


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, without what systems and editors put there."""
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be read: {error}") from error
