"""The datasets: those that come by name, and any set of labelled images or clouds of points."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench import clouds, images
from bench.data import digits, modelnet, parts, shapes, vision
from bench.data.place import labelled_at
from bench.data.source import Source
from bench.errors import InputError, unknown
from bench.recipe import Recipe
from bench.split import Split
from bench.task import DatasetInfo, Kind, PartName, Parts, Sizes, Task

_MADE: dict[str, Callable[[], Source]] = {digits.INFO.name: digits.source, shapes.INFO.name: shapes.Shapes}
_INFOS = {digits.INFO.name: digits.INFO, shapes.INFO.name: shapes.INFO, **vision.INFOS, **modelnet.INFOS}
_SMALLEST = 32
Stamp = tuple[str, int, int]


def names() -> tuple[str, ...]:
    """The datasets that come by name."""
    return tuple(_INFOS)


def info(name: str, where: str = "dataset") -> DatasetInfo:
    """What is known of a dataset; of one that comes by name without looking at it.

    Args:
        name: a name, or a path: of a Parquet file, of a folder of them, of a folder of images, point clouds or meshes;
            a path that is not there is looked for below the folder that OWNBENCH_DATA names.
        where: in the suite, for messages.

    Raises:
        InputError: neither, or not a labelled set.
    """
    if name in _INFOS:
        return _INFOS[name]
    if not name:
        raise unknown("dataset", name, _INFOS, where)
    path = Path(name).expanduser()
    # A path as it is named below OWNBENCH_DATA means the same on every machine; any other is made whole.
    return _info_of(_at(name, where), str(path.resolve()) if path.exists() else name)


def source(info: DatasetInfo) -> Source:
    """Where the rows of a dataset come from.

    Raises:
        InputError: it is not there, or not a labelled set.
    """
    if info.at:
        return labelled_at(images.find(info.at))
    if info.name in _MADE:
        return _MADE[info.name]()
    return modelnet.source(info.name) if info.name in modelnet.INFOS else vision.source(info.name)


def places(info: DatasetInfo) -> list[Path]:
    """Files and folders that a dataset is read from; none where it comes with an installed package."""
    if info.at:
        return [images.find(info.at)]
    if info.name in _MADE:
        return []
    return [modelnet.place(info.name) if info.name in modelnet.INFOS else vision.place(info.name)]


def require_here(info: DatasetInfo) -> None:
    """Refuse a dataset that would have to be downloaded first.

    Raises:
        InputError: it is not on this machine.
    """
    if not info.at and info.name in vision.INFOS and not vision.there(info.name):
        raise InputError(
            f"--plan: expected dataset {info.name!r} on this machine, since planning reads it; `ownbench run` would "
            f"download it to {vision.place(info.name)}"
        )


def prepare(info: DatasetInfo, sizes: Sizes) -> dict[PartName, str]:
    """Check the data of a task; the digest of each part. What a process has checked it checks again only if changed.

    Raises:
        InputError: the data is missing, broken or too little.
    """
    return dict(_prepared(info, sizes, _stamps(info)))


@functools.lru_cache(maxsize=16)
def _prepared(info: DatasetInfo, sizes: Sizes, stamps: tuple[Stamp, ...]) -> dict[PartName, str]:  # noqa: ARG001
    found = source(info)
    parts.check(found, info, sizes)
    return parts.digests(found, info, sizes)


def _stamps(info: DatasetInfo) -> tuple[Stamp, ...]:
    """Of each file that a dataset is read from its path, when it was changed, and its size."""
    files = [file for place in places(info) for file in (place, *sorted(place.rglob("*"))) if file.is_file()]
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def load(
    task: Task, wanted: Iterable[PartName] = parts.PARTS, expected: Mapping[PartName, str] | None = None
) -> dict[PartName, Split]:
    """Some parts of a task's data, on the CPU, read anew; no row of another part is decoded.

    Args:
        task: says which dataset and how many.
        wanted: names of parts.
        expected: their digests, from `prepare`, where the data must be that of another machine.

    Raises:
        InputError: as for `prepare`, or other data than expected.
    """
    wanted, found = tuple(wanted), source(task.info)
    if expected is not None:
        for part, digest in parts.digests(found, task.info, task.sizes, wanted).items():
            if digest != expected[part]:
                raise InputError(
                    f"{found.where}: expected the {part} part with digest {expected[part]}, for which this run was "
                    f"planned, got {digest}; every machine of a run needs the same copy of the data"
                )
    return {part: parts.read(found, task.info, task.sizes, part) for part in wanted}


def whole(task: Task) -> Parts:
    """All parts of a task's data, for notebooks and tests."""
    found = load(task)
    return Parts(found["train"], found["heldout"], found["attacker"], task.sizes.labelled, found["test"])


def _at(name: str, where: str) -> Path:
    try:
        return images.find(name)
    except InputError as error:
        if "/" in name or Path(name).suffix:
            raise
        raise unknown("dataset", name, _INFOS, where) from error


def _info_of(path: Path, at: str) -> DatasetInfo:
    """Defaults for somebody's own set: a fifth of the rows for the attacker, a quarter of these with labels."""
    found = labelled_at(path)
    if len(found.classes) < 2:
        raise InputError(f"{found.where}: expected at least two classes, got {', '.join(found.classes) or 'none'}")
    shape, classes = found.shape(), len(found.classes)
    there = len(found.labels("train"))
    tested = "test" in found.splits()
    test = len(found.labels("test")) if tested else there // 5
    rest = there if tested else there - test
    heldout, attacker = min(1_000, rest // 10), rest // 5
    kind: Kind = "image" if len(shape) == 3 else "points"
    what = "images" if kind == "image" else "clouds"
    try:
        sizes = Sizes(rest - heldout - attacker, heldout, attacker, max(1, attacker // 4), test)
    except ValueError as error:
        raise InputError(f"{found.where}: too few {what} for the parts of a task: {error}") from error
    defaults = _for_images(shape) if kind == "image" else _FOR_POINTS
    return DatasetInfo(
        name=path.stem if path.is_file() else path.resolve().name,
        kind=kind,
        shape=shape,
        classes=classes,
        model=defaults.model,
        recipe=defaults.recipe,
        sizes=sizes,
        # Not measured: keys are drawn without the data, and normalization layers make up for it.
        mean=(defaults.mean,) * shape[0],
        std=(defaults.std,) * shape[0],
        top=defaults.top,
        second=tuple(number // 2 for number in range(classes)),
        at=at,
        source=f"{len(found.classes)} classes, {sum(len(found.labels(s)) for s in found.splits()):,} {what}",
    )


class _Defaults(NamedTuple):
    """What somebody's own set of a kind is given."""

    model: str
    recipe: Recipe
    mean: float
    std: float
    top: float


_FOR_POINTS = _Defaults(modelnet.MODEL, modelnet.RECIPE, 0.0, modelnet.STD, clouds.TOP)


def _for_images(shape: tuple[int, ...]) -> _Defaults:
    small = min(shape[1:]) < _SMALLEST
    model = "vgg8" if small and not (shape[1] % 4 or shape[2] % 4) else "resnet20" if small else "resnet18"
    shift = max(1, min(shape[1:]) // 8)
    return _Defaults(
        model, Recipe(epochs=30, batch_size=64 if small else 128, shift=shift, flip=True), 0.5, 0.25, 255.0
    )
