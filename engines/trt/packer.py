"""A code table on the GPU, and the kernel that packs results by it."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineError
from engines.codes import CodeTable
from engines.cuda import DeviceBuffer, PinnedBuffer, Stream, copy
from engines.kernel import Argument, LookUp
from engines.trt.kernels import LOOK_UP, PACK, read_ptx

RESULTS = ("float32", "float16")
AT_ONCE = 4  # values of a thread
TRIALS = 20_003  # no multiple of 4


class Packer(LookUp):
    """Packs results of one type into the codes of one table; for as many streams and threads as there are.

    Args:
        results: their type, float32 or float16.
        stream: in which the tables are brought to the GPU; empty afterwards.

    Raises:
        EngineError: there is no kernel for this type, or the driver does not take it.
        OutOfMemoryError: the tables do not fit.
    """

    def __init__(self, codes: CodeTable, results: str, stream: Stream) -> None:
        if results not in RESULTS:
            raise EngineError(f"results are {results}; expected {' or '.join(RESULTS)} to be packed on the GPU")
        self.codes, self.dtype, self._results = codes, np.dtype(codes.dtype), np.dtype(results)
        super().__init__(*self._program(), self._host_tables(), stream)

    def pack(self, values: DeviceBuffer, codes: DeviceBuffer, count: int, stream: Stream) -> None:
        """Queue the packing of the first values, which must not change meanwhile, into as many codes.

        Raises:
            InferenceError: CUDA refuses.
        """
        if count > min(values.nbytes // self._results.itemsize, codes.nbytes // self.dtype.itemsize):
            raise ValueError(f"{count} values do not fit buffers of {values.nbytes} and {codes.nbytes} bytes")
        arguments = (values, codes, ctypes.c_longlong(count), *self._tables, *self._numbers())
        self._kernel.launch(-(-count // AT_ONCE), arguments, stream)

    def prove(self, values: DeviceBuffer, codes: DeviceBuffer, staged: PinnedBuffer, stream: Stream) -> None:
        """Pack values of all sizes once and compare; the buffers are free to be written meanwhile.

        Raises:
            EngineError: codes are not those of the table (says how many).
        """
        trials = self._trials()[: min(values.nbytes, staged.nbytes) // self._results.itemsize]
        staged.array(trials.shape, trials.dtype)[...] = trials
        copy(values, staged, trials.nbytes, stream)
        self.pack(values, codes, trials.size, stream)
        copy(staged, codes, trials.size * self.dtype.itemsize, stream)
        stream.synchronize()
        expected = self.codes.search(trials.astype(np.float32))
        differ = np.count_nonzero(staged.array(trials.shape, self.dtype) != expected)
        if differ:
            raise EngineError(f"the GPU packs {differ} of {trials.size} values into other codes than the table says")

    def _program(self) -> tuple[bytes, str]:
        """The PTX, and the name of the kernel in it."""
        bits = 8 * self.dtype.itemsize
        if self._results == np.float16:
            return read_ptx(LOOK_UP), f"look_up_16_{bits}"
        return read_ptx(PACK), f"pack_float_{bits}"

    def _host_tables(self) -> list[NDArray[Any]]:
        """What the kernel looks up, in the order of its arguments."""
        if self._results == np.float16:
            return [self.codes.of_halves]
        return [self.codes.keys.astype(np.int32), self.codes.starts]

    def _numbers(self) -> tuple[Argument, ...]:
        """The last arguments of the kernel."""
        if self._results == np.float16:
            return ()
        below = float("nan") if self.codes.missing_below is None else self.codes.missing_below
        return ctypes.c_int(self.codes.lowest), ctypes.c_int(self.codes.fill), ctypes.c_float(below)

    def _trials(self) -> NDArray[Any]:
        """Some thresholds and their neighbours, and values of any bits, in an order of its own."""
        random = np.random.default_rng(0)
        some = random.choice(self.codes.thresholds, TRIALS // 4)
        bits = random.integers(0, 2**32, TRIALS - 3 * some.size, dtype=np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            trials = np.concatenate([some, np.nextafter(some, -np.inf), np.nextafter(some, np.inf), bits])
            return random.permutation(trials).astype(self._results)
