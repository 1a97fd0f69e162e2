"""What lies at a path: images or clouds of points, in which layout."""

from __future__ import annotations

from pathlib import Path

from bench import clouds
from bench.data.folder import FolderImages, holds_files
from bench.data.parquet import ParquetImages, holds
from bench.data.points import FolderClouds, Hdf5Clouds, ShapeNetPart
from bench.data.source import Source
from bench.images import SUFFIXES


def labelled_at(path: Path) -> Source:
    """The set at a path.

    A Parquet file or a folder of them; the HDF5 edition of ModelNet; ShapeNetPart; else folders of images, or of point
    lists and meshes, where there are no images.

    Raises:
        InputError: it is none of these.
    """
    if path.is_dir():
        for layout in (ShapeNetPart, Hdf5Clouds):
            if layout.lies_at(path):
                return layout(path)
    if path.is_file() or holds(path):
        return ParquetImages(path)
    # Notes as text beside images make no clouds of them.
    if not holds_files(path, SUFFIXES) and holds_files(path, clouds.SUFFIXES):
        return FolderClouds(path)
    return FolderImages(path)
