"""Go or no-go: a candidate engine against the float32 reference, case by case, judged by the contract's limits.

Each case is measured alone, in physical units, and put in proportion to the spread of its whole group, so that neither
many good cases hide a bad one nor a nearly dry one decides. Knows arrays and limits, but no grid and no store.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scores.categorical import BasicContingencyManager
from scores.spatial import fss_2d_single_field

from engines.base import InferenceError
from engines.cases import GROUPS, Case, CaseError, Group
from engines.model import GateLimits

Tensor = NDArray[np.float32]
Field = NDArray[np.float64]
Infer = Callable[[Tensor], Tensor]

PER_THRESHOLD = ("csi_loss", "fss_loss")
MEASURES = (
    "max_error",
    "rmse_over_std",
    "bias",
    "maximum_bias",
    "nan_cells",
    "moved_missing",
    "moved_codes",
    "seam",
    *PER_THRESHOLD,
)


@dataclass(frozen=True)
class Rules:
    """How outputs are read and compared.

    Args:
        to_physical: values in model space (h, w), float32, to physical ones of the same shape; NaN stays NaN. May
            change what it is given.
        scale, offset: of the packing: value = code * scale + offset.
        thresholds: an event is a value at or above one of them, physical units.
        window: cells a side of the neighbourhood of the fractions skill score.
        missing_below: model space; cells below it are missing, as NaN is. None: the model never says so.
        radius, stride: of the tiles by which the seam is measured, cells; without a radius it is not.
        least_events: a threshold that fewer cells of a group reach, in both outputs together, is not judged: a single
            cell that rounds across it would decide.
        tile: (y, x) of the largest tile that the model will run on, if known. In each group one case must be as large:
            what rounds coordinates in half, for one, shows on wide tiles only (`engines.cases.widen`).

    Raises:
        CaseError: a scale, window, stride, radius or thresholds that make no sense (found, expected).
    """

    to_physical: Callable[[Tensor], Tensor]
    scale: float
    offset: float = 0.0
    thresholds: tuple[float, ...] = (0.1, 1.0, 5.0)
    window: int = 9
    missing_below: float | None = None
    radius: int | None = None
    stride: int = 1
    least_events: int = 200
    tile: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if not (self.scale > 0 and self.window >= 1 and self.stride >= 1 and (self.radius or 0) >= 0):
            raise CaseError(
                f"scale {self.scale}, window {self.window}, stride {self.stride}, radius {self.radius}; "
                "expected a scale above 0, at least 1 cell, and no negative radius"
            )
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise CaseError(f"thresholds are {self.thresholds}; rising values are expected")


@dataclass(frozen=True)
class Reading:
    """What one measure found at one lead time in one group.

    Attributes:
        found: the value of the worst case; signed for biases. Units: of the output for `max_error`, cells for
            `nan_cells`, otherwise unitless.
        case: the worst case; where a measure pools the group, the one that has most of it. Empty if all is well.
        threshold: of CSI and FSS; None for other measures.
    """

    measure: str
    lead_time: timedelta
    group: Group
    found: float
    case: str = ""
    threshold: float | None = None

    def is_within(self, limits: GateLimits) -> bool:
        """True if the limit holds; what is not a number never holds."""
        return abs(self.found) <= self.limit(limits)

    def limit(self, limits: GateLimits) -> float:
        return float(getattr(getattr(limits, self.measure), self.group))

    def excess(self, limits: GateLimits) -> float:
        """How many times the limit was found; more than any number where the limit is 0 or nothing could be found."""
        found, limit = abs(self.found), self.limit(limits)
        if np.isnan(found) or (found > 0 and limit == 0):
            return float("inf")
        return found / limit if found else 0.0


@dataclass(frozen=True)
class Verdict:
    """Go, or no-go with the readings that exceed their limits."""

    readings: tuple[Reading, ...]
    limits: GateLimits

    @property
    def is_go(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Reading, ...]:
        return tuple(reading for reading in self.readings if not reading.is_within(self.limits))

    @property
    def worst(self) -> Reading:
        """The reading nearest to its limit or farthest beyond; of several the largest, of equal ones the first."""
        return max(self.readings, key=lambda reading: (reading.excess(self.limits), abs(reading.found)))


def run_gate(
    reference: Infer,
    candidate: Infer,
    cases: Sequence[Case],
    lead_times: Sequence[timedelta],
    rules: Rules,
    limits: GateLimits | None = None,
) -> Verdict:
    """The verdict on a candidate; the same engines and cases give the same one.

    Args:
        reference, candidate: an `Engine`, or any function of a batch (n, channel, h, w) that gives (n, lead, h, w).
        lead_times: of the output's channels.
        limits: of the contract (`contract.gate`); the defaults if None.

    Raises:
        CaseError: a group has no case or none as large as the tile, two cases share a name, or neither engine gives a
            value for any of them.
        InferenceError: an engine fails, or an output has another shape than the case and lead times ask for.
    """
    return Verdict(measure(reference, candidate, cases, lead_times, rules), limits or GateLimits())


def measure(
    reference: Infer, candidate: Infer, cases: Sequence[Case], lead_times: Sequence[timedelta], rules: Rules
) -> tuple[Reading, ...]:
    """All readings, by group, lead time and measure; arguments and errors as of `run_gate`."""
    _check(cases, rules)
    found: dict[tuple[Group, timedelta], list[_Found]] = defaultdict(list)
    for case in cases:
        for lead_time, one in zip(lead_times, _compare(reference, candidate, case, lead_times, rules), strict=True):
            found[case.group, lead_time].append(one)
    _check_known(chain.from_iterable(found.values()))
    places = list(product(GROUPS, lead_times))
    readings = [list(_readings(group, lead_time, found[group, lead_time], rules)) for group, lead_time in places]
    return tuple(reading for some in readings for reading in some)


@dataclass(frozen=True)
class Fields:
    """One lead time of one case, physical units, NaN = missing; (h, w) each."""

    reference: Field
    candidate: Field

    @property
    def difference(self) -> Field:
        """Candidate less reference; NaN where either is missing."""
        return self.candidate - self.reference


def read_fields(
    reference: Infer,
    candidate: Infer,
    cases: Sequence[Case],
    lead_times: Sequence[timedelta],
    rules: Rules,
    reading: Reading,
) -> Fields:
    """The fields behind a reading, to be drawn; of the group's first case if it names none."""
    named = [case for case in cases if case.group == reading.group and reading.case in ("", case.name)]
    lead = list(lead_times).index(reading.lead_time)
    both = (_output(engine, named[0], lead_times)[lead] for engine in (reference, candidate))
    return Fields(*(_physical(output, rules)[0] for output in both))


