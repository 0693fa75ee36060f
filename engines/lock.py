"""A lock between processes, on one machine or on several that share a file system; it ends with its holder.

It is flock(2) on a small file that says who holds it and how far the work is. The kernel, or the file server, frees it
when the last process of the holder is gone, so nobody has to guess whether a lock is stale.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from engines.base import EngineError

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.01, 0.2


class LockError(EngineError):
    """The lock was not obtained: in time, or at all on this file system."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, since when (UTC), and how far it says it is."""

    host: str
    pid: int
    since: str
    progress: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" + (f": {self.progress}" if self.progress else "")


class Lock:
    """A lock that this process holds."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._holder = Holder(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
        self.report("")

    def report(self, progress: str) -> None:
        """Tells those who wait how far the work is, if the disk has room for it."""
        data = json.dumps(asdict(replace(self._holder, progress=progress))).encode()
        with suppress(OSError):
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))


@contextmanager
def hold(
    path: Path, on_wait: Callable[[Holder], None] | None = None, timeout_seconds: float | None = None
) -> Iterator[Lock]:
    """Alone among all who hold `path`, threads of this process too; the file is removed afterwards.

    Args:
        on_wait: called with the holder again and again while another has the lock.
        timeout_seconds: of waiting; None = as long as it takes.

    Raises:
        LockError: not obtained in time (names the holder), or the file system has no locks.
    """
    start, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
    while (descriptor := _take(path)) is None:
        holder = holder_of(path)
        if timeout_seconds is not None and time.monotonic() - start > timeout_seconds:
            raise LockError(f"{path} was not free within {timeout_seconds:g} s; {holder or 'another'} holds it")
        if holder is not None and on_wait is not None:
            on_wait(holder)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    with ExitStack() as held:
        held.callback(os.close, descriptor)
        held.callback(path.unlink, missing_ok=True)
        yield Lock(descriptor)


@cache
def share(path: Path) -> int:
    """Keeps a lock busy until this process ends, for any number of processes at once: nobody can `hold` it meanwhile.

    Raises:
        LockError: the file system has no locks, or does not let us make the file.
    """
    while (descriptor := _take(path, fcntl.LOCK_SH)) is None:
        time.sleep(_FIRST_PAUSE_SECONDS)
    return descriptor


def holder_of(path: Path) -> Holder | None:
    """Who wrote into the lock file last; None if it is gone or being written."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _take(path: Path, kind: int = fcntl.LOCK_EX) -> int | None:
    """The locked file; None if another has it."""
    try:
        with ExitStack() as opened:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            opened.callback(os.close, descriptor)
            if not _is_ours(path, descriptor, kind):
                return None
            opened.pop_all()
            return descriptor
    except OSError as error:
        raise LockError(
            f"cannot lock {path}: {error.strerror}; expected a folder that we may write to, on a file system with locks"
        ) from error


def _is_ours(path: Path, descriptor: int, kind: int) -> bool:
    """True if the lock was free and the file was not removed by its holder after we had opened it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except (BlockingIOError, FileNotFoundError):
        return False
