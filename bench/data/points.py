"""Clouds of points: folders of files, the HDF5 edition of ModelNet, ShapeNetPart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import clouds
from bench.data.folder import Files, by_class
from bench.data.source import TEST, Encoded, Labels, Rows, Stored
from bench.errors import InputError

# The points that the sources train on, of those that files hold.
POINTS = 1024

# Of ShapeNetPart: the synsets by name, and the folder with the lists of its splits.
_CATEGORIES = "synsetoffset2category.txt"
_LISTS = "train_test_split"

# Chunks of a whole file of ModelNet, so that none is unpacked twice.
_CACHE = 64 * 2**20


class EncodedClouds(Encoded):
    """The part of a source of point files that does not depend on where they lie."""

    _shape: tuple[int, ...] | None = None

    def shape(self) -> tuple[int, ...]:
        """(3, points): 1,024, or as many as the first file holds if these are fewer; meshes hold any number."""
        if self._shape is None:
            name, data = self._first("point clouds or meshes")
            self._shape = (3, min(POINTS, clouds.held(name, data) or POINTS))
        return self._shape

    def check(self, split: str, rows: Rows, shape: tuple[int, ...]) -> None:
        """Refuse a task of another shape; files are of any, and are read when they are needed."""
        if self.shape() != tuple(shape):
            raise InputError(f"{self.where}: expected inputs of shape {tuple(shape)}, got {self.shape()}")

    def stored(self, split: str, rows: Rows, shape: tuple[int, ...]) -> Stored:
        """The rows' clouds in the unit ball, int16 of shape (len(rows), 3, points).

        Raises:
            InputError: a file that is not what its suffix says.
        """
        found = np.empty((len(rows), *shape), dtype=np.int16)
        for place, name, data in self._placed(split, rows):
            found[place] = self._decoded(name, data, shape[1])
        return found

    def _decoded(self, name: str, data: bytes, points: int) -> NDArray[np.int16]:
        return clouds.decoded(name, data, points)


class FolderClouds(Files, EncodedClouds):
    """Point lists or meshes, a folder a class, in the layouts of `bench.data.folder.by_class`."""

    def __init__(self, path: Path) -> None:
        """List the files; none is read yet.

        Raises:
            InputError: a test split with a class that training lacks.
        """
        super().__init__(str(path), *by_class(path, clouds.SUFFIXES))


class ShapeNetPart(Files, EncodedClouds):
    """A folder of point lists for each synset (or `points` below it), and lists of splits where there are any."""

    def __init__(self, path: Path) -> None:
        """Read the lists; no cloud yet.

        Raises:
            InputError: lists that cannot be read, or name files that are not there.
        """
        named = _categories(path / _CATEGORIES)
        there = {synset: _points_of(path / synset) for synset in named}
        synsets = [synset for synset, files in there.items() if files]
        number = {synset: place for place, synset in enumerate(synsets)}
        splits = _lists(path / _LISTS) or {"train": [f"{s}/{stem}" for s in synsets for stem in there[s]]}
        files: dict[str, list[tuple[Path, int]]] = {}
        for split, entries in splits.items():
            files[split] = []
            for entry in entries:
                synset, _, stem = entry.rpartition("/")
                synset = synset.rpartition("/")[2]
                if stem not in there.get(synset, {}):
                    raise InputError(f"{path / synset}: expected a file for {entry!r} of the list {split!r}, got none")
                files[split].append((there[synset][stem], number[synset]))
        super().__init__(str(path), files, tuple(named[synset] for synset in synsets))

    @staticmethod
    def lies_at(path: Path) -> bool:
        """Whether a folder has this layout."""
        return (path / _CATEGORIES).is_file()


class Hdf5Clouds(EncodedClouds):
    """Files `*train*.h5` and `*test*.h5` with `data` (N, points, 3) and `label` (N,) or (N, 1), float and integer."""

    def __init__(self, path: Path) -> None:
        """Read the labels; no cloud yet.

        Raises:
            InputError: files that are missing, truncated or of another layout.
        """
        self.where = str(path)
        self._files = {"train": _hdf5_of(path, "train")}
        if not self._files["train"]:
            raise InputError(f"{path}: expected *train*.h5, got none")
        test = next((files for name in TEST if (files := _hdf5_of(path, name))), [])
        self._files |= {"test": test} if test else {}
        heads = {file: _head(file) for files in self._files.values() for file in files}
        self._sizes = {file: len(labels) for file, (labels, _) in heads.items()}
        self._shape = (3, min(POINTS, *(points for _, points in heads.values())))
        self._labels = {split: np.concatenate([heads[f][0] for f in files]) for split, files in self._files.items()}
        highest = max(int(labels.max(initial=-1)) for labels in self._labels.values())
        self.classes = _names(path / "shape_names.txt") or tuple(str(number) for number in range(highest + 1))
        if highest >= len(self.classes) or min(int(labels.min(initial=0)) for labels in self._labels.values()) < 0:
            raise InputError(f"{path}: expected labels from 0 to {len(self.classes) - 1}, got {highest}")

    @staticmethod
    def lies_at(path: Path) -> bool:
        """Whether a folder has this layout."""
        return any(path.glob("*.h5"))

    def splits(self) -> tuple[str, ...]:
        """`train`, and `test` where there is one."""
        return tuple(self._files)

    def labels(self, split: str) -> Labels:
        """The label of each row of a split."""
        return self._labels[split]

    def encoded(self, split: str, rows: Rows) -> Iterator[tuple[str, bytes]]:
        """The rows, which rise, as float32."""
        start = 0
        for path in self._files[split]:
            low, high = np.searchsorted(rows, (start, start + self._sizes[path]))
            with ExitStack() as held:
                data = _opened(path, held)["data"] if high > low else ()
                for row in rows[low:high] - start:
                    try:
                        yield f"{path} row {row}", np.asarray(data[int(row)], dtype="<f4").tobytes()
                    except (OSError, ValueError) as error:
                        raise InputError(f"{path} row {row}: expected a whole HDF5 file: {error}") from error
            start += self._sizes[path]

    def _decoded(self, name: str, data: bytes, points: int) -> NDArray[np.int16]:
        # Their order is random, so the first ones are a sample, and the one that the source trains on.
        return clouds.quantised(name, np.frombuffer(data, dtype="<f4").reshape(-1, 3)[:points].astype(np.float64))


def _categories(file: Path) -> dict[str, str]:
    """Names of the classes by synset."""
    found = {}
    for line in _names(file):
        name, _, synset = line.replace("\t", " ").rpartition(" ")
        if not name or "/" in synset or synset.startswith("."):
            raise InputError(f"{file}: expected lines of a name and a synset, got {line!r}")
        found[synset] = name.strip()
    return found


def _points_of(folder: Path) -> dict[str, Path]:
    """The point lists of a synset by what they are called in the lists."""
    place = folder / "points" if (folder / "points").is_dir() else folder
    files = sorted(place.iterdir()) if place.is_dir() else []
    return {f.stem: f for f in files if f.suffix in (".txt", ".pts") and not f.name.startswith(".")}


def _lists(folder: Path) -> dict[str, list[str]]:
    """The entries of each split, `synset/file`; nothing where there are no lists."""
    found = {}
    for split in ("train", *TEST):
        file = folder / f"shuffled_{split}_file_list.json"
        if not file.is_file():
            continue
        try:
            entries = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: expected a list of files as JSON: {error}") from error
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise InputError(f"{file}: expected a list of files, got {type(entries).__name__}")
        found["train" if split == "train" else "test"] = entries
        if split != "train":
            break
    return found if "train" in found else {}


def _names(file: Path) -> tuple[str, ...]:
    """The lines of a file; none where it is not there."""
    try:
        return tuple(line.strip() for line in file.read_text().splitlines() if line.strip()) if file.is_file() else ()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected lines of text: {error}") from error


def _hdf5_of(path: Path, split: str) -> list[Path]:
    """The files of a split in the order of its list, or of their names where there is none."""
    listed = [path / Path(line).name for line in _names(path / f"{split}_files.txt")]
    missing = [file.name for file in listed if not file.is_file()]
    if missing:
        raise InputError(f"{path}: expected the files of {split}_files.txt, missing: {', '.join(missing)}")
    return listed or sorted(file for file in path.glob("*.h5") if split in file.stem.lower())


def _head(path: Path) -> tuple[Labels, int]:
    """The labels of a file, and how many points its clouds have."""
    with ExitStack() as held:
        file = _opened(path, held)
        missing = sorted({"data", "label"} - set(file))
        if missing:
            raise InputError(f"{path}: expected 'data' and 'label', got {', '.join(file) or 'nothing'}")
        data, label = file["data"], file["label"]
        shapes = f"{data.shape} and {label.shape}"
        if len(data.shape) != 3 or data.shape[2] != 3 or label.shape not in ((len(data),), (len(data), 1)):
            raise InputError(f"{path}: expected data (N, points, 3) and label (N,) or (N, 1), got {shapes}")
        if data.dtype.kind != "f" or label.dtype.kind not in "iu" or not data.shape[1]:
            raise InputError(f"{path}: expected floats and integers, got {data.dtype} and {label.dtype}")
        try:
            return label[:].reshape(-1).astype(np.int64), int(data.shape[1])
        except OSError as error:
            raise InputError(f"{path}: expected a whole HDF5 file: {error}") from error


def _opened(path: Path, held: ExitStack) -> Any:
    h5py = clouds.optional("h5py")
    try:
        return held.enter_context(h5py.File(path, "r", rdcc_nbytes=_CACHE))
    except OSError as error:
        raise InputError(f"{path}: expected a whole HDF5 file: {error}") from error