def _check(cases: Sequence[Case], rules: Rules) -> None:
    names = sorted(case.name for case in cases)
    if len(set(names)) != len(names):
        raise CaseError(f"cases are named {names}; expected each name once")
    for group in GROUPS:
        sizes = [case.inputs.shape[1:] for case in cases if case.group == group]
        if not sizes:
            raise CaseError(f"no case is {group}; at least one ordinary and one extreme case is expected")
        if not any(size[0] >= rules.tile[0] and size[1] >= rules.tile[1] for size in sizes):
            raise CaseError(
                f"{group} cases have {sizes} cells; at least one as large as the tile {rules.tile} is expected"
            )


def _check_known(found: Iterable["_Found"]) -> None:
    """Raises CaseError if there is nothing to compare: both outputs would be equal, and neither a forecast."""
    if not any(one.cells or one.nan_cells or one.moved_missing for one in found):
        raise CaseError(
            "reference and candidate give no value in any cell of any case, only missing or infinite ones, so nothing "
            "can be judged; look at the model's weights, or give cases that it has a forecast for"
        )


def _output(engine: Infer, case: Case, lead_times: Sequence[timedelta]) -> Tensor:
    """(lead, h, w) of a case, float32."""
    out: NDArray[Any] = np.asarray(engine(case.inputs[None]))
    expected = (1, len(lead_times), *case.inputs.shape[1:])
    if out.shape != expected:
        raise InferenceError(f"an engine turns case {case.name!r} into {out.shape}; expected {expected}")
    return np.asarray(out[0], np.float32)


def _physical(output: Tensor, rules: Rules) -> tuple[Field, NDArray[np.bool_]]:
    """Physical values, NaN where missing, and where they are missing without the model saying so."""
    below = -np.inf if rules.missing_below is None else rules.missing_below
    is_missing = output < below
    with np.errstate(all="ignore"):
        values = np.array(rules.to_physical(output.copy()), np.float64)
    is_lost = ~(np.isfinite(values) & np.isfinite(output)) & ~is_missing
    values[is_missing | is_lost] = np.nan
    return values, is_lost


