"""Scores the published cycles of a product against the frames that came after them, with persistence beside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from jobs.picture import observed_fields
from pipelines.archive import PublishedCycle, list_cycles, open_cycle
from pipelines.errors import InputError
from pipelines.frames import Cycle, find_nearest
from pipelines.product import Product, load_product
from pipelines.source import Source, open_source
from pipelines.units import Quantity, usual_thresholds
from pipelines.verify import Rules, Score, pool, score_case


@dataclass(frozen=True)
class Verification:
    """Scores of a product's cycles and of persistence from the same frames, row by row for the same cases.

    A row holds the cycles whose lead time was observed: of the newest cycles that is seldom more than the first ones.
    """

    product: str
    cycles: int
    forecast: tuple[Score, ...]
    persistence: tuple[Score, ...]


def verify_product(
    file: Path,
    overrides: Sequence[str],
    thresholds: tuple[float, ...],
    start: np.datetime64 | None = None,
    stop: np.datetime64 | None = None,
) -> Verification:
    """Scores of the published cycles with start <= reference time < stop, over lead times observed since.

    Args:
        thresholds: in units of the forecast; none = the usual ones of rain.

    Raises:
        InputError: no cycle is published, or nothing was observed after any of them.
    """
    product = load_product(file, overrides)
    source = open_source(product.input)
    cycles = [
        c
        for c in list_cycles(product.output.store, product.name)
        if (start is None or c.reference_time >= start) and (stop is None or c.reference_time < stop)
    ]
    cases = [case for cycle in cycles if (case := _score_cycle(cycle, source, product, thresholds)) is not None]
    if not cases:
        raise InputError(
            f"{len(cycles)} cycle(s) of {product.name} are published in {product.output.store}, none with a lead time "
            f"that is observed in {product.input.store}"
        )
    forecast, persistence = zip(*cases, strict=True)
    return Verification(product.name, len(cases), _pool_leads(forecast), _pool_leads(persistence))


def _pool_leads(cases: Sequence[xr.Dataset]) -> tuple[Score, ...]:
    """Rows of every lead time, each pooled over the cases that have it."""
    by_lead: dict[np.timedelta64, list[xr.Dataset]] = {}
    for case in cases:
        for position, lead in enumerate(case.lead_time.values):
            by_lead.setdefault(lead, []).append(case.isel(lead_time=[position]))
    return tuple(row for lead in sorted(by_lead) for row in pool(by_lead[lead]))


def _score_cycle(
    cycle: PublishedCycle, source: Source, product: Product, thresholds: tuple[float, ...]
) -> tuple[xr.Dataset, xr.Dataset] | None:
    """Counts of a cycle and of persistence, over the lead times that were observed; None if there are none."""
    forecast = _forecast(cycle, product.output.variable)
    quantity = Quantity(forecast.attrs.get("standard_name"), str(forecast.attrs.get("units", "")))
    rules = Rules(thresholds or usual_thresholds(quantity))
    observed = _observed(cycle, source, product, forecast)
    seen = np.isin((forecast.init_time + forecast.lead_time).values, observed.time.values)
    if not seen.any() or cycle.reference_time not in observed.time.values:
        return None
    forecast = forecast.isel(lead_time=seen)
    newest = observed.sel(time=cycle.reference_time, drop=True)
    still = newest.expand_dims(lead_time=forecast.lead_time.values).assign_coords(init_time=forecast.init_time)
    try:
        return score_case(forecast, observed, rules), score_case(still, observed, rules)
    except (ValueError, RuntimeError, OSError) as error:  # what codecs raise when chunks are read
        raise InputError(f"cycle {cycle.path} cannot be read: {error}") from error


def _observed(cycle: PublishedCycle, source: Source, product: Product, forecast: xr.DataArray) -> xr.DataArray:
    """What was observed at the start of a forecast and at its valid times, if anything; times are those wanted."""
    valid = (forecast.init_time + forecast.lead_time).values
    times = np.array([cycle.reference_time, *valid], "datetime64[ns]")
    tolerance = np.timedelta64(product.input.tolerance, "ns")
    near = [find_nearest(source.times, time, tolerance) for time in times]
    there = [(time, index) for time, index in zip(times, near, strict=True) if index is not None]
    there = [(time, index) for time, index in there if source.is_stored(index)]
    frames = Cycle(product.name, times[0], tuple(time for time, _ in there), tuple(index for _, index in there))
    fields = observed_fields(source, product, frames, forecast)
    return fields[np.array([np.isfinite(field).any() for field in fields.values], np.bool_)]


def _forecast(cycle: PublishedCycle, variable: str) -> xr.DataArray:
    ds = open_cycle(cycle.path, dtype=np.float64)
    if variable not in ds.data_vars:
        raise InputError(f"cycle {cycle.path} has no variable {variable!r}; it has {', '.join(map(str, ds.data_vars))}")
    return ds[variable].isel(init_time=0)
