"""What a process holds in memory."""

import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of getrusage


@dataclass(frozen=True)
class Memory:
    """Bytes that a worker holds.

    Attributes:
        resident: most that its process ever held, pinned memory and shared frames included.
        device: on its GPU, of its engine: to compute in, and inputs and outputs.
        pinned: of the host, for the copies to and from the GPU.
    """

    resident: int = 0
    device: int = 0
    pinned: int = 0


def peak_resident() -> int:
    """The most that this process ever held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def together(workers: Iterable[Memory]) -> Memory:
    """What several workers hold: the largest process, and all that is on GPUs or pinned."""
    held = list(workers)
    most = max((one.resident for one in held), default=0)
    return Memory(most, sum(one.device for one in held), sum(one.pinned for one in held))
