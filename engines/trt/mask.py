"""Which codes of a store mean missing, on the GPU, and the kernel that makes cells missing at every lead time."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineError
from engines.cuda import DeviceBuffer, PinnedBuffer, Stream, copy
from engines.kernel import LookUp
from engines.trt.kernels import MASK, read_ptx

TRIALS = 20_003


class Mask(LookUp):
    """Makes a cell of packed results missing where it is missing in the newest frame; for any streams and threads.

    Args:
        stored: of the codes of the frames.
        missing: (code,) bool, by the bits of the code of a frame.
        codes: of the results.
        fill: the code of a missing cell in the results.
        stream: in which the table is brought to the GPU; empty afterwards.

    Raises:
        EngineError: the driver does not take the kernel.
        OutOfMemoryError: the table does not fit.
    """

    def __init__(
        self, stored: np.dtype[Any], missing: NDArray[np.bool_], codes: np.dtype[Any], fill: int, stream: Stream
    ) -> None:
        self._stored, self._missing, self._codes, self._fill = stored, missing, codes, fill
        name = f"mask_{8 * stored.itemsize}_{8 * codes.itemsize}"
        super().__init__(read_ptx(MASK), name, [missing.astype(np.uint8)], stream)

    def apply(
        self,
        frames: DeviceBuffer,
        results: DeviceBuffer,
        given: tuple[int, ...],
        made: tuple[int, ...],
        stream: Stream,
    ) -> None:
        """Queue the masking of packed results.

        Args:
            frames, results: hold codes of the shapes `given` (n, frame, h, w) and `made` (n, lead, h, w).

        Raises:
            InferenceError: CUDA refuses.
        """
        tiles, cells = given[0], given[2] * given[3]
        sizes = ctypes.c_int(tiles), ctypes.c_int(given[1]), ctypes.c_int(made[1])
        arguments = (frames, results, ctypes.c_longlong(cells), *sizes, self._tables[0], ctypes.c_int(self._fill))
        self._kernel.launch(tiles * cells, arguments, stream)

    def prove(self, frames: DeviceBuffer, results: DeviceBuffer, staged: PinnedBuffer, stream: Stream) -> None:
        """Mask two lead times after two frames once and compare; the buffers are free to be written meanwhile.

        Raises:
            EngineError: other cells are missing than those of the table (says how many).
        """
        widest = max(self._stored.itemsize, self._codes.itemsize)
        cells = min(TRIALS, *(buffer.nbytes // (2 * widest) for buffer in (frames, results, staged)))
        shape, random = (1, 2, 1, cells), np.random.default_rng(0)
        seen = random.integers(0, len(self._missing), shape).astype(f"u{self._stored.itemsize}")
        seen[..., ::3] = random.choice([*np.flatnonzero(self._missing), 0], seen[..., ::3].shape)
        before = random.integers(0, 100, shape).astype(self._codes)
        for buffer, array in ((frames, seen), (results, before)):
            staged.array(shape, array.dtype)[...] = array
            copy(buffer, staged, array.nbytes, stream)
            stream.synchronize()
        self.apply(frames, results, shape, shape, stream)
        copy(staged, results, before.nbytes, stream)
        stream.synchronize()
        expected = np.where(self._missing[seen[:, -1:]], np.array(self._fill, self._codes), before)
        differ = np.count_nonzero(staged.array(shape, self._codes) != expected)
        if differ:
            raise EngineError(f"the GPU masks {differ} of {before.size} codes otherwise than the newest frame says")
