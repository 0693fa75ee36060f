"""The frames of a store for cycle after cycle: each is looked for and decoded once while the cycles rise.

Memory: the frames from the oldest that the newest cycle needs on, `limit_bytes` of them at most.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.frames import Cycle, check_times, frame_offsets, nearest_frames
from pipelines.grid import Window
from pipelines.product import Product
from pipelines.source import Raw, Source, without_absent

LIMIT_BYTES = 2_000_000_000


@dataclass(frozen=True, eq=False)
class Inputs:
    """A cycle and its decoded frames, (y, x) codes of the whole grid; None = not there."""

    cycle: Cycle
    frames: tuple[Raw | None, ...]
    fill: float
    dtype: np.dtype[Any]

    def read(self, window: Window) -> NDArray[Any]:
        """Codes of the frames in a window, (frame, y, x), as `Source.read` gives them, also beyond the grid."""
        raw = np.empty((len(self.frames), *window.shape), self.dtype)
        for target, frame in zip(raw, self.frames, strict=True):
            grid = Window(0, 0, 0, 0) if frame is None else Window(0, frame.shape[0], 0, frame.shape[1])
            inside = window.clip(grid)
            if inside != window:
                target[...] = self.fill
            if frame is not None and inside.cells:
                target[inside.within(window).slices] = frame[inside.slices]
        return raw


class History:
    """Finds and reads the inputs of cycles whose reference times rise, or nearly so. Safe to share between threads.

    Args:
        source: as it stands; frames that arrive later are not seen.

    Raises:
        InputError: the time axis does not fit (see `choose_frames`).
    """

    def __init__(self, source: Source, product: Product, limit_bytes: int = LIMIT_BYTES) -> None:
        check_times(source.times, source.where)
        self._source, self._product, self._limit = source, product, limit_bytes
        self._offsets = frame_offsets(source.times, product.input, source.where)
        self._frames: dict[int, Future[Raw | None]] = {}
        self._lock = Lock()

    def find(self, reference_time: np.datetime64) -> Inputs:
        """The inputs of a cycle.

        Raises:
            InputError: a frame is missing, or cannot be read; as `find_inputs` and `Source.read`.
        """
        source, spec = self._source, self._product.input
        cycle = nearest_frames(
            source.times, self._product.name, spec, reference_time.astype("datetime64[ns]"), self._offsets, source.where
        )
        self._forget_before(min(index for index in cycle.frame_indices if index is not None))
        frames = tuple(None if index is None else self._frame(index) for index in cycle.frame_indices)
        cycle = without_absent(cycle, [frame is not None for frame in frames], spec.missing_frame, source.where)
        return Inputs(cycle, frames, source.encoding.fill, np.dtype(source.encoding.dtype))

    def _frame(self, index: int) -> Raw | None:
        """A decoded frame, None if nothing of it is stored; threads that want the same one wait for the first."""
        with self._lock:
            known = self._frames.get(index)
            frame = known or self._frames.setdefault(index, Future())
        if known is None:
            try:
                frame.set_result(self._load(index))
            except BaseException as error:
                with self._lock:
                    self._frames.pop(index, None)
                frame.set_exception(error)
        return frame.result()

    def _load(self, index: int) -> Raw | None:
        if not self._source.is_stored(index):
            return None
        time = self._source.times[index]
        (frame,) = self._source.read_frames(Cycle(self._product.name, time, (time,), (index,)))
        return np.asarray(frame)

    def _forget_before(self, oldest: int) -> None:
        with self._lock:
            kept = {i: f for i, f in sorted(self._frames.items()) if i >= oldest}
            while len(kept) > 1 and sum(map(_bytes_of, kept.values())) > self._limit:
                del kept[next(iter(kept))]
            self._frames = kept


def _bytes_of(frame: "Future[Raw | None]") -> int:
    found = frame.result() if frame.done() and frame.exception() is None else None
    return 0 if found is None else found.nbytes
