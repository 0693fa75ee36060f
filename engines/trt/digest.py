"""Sums of what lies on the GPU, made there: whether two results are equal is known without fetching them."""

import ctypes
from contextlib import ExitStack

import numpy as np

from engines.cuda import DeviceBuffer, PinnedBuffer, Stream, copy, fill
from engines.kernel import Kernel
from engines.trt.kernels import DIGEST, read_ptx

THREADS = 1 << 18  # each adds once to the one sum


class Digest:
    """Digests buffers, one at a time; loads its kernel when it is first asked."""

    def __init__(self) -> None:
        self._owned = ExitStack()
        self._parts: tuple[Kernel, DeviceBuffer, PinnedBuffer] | None = None

    def of(self, buffer: DeviceBuffer, nbytes: int, stream: Stream) -> int:
        """64 bits that the first bytes have once all that was queued is done; others have others, but for 1 in 2^64.

        Raises:
            EngineError: the kernel was not installed.
            InferenceError: the driver does not take it, or CUDA refuses; also for an error of earlier work.
        """
        kernel, total, fetched = self._parts = self._parts or self._load()
        fill(total, total.nbytes, stream)
        kernel.launch(min(nbytes, THREADS), (buffer, total, ctypes.c_longlong(nbytes)), stream)
        copy(fetched, total, total.nbytes, stream)
        stream.synchronize()
        return int(fetched.array((1,), np.uint64)[0])

    def close(self) -> None:
        """Give everything back; not while it digests."""
        self._owned.close()

    def _load(self) -> tuple[Kernel, DeviceBuffer, PinnedBuffer]:
        with ExitStack() as owned:
            take = owned.enter_context
            parts = take(Kernel(read_ptx(DIGEST), "digest")), take(DeviceBuffer(8)), take(PinnedBuffer(8))
            self._owned = owned.pop_all()
        return parts
