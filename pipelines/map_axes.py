"""The axes of a map: its edges in km or degrees, and the coordinates that are written along them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipelines.grid import Grid, unbroken


@dataclass(frozen=True)
class MapAxes:
    """Edges of the map as drawn (km or degrees) and how its axes are written."""

    west: float
    east: float
    south: float
    north: float
    is_degrees: bool
    has_north_first: bool

    @classmethod
    def of(cls, field: xr.DataArray) -> "MapAxes":
        y, x = (field[d] for d in field.dims[-2:])
        grid = Grid(y.values, x.values, str(y.name), str(x.name), y.attrs, x.attrs)
        scale = (1.0, 1.0) if grid.is_in_degrees else grid.km_per_unit
        values = unbroken(grid.x) if grid.is_in_degrees else grid.x * scale[1]
        if grid.is_in_degrees and values.mean() > 180:
            values = values - 360.0
        (south, north), (west, east) = _edges(grid.y * scale[0]), _edges(values)
        return cls(west, east, south, north, grid.is_in_degrees, bool(y[0] >= y[-1]))

    @property
    def shape(self) -> tuple[float, float]:
        """(y, x) size of the map; degrees are weighed by the cosine of the middle latitude."""
        shrink = np.cos(np.deg2rad((self.south + self.north) / 2)) if self.is_degrees else 1.0
        return self.north - self.south, (self.east - self.west) * float(shrink)

    def written(self, names: str) -> FuncFormatter:
        """How a coordinate is written; `names` are the two ends of its axis: SN or WE."""
        return FuncFormatter(_degrees(names) if self.is_degrees else _km)


def _edges(centres: NDArray[np.float64]) -> tuple[float, float]:
    """Least and greatest edge of the outer cells."""
    low, high = float(centres.min()), float(centres.max())
    half = (high - low) / max(len(centres) - 1, 1) / 2
    return low - half, high + half


def choose_ticks(low: float, high: float, inches: float, margin: float) -> list[float]:
    """Round values between the edges of a map, none so near to one that its label meets the next map's."""
    inset = (high - low) * margin / inches
    found: list[float] = []
    for bins in range(min(4, max(2, round(inches / 0.55))), 6):
        values = MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        found = [float(v) for v in values if low + inset <= v <= high - inset]
        if len(found) > 1:
            break
    return found


def _km(value: float, _: int) -> str:
    return f"{value:g} km" if value else "0"


def _degrees(names: str) -> Callable[[float, int], str]:
    return lambda value, _: f"{abs(value):g}°{names[int(value > 0)] if value else ''}"
