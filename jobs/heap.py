"""Memory that was freed stays with the process and is used again.

glibc gives large pieces back to the system and takes fresh ones, whose pages are made one by one as they are touched:
that takes longer than what is done with them, most of all on virtual machines. A process of squall does the same work
over and over, so it may keep what it needed once.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # as in malloc.h
_NEVER = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Has this process keep what it frees, from now on; False where the C library has no such switch."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _ARENA_MAX: 1}  # one arena: what a thread frees is for all
    return all(mallopt(name, number) for name, number in settings.items())
