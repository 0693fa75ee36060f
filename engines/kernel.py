"""A kernel of our own on the GPU: loaded from PTX, which the driver compiles and keeps, and launched into a stream."""

import ctypes
import weakref
from types import TracebackType
from typing import Any, Self

from engines import cuda
from engines.cuda import DeviceBuffer, Stream

THREADS = 256  # of a block
MOST_BLOCKS = 4096  # more than any GPU has in flight at once; a kernel goes on from there by itself

Argument = DeviceBuffer | ctypes.c_int | ctypes.c_longlong | ctypes.c_float


class Kernel:
    """A kernel of a PTX text; given back by `close`, at the end of `with`, or with the object.

    Args:
        ptx: ended by a zero.

    Raises:
        InferenceError: the driver cannot compile it for the GPU, or there is no kernel of that name.
    """

    def __init__(self, ptx: bytes, name: str) -> None:
        library = int(cuda.call("cuLibraryLoadData", ptx, [], [], 0, [], [], 0))
        self._release = weakref.finalize(self, cuda.driver().cuLibraryUnload, library)
        self._handle = int(cuda.call("cuLibraryGetKernel", library, name.encode()))

    def launch(self, threads: int, arguments: tuple[Argument, ...], stream: Stream) -> None:
        """Queue a run with so many threads or somewhat more, and no more than `MOST_BLOCKS` blocks of them.

        Raises:
            InferenceError: CUDA refuses; also for an error of earlier work.
        """
        blocks = max(1, min(-(-threads // THREADS), MOST_BLOCKS))
        values, types = zip(*map(_as_parameter, arguments), strict=True)
        shape = (blocks, 1, 1, THREADS, 1, 1)
        cuda.call("cuLaunchKernel", self._handle, *shape, 0, stream.handle, (values, types), 0)

    def close(self) -> None:
        """Give it back; a second call does nothing. Not while it runs."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_parameter(argument: Argument) -> tuple[Any, type]:
    if isinstance(argument, DeviceBuffer):
        return argument.handle, ctypes.c_void_p
    return argument.value, type(argument)
