"""Where a Ray of our own has its sockets and logs: a folder that nobody else reads and that ends with it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "squall-ray-"
_LONGEST = 20  # characters of the folder above; 86 follow, and the path of a socket may have 107


@contextmanager
def session_folder() -> Iterator[Path]:
    """A new folder, removed at the end; those of runs that were killed are removed first.

    Who is alive holds a lock on its folder. The kernel frees it with the process, so nobody has to guess.
    """
    _sweep()
    folder, lock = _make()
    try:
        yield folder / "r"  # Ray lets everybody into the folder that it is given, but nobody comes as far
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make() -> tuple[Path, int]:
    """A folder and the lock on it; another run may take it for an old one until it is locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _sweep() -> None:
    """Removes our user's folders that nobody holds."""
    for folder in _parent().glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is gone, held, or of another user
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _parent() -> Path:
    """The folder of temporary files, or /tmp where its path is too long for the sockets of Ray."""
    usual = tempfile.gettempdir()
    return Path(usual if len(usual) <= _LONGEST else "/tmp")
