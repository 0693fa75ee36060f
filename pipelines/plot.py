"""The picture of a forecast: what the radar saw, what comes next, and, when it is known, what came.

Draws with Agg into a file and leaves pyplot alone. Knows nothing of models or stores.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipelines.colours import NO_COVERAGE, NO_ECHO, ColourTable, colour_map, colour_table, in_units
from pipelines.errors import ConfigError
from pipelines.map_axes import MapAxes, choose_ticks
from pipelines.panels import DPI, Layout, Panel, choose_columns, choose_leads, panel_size, panels_of

INK, FAINT, ACCENT = "#22262b", "#7a8088", "#b3261e"

Field = NDArray[np.float32]


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
    axes = MapAxes.of(forecast)
    columns = choose_columns(min(3, past.sizes["time"]), len(chosen), axes.shape, observed is not None)
    panels = list(panels_of(past.isel(time=slice(-columns, None)), forecast, chosen, observed, columns))
    vacant = columns - sum(panel.row == 0 for panel in panels)
    layout = Layout(max(p.row for p in panels) + 1, columns, panel_size(axes.shape, columns), vacant)
    figure = Figure(figsize=layout.size[::-1], dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for panel in panels:
        _draw_panel(figure, layout, panel, table, axes)
    _draw_head(figure, layout, table, title, model, forecast)
    _draw_foot(figure, layout, table, forecast.shape[1:], credit)
    return figure


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


def _thinned(field: xr.DataArray, most: tuple[int, int]) -> xr.DataArray:
    """`field` in float32 with at most so many cells; taken before units change, which never turns the order."""
    values = thin(field.values, most).astype(np.float32, copy=False)
    return xr.DataArray(values, dims=("y", "x"), name=field.name, attrs=field.attrs)


def _draw_panel(figure: Figure, layout: Layout, panel: Panel, table: ColourTable, axes: MapAxes) -> None:
    corner = layout.corner(panel.row, panel.column)
    ax = figure.add_axes(layout.box(*corner, *layout.panel), facecolor=NO_COVERAGE)
    ax.set(xlim=(axes.west, axes.east), ylim=(axes.south, axes.north))
    if panel.field is None:
        ax.text(0.5, 0.5, "not observed", transform=ax.transAxes, ha="center", va="center", color=FAINT)
    else:
        colours, norm = colour_map(table)
        ax.imshow(
            in_units(_thinned(panel.field, layout.pixels), table),
            extent=(axes.west, axes.east, axes.south, axes.north),
            origin="upper" if axes.has_north_first else "lower",
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            norm=norm,
        )
    _dress(ax, layout, panel, axes)


def _dress(ax: Any, layout: Layout, panel: Panel, axes: MapAxes) -> None:
    """The words above a map, its coordinates at the outer edges of the figure, its frame."""
    colour = ACCENT if panel.is_forecast else INK
    above = {"transform": ax.transAxes, "va": "bottom", "fontsize": 9.5}
    ax.text(0, 1.015, panel.time, ha="left", color=INK, **above)
    ax.text(1, 1.015, panel.age, ha="right", color=colour, weight="bold", **above)
    ax.spines[:].set(color=colour, linewidth=1.0)
    ax.grid(color=INK, alpha=0.14, linewidth=0.5)
    ax.tick_params(labelsize=8, color=FAINT, labelcolor=FAINT, length=3)
    for axis, names, is_outer, ticks in (
        (ax.xaxis, "WE", panel.row == layout.rows - 1, choose_ticks(axes.west, axes.east, layout.panel[1], 0.25)),
        (ax.yaxis, "SN", panel.column == 0, choose_ticks(axes.south, axes.north, layout.panel[0], 0.0)),
    ):
        axis.set_ticks(ticks)
        axis.set_major_formatter(axes.written(names))
        if not is_outer:
            axis.set_tick_params(length=0, labelleft=False, labelbottom=False)
    if panel.column == 0:
        word = "forecast" if panel.is_forecast else "observed"
        place = {"transform": ax.transAxes, "rotation": 90, "ha": "center", "va": "center"}
        ax.text(-0.68 / layout.panel[1], 0.5, word, color=colour, weight="bold", fontsize=10, **place)


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
    colours, norm = colour_map(table)
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
