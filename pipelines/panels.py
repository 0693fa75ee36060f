"""The maps of a picture: which times they show, the words above them, and where they go."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

DPI = 140


@dataclass(frozen=True)
class Panel:
    """One map: its place in the layout, the words above it, and a (y, x) field."""

    row: int
    column: int
    time: str
    age: str
    field: xr.DataArray | None  # None: nothing was observed at that time
    is_forecast: bool


@dataclass(frozen=True)
class Layout:
    """Where the parts of a figure go, in inches from its upper left corner."""

    rows: int
    columns: int
    panel: tuple[float, float]  # height, width
    vacant: int  # panels at the end of the first row without a map; the head goes there when it fits

    left: float = 1.0
    right: float = 0.3
    foot: float = 0.72
    gap: float = 0.3  # above every panel, for its words
    space: float = 0.1  # between columns

    @property
    def has_strip(self) -> bool:
        """True if the head needs a strip of its own above the maps."""
        return self.vacant * (self.panel[1] + self.space) < 4.0 or self.panel[0] < 1.5

    @property
    def top(self) -> float:
        return 1.0 if self.has_strip else 0.1

    @property
    def pixels(self) -> tuple[int, int]:
        """(y, x) pixels that a map surely has, wherever its edges fall between pixels."""
        return max(1, int(self.panel[0] * DPI) - 1), max(1, int(self.panel[1] * DPI) - 1)

    @property
    def size(self) -> tuple[float, float]:
        """(height, width) of the figure."""
        height, width = self.panel
        return (
            self.top + self.rows * (height + self.gap) + self.foot,
            self.left + self.columns * (width + self.space) - self.space + self.right,
        )

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """(y, x) of the upper left corner of a panel."""
        height, width = self.panel
        return self.top + (row + 1) * self.gap + row * height, self.left + column * (width + self.space)

    def box(self, y: float, x: float, height: float, width: float) -> tuple[float, float, float, float]:
        """Left, bottom, width, height as shares of the figure, as Matplotlib counts them."""
        tall, wide = self.size
        return x / wide, 1 - (y + height) / tall, width / wide, height / tall


def choose_leads(count: int, wanted: int) -> list[int]:
    """Positions of at most `wanted` of `count` lead times, spread evenly up to the last.

    >>> choose_leads(18, 6)
    [2, 5, 8, 11, 14, 17]
    """
    wanted = min(count, wanted)
    return [(i + 1) * count // wanted - 1 for i in range(wanted)]


def choose_columns(past: int, leads: int, shape: tuple[float, float], verified: bool) -> int:
    """How many maps of `shape` (y, x) go side by side so that the figure comes nearest to 4 : 3.

    >>> choose_columns(3, 6, (512, 512), False), choose_columns(3, 6, (1226, 760), False)
    (3, 6)
    """

    def misfit(columns: int) -> float:
        rows = 1 + leads // columns * (1 + verified)
        return abs(float(np.log(columns * shape[1] / (rows * shape[0]) * 3 / 4)))

    return min((c for c in range(1, leads + 1) if leads % c == 0 and c >= min(past, leads)), key=misfit)


def panel_size(shape: tuple[float, float], columns: int) -> tuple[float, float]:
    """(height, width) of a map, inches, so that a figure is about 11.5 inches wide."""
    width = (11.5 - 1.3) / columns - 0.1
    return width * shape[0] / shape[1], width


def panels_of(
    past: xr.DataArray, forecast: xr.DataArray, leads: list[int], observed: xr.DataArray | None, columns: int
) -> Iterator[Panel]:
    """All maps in reading order: the past, then each row of leads with what was observed below it."""
    start = forecast.init_time.values
    for column, time in enumerate(past.time.values):
        yield Panel(0, column, _clock(time, start), _age(time - start), past.isel(time=column), False)
    for index, lead in enumerate(forecast.lead_time.values[leads]):
        row = 1 + index // columns * (1 if observed is None else 2)
        words = _clock(start + lead, start), _age(lead)
        yield Panel(row, index % columns, *words, forecast.isel(lead_time=leads[index]), True)
        if observed is not None:
            yield Panel(row + 1, index % columns, words[0], "", _at(observed, start + lead), False)


def _at(frames: xr.DataArray, time: np.datetime64) -> xr.DataArray | None:
    found = np.flatnonzero(frames.time.values == time)
    return frames.isel(time=int(found[0])) if found.size else None


def _clock(time: np.datetime64, start: np.datetime64) -> str:
    """`15:30 UTC`, with the day where it is not that of `start`."""
    other_day = time.astype("datetime64[D]") != start.astype("datetime64[D]")
    return f"{pd.Timestamp(time):{'%d %b ' if other_day else ''}%H:%M} UTC"


def _age(span: np.timedelta64) -> str:
    """`+90 min`, `−5 min` or `+2 h 30 min`."""
    minutes = round(float(span / np.timedelta64(1, "m")))
    sign = "+" if minutes > 0 else "−" if minutes < 0 else ""
    if abs(minutes) < 120:
        return f"{sign}{abs(minutes)} min"
    hours, rest = divmod(abs(minutes), 60)
    return f"{sign}{hours} h" + (f" {rest} min" if rest else "")
