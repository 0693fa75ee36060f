"""Scores of forecasts against what was observed, by the `scores` library: one case at a time, then pooled.

Only cells observed at the valid time count. Cells that a forecast says are missing count as dry, unless they are
skipped: a model must not score better by saying less. Knows xarray, but no store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from scores.categorical import BasicContingencyManager, ThresholdEventOperator
from scores.continuous import mae
from scores.spatial import fss_2d_single_field

from pipelines.errors import ConfigError, InputError
from pipelines.units import THRESHOLDS

COUNTS = ("tp_count", "tn_count", "fp_count", "fn_count", "total_count")
STRIP_CELLS = 2_000_000  # `scores` holds some dozen float64 copies of what it is given


@dataclass(frozen=True)
class Rules:
    """How forecasts are scored.

    Args:
        thresholds: an event is a value at or above one of them; units of the fields.
        window: (y, x) cells of the neighbourhood of the fractions skill score; None leaves it out.
        missing_forecast: cells that only the forecast misses count as `dry` (0), or are left out (`skip`).

    Raises:
        ConfigError: no thresholds, or a window below 1 cell (found, expected).
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    window: tuple[int, int] | None = None
    missing_forecast: Literal["dry", "skip"] = "dry"

    def __post_init__(self) -> None:
        if not self.thresholds or list(self.thresholds) != sorted(set(self.thresholds)):
            raise ConfigError(f"thresholds are {self.thresholds}; one or more rising values are expected")
        if self.window is not None and min(self.window) < 1:
            raise ConfigError(f"window is {self.window} cells; at least (1, 1) is expected")


@dataclass(frozen=True)
class Score:
    """What one lead time and threshold scored, over all cases together.

    Attributes:
        csi, pod, far: critical success index, probability of detection, false alarm ratio; NaN without any event.
        frequency_bias: forecast events per observed event.
        fss: fractions skill score, mean of the cases; NaN if left out.
        mae: mean absolute error over cells known to both, mean of the cases; the same at every threshold.
    """

    lead_time: timedelta
    threshold: float
    cases: int
    csi: float
    pod: float
    far: float
    frequency_bias: float
    fss: float
    mae: float


def verify(forecasts: xr.DataArray, observed: xr.DataArray, rules: Rules | None = None) -> list[Score]:
    """Scores of all forecasts, one row for each lead time and threshold, pooled over init times.

    Args:
        forecasts: (init_time, lead_time, y, x); NaN = missing. One field is loaded at a time.
        observed: (time, y, x), same units and grid; NaN = not observed. Both are compared in float32.

    Raises:
        InputError: a valid time was not observed, or the grids differ (names what was found).
        ConfigError: `rules` that make no sense.
    """
    cases = [score_case(forecasts.sel(init_time=init), observed, rules) for init in forecasts["init_time"]]
    return pool(cases)


def score_case(forecast: xr.DataArray, observed: xr.DataArray, rules: Rules | None = None) -> xr.Dataset:
    """Counts and errors of one forecast, to be pooled.

    Args:
        forecast: (lead_time, y, x) with the scalar coordinate init_time; NaN = missing.
        observed: (time, y, x), as for `verify`.

    Returns:
        Dims (lead_time, threshold): the counts of the contingency table and `fss`; dims (lead_time,): `mae`.

    Raises:
        InputError: as `verify`.
    """
    rules = rules or Rules()
    valid_times = (forecast["init_time"] + forecast["lead_time"]).values
    _check(forecast, observed, valid_times)
    leads = [
        _score_field(_field(forecast.isel(lead_time=k)), _field(observed.sel(time=time)), rules)
        for k, time in enumerate(valid_times)
    ]
    return xr.concat(leads, forecast["lead_time"].variable).assign_coords(lead_time=forecast["lead_time"].values)


def pool(cases: Sequence[xr.Dataset], how: Literal["counts", "cases"] = "counts") -> list[Score]:
    """One row for each lead time and threshold.

    Args:
        cases: of `score_case`, all by the same rules.
        how: `counts` adds up events before any ratio is taken (the usual way); `cases` is the plain mean of the
            ratios of the cases.

    Raises:
        InputError: no cases.
    """
    if not cases:
        raise InputError("there is no forecast to verify; at least one is expected")
    every = xr.concat(cases, "case", join="exact")
    table = _ratios(every if how == "cases" else every[list(COUNTS)].sum("case"))
    means = xr.merge([table.mean("case") if how == "cases" else table, every[["fss", "mae"]].mean("case")])
    return list(_rows(means, len(cases)))


