"""Files that survive a crash and a rival: written whole, put where nothing is yet, or replaced in one step."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.lock import LockError, hold
from engines.room import room

_READ_ONLY, _FOLDER = 0o444, os.O_RDONLY | os.O_DIRECTORY
_AS_IT_IS = os.O_NOFOLLOW | os.O_NONBLOCK  # no link is followed, no pipe waited for


def write_new(path: Path, data: bytes) -> None:
    """Writes a new read-only file and waits until the disk has it; an existing one is a FileExistsError."""
    with room(path, len(data)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _READ_ONLY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)


def copy_file(source: Path, target: Path) -> None:
    """Copies the bytes of a file, the folder of the copy made if need be."""
    with room(target, source.stat().st_size):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def replace_file(path: Path, data: bytes) -> Path:
    """The path of a file with these bytes, its folder made if need be; readers see the former one or this one, whole.

    It is not waited for: a machine that fails may come up with the former file or an empty one.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with room(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(data)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def settle(path: Path) -> None:
    """Makes a file read-only and waits until the disk has it."""
    path.chmod(_READ_ONLY)
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def read_plain(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a plain file that lies in a plain folder; links and devices are not followed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plain file, its folder is none, or it holds more than `limit_bytes`.
    """
    try:
        with (
            _opened(path.parent, _FOLDER | os.O_NOFOLLOW) as folder,
            open(path.name, "rb", opener=lambda name, flags: os.open(name, flags | _AS_IT_IS, dir_fd=folder)) as file,
        ):
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{path} is no plain file")
            data = file.read(min(limit_bytes, found.st_size) + 1)  # no room is taken for what is not there
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR):
            raise ValueError(f"{path} or its folder is a link or of another kind, not a plain file") from error
        raise
    if len(data) > limit_bytes:
        raise ValueError(f"{path} has {found.st_size} bytes; expected at most {limit_bytes}")
    return data


def put_file(data: bytes, path: Path, place: Path) -> None:
    """Puts a whole file where none is, in one step, by way of a file in the staging folder `place`.

    Raises:
        FileExistsError: another was first; it is left as it is.
    """
    draft = place / secrets.token_hex(8)
    write_new(draft, data)
    try:
        os.link(draft, path)
    except FileExistsError:
        if os.stat(draft).st_nlink != 2:  # NFS may repeat a request that had succeeded, and then reports this
            raise
    draft.unlink()
    sync_folder(path.parent)


def put_folder(draft: Path, path: Path) -> None:
    """Puts a whole folder, not empty, where none is, in one step.

    Raises:
        FileExistsError: another was first; it is left as it is.
    """
    for folder, _, _ in os.walk(draft, topdown=False):
        sync_folder(Path(folder))
    try:
        os.rename(draft, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(f"{path} is there already") from error
        raise
    sync_folder(path.parent)


def make_folders(path: Path) -> None:
    """Makes a folder and those above it, each entry safe on disk."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Waits until the disk has the entries of a folder."""
    with _opened(path, _FOLDER) as descriptor:
        os.fsync(descriptor)


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A new folder below `root` that only the caller uses; removed afterwards, or by `sweep` if the process dies."""
    home = root / ".staging"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / secrets.token_hex(8)
    with hold(_guard(folder)):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(root: Path) -> list[Path]:
    """Removes the staging folders below `root` whose process has died, and returns them."""
    gone = []
    for folder in sorted({p.with_suffix("") for p in (root / ".staging").glob("*")}):
        try:
            with hold(_guard(folder), timeout_seconds=0):
                if folder.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    gone.append(folder)
        except LockError:
            continue
    return gone


def discard(root: Path, path: Path) -> bool:
    """Removes a file or folder below `root`: it leaves its place whole, in one step. False if it was gone."""
    with staging(root) as place:
        try:
            os.rename(path, place / path.name)
        except FileNotFoundError:
            return False
    return True


def _guard(folder: Path) -> Path:
    return folder.with_suffix(".lock")


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
