"""Places in a grid: boxes of cells and the grid itself. Knows nothing of stores or models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

KM_PER_DEGREE = 111.195  # sphere of 6371 km
_ANGLES = frozenset(
    {"latitude", "longitude", "lat", "lon", "grid_latitude", "grid_longitude", "rlat", "rlon"}
)  # names of coordinates that are degrees if they do not say otherwise
_KM = {
    **dict.fromkeys(("km", "kilometer", "kilometre", "kilometers", "kilometres"), 1.0),
    **dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1e-3),
}
_LEAST_METRES = 20.0  # no radar or model grid has finer cells; without units such steps are km


@dataclass(frozen=True, order=True)
class Window:
    """A half-open box of grid cells, rows y0..y1 and columns x0..x1.

    >>> Window(0, 4, 2, 8).shape
    (4, 6)
    """

    y0: int
    y1: int
    x0: int
    x1: int

    def __post_init__(self) -> None:
        if self.y0 > self.y1 or self.x0 > self.x1:
            raise ValueError(f"{self} ends before it starts; a window needs y0 <= y1 and x0 <= x1")

    @property
    def shape(self) -> tuple[int, int]:
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def cells(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    @property
    def slices(self) -> tuple[slice, slice]:
        """For indexing an array whose last axes are (y, x); the window must not be negative."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def grow(self, cells: int) -> Self:
        """The window with `cells` more on every side.

        >>> Window(0, 4, 2, 8).grow(2)
        Window(y0=-2, y1=6, x0=0, x1=10)
        """
        return type(self)(self.y0 - cells, self.y1 + cells, self.x0 - cells, self.x1 + cells)

    def clip(self, other: "Window") -> Self:
        """The part of the window that lies in `other`; an empty window at its edge if none does."""
        y0, y1 = (min(max(v, other.y0), other.y1) for v in (self.y0, self.y1))
        x0, x1 = (min(max(v, other.x0), other.x1) for v in (self.x0, self.x1))
        return type(self)(y0, y1, x0, x1)

    def within(self, origin: "Window") -> Self:
        """The window in cells counted from the corner of `origin`.

        >>> Window(10, 14, 22, 28).within(Window(10, 20, 20, 30))
        Window(y0=0, y1=4, x0=2, x1=8)
        """
        return type(self)(self.y0 - origin.y0, self.y1 - origin.y0, self.x0 - origin.x0, self.x1 - origin.x0)

    def contains(self, other: "Window") -> bool:
        return self.clip(other) == other

    def __str__(self) -> str:
        return f"y {self.y0}:{self.y1}, x {self.x0}:{self.x1}"


@dataclass(frozen=True, eq=False)
class Grid:
    """A horizontal grid: coordinates of the cell centres in file order, and its CF grid mapping.

    `y` (y,) and `x` (x,) are in the units of their attributes (m, km or degrees); `y` usually descends. Longitudes may
    jump from 360 to 0.
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    y_name: str
    x_name: str
    y_attrs: Mapping[str, Any] = field(default_factory=dict)
    x_attrs: Mapping[str, Any] = field(default_factory=dict)
    crs_name: str | None = None
    crs_attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    @property
    def window(self) -> Window:
        """The whole grid."""
        return Window(0, len(self.y), 0, len(self.x))

    @property
    def spacing_km(self) -> tuple[float, float]:
        """Distance of neighbouring cells along (y, x), km; degrees are taken at the middle latitude.

        Without units, coordinates that are named so are degrees, others m, or km if their steps are small.
        """
        dy, dx = _step(self.y), _step(unbroken(self.x) if self.is_in_degrees else self.x)
        if not self.is_in_degrees:
            return dy * self.km_per_unit[0], dx * self.km_per_unit[1]
        middle = np.deg2rad(float(self.y[0] + self.y[-1]) / 2)
        return dy * KM_PER_DEGREE, dx * KM_PER_DEGREE * float(np.cos(middle))

    @property
    def km_per_unit(self) -> tuple[float, float]:
        """What coordinates (y, x) that are not degrees are multiplied by to be km."""
        return _to_km(_step(self.y), self.y_attrs), _to_km(_step(self.x), self.x_attrs)

    @property
    def is_in_degrees(self) -> bool:
        """True if the coordinates are latitude and longitude, or those of a rotated pole."""
        units = str(self.y_attrs.get("units", "")).strip().lower()
        named = {self.y_name.lower(), str(self.y_attrs.get("standard_name"))}
        return units.startswith("deg") or (not units and bool(named & _ANGLES))


def unbroken(longitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes that go on where they jump by a whole turn.

    >>> unbroken(np.array([359.0, 0.0, 1.0])).tolist()
    [359.0, 360.0, 361.0]
    """
    unwrapped: NDArray[np.float64] = np.unwrap(longitudes, period=360.0)
    return unwrapped


def known_units(attributes: Mapping[str, Any]) -> bool:
    """True if coordinates have units of length or of degrees, or say nothing of them."""
    units = str(attributes.get("units", "")).strip().lower()
    return not units or units in _KM or units.startswith("deg")


def _step(coordinate: NDArray[np.float64]) -> float:
    """The mean step; 1 for a single cell."""
    return float(abs(coordinate[-1] - coordinate[0])) / (len(coordinate) - 1) if len(coordinate) > 1 else 1.0


def _to_km(step: float, attributes: Mapping[str, Any]) -> float:
    units = str(attributes.get("units", "")).strip().lower()
    return _KM.get(units, 1e-3) if units or step >= _LEAST_METRES else 1.0
