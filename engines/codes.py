"""The codes of a store as an engine may take and return them instead of numbers: tables, and how one is searched."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

UPPER = 2**16  # values of the upper 16 bits of a key
_ALL_BUT_SIGN = 0x7FFFFFFF


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Which code each result of a model becomes.

    Attributes:
        thresholds: (code,) float32, the least values of the codes `lowest` + 1, `lowest` + 2, ..., not falling; NaN at
            the end for codes that no value has. Values below all of them have the code `lowest`.
        dtype: of the codes, int16, uint16 or uint8.
        fill: the code of missing values: NaN, and what is below `missing_below`.

    Raises:
        ValueError: the type, the order or the number of thresholds does not fit.
    """

    thresholds: NDArray[np.float32]
    dtype: str
    lowest: int
    fill: int
    missing_below: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("int16", "uint16", "uint8"):
            raise ValueError(f"codes are {self.dtype}; expected int16, uint16 or uint8")
        info = np.iinfo(self.dtype)
        if self.thresholds.dtype != np.float32 or (np.diff(self.keys) < 0).any():
            raise ValueError(f"thresholds of {self.thresholds.dtype} in this order; expected float32, not falling")
        if not info.min <= min(self.lowest, self.fill) or self.lowest + len(self.thresholds) > info.max:
            raise ValueError(f"{len(self.thresholds)} thresholds above the code {self.lowest} do not fit {self.dtype}")

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """The thresholds as whole numbers in the order of values; one of 0 is that of -0, so that both reach it."""
        return to_keys(np.where(self.thresholds == 0, np.float32(-0.0), self.thresholds))

    @cached_property
    def starts(self) -> NDArray[np.uint16]:
        """(65537,) thresholds below all keys of the same upper 16 bits, counted from the least key."""
        least = (np.arange(UPPER + 1, dtype=np.int64) << 16) - 2**31
        return np.searchsorted(self.keys, least, side="left").astype(np.uint16)

    @cached_property
    def of_halves(self) -> NDArray[Any]:
        """(65536,) the code of every float16, by its bits."""
        return self.search(np.arange(UPPER, dtype=np.uint16).view(np.float16).astype(np.float32))

    def search(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """The code of each value (n,): what the GPU does, for comparison.

        From the thresholds below all keys of the same upper bits on, halving until none is left.
        """
        keys = to_keys(values)
        upper = np.minimum((keys + 2**31) >> 16, UPPER - 1)
        low, high = self.starts[upper].astype(np.int64), self.starts[upper + 1].astype(np.int64)
        while (low < high).any():
            middle = (low + high) >> 1
            reached = (low < high) & (self.keys[np.minimum(middle, len(self.keys) - 1)] <= keys)
            low, high = np.where(reached, middle + 1, low), np.where(reached, high, middle)
        missing = np.isnan(values)
        if self.missing_below is not None:
            missing |= values < np.float32(self.missing_below)
        return np.where(missing, self.fill, self.lowest + low).astype(self.dtype)


@dataclass(frozen=True, eq=False)
class ValueTable:
    """Which value a model is given for each code of a store.

    Attributes:
        values: (code,) float32 or float16, by the bits of the code: negative ones at the end.
        dtype: of the codes, of 8 or 16 bits.
        missing: (code,) bool, the codes that make a cell missing at every lead time if they stand in the newest frame;
            None = results are as the model gives them.

    Raises:
        ValueError: another type, or another number of values.
    """

    values: NDArray[np.float32] | NDArray[np.float16]
    dtype: str
    missing: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        dtype = np.dtype(self.dtype)
        if dtype.kind not in "iu" or dtype.itemsize > 2:
            raise ValueError(f"codes are {self.dtype}; expected integers of 8 or 16 bits")
        if self.values.dtype not in (np.float32, np.float16):
            raise ValueError(f"values are {self.values.dtype}; expected float32 or float16")
        expected = (2 ** (8 * dtype.itemsize),)
        for name, table in (("values", self.values), ("missing", self.missing)):
            if table is not None and table.shape != expected:
                raise ValueError(f"{name} of {self.dtype} are {table.shape}; expected {expected}, one of each code")


def to_keys(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bits of each value, those of negative ones turned round: whole numbers in the order of values."""
    bits = values.view(np.int32)
    return np.where(bits < 0, bits ^ _ALL_BUT_SIGN, bits).astype(np.int64)
