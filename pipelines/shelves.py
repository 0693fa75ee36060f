"""The one place that tells a folder from an object store."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore, ObjectStore, StorePath

from pipelines import folder_shelf, object_shelf
from pipelines.folder_shelf import FolderShelf
from pipelines.object_shelf import ObjectShelf
from pipelines.objects import can_hold, is_url, locate
from pipelines.shelf import Shelf


def open_shelf(root: str, product: str) -> Shelf:
    """Where the cycles of a product lie; nothing is read.

    Args:
        root: a folder, or s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH.

    Raises:
        ConfigError: the root is another URL, or one that cannot be opened.
    """
    if not is_url(root):
        return FolderShelf(Path(os.path.abspath(root)) / product)
    below = root if root.endswith("://") else root.removesuffix("/")
    locate(below)
    return ObjectShelf(f"{below}/{product}")


def find_store(path: str) -> str:
    """The Zarr store at a path or URL; a pointer, or a claim, is followed once.

    Raises:
        FileNotFoundError: there is none.
    """
    return object_shelf.find_store(path) if is_url(path) else folder_shelf.find_store(path)


def as_opened(path: str) -> Any:
    """What Zarr and xarray open at a path or URL; on an object store also by a pointer or a claim."""
    return StorePath(*zarr_at(object_shelf.follow(path))) if is_url(path) and can_hold(path) else path


def zarr_at(path: str) -> tuple[Any, str]:
    """The Zarr store that has the file of a path or URL, a file system or a bucket, and the key of the file in it."""
    if not is_url(path):
        return _FILES, path
    _, key = locate(path)
    return _bucket(path.removesuffix(key)), key


_FILES = LocalStore("/", read_only=True)


@lru_cache(maxsize=16)
def _bucket(url: str) -> Any:
    return ObjectStore(locate(url)[0], read_only=True)
