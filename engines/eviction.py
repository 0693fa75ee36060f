"""Which of the things that a cache keeps must go when room is short: the longest unused first."""

from collections.abc import Collection
from dataclasses import dataclass

LIMIT_BYTES = 20 * 10**9  # of a cache, if nothing else is said


@dataclass(frozen=True)
class Entry:
    """What a cache keeps under a name: its size and when it was last used (ns since 1970)."""

    digest: str
    size_bytes: int
    used_ns: int


def to_evict(entries: Collection[Entry], limit_bytes: int, keep: Collection[str] = ()) -> list[str]:
    """The longest unused entries that must go so that the rest fits; those in `keep` stay whatever it takes.

    >>> to_evict([Entry("a", 6, 1), Entry("b", 6, 2)], 10)
    ['a']
    """
    excess, chosen = sum(entry.size_bytes for entry in entries) - limit_bytes, []
    for entry in sorted(entries, key=lambda e: (e.used_ns, e.digest)):
        if excess > 0 and entry.digest not in keep:
            chosen.append(entry.digest)
            excess -= entry.size_bytes
    return chosen
