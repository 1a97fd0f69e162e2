"""Where labelled inputs come from: the contract that Parquet files, folders and arrays share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import images
from bench.errors import InputError

# Inputs as they are kept: small integers, which `bench.split.Scale` turns into what a model takes.
Stored = NDArray[np.uint8] | NDArray[np.int16]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]

# What files and folders of a test split are called; validation data stands in for one that is not there.
TEST = ("test", "validation", "valid", "val")


class Source(Protocol):
    """A labelled set with a split `train` and perhaps a split `test`; nothing is decoded before it is asked for."""

    where: str
    classes: tuple[str, ...]

    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""

    def labels(self, split: str) -> Labels:
        """The label of each row of a split."""

    def digests(self, split: str, rows: Rows) -> Iterator[bytes]:
        """A digest of each row's content as it is stored."""

    def stored(self, split: str, rows: Rows, shape: tuple[int, ...]) -> Stored:
        """The rows' inputs as small integers, uint8 or int16 of shape (len(rows), *shape)."""

    def shape(self) -> tuple[int, ...]:
        """Of the first input: (channels, height, width), of points (axes, points)."""

    def check(self, split: str, rows: Rows, shape: tuple[int, ...]) -> None:
        """Refuse rows that are not inputs of that shape, without decoding them whole where that can be seen."""


class Encoded:
    """The part of a source of encoded inputs that depends neither on where they lie nor on what they are."""

    where: str

    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        raise NotImplementedError

    def labels(self, split: str) -> Labels:
        """The label of each row of a split."""
        raise NotImplementedError

    def encoded(self, split: str, rows: Rows) -> Iterator[tuple[str, bytes]]:
        """For each of the rows, which rise, its name for messages and its bytes."""
        raise NotImplementedError

    def digests(self, split: str, rows: Rows) -> Iterator[bytes]:
        """SHA-256 of each row's bytes as they are stored."""
        found = [b""] * len(rows)
        for place, _, data in self._placed(split, rows):
            found[place] = hashlib.sha256(data).digest()
        yield from found

    def _first(self, what: str) -> tuple[str, bytes]:
        if len(self.labels(self.splits()[0])) == 0:
            raise InputError(f"{self.where}: expected {what}, got an empty set")
        return next(self.encoded(self.splits()[0], np.arange(1)))

    def _placed(self, split: str, rows: Rows) -> Iterator[tuple[int, str, bytes]]:
        """As `encoded`, of rows in any order, each with its place among them."""
        order = np.argsort(rows)
        for place, (name, data) in zip(order, self.encoded(split, rows[order]), strict=True):
            yield int(place), name, data


class EncodedImages(Encoded):
    """The part of a source of encoded images that does not depend on where they lie."""

    _shape: tuple[int, ...] | None = None

    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the first image; one channel for grey, three for all else."""
        if self._shape is None:
            name, data = self._first("images")
            image = opened(name, data)
            self._shape = (_channels(image), image.height, image.width)
        return self._shape

    def check(self, split: str, rows: Rows, shape: tuple[int, ...]) -> None:
        """Refuse images of another size; only their headers are read.

        Raises:
            InputError: not an image, or images of mixed size.
        """
        for name, data in self.encoded(split, np.sort(rows)):
            image = opened(name, data)
            if (image.height, image.width) != tuple(shape[1:]):
                raise InputError(
                    f"{name}: expected an image of {shape[2]}x{shape[1]} pixels like the first one, got "
                    f"{image.width}x{image.height}; a task needs images of one size: scale them beforehand"
                )
            if _channels(image) > shape[0]:
                raise InputError(
                    f"{name}: expected a grey image like the first one, got one of mode {image.mode}; colour would be "
                    "lost: make all of them grey or all of them RGB beforehand"
                )

    def stored(self, split: str, rows: Rows, shape: tuple[int, ...]) -> Stored:
        """Decode the rows' images: to grey for one channel, to RGB for three.

        Raises:
            InputError: an image that cannot be decoded, or is of another size.
        """
        found = np.empty((len(rows), *shape), dtype=np.uint8)
        for place, name, data in self._placed(split, rows):
            found[place] = decoded(name, data, shape)
        return found


def opened(name: str, data: bytes) -> Image.Image:
    """The image of encoded bytes, its pixels not read yet.

    Raises:
        InputError: no image, or one with more than 8 bits a channel.
    """
    image = images.opened(name, data)
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{name}: expected 8 bits a channel, got an image of mode {image.mode}; convert it beforehand")
    return image


def decoded(name: str, data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The pixels of encoded bytes, uint8 of the shape.

    Raises:
        InputError: no image, a broken one, or one of another size.
    """
    image = opened(name, data)
    if (image.height, image.width) != tuple(shape[1:]):
        raise InputError(f"{name}: expected {shape[2]}x{shape[1]} pixels, got {image.width}x{image.height}")
    try:
        pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name}: expected a whole image: {error}") from error
    return pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in ("1", "L", "LA") else 3


class Arrays:
    """A source of arrays in memory.

    Args:
        where: for messages.
        splits: by name inputs, uint8 or int16 of shape (N, C, …), and labels.
        classes: their names.
    """

    def __init__(self, where: str, splits: dict[str, tuple[Stored, Labels]], classes: tuple[str, ...]) -> None:
        self.where = where
        self.classes = classes
        self._splits = splits

    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        return tuple(self._splits)

    def labels(self, split: str) -> Labels:
        """The label of each row of a split."""
        return self._splits[split][1]

    def shape(self) -> tuple[int, ...]:
        """Of one input: (channels, height, width), of points (axes, points)."""
        first = self._splits[self.splits()[0]][0]
        return tuple(int(size) for size in first.shape[1:])

    def digests(self, split: str, rows: Rows) -> Iterator[bytes]:
        """SHA-256 of each row."""
        inputs = self._splits[split][0]
        for row in rows:
            yield hashlib.sha256(np.ascontiguousarray(inputs[row]).tobytes()).digest()

    def check(self, split: str, rows: Rows, shape: tuple[int, ...]) -> None:
        """Arrays are of one shape; it must be the expected one."""
        if self.shape() != tuple(shape):
            raise InputError(f"{self.where}: expected inputs of shape {tuple(shape)}, got {self.shape()}")

    def stored(self, split: str, rows: Rows, shape: tuple[int, ...]) -> Stored:
        """The rows' inputs."""
        self.check(split, rows, shape)
        return self._splits[split][0][rows]