def as_table(scores: Sequence[Score]) -> pd.DataFrame:
    """The rows as a table, lead times in minutes, to print or to turn into JSON."""
    rows = [{"lead_minutes": score.lead_time / timedelta(minutes=1)} | asdict(score) for score in scores]
    return pd.DataFrame(rows).drop(columns="lead_time")


def _check(forecast: xr.DataArray, observed: xr.DataArray, valid_times: Any) -> None:
    if forecast.shape[1:] != observed.shape[1:]:
        raise InputError(
            f"the forecast has a grid of {forecast.shape[1:]} cells, what was observed {observed.shape[1:]}"
        )
    for axis in forecast.dims[1:]:
        if not np.allclose(forecast[axis].values, observed[axis].values):
            raise InputError(f"{axis!r} of the forecast differs from {axis!r} of what was observed")
    unseen = np.setdiff1d(valid_times, observed["time"].values)
    if unseen.size:
        raise InputError(
            f"{unseen.size} valid time(s) of the forecast of {forecast['init_time'].values:.19} were not observed, "
            f"the first at {unseen[0]:.19}; observations end at {observed['time'].values[-1]:.19}"
        )


def _field(field: xr.DataArray) -> Any:
    """Values in float32, as those of thresholds are: 57 x 0.01 is below 0.57 in float64."""
    return field.values.astype(np.float32, copy=False)


def _score_field(forecast: Any, observed: Any, rules: Rules) -> xr.Dataset:
    """Counts (threshold,), fss (threshold,) and mae of one (y, x) field."""
    if not np.isfinite(observed).any():
        raise InputError("a field holds no observed cell")
    counts = sum(_count(*strip, rules) for strip in _strips(_comparable(forecast, observed, rules), observed))
    fss = [_fss(forecast, observed, threshold, rules) for threshold in rules.thresholds]
    both = xr.DataArray(forecast.ravel(), dims="cell"), xr.DataArray(observed.ravel(), dims="cell")
    assert isinstance(counts, xr.Dataset)
    return counts.assign(fss=("threshold", fss), mae=mae(*both))


def _comparable(forecast: Any, observed: Any, rules: Rules) -> Any:
    """The forecast where it was observed, missing cells turned to dry if the rules say so."""
    if rules.missing_forecast == "skip":
        return forecast
    return np.where(np.isnan(forecast) & ~np.isnan(observed), np.float32(0), forecast)


def _strips(forecast: Any, observed: Any) -> Iterator[tuple[Any, Any]]:
    rows = max(1, STRIP_CELLS // forecast.shape[1])
    for row in range(0, forecast.shape[0], rows):
        yield forecast[row : row + rows], observed[row : row + rows]


def _count(forecast: Any, observed: Any, rules: Rules) -> xr.Dataset:
    known = ~(np.isnan(forecast) | np.isnan(observed))
    fields = xr.DataArray(forecast[known], dims="cell"), xr.DataArray(observed[known], dims="cell")
    tables = [ThresholdEventOperator().make_contingency_manager(*fields, event_threshold=t) for t in rules.thresholds]
    counts = [xr.Dataset(table.transform(reduce_dims="all").get_counts()) for table in tables]
    return xr.concat(counts, xr.Variable("threshold", list(rules.thresholds)))


def _fss(forecast: Any, observed: Any, threshold: float, rules: Rules) -> float:
    """Fields that say nothing where nothing was observed, so both have no event there."""
    if rules.window is None:
        return float("nan")
    seen = ~np.isnan(observed) if rules.missing_forecast == "dry" else ~np.isnan(observed) & ~np.isnan(forecast)
    fields = (np.where(seen & ~np.isnan(field), field, 0) for field in (forecast, observed))
    window, at_least = rules.window, np.greater_equal
    return float(
        fss_2d_single_field(*fields, event_threshold=threshold, window_size=window, threshold_operator=at_least)
    )


def _ratios(counts: xr.Dataset) -> xr.Dataset:
    table = BasicContingencyManager({name: counts[name] for name in COUNTS})
    return xr.Dataset(
        {
            "csi": table.critical_success_index(),
            "pod": table.probability_of_detection(),
            "far": table.false_alarm_ratio(),
            "frequency_bias": table.frequency_bias(),
        }
    )


def _rows(table: xr.Dataset, cases: int) -> Iterator[Score]:
    for lead in table["lead_time"].values:
        for threshold in table["threshold"].values:
            row = table.sel(lead_time=lead, threshold=threshold)
            ratios = {name: float(row[name]) for name in ("csi", "pod", "far", "frequency_bias", "fss", "mae")}
            seconds = float(lead / np.timedelta64(1, "s"))
            yield Score(timedelta(seconds=seconds), float(threshold), cases, **ratios)
