"""Where a Ray of our own has its sockets and logs: a folder that nobody else reads and that ends with it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.scratch import scratch_folder

_PREFIX = "squall-ray-"
_LONGEST = 20  # characters of the folder above; 86 follow, and the path of a socket may have 107


@contextmanager
def session_folder() -> Iterator[Path]:
    """A new folder, removed at the end; those of runs that were killed are removed first."""
    with scratch_folder(_PREFIX, _parent()) as folder:
        yield folder / "r"  # Ray lets everybody into the folder that it is given, but nobody comes as far


def _parent() -> Path:
    """The folder of temporary files, or /tmp where its path is too long for the sockets of Ray."""
    usual = tempfile.gettempdir()
    return Path(usual if len(usual) <= _LONGEST else "/tmp")
