"""Cycles in a folder: a store is written in a staging folder, made safe on disk, and renamed to its name.

```
<root>/<product>/2016/09/28/1530.zarr     a published cycle
                /latest.zarr              a link to the newest
                /.staging/<work>/store    a draft
```
docs/decisions/003-publish-by-rename.md
"""

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import OutputError
from pipelines.files import (
    folders_of,
    make_folders,
    output_errors,
    replace_file,
    sync_folder,
    sync_folders,
    write_files,
)
from pipelines.layout import Layout
from pipelines.shelf import STAGING, Choose, Draft
from pipelines.staging import new_work

LATEST = "latest.zarr"

_PIECE_BYTES = 2**20  # read at once: many small reads wait for Python's lock, each time


class FolderShelf:
    """The cycles of one product below a folder, which the first draft makes."""

    suffix = ".zarr"
    together = 1

    def __init__(self, folder: Path) -> None:
        self.home, self._folder = str(folder), folder

    def names(self, *parts: str) -> list[str]:
        """Names of all files and folders."""
        try:
            return os.listdir(self._folder.joinpath(*parts))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def store_of(self, name: str) -> str | None:
        """The folder itself; it is not looked for again."""
        return f"{self.home}/{name}"

    def latest(self) -> str | None:
        """What the link names, if that is there."""
        try:
            name = os.readlink(self._folder / LATEST)
        except OSError:
            return None
        return name if os.path.isdir(self._folder / name) else None

    def point(self, choose: Choose) -> None:
        """Replaces the link, alone with it. A product that was never made has none."""
        if not self._folder.exists():
            return
        with _locked(self._folder):
            name = choose(self.latest())
            if name is None:
                return
            fresh = self._folder / ".latest.new"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(name)
            os.replace(fresh, self._folder / LATEST)
            sync_folder(self._folder)

    def begin(self, name: str, layout: Layout) -> tuple[str, str]:
        """A staging folder on the file system of the product."""
        work = self._make_staging(name.replace("/", ""))
        draft = self._staging(work)
        try:
            (draft / "parts").mkdir()
            for folder in _shard_folders(draft / "store", layout):
                folder.mkdir(parents=True)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return work, str(draft / "store")

    def describe(self, draft: Draft, files: Mapping[str, bytes]) -> None:
        """All files at once, safe on disk with all folders."""
        paths = {Path(draft.store, key): data for key, data in files.items()}
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        write_files(paths)
        sync_folders(folders_of(Path(draft.store)))

    def put(self, draft: Draft, key: str, *pieces: bytes) -> None:
        """Written beside the store, so that nothing half written is ever inside it."""
        part = self._staging(draft.staging) / "parts" / secrets.token_hex(8)
        replace_file(Path(draft.store, key), part, *pieces)

    def put_shard(self, draft: Draft, key: str, *pieces: bytes) -> None:
        """As `put`: the draft of who is late is gone."""
        self.put(draft, key, *pieces)

    def claim(self, draft: Draft, name: str) -> str | None:
        """Renames the store, once it is safe on disk; what `describe` wrote did not change since.

        rename(2) refuses a folder that holds something, and every store does: no flag is needed.
        """
        store, target = Path(draft.store), self._folder / name
        entered = make_folders(target.parent, self._folder)
        sync_folders([store, *_shard_folders(store, draft.layout), *entered])
        try:
            os.rename(store, target)
        except OSError as error:
            _refuse_unless_outrun(error, store)
            return None
        sync_folder(target.parent)
        return str(target)

    def abort(self, draft: Draft) -> None:
        """Removes the staging folder."""
        shutil.rmtree(self._staging(draft.staging), ignore_errors=True)

    def keys(self, store: str) -> list[str]:
        """Paths below the store."""
        return sorted(str(path.relative_to(store)) for path in Path(store).rglob("*") if path.is_file())

    def read(self, store: str, key: str) -> BinaryIO:
        """The opened file, read in large pieces."""
        return open(f"{store}/{key}", "rb", _PIECE_BYTES)

    def stamp(self, store: str, key: str) -> str | None:
        """Its inode, size and time: files are put there whole, none is written again."""
        try:
            found = os.stat(f"{store}/{key}")
        except FileNotFoundError:
            return None
        return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"

    def seconds_untouched(self, work: str) -> float:
        """By the newest folder in it."""
        folders = [Path(top) for top, _, _ in os.walk(self._staging(work))]
        times = [path.stat().st_mtime for path in folders if path.exists()]
        return time.time() - max(times, default=time.time())

    def clear(self, work: str) -> bool:
        """Renames the staging folder away, then deletes it."""
        return self._discard(self._staging(work))

    def remove(self, name: str) -> bool:
        """Renames the store away, then deletes it, and the folders that it leaves empty."""
        if not self._discard(self._folder / name):
            return False
        with suppress(OSError):  # folders that still hold cycles stay
            for folder in (self._folder / name).parents[:3]:
                folder.rmdir()
        return True

    def keep(self, name: str, data: bytes) -> None:
        """Put there whole, by way of a hidden file beside it."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, path.with_name(f".{path.name}"), data)
        sync_folder(path.parent)

    def check(self) -> None:
        """That the nearest folder there is can be written."""
        folder = self._nearest
        if not folder.is_dir():
            raise OutputError(f"{folder} is a file; expected a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{folder} cannot be written; expected a folder with write permission")

    def free_bytes(self) -> int | None:
        """Of the file system."""
        return shutil.disk_usage(self._nearest).free

    def errors(self, work: str = "") -> AbstractContextManager[None]:
        """With the free bytes of the file system."""
        return output_errors(self._staging(work) if work else self._folder)

    @property
    def _nearest(self) -> Path:
        return next(p for p in (self._folder, *self._folder.parents) if p.exists())

    def _staging(self, work: str) -> Path:
        return self._folder / STAGING / work

    def _make_staging(self, label: str) -> str:
        work = new_work(label)
        self._staging(work).parent.mkdir(parents=True, exist_ok=True)
        self._staging(work).mkdir()
        return work

    def _discard(self, path: Path) -> bool:
        """Removes a folder of the product: it leaves its place whole, in one step, and is deleted afterwards.

        So no reader opens half a cycle, and a writer whose draft is swept by mistake fails to publish what is left
        of it. False if the folder was gone.
        """
        away = self._staging(self._make_staging("discarded"))
        try:
            os.rename(path, away / path.name)
        except FileNotFoundError:
            return False
        finally:
            shutil.rmtree(away)
        return True


def find_store(path: str) -> str:
    """The store at a path, links followed; FileNotFoundError if there is none."""
    store = os.path.realpath(path)
    if not os.path.exists(f"{store}/zarr.json"):
        raise FileNotFoundError(path)
    return store


def _shard_folders(store: Path, layout: Layout) -> list[Path]:
    """Where the shards lie: a folder for each row."""
    return [(store / layout.shard_key(row, 0)).parent for row in range(layout.shard_grid[0])]


def _refuse_unless_outrun(error: OSError, store: Path) -> None:
    """Passes if another writer took the name, or retention removed the emptied day, since we looked."""
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return
    if error.errno == errno.ENOENT and store.exists():
        return
    raise error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone with the pointer of a product; a killed holder lets go by itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: the next publish or sweep puts `latest` right
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
