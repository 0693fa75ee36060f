"""A packing as a table: the least float32 of each code, found by trying, so that no formula has to be known.

float32 numbers in order are whole numbers in order: their bits, those of negative numbers turned round. Such a number
is called a key here; two keys that differ by 1 are neighbours.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer]
CodeOf = Callable[[NDArray[np.float32]], Codes]
"""The codes of values (n,), none of which is NaN."""

NEAR = 4  # keys from a threshold, within which a code may be another: exp is not quite monotone in its last bit
_ALL_BUT_SIGN = 0x7FFFFFFF


def to_keys(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The key of each value; NaN lies beyond infinity."""
    bits = values.view(np.int32)
    return np.where(bits < 0, bits ^ _ALL_BUT_SIGN, bits).astype(np.int64)


def from_keys(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """The value of each key."""
    bits = keys.astype(np.int32)
    return np.where(bits < 0, bits ^ _ALL_BUT_SIGN, bits).astype(np.int32).view(np.float32)


_ENDS = to_keys(np.array([-np.inf, np.inf], np.float32))


def find_thresholds(code_of: CodeOf, limits: tuple[int, int]) -> NDArray[np.float32] | None:
    """The least value whose code is c or more, for each c of limits[0] + 1 to limits[1]; NaN where there is none.

    The code of a value is then limits[0] and as many more as thresholds are not above it, but for values `NEAR` a
    threshold, which may be one code off. None if that does not hold: larger values have lesser codes somewhere.

    Args:
        limits: the least and the greatest code.
    """
    keys = np.maximum.accumulate(_search(code_of, np.arange(limits[0] + 1, limits[1] + 1)))
    if not _holds(keys, code_of, limits[0]):
        return None
    return np.where(keys > _ENDS[1], np.float32("nan"), from_keys(np.minimum(keys, _ENDS[1])))


def _search(code_of: CodeOf, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The least key of each code by bisection; one beyond infinity if no value has so high a code."""
    low, high = np.full(codes.size, _ENDS[0] - 1), np.full(codes.size, _ENDS[1] + 1)
    while (high - low).max(initial=0) > 1:
        middle = np.maximum((low + high) // 2, _ENDS[0])  # where both ends have met, it is the lower one
        reached = code_of(from_keys(middle)) >= codes
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high


def _holds(thresholds: NDArray[np.int64], code_of: CodeOf, lowest: int) -> bool:
    """True if the thresholds tell the code of every value that is tried."""
    keys = _trials(thresholds)
    above = np.searchsorted(thresholds, keys, side="right")
    off = np.abs(code_of(from_keys(keys)) - (above + lowest))
    edges = np.concatenate([_ENDS[:1] - 2 * NEAR, thresholds, _ENDS[1:] + 2 * NEAR])
    distance = np.minimum(keys - edges[above], edges[above + 1] - keys)
    return bool(((off == 0) | ((off == 1) & (distance <= NEAR))).all())


def _trials(thresholds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys around every threshold, of every float16, and over all of float32, 128 or more of each power of two."""
    around = (thresholds + np.arange(-2 * NEAR, 2 * NEAR + 1)[:, np.newaxis]).ravel()
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[~np.isnan(halves)]
    spread = np.arange(_ENDS[0], _ENDS[1], 2**16 - 17)
    keys: NDArray[np.int64] = np.concatenate([around, to_keys(halves), spread, _ENDS])
    np.clip(keys, *_ENDS, out=keys)
    return keys