@dataclass(frozen=True)
class _Found:
    """What one case shows at one lead time; sums over the cells that both outputs know.

    Attributes:
        events: (threshold, 3) cells at or above it in both, only in the candidate, only in the reference.
        fss: (threshold,).
        seam: rms difference of the worst row or column; None if not measured.
    """

    case: str
    cells: int
    total: float
    squares: float
    least: float
    greatest: float
    error: float
    squared_error: float
    max_error: float
    greatest_error: float
    nan_cells: int
    moved_missing: float
    moved_codes: float
    events: NDArray[np.int64]
    fss: NDArray[np.float64]
    seam: float | None


def _compare(
    reference: Infer, candidate: Infer, case: Case, lead_times: Sequence[timedelta], rules: Rules
) -> Iterator[_Found]:
    """What a case shows, lead time by lead time."""
    truth, found = (_output(engine, case, lead_times) for engine in (reference, candidate))
    pieces = _in_tiles(candidate, case, lead_times, rules)
    for lead in range(len(lead_times)):
        seam = None if pieces is None else _seam(found[lead], pieces[lead], rules)
        yield _compare_fields(case.name, truth[lead], found[lead], rules, seam)


def _compare_fields(case: str, truth: Tensor, output: Tensor, rules: Rules, seam: float | None) -> _Found:
    wanted, _ = _physical(truth, rules)
    found, is_lost = _physical(output, rules)
    known = ~(np.isnan(wanted) | np.isnan(found))
    r, c = wanted[known], found[known]
    error = c - r
    return _Found(
        case=case,
        cells=r.size,
        total=float(r.sum()),
        squares=float(np.square(r).sum()),
        least=float(r.min(initial=np.inf)),
        greatest=float(r.max(initial=-np.inf)),
        error=float(error.sum()),
        squared_error=float(np.square(error).sum()),
        max_error=float(np.abs(error).max(initial=0)),
        greatest_error=float(c.max() - r.max()) if r.size else 0.0,
        nan_cells=int((is_lost & ~np.isnan(wanted)).sum()),
        moved_missing=float((np.isnan(wanted) != np.isnan(found)).mean()),
        moved_codes=float((_codes(wanted, rules) != _codes(found, rules)).mean()),
        events=np.array([_events(wanted, found, threshold) for threshold in rules.thresholds]).reshape(-1, 3),
        fss=np.array([_fss(wanted, found, threshold, rules.window) for threshold in rules.thresholds]),
        seam=seam,
    )


def _codes(values: Field, rules: Rules) -> Field:
    """Packed codes as whole numbers, infinite where missing."""
    codes = np.rint((values - rules.offset) / rules.scale)
    return np.where(np.isnan(codes), np.inf, codes)


def _events(wanted: Field, found: Field, threshold: float) -> tuple[int, int, int]:
    """Cells in both, only in the second, only in the first; a missing cell is no event."""
    r, c = wanted >= threshold, found >= threshold
    return int((r & c).sum()), int((c & ~r).sum()), int((r & ~c).sum())


def _fss(wanted: Field, found: Field, threshold: float, window: int) -> float:
    """Fractions skill score with the first as the truth; 1 if neither has an event."""
    r, c = (np.nan_to_num(field, nan=-np.inf) for field in (wanted, found))
    if max(r.max(), c.max()) < threshold:
        return 1.0
    sides = min(window, r.shape[0]), min(window, r.shape[1])
    score = fss_2d_single_field(
        c, r, event_threshold=threshold, window_size=sides, threshold_operator=np.greater_equal, zero_padding=True
    )
    return float(score)


@dataclass(frozen=True)
class _Cut:
    """Two overlapping tiles of one size along an axis, each deciding one side of `middle`."""

    size: int
    middle: int
    length: int

    @property
    def spans(self) -> tuple[tuple[slice, slice, slice], ...]:
        """For both: what the tile sees, what it decides, and where that lies in the tile."""
        begin = self.length - self.size
        first = slice(0, self.size), slice(0, self.middle), slice(0, self.middle)
        second = slice(begin, self.length), slice(self.middle, self.length), slice(self.middle - begin, self.size)
        return first, second


