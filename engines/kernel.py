"""A kernel of our own on the GPU: loaded from PTX, which the driver compiles and keeps, and launched into a stream."""

import ctypes
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from numpy.typing import NDArray

from engines import cuda
from engines.cuda import DeviceBuffer, Owner, Stream, upload

THREADS = 256  # of a block
MOST_BLOCKS = 4096  # more than any GPU has in flight at once; a kernel goes on from there by itself

Argument = DeviceBuffer | ctypes.c_int | ctypes.c_longlong | ctypes.c_float


class Kernel(Owner):
    """A kernel of a PTX text; not to be closed while it runs.

    Args:
        ptx: ended by a zero.

    Raises:
        InferenceError: the driver cannot compile it for the GPU, or there is no kernel of that name.
    """

    def __init__(self, ptx: bytes, name: str) -> None:
        super().__init__(int(cuda.call("cuLibraryLoadData", ptx, [], [], 0, [], [], 0)), "cuLibraryUnload")
        self._kernel = int(cuda.call("cuLibraryGetKernel", self.handle, name.encode()))

    def launch(self, threads: int, arguments: tuple[Argument, ...], stream: Stream) -> None:
        """Queue a run with so many threads or somewhat more, and no more than `MOST_BLOCKS` blocks of them.

        Raises:
            InferenceError: CUDA refuses; also for an error of earlier work.
        """
        blocks = max(1, min(-(-threads // THREADS), MOST_BLOCKS))
        values, types = zip(*map(_as_parameter, arguments), strict=True)
        shape = (blocks, 1, 1, THREADS, 1, 1)
        cuda.call("cuLaunchKernel", self._kernel, *shape, 0, stream.handle, (values, types), 0)


class LookUp:
    """A kernel and the tables that it looks up, for as many streams and threads as there are.

    Raises:
        InferenceError: as of `Kernel`.
        OutOfMemoryError: the tables do not fit.
    """

    def __init__(self, ptx: bytes, name: str, tables: Iterable[NDArray[Any]], stream: Stream) -> None:
        with ExitStack() as owned:
            self._tables = [owned.enter_context(upload(table, stream)) for table in tables]
            self._kernel = owned.enter_context(Kernel(ptx, name))
            self._owned = owned.pop_all()

    @property
    def nbytes(self) -> int:
        """Of the tables on the GPU."""
        return sum(table.nbytes for table in self._tables)

    def close(self) -> None:
        """Give everything back; not while the kernel runs."""
        self._owned.close()


def _as_parameter(argument: Argument) -> tuple[Any, type]:
    if isinstance(argument, DeviceBuffer):
        return argument.handle, ctypes.c_void_p
    return argument.value, type(argument)
