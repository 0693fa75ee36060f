"""Room on disks: one error that says which disk is full, what did not fit and how much is left."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.base import EngineError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CRUMBS_BYTES = 1 << 16  # what is left when a large file did not fit


class DiskFullError(EngineError, OSError):
    """A disk is full, or our share of it; `filename` is what could not be written."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def room(path: Path, size_bytes: int | None = None) -> Iterator[None]:
    """Turns the want of room for a file inside into a DiskFullError.

    Args:
        path: of the file or folder, as a user knows it.
        size_bytes: of the file; None = not known.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _full(path, size_bytes) from error


@contextmanager
def room_for_others(folder: Path) -> Iterator[None]:
    """As `room`, where native code or a child process writes, which may fail with any word when the disk is full."""
    try:
        with room(folder):
            yield
    except DiskFullError:
        raise
    except (EngineError, OSError) as error:
        if shutil.disk_usage(folder).free >= _CRUMBS_BYTES:
            raise
        raise _full(folder) from error


def _full(path: Path, size_bytes: int | None = None) -> DiskFullError:
    folder = next(p for p in (path, *path.parents) if p.is_dir())
    need = "" if size_bytes is None else f"{path.name} takes {size_bytes:,} bytes, "
    free = shutil.disk_usage(folder).free
    return DiskFullError(errno.ENOSPC, f"the disk of {folder} is full: {need}{free:,} bytes are free", str(path))