def _cut(length: int, radius: int, stride: int) -> _Cut:
    """How an axis is cut in the middle, with the radius beyond it as halo; one tile is all where it is too short."""
    middle = -(-length // 2 // stride) * stride
    size = -(-(max(middle, length - middle) + radius) // stride) * stride
    return _Cut(min(size, length), middle, length)


def _in_tiles(engine: Infer, case: Case, lead_times: Sequence[timedelta], rules: Rules) -> Tensor | None:
    """(lead, h, w) put together from tiles that overlap by the radius; None if the case is too small to be cut."""
    if rules.radius is None:
        return None
    cuts = [_cut(length, rules.radius, rules.stride) for length in case.inputs.shape[1:]]
    if all(cut.size == cut.length for cut in cuts):
        return None
    whole = np.empty((len(lead_times), *case.inputs.shape[1:]), np.float32)
    for y, x in product(*(cut.spans for cut in cuts)):
        tile = Case(case.name, case.group, np.ascontiguousarray(case.inputs[:, y[0], x[0]]))
        whole[:, y[1], x[1]] = _output(engine, tile, lead_times)[:, y[2], x[2]]
    return whole


def _seam(whole: Tensor, pieces: Tensor, rules: Rules) -> float:
    """Root mean square difference along the worst row or column; infinite if other cells are missing."""
    one, other = _physical(whole, rules)[0], _physical(pieces, rules)[0]
    if not np.array_equal(np.isnan(one), np.isnan(other)):
        return float("inf")
    squares = np.square(np.nan_to_num(one - other))
    return float(np.sqrt(max(squares.mean(axis=0).max(), squares.mean(axis=1).max())))


@dataclass(frozen=True)
class _Spread:
    """Of the reference over a group, physical units; never less than one step of the packing."""

    std: float
    mean: float
    range: float


def _spread(found: Sequence[_Found], rules: Rules) -> _Spread:
    cells = max(1, sum(one.cells for one in found))
    mean = sum(one.total for one in found) / cells
    variance = max(0.0, sum(one.squares for one in found) / cells - mean**2)
    least, greatest = min(one.least for one in found), max(one.greatest for one in found)
    above = (mean - least, greatest - least) if np.isfinite(least) else (0.0, 0.0)
    std, level, extent = (max(value, rules.scale) for value in (variance**0.5, *above))
    return _Spread(std, level, extent)


def _readings(group: Group, lead_time: timedelta, found: Sequence[_Found], rules: Rules) -> Iterator[Reading]:
    for name, values in _of_cases(found, _spread(found, rules)):
        worst = int(np.abs(values).argmax())
        yield Reading(name, lead_time, group, values[worst], found[worst].case if values[worst] else "")
    for k, threshold in enumerate(rules.thresholds):
        if sum(int(one.events[k].sum()) for one in found) >= rules.least_events:
            yield from _of_events(group, lead_time, found, k, threshold)


def _of_cases(found: Sequence[_Found], spread: _Spread) -> Iterator[tuple[str, list[float]]]:
    """Each measure of single cases, with its value in every case."""
    yield "max_error", [one.max_error for one in found]
    yield "rmse_over_std", [(one.squared_error / max(1, one.cells)) ** 0.5 / spread.std for one in found]
    yield "bias", [one.error / max(1, one.cells) / spread.mean for one in found]
    yield "maximum_bias", [one.greatest_error / spread.range for one in found]
    yield "nan_cells", [float(one.nan_cells) for one in found]
    yield "moved_missing", [one.moved_missing for one in found]
    yield "moved_codes", [one.moved_codes for one in found]
    if any(one.seam is not None for one in found):
        yield "seam", [(one.seam or 0.0) / spread.std for one in found]


def _of_events(
    group: Group, lead_time: timedelta, found: Sequence[_Found], k: int, threshold: float
) -> Iterator[Reading]:
    """CSI and FSS of a threshold over the group: events added up; FSS weighted by the events of each case."""
    events = np.array([one.events[k] for one in found])
    weights, moved = events.sum(axis=1), events[:, 1:].sum(axis=1)
    case = found[int(moved.argmax())].case if moved.any() else ""
    fss_loss = float(np.average([1 - one.fss[k] for one in found], weights=weights))
    for name, value in (("csi_loss", _csi_loss(events.sum(axis=0))), ("fss_loss", max(0.0, fss_loss))):
        yield Reading(name, lead_time, group, value, case if value else "", threshold)


def _csi_loss(events: NDArray[np.int64]) -> float:
    """1 - CSI of cells in both, only in the candidate, only in the reference: the Jaccard distance of the events."""
    hits, false_alarms, misses = (xr.DataArray(int(count)) for count in events)
    nothing = xr.DataArray(0)
    counts: dict[str, Any] = {"tp_count": hits, "fp_count": false_alarms, "fn_count": misses, "tn_count": nothing}
    counts["total_count"] = hits + false_alarms + misses
    return 1.0 - float(BasicContingencyManager(counts).critical_success_index())
