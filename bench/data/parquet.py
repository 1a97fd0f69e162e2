"""Images in the Hugging Face Parquet layout: `image` or `img` as a struct of bytes, `label` as an integer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.data.source import TEST, EncodedImages, Labels, Rows
from bench.errors import InputError
from bench.images import column_of

_LABEL = ("label", "fine_label")


def holds(folder: Path) -> bool:
    """Whether there are Parquet files in the folder, or in `data` below it."""
    return bool(_files(folder))


class ParquetImages(EncodedImages):
    """A Parquet file, or a folder of them named by their split (`train-*.parquet`, `test-*.parquet`)."""

    def __init__(self, path: Path) -> None:
        """Read the schemas and labels; no image yet.

        Raises:
            InputError: a file that is truncated or no Parquet, wrong columns, or labels out of range.
        """
        self.where = str(path)
        # A file alone is all the data there is, whatever its name says.
        self._files = {"train": [path]} if path.is_file() else _by_split(path)
        self._columns = {file: _columns(file) for files in self._files.values() for file in files}
        named = next((names for _, _, names in self._columns.values() if names), ())
        self._labels = {
            split: np.concatenate([_labels(file, self._columns[file][1]) for file in files])
            for split, files in self._files.items()
        }
        highest = max(int(labels.max(initial=-1)) for labels in self._labels.values())
        if not named and highest >= sum(len(labels) for labels in self._labels.values()):
            raise InputError(f"{self.where}: expected labels from 0 on, fewer than rows, got {highest}")
        self.classes = named or tuple(str(number) for number in range(highest + 1))
        for split, labels in self._labels.items():
            _check_range(self.where, split, labels, self.classes)

    def splits(self) -> tuple[str, ...]:
        """`train`, and `test` where there is one."""
        return tuple(self._files)

    def labels(self, split: str) -> Labels:
        """The label of each row of a split."""
        return self._labels[split]

    def encoded(self, split: str, rows: Rows) -> Iterator[tuple[str, bytes]]:
        """The images of the rows, which rise; each row group is read once."""
        for name, start, column in self._groups(split, rows):
            low, high = np.searchsorted(rows, (start, start + len(column)))
            for row in rows[low:high] - start:
                entry = column[int(row)].as_py()
                data = entry.get("bytes") if entry else None
                if not isinstance(data, bytes):
                    raise InputError(f"{name} row {row}: expected an image in column 'bytes', got none")
                yield f"{name} row {row}", data

    def _groups(self, split: str, ordered: Rows) -> Iterator[tuple[str, int, Any]]:
        """The row groups that hold some of the ordered rows: file, number of their first row, image column."""
        start = 0
        for path in self._files[split]:
            column = self._columns[path][0]
            with _read(path, partial(pq.ParquetFile, path)) as file:
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    low, high = np.searchsorted(ordered, (start, start + count))
                    if high > low:
                        yield str(path), start, _read(path, partial(file.read_row_group, group, [column]))[0]
                    start += count


def _files(folder: Path) -> list[Path]:
    """The nearest: in the folder, in `data` below it, anywhere below it."""
    for found in (folder.glob("*.parquet"), (folder / "data").glob("*.parquet"), folder.rglob("*.parquet")):
        files = sorted(file for file in found if not file.name.startswith("."))
        if files:
            return files
    return []


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Files by split, `train` first; without a name that says so, all of them are training data."""
    files = _files(folder)
    said = {file: _split_of(file.relative_to(folder)) for file in files}
    test = next((name for name in TEST if name in said.values()), None)
    train = [f for f in files if said[f] == "train"] or [f for f in files if said[f] is None]
    if not train:
        raise InputError(f"{folder}: expected train-*.parquet, got only {', '.join(f.name for f in files)}")
    return {"train": train} | ({"test": [f for f in files if said[f] == test]} if test else {})


def _split_of(file: Path) -> str | None:
    """The split that a file's name, or else the folder it lies in below the set's own, says as a word."""
    for text in (file.stem.lower(), file.parent.name.lower()):
        words = re.split(r"[^a-z]+", text)
        found = [name for name in ("train", *TEST) if name in words]
        if found:
            return found[0]
    return None


def _columns(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """The names of the image and label columns, and the class names of the metadata."""
    schema = _read(path, lambda: pq.read_schema(path))
    image = column_of(schema.names)
    label = next((name for name in _LABEL if name in schema.names), None)
    if image is None or label is None:
        raise InputError(
            f"{path}: expected columns 'image' or 'img' and 'label' or 'fine_label', got {', '.join(schema.names)}"
        )
    kind = schema.field(image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise InputError(f"{path}, column {image!r}: expected a struct of bytes and path, got {kind}")
    if not pa.types.is_integer(schema.field(label).type):
        raise InputError(f"{path}, column {label!r}: expected integers, got {schema.field(label).type}")
    return image, label, _class_names(schema, label)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _labels(path: Path, column: str) -> Labels:
    # Not pq.read_table, which imports pandas.
    table = _read(path, lambda: pq.ParquetFile(path).read([column]))
    empty = table[column].null_count
    if empty:
        raise InputError(f"{path}, column {column!r}: expected a label in each row, got {empty} without")
    found: Labels = table[column].to_numpy().astype(np.int64)
    return found


def _check_range(where: str, split: str, labels: Labels, classes: tuple[str, ...]) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{where}, split {split!r}, row {row}: expected a label from 0 to {len(classes) - 1}, got {labels[row]}"
        )


def _read(path: Path, read: Any) -> Any:
    try:
        return read()
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: expected a whole Parquet file: {error}") from error
