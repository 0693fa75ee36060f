"""A table of values on the GPU, and the kernel that makes an engine's input of codes by it."""

import ctypes

import numpy as np

from engines.base import EngineError
from engines.codes import ValueTable
from engines.cuda import DeviceBuffer, PinnedBuffer, Stream, copy
from engines.kernel import LookUp
from engines.trt.kernels import LOOK_UP, read_ptx

AT_ONCE = 4  # codes of a thread


class Unpacker(LookUp):
    """Unpacks the codes of one table into values; for as many streams and threads as there are.

    Args:
        stream: in which the table is brought to the GPU; empty afterwards.

    Raises:
        EngineError: the driver does not take the kernel.
        OutOfMemoryError: the table does not fit.
    """

    def __init__(self, table: ValueTable, stream: Stream) -> None:
        self.table, self.dtype = table, np.dtype(table.dtype)
        name = f"look_up_{8 * self.dtype.itemsize}_{8 * table.values.itemsize}"
        super().__init__(read_ptx(LOOK_UP), name, [table.values], stream)

    def unpack(self, codes: DeviceBuffer, values: DeviceBuffer, count: int, stream: Stream) -> None:
        """Queue that the first codes, which must not change meanwhile, become as many values.

        Raises:
            InferenceError: CUDA refuses.
        """
        if count > self.room(codes, values):
            raise ValueError(f"{count} codes do not fit buffers of {codes.nbytes} and {values.nbytes} bytes")
        self._kernel.launch(-(-count // AT_ONCE), (codes, values, ctypes.c_longlong(count), *self._tables), stream)

    def room(self, codes: DeviceBuffer, values: DeviceBuffer) -> int:
        """How many codes and their values two buffers hold."""
        return min(codes.nbytes // self.dtype.itemsize, values.nbytes // self.table.values.itemsize)

    def prove(self, codes: DeviceBuffer, values: DeviceBuffer, staged: PinnedBuffer, stream: Stream) -> None:
        """Unpack every code once and compare; the buffers are free to be written, `staged` holds what `values` does.

        Raises:
            EngineError: values are not those of the table (says how many).
        """
        differ, step = 0, self.room(codes, values)
        for start in range(0, len(self.table.values), step):
            expected = self.table.values[start : start + step]
            trial = np.arange(start, start + len(expected), dtype=f"u{self.dtype.itemsize}")
            staged.array(trial.shape, trial.dtype)[...] = trial
            copy(codes, staged, trial.nbytes, stream)
            self.unpack(codes, values, trial.size, stream)
            copy(staged, values, expected.nbytes, stream)
            stream.synchronize()
            bits = f"u{expected.itemsize}"
            differ += int(np.count_nonzero(staged.array(trial.shape, bits) != expected.view(bits)))
        if differ:
            raise EngineError(
                f"the GPU unpacks {differ} of {len(self.table.values)} codes into other values than the table says"
            )
