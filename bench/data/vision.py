"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100: a copy that is there, else downloaded by torchvision."""

from __future__ import annotations

import fcntl
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.place import labelled_at
from bench.data.source import Arrays, Labels, Source, Stored
from bench.errors import InputError
from bench.recipe import Recipe
from bench.task import DatasetInfo, Sizes

_GREY = Recipe(epochs=8, batch_size=64, shift=2)
_COLOUR = Recipe(epochs=50, batch_size=128, learning_rate=0.1, shift=4, flip=True)
_TEN = tuple(number // 2 for number in range(10))

INFOS = {
    info.name: info
    for info in (
        DatasetInfo(
            name="mnist",
            kind="image",
            shape=(1, 28, 28),
            classes=10,
            model="lenet5",
            recipe=_GREY,
            # With 100 labels an attacker is still far from a model of its own.
            sizes=Sizes(train=47_000, heldout=1_000, attacker=12_000, labelled=100, test=10_000),
            mean=(0.1307,),
            std=(0.3081,),
            second=_TEN,
            source="LeCun et al. 1998: 70,000 handwritten digits",
        ),
        DatasetInfo(
            name="fashion-mnist",
            kind="image",
            shape=(1, 28, 28),
            classes=10,
            model="lenet5",
            recipe=Recipe(epochs=15, batch_size=64, shift=2, flip=True),
            sizes=Sizes(train=47_000, heldout=1_000, attacker=12_000, labelled=200, test=10_000),
            mean=(0.2860,),
            std=(0.3530,),
            second=_TEN,
            source="Xiao et al. 2017: 70,000 pictures of clothes",
        ),
        DatasetInfo(
            name="cifar10",
            kind="image",
            shape=(3, 32, 32),
            classes=10,
            model="resnet18",
            recipe=_COLOUR,
            sizes=Sizes(train=39_000, heldout=1_000, attacker=10_000, labelled=2_500, test=10_000),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            second=_TEN,
            source="Krizhevsky 2009: 60,000 colour images",
        ),
        DatasetInfo(
            name="cifar100",
            kind="image",
            shape=(3, 32, 32),
            classes=100,
            model="resnet18",
            recipe=_COLOUR,
            sizes=Sizes(train=38_000, heldout=2_000, attacker=10_000, labelled=5_000, test=10_000),
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            second=tuple(number // 2 for number in range(100)),
            source="Krizhevsky 2009: 60,000 colour images in 100 classes",
        ),
    )
}


def source(name: str) -> Source:
    """The set from the folder that OWNBENCH_DATA names (Parquet or image folders below its name), else by torchvision.

    Raises:
        InputError: it is not there and cannot be downloaded; the message says where it was looked for.
    """
    folder = place(name)
    if folder == _copy(name):
        return labelled_at(folder)
    try:
        with _alone(folder):
            splits = _READERS[name](folder)
    # Whatever a library or the network does wrong on the way, the user needs the place and the other way.
    except Exception as error:
        looked = f"{folder / name} is no folder" if os.environ.get("OWNBENCH_DATA") else "OWNBENCH_DATA is not set"
        raise InputError(
            f"dataset {name!r}: {looked}, and torchvision could not bring it to {folder}: "
            f"{type(error).__name__}: {error}. Either let this machine reach the download, or put the set there: as "
            f"Parquet (train-*.parquet and test-*.parquet with columns 'image' and 'label') into a folder {name!r} "
            "below the folder that OWNBENCH_DATA names"
        ) from error
    return Arrays(f"{name} by torchvision in {folder}", splits, tuple(str(n) for n in range(INFOS[name].classes)))


def place(name: str) -> Path:
    """The folder that the set is read from."""
    return _copy(name) or root()


def there(name: str) -> bool:
    """Whether the set is on this machine, so that reading it downloads nothing."""
    return _copy(name) is not None or any((root() / below).exists() for below in _BELOW[name])


def root() -> Path:
    """Where sets that come by name lie: OWNBENCH_DATA, or a folder of the user's."""
    named = os.environ.get("OWNBENCH_DATA")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "ownbench"


def _copy(name: str) -> Path | None:
    """The user's own copy, as Parquet or in folders."""
    folder = root() / name
    return folder if os.environ.get("OWNBENCH_DATA") and folder.is_dir() else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: several workers of a machine may want the same download."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        # A folder that cannot be written takes no download that could be disturbed.
        with suppress(OSError):
            lock = held.enter_context(open(folder / ".ownbench.lock", "a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# Where torchvision, or the binary edition, puts a set.
_BELOW = {
    "mnist": ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-images-idx3-ubyte.gz"),
    "fashion-mnist": ("FashionMNIST/raw/train-images-idx3-ubyte", "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
    "cifar10": ("cifar-10-batches-bin/test_batch.bin",),
    "cifar100": ("cifar-100-binary/test.bin",),
}

Splits = dict[str, tuple[Stored, Labels]]


def _idx(cls: str) -> Callable[[Path], Splits]:
    def read(folder: Path) -> Splits:
        kind = getattr(_torchvision(), cls)
        splits = {}
        for split, train in (("train", True), ("test", False)):
            found = kind(str(folder), train=train, download=True)
            splits[split] = (found.data.numpy()[:, None], found.targets.numpy().astype(np.int64))
        return splits

    return read


def _binary(cls: str, md5: str, below: str, train: tuple[str, ...], test: str, coarse: int) -> Callable[[Path], Splits]:
    """The binary edition of CIFAR: torchvision's own reader takes the pickled one, and no pickle is loaded here."""

    def read(folder: Path) -> Splits:
        if not all((folder / below / name).is_file() for name in (*train, test)):
            datasets = _torchvision()
            url = getattr(datasets, cls).url.replace("-python", "-binary")
            datasets.utils.download_and_extract_archive(url, str(folder), md5=md5)
        return {
            "train": _records([folder / below / name for name in train], coarse),
            "test": _records([folder / below / test], coarse),
        }

    return read


def _records(files: list[Path], coarse: int) -> tuple[Stored, Labels]:
    """Records of label bytes, the last of them the one that counts, and 3,072 bytes of red, green and blue."""
    width = coarse + 1 + 3072
    rows = []
    for file in files:
        content = np.frombuffer(file.read_bytes(), dtype=np.uint8)
        if len(content) == 0 or len(content) % width:
            raise ValueError(f"{file}: expected records of {width} bytes, got {len(content)} bytes")
        rows.append(content.reshape(-1, width))
    table = np.concatenate(rows)
    return table[:, coarse + 1 :].reshape(-1, 3, 32, 32), table[:, coarse].astype(np.int64)


def _torchvision() -> Any:
    return importlib.import_module("torchvision.datasets")


_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_READERS: dict[str, Callable[[Path], Splits]] = {
    "mnist": _idx("MNIST"),
    "fashion-mnist": _idx("FashionMNIST"),
    "cifar10": _binary(
        "CIFAR10", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin", _BATCHES, "test_batch.bin", 0
    ),
    "cifar100": _binary(
        "CIFAR100", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary", ("train.bin",), "test.bin", 1
    ),
}
