"""What one case shows of a candidate engine beside the float32 reference, lead time by lead time, in physical units.

Only measures: what is too much, and over which cases, is for engines/gate.py to say.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scores.spatial import fss_2d_single_field

from engines.base import InferenceError
from engines.cases import Case, CaseError, Tensor

Field = NDArray[np.float64]
Infer = Callable[[Tensor], Tensor]


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


def output_of(engine: Infer, case: Case, lead_times: Sequence[timedelta]) -> Tensor:
    """(lead, h, w) of a case, float32."""
    out: NDArray[Any] = np.asarray(engine(case.inputs[None]))
    expected = (1, len(lead_times), *case.inputs.shape[1:])
    if out.shape != expected:
        raise InferenceError(f"an engine turns case {case.name!r} into {out.shape}; expected {expected}")
    return np.asarray(out[0], np.float32)


def physical(output: Tensor, rules: Rules) -> tuple[Field, NDArray[np.bool_]]:
    """Physical values, NaN where missing, and where they are missing without the model saying so."""
    below = -np.inf if rules.missing_below is None else rules.missing_below
    is_missing = output < below
    with np.errstate(all="ignore"):
        values = np.array(rules.to_physical(output.copy()), np.float64)
    is_lost = ~(np.isfinite(values) & np.isfinite(output)) & ~is_missing
    values[is_missing | is_lost] = np.nan
    return values, is_lost


@dataclass(frozen=True)
class Found:
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


def compare(
    reference: Infer, candidate: Infer, case: Case, lead_times: Sequence[timedelta], rules: Rules
) -> Iterator[Found]:
    """What a case shows, lead time by lead time."""
    truth, found = (output_of(engine, case, lead_times) for engine in (reference, candidate))
    pieces = _in_tiles(candidate, case, lead_times, rules)
    for lead in range(len(lead_times)):
        seam = None if pieces is None else _seam(found[lead], pieces[lead], rules)
        yield _compare_fields(case.name, truth[lead], found[lead], rules, seam)


def _compare_fields(case: str, truth: Tensor, output: Tensor, rules: Rules, seam: float | None) -> Found:
    wanted, _ = physical(truth, rules)
    found, is_lost = physical(output, rules)
    known = ~(np.isnan(wanted) | np.isnan(found))
    r, c = wanted[known], found[known]
    error = c - r
    return Found(
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
        nan_cells=int((is_lost & (~np.isnan(wanted) | (np.isinf(output) & ~np.isinf(truth)))).sum()),
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
        whole[:, y[1], x[1]] = output_of(engine, tile, lead_times)[:, y[2], x[2]]
    return whole


def _seam(whole: Tensor, pieces: Tensor, rules: Rules) -> float:
    """Root mean square difference along the worst row or column; infinite if other cells are missing."""
    one, other = physical(whole, rules)[0], physical(pieces, rules)[0]
    if not np.array_equal(np.isnan(one), np.isnan(other)):
        return float("inf")
    squares = np.square(np.nan_to_num(one - other))
    return float(np.sqrt(max(squares.mean(axis=0).max(), squares.mean(axis=1).max())))
