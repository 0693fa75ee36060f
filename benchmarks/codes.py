"""How far two forecasts are apart, in packed codes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray


@dataclass(frozen=True)
class Apart:
    """What a comparison of packed codes found.

    Attributes:
        cells: that were compared, of all lead times.
        wet: of them, those with rain in the first forecast: two dry forecasts agree for nothing.
        differing: cells whose codes differ; `beyond` of them by more than one.
        most: codes between the two in the cell that is furthest apart.
    """

    cells: int = 0
    wet: int = 0
    differing: int = 0
    beyond: int = 0
    most: int = 0

    def __add__(self, other: "Apart") -> "Apart":
        return Apart(
            self.cells + other.cells,
            self.wet + other.wet,
            self.differing + other.differing,
            self.beyond + other.beyond,
            max(self.most, other.most),
        )

    @property
    def verdict(self) -> str:
        if not self.differing:
            return "equal"
        return "within one code" if self.most <= 1 else "MORE THAN ONE CODE"


def compare(ours: Iterable[Any], theirs: Iterable[Any]) -> Apart:
    """Two forecasts (lead, y, x) of packed codes, one lead time at a time.

    Raises:
        ValueError: they have not as many lead times, or not the same cells.
    """
    found = Apart()
    for a, b in zip(ours, theirs, strict=True):
        first, second = np.asarray(a), np.asarray(b)
        if first.shape != second.shape:
            raise ValueError(f"a field of {first.shape} cells was compared with one of {second.shape}; expected equal")
        found += _compare(first, second)
    return found


def _compare(first: NDArray[Any], second: NDArray[Any]) -> Apart:
    between = np.abs(first.astype(np.int32) - second)
    wet, differing, beyond = (int(np.count_nonzero(cells)) for cells in (first > 0, between, between > 1))
    return Apart(first.size, wet, differing, beyond, int(between.max()))


def open_published(path: str) -> xr.DataArray:
    """Codes (lead, y, x) of a cycle that squall has published."""
    return xr.open_zarr(path, mask_and_scale=False)["rain"][0]


def open_rival(path: Path) -> xr.DataArray:
    """Codes (lead, y, x) that a rival has written."""
    return xr.open_zarr(path, mask_and_scale=False, consolidated=False)["rain"]
