"""The picture of a forecast: what the radar saw, what comes next, and, when it is known, what came.

Draws with Agg into a file and leaves pyplot alone. Knows nothing of models or stores.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.grid import Grid, unbroken

NO_COVERAGE = "#c9c9c6"
NO_ECHO = "#fbfbf8"
INK, FAINT, ACCENT = "#22262b", "#7a8088", "#b3261e"
DPI = 140

Field = NDArray[np.float32]


@dataclass(frozen=True)
class ColourTable:
    """Colours between ascending breaks in `units`; the last one is for all that reaches the last break."""

    quantity: str
    units: str
    breaks: tuple[float, ...]
    colours: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.colours) != len(self.breaks):
            raise ConfigError(
                f"a colour table with {len(self.breaks)} breaks needs as many colours, found {len(self.colours)}"
            )
        if any(b <= a for a, b in zip(self.breaks, self.breaks[1:], strict=False)):
            raise ConfigError(f"the breaks of a colour table must ascend, found {self.breaks}")


RAIN_RATE = ColourTable(
    "rain rate",
    "mm h⁻¹",
    (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
    (
        "#cfe5f5",
        "#9bcbec",
        "#56a5dc",
        "#1f6fbf",
        "#2c9c4b",
        "#f6e13a",
        "#f79a1f",
        "#e2301f",
        "#b0189b",
        "#4d0d66",
    ),
)
REFLECTIVITY = ColourTable(
    "reflectivity",
    "dBZ",
    (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60),
    (
        "#dfe9f0",
        "#c3dced",
        "#8fc2e6",
        "#4b98d3",
        "#1f64b3",
        "#2c9c4b",
        "#8ccb3f",
        "#f6e13a",
        "#f79a1f",
        "#e2301f",
        "#b0189b",
        "#4d0d66",
    ),
)

_PER_HOUR = {"mm h-1": 1.0, "mm/h": 1.0, "mm/hr": 1.0, "mm hr-1": 1.0, "m s-1": 3.6e6, "kg m-2 s-1": 3600.0}


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


def draw_forecast(
    past: xr.DataArray,
    forecast: xr.DataArray,
    out: str | os.PathLike[str],
    *,
    title: str,
    model: str = "",
    observed: xr.DataArray | None = None,
    leads: int = 6,
    credit: str = "",
) -> Path:
    """The path of a new PNG of the observed past and the forecast; see `draw_figure`."""
    figure = draw_figure(past, forecast, title=title, model=model, observed=observed, leads=leads, credit=credit)
    figure.savefig(out, format="png")
    return Path(out)


def draw_figure(
    past: xr.DataArray,
    forecast: xr.DataArray,
    *,
    title: str,
    model: str = "",
    observed: xr.DataArray | None = None,
    leads: int = 6,
    credit: str = "",
) -> Figure:
    """A figure of the last past frames, some of the lead times, and what was observed at those times.

    Args:
        past: (time, y, x) rain rate or reflectivity; as many of the newest as fill a row are shown.
        forecast: (lead_time, y, x), or with an init_time axis of one; `init_time` is a coordinate.
        title: product name.
        model: name and version of the model.
        observed: (time, y, x) with the valid times; a time that is not in it gives an empty map.
        leads: at most so many lead times, spread evenly up to the last.
        credit: who is to be thanked for the data, for the foot of the picture.

    NaN = no coverage, drawn grey. Reflectivity is turned into rain rate where the forecast is one, by its
    attributes `zr_a` and `zr_b`. Arrays are read one field at a time and thinned by the greatest of
    neighbouring cells where the grid has more cells than a map has pixels.

    Raises:
        ConfigError: units without a colour table, other axes, or a forecast of several init times.
    """
    forecast = _one_cycle(forecast)
    past, observed = _frames(past, "past"), None if observed is None else _frames(observed, "observed")
    table = colour_table(forecast)
    chosen = choose_leads(forecast.sizes["lead_time"], leads)
    shape = _shape_km(forecast)
    columns = choose_columns(min(3, past.sizes["time"]), len(chosen), shape, observed is not None)
    panels = list(_panels(past.isel(time=slice(-columns, None)), forecast, chosen, observed, columns))
    vacant = columns - sum(panel.row == 0 for panel in panels)
    layout = Layout(max(p.row for p in panels) + 1, columns, _panel_size(shape, columns), vacant)
    figure = Figure(figsize=layout.size[::-1], dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for panel in panels:
        _draw_panel(figure, layout, panel, table, _Axes.of(forecast))
    _draw_head(figure, layout, table, title, model, forecast)
    _draw_foot(figure, layout, table, forecast.shape[1:], credit)
    return figure


def colour_table(field: xr.DataArray) -> ColourTable:
    """The colour table for the units of `field`.

    Raises:
        ConfigError: neither a rain rate nor a reflectivity (names the units).
    """
    units = field.attrs.get("units", "")
    if units == "dBZ":
        return REFLECTIVITY
    if units in _PER_HOUR:
        return RAIN_RATE
    raise ConfigError(f"no colour table for {field.name} in {units!r}; expected dBZ or one of {', '.join(_PER_HOUR)}")


def rain_rate(field: xr.DataArray) -> xr.DataArray:
    """`field` as rain rate in mm h-1; reflectivity by its attributes `zr_a` and `zr_b`. NaN stays NaN.

    Raises:
        ConfigError: other units, or reflectivity without `zr_a` and `zr_b`.

    Source: Z = a R**b (Marshall & Palmer, 1948); no echo is no rain.
    """
    known = {"standard_name": "lwe_precipitation_rate", "units": "mm h-1"}
    if colour_table(field) is RAIN_RATE:
        return (field * np.float32(_PER_HOUR[field.attrs["units"]])).assign_attrs(known)
    if not {"zr_a", "zr_b"} <= field.attrs.keys():
        raise ConfigError(f"{field.name} is in dBZ; expected a rain rate, or the attributes zr_a and zr_b to make one")
    a, b = (np.float32(field.attrs[name]) for name in ("zr_a", "zr_b"))
    rate = (10 ** (field / 10) / a) ** (1 / b)
    return rate.where(field != field.attrs.get("no_echo_value", -np.inf), 0).assign_attrs(known)


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


def thin(field: Field, most: tuple[int, int]) -> Field:
    """(y, x) the greatest of every box of cells, so that no axis is longer than `most`; NaN where all are.

    >>> thin(np.array([[1, 2, 0], [0, np.nan, 7]], np.float32), (1, 2)).tolist()
    [[1.0, 7.0]]
    """
    for axis, (cells, limit) in enumerate(zip(field.shape, most, strict=True)):
        if cells > limit:
            parts = np.split(field, np.arange(1, limit) * cells // limit, axis)  # reduceat is 10 times slower
            field = np.stack([np.fmax.reduce(part, axis) for part in parts], axis)
    return field


def _one_cycle(forecast: xr.DataArray) -> xr.DataArray:
    if forecast.sizes.get("init_time", 1) != 1:
        raise ConfigError(
            f"a picture shows one init_time, found {forecast.sizes['init_time']}; choose with .isel(init_time=...)"
        )
    cycle = forecast.squeeze("init_time") if "init_time" in forecast.dims else forecast
    if cycle.ndim != 3 or cycle.dims[0] != "lead_time" or "init_time" not in cycle.coords:
        raise ConfigError(
            f"the forecast has axes {forecast.dims}; expected (lead_time, y, x) and the coordinate init_time"
        )
    if cycle.lead_time.dtype.kind != "m":
        raise ConfigError(
            f"lead_time is {cycle.lead_time.dtype}, expected a duration; open the store with decode_timedelta=True"
        )
    return cycle


def _frames(frames: xr.DataArray, name: str) -> xr.DataArray:
    if frames.ndim != 3 or frames.dims[0] != "time" or not frames.sizes["time"]:
        raise ConfigError(f"{name} has axes {dict(frames.sizes)}; expected (time, y, x) with at least one time")
    return frames


def _panels(
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


def _in_units(field: xr.DataArray, table: ColourTable) -> xr.DataArray:
    """`field` in the units of the colour table."""
    if table is RAIN_RATE:
        return rain_rate(field)
    if colour_table(field) is not table:
        units = field.attrs["units"]
        raise ConfigError(f"{field.name} is in {units}, the forecast in {table.units}; expected the same")
    return field


def _thinned(field: xr.DataArray, most: tuple[int, int]) -> xr.DataArray:
    """`field` in float32 with at most so many cells; taken before units change, which never turns the order."""
    values = thin(field.values, most).astype(np.float32, copy=False)
    return xr.DataArray(values, dims=("y", "x"), name=field.name, attrs=field.attrs)


@dataclass(frozen=True)
class _Axes:
    """Edges of the map as drawn (km or degrees) and how its axes are written."""

    west: float
    east: float
    south: float
    north: float
    is_degrees: bool
    has_north_first: bool

    @classmethod
    def of(cls, field: xr.DataArray) -> "_Axes":
        y, x = (field[d] for d in field.dims[-2:])
        grid = Grid(y.values, x.values, str(y.name), str(x.name), y.attrs, x.attrs)
        scale = (1.0, 1.0) if grid.is_in_degrees else grid.km_per_unit
        values = unbroken(grid.x) if grid.is_in_degrees else grid.x * scale[1]
        if grid.is_in_degrees and values.mean() > 180:
            values = values - 360.0
        (south, north), (west, east) = _edges(grid.y * scale[0]), _edges(values)
        return cls(west, east, south, north, grid.is_in_degrees, bool(y[0] >= y[-1]))


def _edges(centres: NDArray[np.float64]) -> tuple[float, float]:
    """Least and greatest edge of the outer cells."""
    low, high = float(centres.min()), float(centres.max())
    half = (high - low) / max(len(centres) - 1, 1) / 2
    return low - half, high + half


def _shape_km(field: xr.DataArray) -> tuple[float, float]:
    """(y, x) size of the map; degrees are weighed by the cosine of the middle latitude."""
    axes = _Axes.of(field)
    shrink = np.cos(np.deg2rad((axes.south + axes.north) / 2)) if axes.is_degrees else 1.0
    return axes.north - axes.south, (axes.east - axes.west) * float(shrink)


def _panel_size(shape: tuple[float, float], columns: int) -> tuple[float, float]:
    """(height, width) of a map, inches, so that a figure is about 11.5 inches wide."""
    width = (11.5 - 1.3) / columns - 0.1
    return width * shape[0] / shape[1], width


def _draw_panel(figure: Figure, layout: Layout, panel: Panel, table: ColourTable, axes: _Axes) -> None:
    corner = layout.corner(panel.row, panel.column)
    ax = figure.add_axes(layout.box(*corner, *layout.panel), facecolor=NO_COVERAGE)
    ax.set(xlim=(axes.west, axes.east), ylim=(axes.south, axes.north))
    if panel.field is None:
        ax.text(0.5, 0.5, "not observed", transform=ax.transAxes, ha="center", va="center", color=FAINT)
    else:
        colours, norm = _colours(table)
        ax.imshow(
            _in_units(_thinned(panel.field, layout.pixels), table),
            extent=(axes.west, axes.east, axes.south, axes.north),
            origin="upper" if axes.has_north_first else "lower",
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            norm=norm,
        )
    _dress(ax, layout, panel, axes)


def _colours(table: ColourTable) -> tuple[Colormap, BoundaryNorm]:
    colours = ListedColormap(table.colours[:-1]).with_extremes(bad=NO_COVERAGE, under=NO_ECHO, over=table.colours[-1])
    return colours, BoundaryNorm(table.breaks, colours.N)


def _dress(ax: Any, layout: Layout, panel: Panel, axes: _Axes) -> None:
    """The words above a map, its coordinates at the outer edges of the figure, its frame."""
    colour = ACCENT if panel.is_forecast else INK
    above = {"transform": ax.transAxes, "va": "bottom", "fontsize": 9.5}
    ax.text(0, 1.015, panel.time, ha="left", color=INK, **above)
    ax.text(1, 1.015, panel.age, ha="right", color=colour, weight="bold", **above)
    ax.spines[:].set(color=colour, linewidth=1.0)
    ax.grid(color=INK, alpha=0.14, linewidth=0.5)
    ax.tick_params(labelsize=8, color=FAINT, labelcolor=FAINT, length=3)
    for axis, names, is_outer, ticks in (
        (ax.xaxis, "WE", panel.row == layout.rows - 1, _ticks(axes.west, axes.east, layout.panel[1], 0.25)),
        (ax.yaxis, "SN", panel.column == 0, _ticks(axes.south, axes.north, layout.panel[0], 0.0)),
    ):
        axis.set_ticks(ticks)
        axis.set_major_formatter(FuncFormatter(_degrees(names) if axes.is_degrees else _km))
        if not is_outer:
            axis.set_tick_params(length=0, labelleft=False, labelbottom=False)
    if panel.column == 0:
        word = "forecast" if panel.is_forecast else "observed"
        place = {"transform": ax.transAxes, "rotation": 90, "ha": "center", "va": "center"}
        ax.text(-0.68 / layout.panel[1], 0.5, word, color=colour, weight="bold", fontsize=10, **place)


def _ticks(low: float, high: float, inches: float, margin: float) -> list[float]:
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


def _draw_head(
    figure: Figure, layout: Layout, table: ColourTable, title: str, model: str, forecast: xr.DataArray
) -> None:
    """Product, model and time, and the colour bar beside or below them."""
    start = f"{pd.Timestamp(forecast.init_time.values):%Y-%m-%d %H:%M} UTC"
    tall, wide = layout.size
    if layout.has_strip:
        y, x, bar = 0.2, layout.left, (0.42, wide / 2, 0.2, wide / 2 - layout.right)
    else:
        y, x = layout.corner(0, layout.columns - layout.vacant)
        x, y = x + 0.45, y + max(0.0, layout.panel[0] / 2 - 0.9)
        bar = y + 1.1, x, 0.2, wide - layout.right - x
    lines = [(title, 17, "bold", INK), (f"forecast from {start}", 12, "normal", INK), (model, 11, "normal", FAINT)]
    for (words, size, weight, colour), down in zip(lines, (0, 0.34, 0.58), strict=True):
        figure.text(x / wide, 1 - (y + down) / tall, words, size=size, weight=weight, color=colour, va="top")
    _draw_bar(figure, layout.box(*bar), table)


def _draw_bar(figure: Figure, box: tuple[float, float, float, float], table: ColourTable) -> None:
    colours, norm = _colours(table)
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        cax=figure.add_axes(box),
        orientation="horizontal",
        spacing="uniform",
        extend="max",
        extendfrac=0.06,
        ticks=table.breaks,
    )
    bar.ax.set_xticklabels([f"{b:g}" for b in table.breaks])
    bar.ax.tick_params(labelsize=9, color=FAINT, labelcolor=INK, length=0)
    bar.ax.set_title(f"{table.quantity}, {table.units}", loc="left", size=10, color=INK, pad=5)
    bar.outline.set(color=FAINT, linewidth=0.6)


def _draw_foot(figure: Figure, layout: Layout, table: ColourTable, cells: tuple[int, ...], credit: str) -> None:
    """The colours that are not in the bar, what a pixel stands for, and the credit."""
    tall, wide = layout.size
    patches = [
        Patch(facecolor=NO_ECHO, edgecolor=FAINT, linewidth=0.6, label=f"below {table.breaks[0]:g} {table.units}"),
        Patch(facecolor=NO_COVERAGE, edgecolor=FAINT, linewidth=0.6, label="no coverage"),
    ]
    figure.legend(
        handles=patches,
        loc="lower left",
        bbox_to_anchor=(layout.left / wide, 0.12 / tall),
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
    )
    box = max(c / p for c, p in zip(cells, layout.pixels, strict=True))
    note = f"a pixel shows the greatest of about {box:.1f} × {box:.1f} cells" if box > 1.5 else ""
    words = "   ·   ".join(w for w in (note, credit) if w)
    figure.text(1 - layout.right / wide, 0.17 / tall, words, ha="right", size=8, color=FAINT)
