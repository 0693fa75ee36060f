"""Tiles that need not be run again: equal inputs give equal outputs, so the forecast is the same to the bit."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

Result = NDArray[Any]  # of a tile (lead, h, w): model space, or packed codes
Key = tuple[tuple[int, ...], bytes]

REUSE_BYTES = 256_000_000


class Reuse:
    """Results of tiles whose whole input is one value (dry or missing), kept as the canvas wants them.

    For several threads: whoever claims a key first makes its result, the others wait for it. Results are dropped,
    oldest first, when they outgrow `limit_bytes`.
    """

    def __init__(self, limit_bytes: int = REUSE_BYTES) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[Hashable, Future[Result]] = OrderedDict()
        self._lock = threading.Lock()

    def claim(self, key: Hashable) -> tuple[Future[Result], bool]:
        """The result of a key, made or in the making, and whether the caller has to make it: `keep` or `fail`."""
        with self._lock:
            is_new = key not in self._kept
            return self._kept.setdefault(key, Future()), is_new

    def keep(self, key: Hashable, result: Result) -> None:
        """The result of a key that was claimed."""
        with self._lock:
            self._kept[key].set_result(result)
            made = [(key, kept.result().nbytes) for key, kept in self._kept.items() if kept.done()]
            excess = sum(nbytes for _, nbytes in made) - self._limit
            for old, nbytes in made:
                if excess > 0:
                    del self._kept[old]
                    excess -= nbytes

    def fail(self, key: Hashable, error: BaseException) -> None:
        """A key that was claimed cannot be made: who waits is told, who comes later may try."""
        with self._lock:
            self._kept.pop(key).set_exception(error)


def constant_key(raw: NDArray[np.generic]) -> Key | None:
    """What a tile (frame, h, w) holds if every cell of every frame has the same bits (NaN equals NaN), else None."""
    bits = raw.view(f"u{raw.dtype.itemsize}")
    first = bits[0, 0, 0]
    if (bits[:, ::17, ::17] != first).any():
        return None
    if any((row != first).any() for frame in bits for row in np.array_split(frame, _parts(frame))):
        return None
    return raw.shape, first.tobytes()


def _parts(frame: NDArray[np.generic]) -> int:
    """Into how many bands of rows a frame is cut, so that what is made of one stays in the nearest caches."""
    return min(len(frame), max(1, frame.size >> 16))
