"""Go or no-go: a candidate engine against the float32 reference, case by case, judged by the contract's limits.

Each case is measured alone, in physical units, and put in proportion to the spread of its whole group, so that neither
many good cases hide a bad one nor a nearly dry one decides. Knows arrays and limits, but no grid and no store.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scores.categorical import BasicContingencyManager

from engines.cases import GROUPS, Case, CaseError, Group
from engines.comparison import Field, Found, Infer, Rules, compare, output_of, physical
from engines.model import GateLimits

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
    found: dict[tuple[Group, timedelta], list[Found]] = defaultdict(list)
    for case in cases:
        for lead_time, one in zip(lead_times, compare(reference, candidate, case, lead_times, rules), strict=True):
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
    both = (output_of(engine, named[0], lead_times)[lead] for engine in (reference, candidate))
    return Fields(*(physical(output, rules)[0] for output in both))


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


def _check_known(found: Iterable[Found]) -> None:
    """Raises CaseError if there is nothing to compare: both outputs would be equal, and neither a forecast."""
    if not any(one.cells or one.nan_cells or one.moved_missing for one in found):
        raise CaseError(
            "reference and candidate give no value in any cell of any case, only missing or infinite ones, so nothing "
            "can be judged; look at the model's weights, or give cases that it has a forecast for"
        )


@dataclass(frozen=True)
class _Spread:
    """Of the reference over a group, physical units; never less than one step of the packing."""

    std: float
    mean: float
    range: float


def _spread(found: Sequence[Found], rules: Rules) -> _Spread:
    cells = max(1, sum(one.cells for one in found))
    mean = sum(one.total for one in found) / cells
    variance = max(0.0, sum(one.squares for one in found) / cells - mean**2)
    least, greatest = min(one.least for one in found), max(one.greatest for one in found)
    above = (mean - least, greatest - least) if np.isfinite(least) else (0.0, 0.0)
    std, level, extent = (max(value, rules.scale) for value in (variance**0.5, *above))
    return _Spread(std, level, extent)


def _readings(group: Group, lead_time: timedelta, found: Sequence[Found], rules: Rules) -> Iterator[Reading]:
    for name, values in _of_cases(found, _spread(found, rules)):
        worst = int(np.abs(values).argmax())
        yield Reading(name, lead_time, group, values[worst], found[worst].case if values[worst] else "")
    for k, threshold in enumerate(rules.thresholds):
        if sum(int(one.events[k].sum()) for one in found) >= rules.least_events:
            yield from _of_events(group, lead_time, found, k, threshold)


def _of_cases(found: Sequence[Found], spread: _Spread) -> Iterator[tuple[str, list[float]]]:
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
    group: Group, lead_time: timedelta, found: Sequence[Found], k: int, threshold: float
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
