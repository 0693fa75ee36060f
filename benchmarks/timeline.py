"""The picture of a cycle: what each thread did when, and below it how busy cores, disk, GPU and host link were.

Draws with Agg into a file and leaves pyplot alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.sampler import Sample
from jobs.trace import DRIVER, Activity

COLOURS = {
    "wait": "#c9c9c6", "sweep": "#c9c9c6", "describe": "#8a8f98", "blocks": "#e6e6e2", "publish": "#5b3a8c",
    "check": "#9b7fc4", "read": "#2c9c4b", "share": "#8ccb3f", "decode": "#f6c13a", "infer": "#1f6fbf",
    "pack": "#f79a1f", "write": "#b3261e", "lane": "#b9d3ea",
}  # fmt: skip
OTHER, INK, FAINT = "#7fc7c4", "#22262b", "#7a8088"
ROW, LANE = 0.19, 0.75  # inches
INNER = ("decode", "lane", "share")  # drawn on top of the stage around them, thinner


@dataclass(frozen=True)
class Lane:
    """One curve of the lower part: its name, and how to read it from a sample."""

    name: str
    read: Callable[[Sample], float | None]
    top: float | None = None


LANES = (
    Lane("GPU %", lambda s: None if s.gpu is None else 100 * s.gpu, 100),
    Lane("host link GB/s", lambda s: None if s.link is None else s.link / 1e9),
    Lane("cores %", lambda s: 100 * s.cores, 100),
    Lane("disk MB/s", lambda s: None if s.disk is None else s.disk / 1e6),
)


def rows_of(activities: Sequence[Activity]) -> list[tuple[str, str]]:
    """(process, thread) of every row: the driver first, workers in order, threads as they came."""
    keys = dict.fromkeys((a.process, a.span.thread) for a in sorted(activities, key=lambda a: a.span.start))
    processes = sorted({process for process, _ in keys}, key=lambda name: (name != DRIVER, len(name), name))
    return [key for process in processes for key in keys if key[0] == process]


def busy_share(activities: Sequence[Activity], stage: str, start: float, end: float) -> float:
    """Share of a stretch of time in which at least one thread was in a stage.

    Raises:
        ValueError: the stretch is empty (found).
    """
    if end <= start:
        raise ValueError(f"{start} to {end} is no stretch of time; expected an end after the start")
    spans = sorted((a.span.start, a.span.end) for a in activities if a.span.stage == stage)
    total, reached = 0.0, start
    for begin, finish in spans:
        begin, finish = max(begin, reached), min(finish, end)
        total, reached = total + max(0.0, finish - begin), max(reached, finish)
    return total / (end - start)


def draw_timeline(path: Path, title: str, activities: Sequence[Activity], samples: Sequence[Sample]) -> None:
    """Draw one cycle into a PNG; lanes that were not sampled are left out.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not activities:
        raise ValueError("a timeline of no activities was asked for; expected those of a cycle")
    start, end = min(a.span.start for a in activities), max(a.span.end for a in activities)
    inside = [s for s in samples if start <= s.time <= end + 0.05]
    lanes = [lane for lane in LANES if any(lane.read(s) is not None for s in inside)]
    rows = rows_of(activities)
    figure = Figure(figsize=(11, 1.3 + ROW * len(rows) + LANE * len(lanes)), layout="constrained")
    ratios = [max(0.8, ROW * len(rows)), *(LANE for _ in lanes)]
    axes = figure.subplots(1 + len(lanes), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    _draw_rows(axes[0], rows, activities, start)
    for axis, lane in zip(axes[1:], lanes, strict=True):
        _draw_lane(axis, lane, inside, start)
    axes[0].set_title(title, loc="left", fontsize=10, color=INK, pad=18)  # above the legend
    axes[-1].set_xlabel("milliseconds", fontsize=7)
    axes[-1].set_xlim(0, (end - start) * 1e3)
    FigureCanvasAgg(figure).print_png(path)


def _draw_rows(axis: Axes, rows: Sequence[tuple[str, str]], activities: Sequence[Activity], start: float) -> None:
    places = {key: len(rows) - 1 - number for number, key in enumerate(rows)}
    shown = [a for a in activities if a.span.stage != "cycle"]
    for activity in sorted(shown, key=lambda a: (a.span.stage != "blocks", a.span.stage in INNER)):
        span, place = activity.span, places[activity.process, activity.span.thread]
        height = 0.4 if span.stage in INNER else 0.8
        bar = ((span.start - start) * 1e3, span.seconds * 1e3)
        axis.broken_barh([bar], (place - height / 2, height), color=COLOURS.get(span.stage, OTHER), linewidth=0)
    axis.set_yticks(list(places.values()), [_label(*key) for key in places], fontsize=6)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    stages = list(dict.fromkeys(a.span.stage for a in shown))
    patches = [Patch(color=COLOURS.get(stage, OTHER), label=stage) for stage in stages]
    axis.legend(
        handles=patches, ncols=len(patches), fontsize=6, frameon=False, loc="lower right", bbox_to_anchor=(1, 1)
    )
    _plain(axis)


def _label(process: str, thread: str) -> str:
    return f"{process}  {thread.replace('ThreadPoolExecutor', 'side')}"


def _draw_lane(axis: Axes, lane: Lane, samples: Sequence[Sample], start: float) -> None:
    known = [(s.time, value) for s in samples if (value := lane.read(s)) is not None]
    times, values = [0.0, *((time - start) * 1e3 for time, _ in known)], [value for _, value in known]
    values = [*values[:1], *values]  # each is of the time since the look before it; the first one's began earlier
    axis.fill_between(times, values, step="pre", color=FAINT, alpha=0.6, linewidth=0)
    axis.set_ylim(0, lane.top or max([*values, 1e-3]) * 1.1)
    axis.set_ylabel(lane.name, fontsize=7)
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.tick_params(labelsize=6, colors=INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
