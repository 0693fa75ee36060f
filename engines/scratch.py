"""Folders for temporary files that end with their process, however that ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.room import room_for_others


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder that nobody else reads, removed at the end; those of killed processes are removed first.

    Who is alive holds a lock on its folder. The kernel frees it with the process, so nobody has to guess.

    Args:
        prefix: of the name; all folders that begin with it are of this kind.
        parent: None = the folder of temporary files.

    Raises:
        DiskFullError: what failed inside has left no room in the folder.
    """
    where = parent or Path(tempfile.gettempdir())
    _sweep(where, prefix)
    folder, lock = _make(where, prefix)
    try:
        with room_for_others(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    """A folder and the lock on it; another process may take it for an old one until it is locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks: nobody sweeps there
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _sweep(parent: Path, prefix: str) -> None:
    """Removes our user's folders that nobody holds."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # it is gone, held, or of another user
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
