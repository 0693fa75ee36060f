"""A Zarr store at a path or URL: connected to, looked into, and what may go wrong there in words.

Zarr v2 and v3 through zarr-python; knows nothing of grids and times.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import zarr
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError
from zarr.storage import FsspecStore, LocalStore, ObjectStore, StorePath

from pipelines.errors import CorruptInputError, InputError, PipelineError
from pipelines.objects import OBJECT_STORES


@lru_cache(maxsize=16)
def connect(url: str) -> Any:
    """The Zarr store at a path or URL; nothing is read. Connections are kept for the life of the process."""
    scheme, _, path = url.rpartition("://")
    if not scheme or scheme == "file":
        return LocalStore(path, read_only=True)
    if scheme in ("http", "https"):
        from obstore.store import HTTPStore

        return ObjectStore(HTTPStore.from_url(url, client_options={"allow_http": scheme == "http"}), read_only=True)
    if scheme in OBJECT_STORES:
        from obstore.store import from_url

        return ObjectStore(from_url(url), read_only=True)
    return FsspecStore.from_url(url, read_only=True)


def stored_array(store: str, name: str, metadata: Any) -> Any:
    """An array of a store by what is known of it; nothing is read."""
    return zarr.Array(zarr.AsyncArray(metadata, StorePath(connect(store), name)))


def open_array(store: str, name: str, zarr_format: int) -> Any:
    """An array of a store as its own metadata has it at this moment."""
    return zarr.open_array(connect(store), path=name, mode="r", zarr_format=zarr_format)


@contextmanager
def reading(what: str, absent: type[InputError] = InputError) -> Iterator[None]:
    """Turns whatever store and codecs raise inside into an InputError that names what was being read."""
    try:
        yield
    except (PipelineError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise absent(f"{what} is not there") from error
    except Exception as error:  # every codec and every store has its own errors
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CorruptInputError(f"{what} cannot be read: {type(error).__name__}: {reason[0]}") from error


def have_objects(store: str, name: str, keys: Sequence[Sequence[str]]) -> list[bool]:
    """Of each group of keys of an array, whether anything is stored under one of them."""
    return list(sync(_each_exists(StorePath(connect(store), name), keys)))


async def _each_exists(at: StorePath, keys: Sequence[Sequence[str]]) -> list[bool]:
    return await asyncio.gather(*(_any_exists(at, some) for some in keys))


async def _any_exists(at: StorePath, keys: Sequence[str]) -> bool:
    for start in range(0, len(keys), 16):
        if any(await asyncio.gather(*((at / key).exists() for key in keys[start : start + 16]))):
            return True
    return False


def open_group(store: str, likely_format: int | None = None) -> Any:
    """The group at a path or URL; an InputError that says what is there instead, if it is none.

    Args:
        likely_format: of Zarr, looked for first; None looks for all that there are.
    """
    try:
        return zarr.open_group(connect(store), mode="r", zarr_format=likely_format)
    except (FileNotFoundError, ContainsArrayError) as error:
        if likely_format is not None:
            return open_group(store)
        raise InputError(f"Zarr store {store} is not there{_instead(store)}") from error


def _instead(store: str) -> str:
    """What is at a local path instead of a Zarr store, as the end of a sentence."""
    path = Path(store.removeprefix("file://"))
    if "://" in str(path) or not path.exists():
        return ""
    if path.is_file():
        return "; it is a file, expected the folder of a Zarr store"
    if (path / ".zarray").exists() or (path / "zarr.json").exists():
        return "; it is an array, expected the group that holds it and its coordinates"
    return "; the folder holds no Zarr group (zarr.json or .zgroup)"


def find_array(group: Any, variable: str, store: str) -> Any:
    """An array of the group that a store is; an InputError that names those there are, if it has none such."""
    found = group.get(variable)
    if isinstance(found, zarr.Array) and "/" not in variable:
        return found
    try:
        there = ", ".join(sorted(group.array_keys())) or "no array"
        groups = ", ".join(sorted(group.group_keys()))
    except Exception:  # a plain web server cannot list
        there, groups = "arrays that this store cannot list", ""
    below = f", and the groups {groups}; a group is part of input.store, such as {store}/GROUP" if groups else ""
    raise InputError(f"Zarr store {store} has no variable {variable!r}; it has {there}{below}")
