"""Memory that is used again: writing to fresh memory takes ten times as long as to memory that was written before."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Buffers:
    """Arrays to borrow, for several threads. It holds as many as were ever lent at the same time."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, shape: Sequence[int], dtype: DTypeLike) -> Iterator[NDArray[np.generic]]:
        """An array of a shape and dtype, its contents left over from others; nobody's after the context."""
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        memory = self._take(nbytes)
        try:
            yield memory[:nbytes].view(dtype).reshape(shape)
        finally:
            with self._lock:
                self._free.append(memory)

    @property
    def idle_bytes(self) -> int:
        """Memory that is kept and not lent."""
        with self._lock:
            return sum(memory.nbytes for memory in self._free)

    def _take(self, nbytes: int) -> NDArray[np.uint8]:
        """The smallest free piece that is large enough; if none is, the smallest one gives way to a larger."""
        with self._lock:
            self._free.sort(key=lambda memory: memory.nbytes)
            fit = next((k for k, memory in enumerate(self._free) if memory.nbytes >= nbytes), None)
            if fit is not None:
                return self._free.pop(fit)
            del self._free[:1]
        return np.empty(nbytes, np.uint8)
