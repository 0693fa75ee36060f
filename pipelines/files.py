"""Writing that survives a crash: fsynced files and folders, and errors that name the path and the room left."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import OutputError

_TOGETHER = 16  # a file system commits at once what is asked of it at once: many waits cost little more than one


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns any OSError inside into an OutputError that names the path and the free bytes of its file system."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise OutputError(f"cannot write {where}: {error.strerror or error} ({_free_bytes(path)} free)") from error


def write_file(path: Path, *pieces: bytes) -> None:
    """Writes a new read-only file and waits until the disk has it; an existing one is an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(descriptor)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes new read-only files and waits until the disk has them all; an existing one is an error."""
    _together(write_file, files, files.values())


def replace_file(path: Path, temporary: Path, *pieces: bytes) -> None:
    """Puts a whole file in place of another in one step; readers see the old one or the new one."""
    try:
        write_file(temporary, *pieces)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folders(path: Path, top: Path) -> list[Path]:
    """Makes `path` and what is missing between it and `top`; the folders with new entries, which are to be synced."""
    missing = [p for p in (path, *path.parents) if top in p.parents and not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return [folder.parent for folder in missing]


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folders_of(top: Path) -> list[Path]:
    """A folder and all folders below it."""
    return [Path(folder) for folder, _, _ in os.walk(top)]


def sync_folders(folders: Iterable[Path]) -> None:
    """Waits until the disk has the entries of all folders."""
    _together(sync_folder, folders)


def _together(function: Callable[..., None], *arguments: Iterable[Any]) -> None:
    """Calls the function for each, some at once; when it returns or raises, none runs any more."""
    calls = [_waiting().submit(function, *values) for values in zip(*arguments, strict=True)]
    wait(calls)
    for call in calls:
        call.result()


@cache
def _waiting() -> ThreadPoolExecutor:
    """Threads that do little but wait for the disk, started once."""
    return ThreadPoolExecutor(_TOGETHER, "disk")


def _free_bytes(path: Path) -> str:
    existing = next(p for p in (path, *path.parents) if p.exists())
    return f"{shutil.disk_usage(existing).free:,} bytes"
