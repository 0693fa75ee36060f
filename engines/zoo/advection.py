"""Lagrangian extrapolation of rain as one ONNX graph: motion from the last fields, then advection to every lead time.

Motion is a coarse-to-fine Lucas-Kanade: at each scale the newest field and the older ones, shifted by the motion known
so far, give one 2 x 2 least-squares system per cell over a window of finite support, held to the coarser motion where
there is no echo to say otherwise. Constants are kilometres and minutes, so one recipe fits every grid.

A cell has the same bits whatever the size of the tensor around it, by construction. Every operator either moves values
or makes a cell of values at its own place, rounded once. Sums over neighbours are sums of shifted fields: pooling and
convolution add in an order of their own, which may change with the width. What moves data by amounts known at run time
moves whole cells (GridSample, nearest). Resize alone computes between cells, and its input is rounded so that it is
exact in any order. `docs/decisions/006-advection.md` has the numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx

from engines.zoo.graph import Graph

FINEST_KM = 2.0  # scale of the finest motion estimate; the pyramid doubles it
LEVELS = 4
MOTION_LEVEL = 2  # trajectories run on the motion averaged to this level: 8 km
WINDOW_SCALES = 5  # half-width of the least-squares window, in scales of its level
WET_MM_H = 0.1  # weaker echo is clear air and clutter: no motion is taken from it
STIFFNESS = 1e-3  # weight of the coarser motion in the least squares, per km2 of (fourth root of mm h-1)2 min2
FILL_BEYOND_KM = 48.0  # the coarsest window itself carries motion this far from an echo
LOOSE = 0.3  # part of the stiffness for motion that fills its surroundings: held tighter, small storms are slowed
TINY_CERTAINTY = 1e-5  # below it there is nothing to fill from, and motion is rest
UNSEEN = 1e-3  # weight of cells at the edge of coverage, against 1 within, in the mean of aligned fields
SIDE = 1 / 8  # blur of the sampled field, per side: what bilinear sampling does on average, to the nearest eighth
SIGNIFICAND = 24  # bits of a float32
MISSING = -1.0
MISSING_BELOW = -0.5


@dataclass(frozen=True)
class Level:
    """One scale of the pyramid: `cells` of the grid a level cell, `window` half-width in level cells; both (x, y)."""

    cells: int
    spacing_km: tuple[float, float]
    window: tuple[int, int]


@dataclass(frozen=True)
class AdvectionSpec:
    """What an advection graph is written for.

    Args:
        spacing_km: (y, x) size of a grid cell.
        history_minutes: input fields relative to the reference time, evenly spaced, oldest first, the last one 0.
        lead_minutes: lead times, rising.
        max_speed_km_h: motion is limited to this along each axis; it bounds the receptive radius.

    Raises:
        ValueError: a spacing, history, lead time or speed that makes no sense (found, expected).
    """

    spacing_km: tuple[float, float]
    history_minutes: tuple[float, ...] = (-10, -5, 0)
    lead_minutes: tuple[float, ...] = tuple(range(5, 95, 5))
    max_speed_km_h: float = 120.0

    def __post_init__(self) -> None:
        gaps = {b - a for a, b in zip(self.history_minutes, self.history_minutes[1:], strict=False)}
        if min(self.spacing_km) <= 0 or max(self.spacing_km) > 2 * min(self.spacing_km):
            raise ValueError(f"spacing_km is {self.spacing_km}; two positive sizes within a factor of 2 are expected")
        if len(gaps) != 1 or min(gaps) <= 0 or self.history_minutes[-1] != 0:
            raise ValueError(f"history_minutes is {self.history_minutes}; even steps up to 0 are expected")
        if not self.lead_minutes or list(self.lead_minutes) != sorted({t for t in self.lead_minutes if t > 0}):
            raise ValueError(f"lead_minutes is {self.lead_minutes}; rising minutes above 0 are expected")
        if self.max_speed_km_h <= 0:
            raise ValueError(f"max_speed_km_h is {self.max_speed_km_h}; more than 0 is expected")

    @property
    def levels(self) -> tuple[Level, ...]:
        """Scales of the motion estimate, finest first."""
        mean_km = math.sqrt(self.spacing_km[0] * self.spacing_km[1])
        finest = 2 ** max(0, round(math.log2(FINEST_KM / mean_km)))
        return tuple(self._level(finest * 2**k) for k in range(LEVELS))

    @property
    def stride(self) -> int:
        """Tile starts and sizes are multiples of this many cells."""
        return self.levels[-1].cells

    @property
    def radius(self) -> int:
        """Cells that reach a result, at most, along the worse axis."""
        return max(self._radius(axis) for axis in (0, 1))

    @property
    def fill(self) -> tuple[int, int]:
        """Half-width of the filling kernel in coarsest cells, (x, y)."""
        width_km = max(0.0, self.max_speed_km_h / 60 * self.lead_minutes[-1] - FILL_BEYOND_KM)
        x, y = (math.ceil(width_km / size) for size in self.levels[-1].spacing_km)
        return x, y

    def reach(self, axis: int, minutes: float) -> int:
        """Cells of the grid that rain crosses at most; axis 0 is x."""
        return math.ceil(self.max_speed_km_h / 60 * minutes / self.spacing_km[1 - axis])

    def _level(self, cells: int) -> Level:
        spacing = (self.spacing_km[1] * cells, self.spacing_km[0] * cells)
        mean_km = math.sqrt(spacing[0] * spacing[1])
        window = (round(WINDOW_SCALES * mean_km / spacing[0]), round(WINDOW_SCALES * mean_km / spacing[1]))
        return Level(cells, spacing, window)

    def _radius(self, axis: int) -> int:
        motion = 0
        for level in reversed(self.levels):
            warp = self.reach(axis, -self.history_minutes[0]) + level.cells if motion else 0
            fields = warp + 3 * level.cells  # average, blur or erosion, slope
            motion = level.window[axis] * level.cells + max(fields, motion + level.cells)
        motion_cells = self.levels[MOTION_LEVEL].cells
        motion += self.fill[axis] * self.stride
        return motion + 3 * motion_cells + self.reach(axis, self.lead_minutes[-1])


def write_graph(spec: AdvectionSpec) -> onnx.ModelProto:
    """The graph: `frames` (n, frame, h, w) to `rain_rate` (n, lead, h, w), mm h-1, missing -1.

    h and w are multiples of the stride.
    A cell whose forecast would come from outside the newest field, or from a missing cell of it, is missing.

    Source: Lucas and Kanade (1981); Knutsson and Westin (1993) for filling by normalized convolution;
    Germann and Zawadzki (2002) for semi-Lagrangian extrapolation of rain.
    """
    graph = Graph("advection")
    velocity = add_motion(graph, spec)
    leads = _advect(graph, spec, velocity)
    graph.concat(leads)
    return graph.model(len(spec.history_minutes), len(spec.lead_minutes), "rain_rate")


@dataclass(frozen=True)
class Lattice:
    """The cells of one tensor size as GridSample counts them: `base` (1, 2, h, w) and `step` (1, 2, 1, 1), x first."""

    base: str
    step: str


def _lattice(graph: Graph, like: str, border: int = 0) -> Lattice:
    """Positions in `like`, a value with `border` made-up cells on every side."""
    axes = [_axis(graph, like, axis, shape, border) for axis, shape in ((3, (1, 1, 1, -1)), (2, (1, 1, -1, 1)))]
    (x, x_step), (y, y_step) = axes
    planes = [graph.add(x, graph.scale(y, 0.0)), graph.add(graph.scale(x, 0.0), y)]
    return Lattice(graph.concat(planes), graph.concat([x_step, y_step]))


def _axis(graph: Graph, like: str, axis: int, shape: tuple[int, ...], border: int) -> tuple[str, str]:
    size = graph.size(like, axis)
    index = graph.op("Range", graph.integers(0), size, graph.integers(1))
    position = graph.op("Reshape", graph.op("Cast", index, to=onnx.TensorProto.FLOAT), graph.integers(shape))
    length = graph.op("Cast", size, to=onnx.TensorProto.FLOAT)
    length = graph.op("Reshape", length, graph.integers((1, 1, 1, 1)))
    centre = graph.scale(graph.sub(length, graph.floats(1.0)), 0.5)
    step = graph.div(graph.floats(2.0), graph.add(length, graph.floats(2.0 * border)))
    return graph.mul(graph.sub(position, centre), step), step


def _shift(graph: Graph, value: str, cells: str, lattice: Lattice, padding: str) -> str:
    """`value` moved by whole `cells` (n, 2, h, w): the result at p is the value at p - cells."""
    positions = graph.sub(lattice.base, graph.mul(cells, lattice.step))
    grid = graph.op("Transpose", positions, perm=(0, 2, 3, 1))
    return graph.op("GridSample", value, grid, mode="nearest", padding_mode=padding, align_corners=0)


def _average(graph: Graph, value: str, cells: int) -> str:
    """The mean of `cells` x `cells` cells, a power of two."""
    while cells > 1:
        for axis in (2, 3):
            value = graph.add(graph.part(value, axis, 0, step=2), graph.part(value, axis, 1, step=2))
        value, cells = graph.scale(value, 1 / 4), cells // 2
    return value


def _enlarge(graph: Graph, value: str, factor: int, limit: float) -> str:
    """`value`, at most `limit`, between cells; rounded first, just so that sums, differences and products are exact."""
    quantum = 2.0 ** math.ceil(math.log2(2 * limit * (2 * factor) ** 2) - SIGNIFICAND)
    rounded = graph.scale(graph.op("Round", graph.scale(value, 1 / quantum)), quantum)
    return graph.op("Resize", rounded, "", graph.floats((1, 1, factor, factor)), mode="linear")


def _separable(graph: Graph, value: str, along_x: np.ndarray, along_y: np.ndarray) -> str:
    """`value` convolved with both kernels; zero outside."""
    return _convolve(graph, _convolve(graph, value, along_y, 2), along_x, 3)


def _convolve(graph: Graph, value: str, kernel: np.ndarray, axis: int) -> str:
    """`value` convolved along an axis with a symmetric kernel of odd length; zero outside."""
    half, total = len(kernel) // 2, graph.scale(value, kernel[len(kernel) // 2])
    for cells in range(1, half + 1):
        before, after = _neighbours(graph, value, cells, axis)
        total = graph.add(total, graph.scale(graph.add(before, after), kernel[half + cells]))
    return total


def _neighbours(graph: Graph, value: str, cells: int, axis: int) -> tuple[str, str]:
    """The values that many cells before and after each cell; zero outside."""
    padded = graph.pad(value, (cells, 0) if axis == 2 else (0, cells), 0.0)
    return graph.part(padded, axis, 0, -2 * cells), graph.part(padded, axis, 2 * cells)


def add_motion(graph: Graph, spec: AdvectionSpec) -> str:
    """Motion of `frames`: (n, 2, h, w) of the finest level, km min-1, x first."""
    pyramid = _pyramid(graph, spec)
    velocity = None
    for level, (fields, observed) in zip(reversed(spec.levels), reversed(pyramid), strict=True):
        finer = None if velocity is None else _enlarge(graph, velocity, 2, spec.max_speed_km_h / 60)
        velocity = _refine(graph, spec, level, fields, observed, finer)
    assert velocity is not None
    return velocity


def _pyramid(graph: Graph, spec: AdvectionSpec) -> list[tuple[str, str]]:
    """Tracked fields and their observed cells (1 or 0) at every level, finest first; (n, frame, h, w) each."""
    fields, observed = _tracked(graph, "frames"), _observed(graph, "frames")
    pyramid, cells = [], 1
    for level in spec.levels:
        fields, observed = (_average(graph, value, level.cells // cells) for value in (fields, observed))
        cells = level.cells
        pyramid.append((_blur(graph, fields), _interior(graph, observed)))
    return pyramid


def _tracked(graph: Graph, rain: str) -> str:
    """Fourth root of the rain rate above the wet threshold: as even as decibels, and exact to the last bit."""
    root = graph.op("Sqrt", graph.op("Sqrt", graph.op("Relu", rain)))
    return graph.op("Relu", graph.sub(root, graph.floats(WET_MM_H**0.25)))


def _observed(graph: Graph, rain: str) -> str:
    return graph.op("Cast", graph.op("Greater", rain, graph.floats(MISSING_BELOW)), to=onnx.TensorProto.FLOAT)


def _interior(graph: Graph, observed: str) -> str:
    """1 where a level cell and its eight neighbours are observed: the edge of coverage stands still, rain does not."""
    seen = _separable(graph, observed, np.ones(3), np.ones(3))
    return graph.op("Cast", graph.op("Greater", seen, graph.floats(9 * 0.99)), to=onnx.TensorProto.FLOAT)


def _blur(graph: Graph, value: str) -> str:
    kernel = np.array([1, 2, 1]) / 4
    return _separable(graph, value, kernel, kernel)


@dataclass(frozen=True)
class Earlier:
    """An earlier field moved to where its rain is at the reference time, as far as motion is known."""

    minutes: float
    field: str
    seen: str
    moved_km: str | None


def _refine(graph: Graph, spec: AdvectionSpec, level: Level, fields: str, observed: str, velocity: str | None) -> str:
    """Velocity (n, 2, h, w), km min-1, after one least-squares step at a level; from the coarser one, if any."""
    newest = len(spec.history_minutes) - 1
    now, seen = (graph.channels(value, newest, newest + 1) for value in (fields, observed))
    earlier = _align(graph, spec, level, fields, observed, velocity)
    slope = _slope(graph, level, [(now, seen), *((one.field, one.seen) for one in earlier)])
    weight, pull = "", ""
    for one in earlier:
        both = graph.mul(seen, one.seen)
        change = graph.sub(one.field, now)
        if one.moved_km is not None:
            change = graph.add(change, _dot(graph, slope, one.moved_km))
        weight = _sum(graph, weight, graph.scale(both, one.minutes**2))
        pull = _sum(graph, pull, graph.mul(graph.scale(both, one.minutes), change))
    return _solve(graph, spec, level, slope, weight, pull, velocity)


def _align(
    graph: Graph, spec: AdvectionSpec, level: Level, fields: str, observed: str, velocity: str | None
) -> list[Earlier]:
    lattice, aligned = _lattice(graph, fields), []
    for frame, minutes in enumerate(-np.array(spec.history_minutes[:-1], float)):
        then, moved_km = graph.concat([graph.channels(value, frame, frame + 1) for value in (fields, observed)]), None
        if velocity is not None:
            cells = graph.op("Round", graph.mul(velocity, _per_axis(graph, minutes / np.array(level.spacing_km))))
            then = _shift(graph, then, cells, lattice, "zeros")
            moved_km = graph.mul(cells, _per_axis(graph, level.spacing_km))
        field, seen = graph.channels(then, 0, 1), graph.channels(then, 1, 2)
        aligned.append(Earlier(float(minutes), field, seen, moved_km))
    return aligned


def _sum(graph: Graph, total: str, value: str) -> str:
    return graph.add(total, value) if total else value


def _per_axis(graph: Graph, values: object) -> str:
    return graph.floats(np.asarray(values).reshape(1, 2, 1, 1))


def _dot(graph: Graph, left: str, right: str) -> str:
    products = graph.mul(left, right)
    return graph.add(graph.channels(products, 0, 1), graph.channels(products, 1, 2))


def _slope(graph: Graph, level: Level, fields: list[tuple[str, str]]) -> str:
    """Slope (n, 2, h, w), per km, of the mean of the aligned fields where they are seen.

    Taking the newest alone makes motion too slow; counting unseen cells as dry makes it too fast.
    """
    total, count = "", ""
    for field, seen in fields:
        share = graph.add(seen, graph.floats(UNSEEN))
        total, count = _sum(graph, total, graph.mul(field, share)), _sum(graph, count, share)
    mean, slopes = graph.div(total, count), []
    for axis, spacing_km in ((3, level.spacing_km[0]), (2, level.spacing_km[1])):
        before, after = _neighbours(graph, mean, 1, axis)
        slopes.append(graph.scale(graph.sub(after, before), 0.5 / spacing_km))
    return graph.concat(slopes)


def _solve(
    graph: Graph, spec: AdvectionSpec, level: Level, slope: str, weight: str, pull: str, velocity: str | None
) -> str:
    """Least squares over the window of `level`, held to `velocity` by the stiffness; at the coarsest level to rest,
    then again to what the surroundings say."""
    x, y = graph.channels(slope, 0, 1), graph.channels(slope, 1, 2)
    weighted = graph.mul(slope, weight)
    terms = [graph.mul(weighted, x), graph.mul(graph.channels(weighted, 1, 2), y), graph.mul(slope, pull)]
    sums = _separable(graph, graph.concat(terms), *(_bell(half) for half in level.window))
    xx, xy, yy = (graph.channels(sums, k, k + 1) for k in range(3))
    system = System(graph, spec, xx, xy, yy, graph.channels(sums, 3, 5), STIFFNESS)
    if velocity is not None:
        return system.solve(velocity)
    return system.solve(_fill(graph, spec, system))


class System:
    """The 2 x 2 systems of all cells: symmetric matrix, right-hand side `pull` (n, 2, h, w), stiffness to a prior."""

    def __init__(self, graph: Graph, spec: AdvectionSpec, xx: str, xy: str, yy: str, pull: str, stiffness: float):
        self.graph, self.limit, self.stiffness = graph, spec.max_speed_km_h / 60, stiffness
        self.xx, self.xy, self.yy, self.pull = xx, xy, yy, pull
        self.stiff_xx, self.stiff_yy = (graph.add(value, graph.floats(stiffness)) for value in (xx, yy))
        self.cross = graph.mul(xy, xy)
        self.determinant = graph.sub(graph.mul(self.stiff_xx, self.stiff_yy), self.cross)

    def solve(self, prior: str | None) -> str:
        """Velocity (n, 2, h, w), km min-1, held to `prior`, or to rest; limited in speed."""
        graph, right = self.graph, self.pull
        if prior is not None:
            right = graph.add(right, graph.scale(prior, self.stiffness))
        px, py = graph.channels(right, 0, 1), graph.channels(right, 1, 2)
        along_x = graph.sub(graph.mul(self.stiff_yy, px), graph.mul(self.xy, py))
        along_y = graph.sub(graph.mul(self.stiff_xx, py), graph.mul(self.xy, px))
        solved = graph.div(graph.concat([along_x, along_y]), self.determinant)
        return graph.op("Clip", solved, graph.floats(-self.limit), graph.floats(self.limit))

    def certainty(self) -> str:
        """How far the echoes alone decide the velocity, 0 to 1; low already if one direction is not seen."""
        bare = self.graph.sub(self.graph.mul(self.xx, self.yy), self.cross)
        return self.graph.op("Relu", self.graph.div(bare, self.determinant))


def _fill(graph: Graph, spec: AdvectionSpec, system: System) -> str:
    """Normalized convolution of the coarsest motion, as wide as rain can travel into empty surroundings."""
    loose = System(graph, spec, system.xx, system.xy, system.yy, system.pull, LOOSE * STIFFNESS)
    certainty = system.certainty()
    known = graph.concat([graph.mul(loose.solve(None), certainty), certainty])
    spread = _separable(graph, known, *(_bell(half) for half in spec.fill))
    amount = graph.add(graph.channels(spread, 2, 3), graph.floats(TINY_CERTAINTY))
    return graph.div(graph.channels(spread, 0, 2), amount)


def _bell(half: int) -> np.ndarray:
    """A smooth kernel of finite support, sum 1."""
    kernel = np.square(1 - np.square(np.arange(-half, half + 1) / (half + 1)))
    return np.asarray(kernel / kernel.sum())


def _advect(graph: Graph, spec: AdvectionSpec, velocity: str) -> list[str]:
    """The newest field at every lead time, (n, 1, h, w) each; backward trajectories in steps from lead to lead."""
    level = spec.levels[MOTION_LEVEL]
    speed = _average(graph, velocity, level.cells // spec.levels[0].cells)
    speed = graph.mul(speed, _per_axis(graph, 1 / np.array(spec.spacing_km[::-1])))  # cells min-1
    coarse, source = _lattice(graph, speed), _sampled(graph, spec)
    fine = _lattice(graph, "frames", border=1)
    leads, path, here, before = [], "", speed, 0.0
    for minutes in spec.lead_minutes:
        step = minutes - before
        halfway = _sum(graph, path, graph.scale(here, step / 2))
        cells = graph.op("Round", graph.scale(halfway, 1 / level.cells))
        here = _shift(graph, speed, cells, coarse, "border")
        path, before = _sum(graph, path, graph.scale(here, step)), minutes
        cells = graph.op("Round", _enlarge(graph, path, level.cells, max(spec.reach(axis, minutes) for axis in (0, 1))))
        leads.append(_shift(graph, source, cells, fine, "border"))
    return leads


def _sampled(graph: Graph, spec: AdvectionSpec) -> str:
    """The newest field, slightly blurred within coverage, inside a border of one missing cell."""
    newest = graph.channels("frames", len(spec.history_minutes) - 1, len(spec.history_minutes))
    observed, kernel = _observed(graph, newest), np.array([SIDE, 1 - 2 * SIDE, SIDE])
    total = _separable(graph, graph.op("Relu", newest), kernel, kernel)
    share = graph.op("Max", _separable(graph, observed, kernel, kernel), graph.floats(SIDE**2))
    known = graph.op("Greater", newest, graph.floats(MISSING_BELOW))
    field = graph.op("Where", known, graph.div(total, share), graph.floats(MISSING))
    return graph.pad(field, (1, 1), MISSING)
