"""The time axis of a store: read whole, or from its end backwards as far as somebody needs it.

A store that is appended to often keeps each time in a chunk of its own: each is an object to be fetched.
"""

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.frames import RECENT, Times
from pipelines.threads import map_on
from pipelines.timecode import decode_times

CHUNKS_AT_ONCE = 128  # above RECENT, so that of times in chunks of one a single step tells the usual one
_GROWTH = 4
_THREADS = 8  # each with as many chunks at once as zarr allows


def read_times(axis: Any, frames: int, where: str, all_times: bool) -> tuple[Times, int]:
    """Times of an axis, of as many as there are frames, and the position of the first of them.

    Those at the end that nobody has written yet are left out. Unless all are wanted, the newest are read, enough of
    them to tell the usual step.
    """
    end = min(frames, axis.shape[0])
    first, codes = end, _read(axis, end, axis.shape[0])
    while True:
        start = 0 if all_times else earlier(first, end, _chunk(axis))
        codes, first = np.concatenate([_read(axis, start, first), codes]), start
        if first and np.all(codes == _fill(axis)):
            continue
        times = _there(_decode_end(codes, axis, where)[: frames - first])
        if not first or len(times) > RECENT:
            return times, first


def read_later(axis: Any, frames: int, where: str, times: Times, first: int) -> Times | None:
    """Known times, from position `first` on, and those after them; None if the known ones do not stand any more."""
    last = first + len(times) - 1
    if not len(times) or last >= axis.shape[0] or first >= frames:
        return None
    later = _decode_end(_read(axis, last, axis.shape[0]), axis, where)
    if later[0] != times[-1]:
        return None
    return _there(np.concatenate([times[:-1], later])[: frames - first])


def read_earlier(axis: Any, where: str, times: Times, first: int) -> tuple[Times, int]:
    """Known times, from position `first` on, and a stretch of those before them; and the position of its first."""
    start = earlier(first, first + len(times), _chunk(axis))
    return np.concatenate([decode_times(_read(axis, start, first), axis.attrs, where), times]), start


def earlier(first: int, end: int, chunk: int) -> int:
    """Where to read on from, if positions from `first` to `end` are read: whole chunks, a multiple of those before.

    >>> earlier(20_000, 20_000, 1), earlier(19_872, 20_000, 1), earlier(19_488, 20_000, 1), earlier(100, 100, 1)
    (19872, 19488, 17952, 0)
    """
    known = ceil((end - first) / chunk)
    return max(0, ceil(first / chunk) - max(CHUNKS_AT_ONCE, (_GROWTH - 1) * known)) * chunk


def _chunk(axis: Any) -> int:
    """Times that share a stored object."""
    (times,) = axis.shards or axis.chunks
    return int(times)


def _read(axis: Any, start: int, stop: int) -> NDArray[Any]:
    """Codes of a stretch of the axis, many chunks at once."""
    chunk = _chunk(axis)
    step = ceil((stop - start) / chunk / _THREADS) * chunk
    if stop - start <= _THREADS * chunk:
        return np.asarray(axis[start:stop])
    starts = range(start, stop, step)
    return np.concatenate(map_on(_THREADS, lambda begin: axis[begin : min(begin + step, stop)], starts))


def _decode_end(codes: NDArray[Any], axis: Any, where: str) -> Times:
    return decode_times(_written(codes, _fill(axis)), axis.attrs, where)


def _fill(axis: Any) -> Any:
    """What chunks read as that nobody has written: 0 where the store gives no fill value, as xarray's of Zarr v2."""
    return 0 if axis.fill_value is None else axis.fill_value


def _written(codes: NDArray[Any], fill: Any) -> NDArray[Any]:
    """Codes of rising times without those at the end that nobody has written: an append first lengthens the axis."""
    there = np.flatnonzero(codes != fill)
    end = int(there[-1]) + 1 if len(there) else len(codes)
    return codes[:end] if end < len(codes) and codes[end - 1] > fill else codes


def _there(times: Times) -> Times:
    """Times without those at the end that are not there yet, as in a store that was laid out in advance."""
    there = np.flatnonzero(~np.isnat(times))
    return times[: there[-1] + 1 if len(there) else 0]
