"""The pictures of a bench's page, drawn into memory: latency, throughput, the parts of a call, memory and start."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from engines.bench_report import Measurement, Report, Result, show_shape
from engines.page import to_png
from engines.spec import Shape

WIDTH, DPI = 11.0, 160
ROW = 0.62  # inches of a row
LONGEST = 40  # characters of a name
DOTS = 600  # laps of an engine that are drawn
INK, FAINT, RULE = "#22262b", "#5b626a", "#e3e5e8"
REFERENCE = "#7a8594"
COLOURS = ("#0f766e", "#c2571a", "#6d4aa3", "#2563a8", "#8a6d0b", "#a32c5a")
SHADES = (1.0, 0.6, 0.3)  # of the parts of a bar
PARTS = {
    "H2D latency": "#2563a8",
    "GPU compute time": "#0f766e",
    "D2H latency": "#6d4aa3",
    "rest of the call": "#c9cdd2",
}


def colour_of(report: Report, result: Result) -> str:
    """The reference is grey; the others have colours in their order."""
    index = report.results.index(result)
    return COLOURS[(index - 1) % len(COLOURS)] if index else REFERENCE


def show_number(value: float) -> str:
    """Three digits, thousands set apart.

    >>> show_number(0.5514), show_number(14512.3), show_number(2)
    ('0.551', '14,512', '2.00')
    """
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def show_seconds(seconds: float) -> str:
    """A duration in a unit that suits it.

    >>> show_seconds(0.000551), show_seconds(2.1), show_seconds(0.00002)
    ('0.551 ms', '2.10 s', '20.0 µs')
    """
    unit, scale = next((unit, scale) for unit, scale, least in _DURATIONS if seconds >= least)
    return f"{show_number(seconds / scale)} {unit}"


def show_bytes(size: float) -> str:
    """A size in a unit that suits it, of thousands.

    >>> show_bytes(120_581), show_bytes(3 * 10**9)
    ('121 kB', '3.00 GB')
    """
    unit, scale = next((unit, scale) for unit, scale in _SIZES if size >= scale or scale == 1)
    return f"{show_number(size / scale)} {unit}"


def _tick(seconds: float, _: int) -> str:
    unit, scale = next((unit, scale) for unit, scale, least in _DURATIONS if seconds >= least)
    return f"{seconds / scale:.4g} {unit}" if seconds else "0"


_DURATIONS = (("s", 1.0, 1.0), ("ms", 1e-3, 1e-4), ("µs", 1e-6, 0.0))
_SIZES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1))


def draw_latency(report: Report, shape: Shape) -> bytes:
    """Every lap of every engine at a shape as a dot, with p50, p90 and p99; the axis is logarithmic."""
    found = [(result, laps) for result in report.results if (one := result.at(shape)) and (laps := one.laps)]
    figure, axes = _rows(len(found), 0.95)
    for row, (result, laps) in enumerate(found):
        colour, some = colour_of(report, result), _thin(laps.seconds)
        jitter = np.random.default_rng(row).uniform(-0.24, 0.24, len(some))
        axes.scatter(some, row + jitter, s=9, color=colour, alpha=0.28, linewidths=0)
        axes.plot([laps.p50, laps.p99], [row, row], color=INK, linewidth=1.2)
        axes.plot([laps.p90, laps.p99], [row, row], "|", color=INK, markersize=13, markeredgewidth=1.4)
        axes.plot(laps.p50, row, "o", color="white", markeredgecolor=INK, markeredgewidth=1.6, markersize=8)
    _log_time(axes, [second for _, laps in found for second in laps.seconds])
    names = [
        f"{show_name(result.name)}\np50 {show_seconds(laps.p50)}, p99 {show_seconds(laps.p99)}"
        for result, laps in found
    ]
    _name_rows(axes, names)
    axes.set_xlabel(f"duration of one call, batch {show_shape(shape)}")
    return to_png(figure)


def draw_throughput(report: Report) -> bytes:
    """Tiles a second over the batch size, a panel for each size of tile: single calls, and batches in a row."""
    sizes = list(dict.fromkeys(shape[1:] for shape in report.shapes))
    figure = Figure(figsize=(WIDTH, 3.9), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        for result in report.results:
            found = sorted((one for one in result.measurements if one.shape[1:] == size and one.laps), key=_batch_of)
            if found:
                _draw_lines(panel, found, show_name(result.name), colour_of(report, result))
        _dress(panel, "y")
        panel.set_xscale("log", base=2)
        batches = sorted({shape[0] for shape in report.shapes if shape[1:] == size})
        panel.set_xticks(batches, [str(n) for n in batches])
        panel.minorticks_off()
        panel.set_xlim(batches[0] / 1.25, batches[-1] * 1.25)
        panel.set_ylim(0, None)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.set_xlabel(f"tiles in a batch (tiles of {show_shape(size)})")
    panels[0].set_ylabel("tiles a second")
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    figure.legend(list(lines.values()), list(lines), loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return to_png(figure)


def draw_split(report: Report, shape: Shape) -> bytes | None:
    """The parts of a call, one after the other, of the engines that can tell them; None if none can."""
    found = [(result, one) for result in report.results if (one := result.at(shape)) and one.split]
    if not found:
        return None
    figure, axes = _rows(len(found), 1.25)
    longest = max(sum(_parts(one)) for _, one in found)
    for row, (_, one) in enumerate(found):
        left = 0.0
        for seconds, colour in zip(_parts(one), PARTS.values(), strict=True):
            axes.barh(row, seconds, 0.55, left, color=colour, edgecolor="white", linewidth=1)
            if seconds > 0.07 * longest:
                dark = INK if colour == PARTS["rest of the call"] else "white"
                middle = left + seconds / 2
                axes.text(middle, row, show_seconds(seconds), ha="center", va="center", color=dark, fontsize=8.5)
            left += seconds
        axes.text(left + 0.01 * longest, row, show_seconds(left), va="center", color=INK, fontsize=9, weight="bold")
    axes.set_xlim(0, longest * 1.12)
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    _name_rows(axes, [show_name(result.name) for result, _ in found])
    axes.set_xlabel(f"time of one call, batch {show_shape(shape)}")
    handles = [axes.barh(0, 0, color=colour) for colour in PARTS.values()]
    figure.legend(handles, PARTS, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return to_png(figure)


def draw_needs(report: Report) -> bytes | None:
    """What engines need before the first forecast: time to start, files, memory; None if nothing is known."""
    panels = [(title, parts) for title, parts in _needs(report) if any(sum(row.values()) for row in parts)]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, 1.5 + 0.5 * len(report.results)), dpi=DPI, layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (title, rows) in zip(grid, panels, strict=True):
        show = show_seconds if title == "start" else show_bytes
        longest = max(sum(row.values()) for row in rows)
        for index, row in enumerate(rows):
            _draw_stack(panel, index, row, colour_of(report, report.results[index]))
            text = show(sum(row.values())) if row else "–"
            panel.text(sum(row.values()) + 0.02 * longest, index, text, va="center", fontsize=8.5, color=INK)
        _dress(panel, "x")
        panel.set_xlim(0, longest * 1.45)
        panel.set_xticks([])
        panel.spines["bottom"].set_visible(False)
        panel.set_title(title, fontsize=9.5, color=INK, loc="left")
        _explain(panel, rows)
    _name_rows(grid[0], [show_name(result.name) for result in report.results])
    for panel in grid:
        panel.tick_params(axis="y", length=0)
    return to_png(figure)


def _needs(report: Report) -> list[tuple[str, list[dict[str, float]]]]:
    """Of each panel its title, and for each result the parts of its bar."""
    memory = [result.memory for result in report.results]
    start = [{"load": one.load_seconds, "first inference": one.first_seconds} for one in report.results]
    device = []
    for one in memory:
        known = (one.activation_bytes or 0) + (one.buffer_bytes or 0)
        rest = None if one.device_bytes is None else max(0, one.device_bytes - known)
        device.append({"activation": one.activation_bytes, "inputs and outputs": one.buffer_bytes, "the rest": rest})
    panels: list[tuple[str, Sequence[Mapping[str, float | None]]]] = [
        ("start", start),
        ("engine file", [{"": one.engine_bytes} for one in memory]),
        ("weights", [{"": one.weights_bytes} for one in memory]),
        ("GPU memory", device),
        ("host memory", [{"": one.host_bytes} for one in memory]),
    ]
    return [(title, [{name: float(v) for name, v in row.items() if v} for row in rows]) for title, rows in panels]


def _explain(panel: Any, rows: Sequence[dict[str, float]]) -> None:
    """Names of the parts of bars, if there are several, under a panel."""
    names = max(rows, key=len)
    if len(names) > 1:
        keys = [Patch(color=REFERENCE, alpha=alpha, linewidth=0) for _, alpha in zip(names, SHADES, strict=False)]
        place = {"loc": "upper left", "bbox_to_anchor": (-0.03, 0.0), "borderaxespad": 0.2, "handlelength": 1.0}
        panel.legend(keys, names, **place, frameon=False, fontsize=8, labelcolor=FAINT)


def _draw_stack(panel: Any, index: int, row: dict[str, float], colour: str) -> None:
    left = 0.0
    for (_, value), alpha in zip(row.items(), SHADES, strict=False):
        panel.barh(index, value, 0.5, left, color=colour, alpha=alpha, linewidth=0)
        left += value


def _parts(one: Measurement) -> tuple[float, float, float, float]:
    """Seconds of each of `PARTS`; the rest is what the whole call takes beyond them, mostly staging."""
    if one.split is None or one.laps is None:
        return 0.0, 0.0, 0.0, 0.0
    split = one.split
    rest = max(0.0, one.laps.p50 - split.latency_seconds)
    return split.h2d_seconds, split.compute_seconds, split.d2h_seconds, rest


def show_name(name: str) -> str:
    """A name as matplotlib draws it: no formula, never hidden, the middle left out of a long one.

    >>> show_name("_a $x"), len(show_name("long " * 20))
    (' _a \\\\$x', 40)
    """
    line = " ".join(name.split())
    short = line if len(line) <= LONGEST else f"{line[: LONGEST // 2]}…{line[1 - LONGEST // 2 :]}"
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")


def _batch_of(one: Measurement) -> int:
    return one.shape[0]


def _draw_lines(panel: Any, found: Sequence[Measurement], name: str, colour: str) -> None:
    batches = [_batch_of(one) for one in found]
    panel.plot(batches, [one.tiles_per_second for one in found], "o-", color=colour, label=name, linewidth=2)
    rows = [(one.shape[0], one.tiles_per_second_in_a_row) for one in found if one.rows]
    if rows:
        style = {"linewidth": 1.5, "markerfacecolor": "white", "label": f"{name}, batches in a row"}
        panel.plot(*zip(*rows, strict=True), "o--", color=colour, **style)


def _rows(count: int, more: float) -> tuple[Figure, Any]:
    """A figure with a row for each of `count` things, the first on top."""
    figure = Figure(figsize=(WIDTH, more + ROW * 1.25 * max(1, count)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _dress(axes, "x")
    return figure, axes


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9.5, color=INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _dress(axes: Any, along: str) -> None:
    """Only what helps to read: faint rules along one axis, no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(axis=along, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9)
    axes.xaxis.label.set(color=FAINT, size=9.5)
    axes.yaxis.label.set(color=FAINT, size=9.5)


def _log_time(axes: Any, seconds: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = min(seconds), max(seconds)
    room = max(high / low, 2.0) ** 0.12
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _thin(seconds: Sequence[float]) -> Sequence[float]:
    """Some of the laps, spread evenly over time, the slowest and the fastest among them."""
    step = -(-len(seconds) // DOTS)
    return [*seconds[::step], min(seconds), max(seconds)]
