"""Times of CF numbers: whole steps since a date by sums of integers, everything else by xarray."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.encoding import is_missing, read_encoding
from pipelines.errors import InputError
from pipelines.frames import Times

_UNITS = re.compile(
    r"(millisecond|second|sec|minute|min|hour|hr|day)s? since (\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?))?Z?"
)
_NANOSECONDS = {
    "millisecond": 10**6, "sec": 10**9, "second": 10**9, "min": 60 * 10**9, "minute": 60 * 10**9,
    "hr": 3600 * 10**9, "hour": 3600 * 10**9, "day": 86400 * 10**9,
}  # fmt: skip
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")  # one and the same since 1582
_MOST = 2**62  # nanoseconds on either side of 1970, 146 years


def decode_times(numbers: NDArray[Any], attributes: Mapping[str, Any], where: str) -> Times:
    """Times of the codes of a time axis, datetime64[ns], UTC; a fill value becomes NaT.

    Raises:
        InputError: the units or the calendar are not those of real times (names what was found).
    """
    if numbers.dtype.kind == "M":
        return numbers.astype("datetime64[ns]")
    missing = is_missing(numbers, read_encoding(numbers.dtype, attributes, None, where))
    units, calendar = attributes.get("units"), attributes.get("calendar", "standard")
    if not missing.any():
        times = _whole_steps(numbers, units, calendar)
        if times is not None:
            return times
    return _by_xarray(np.where(missing, np.nan, numbers) if missing.any() else numbers, units, calendar, where)


def _whole_steps(numbers: NDArray[Any], units: Any, calendar: Any) -> Times | None:
    """Times of whole numbers of a plain unit; None if they are not such."""
    found = _UNITS.fullmatch(units) if isinstance(units, str) else None
    if found is None or calendar not in _CALENDARS or numbers.dtype.kind not in "iuf":
        return None
    unit, date, clock = _NANOSECONDS[found[1]], found[2], found[3] or "00:00"
    try:
        start = int(np.datetime64(f"{date}T{clock}", "s").astype(np.int64)) * 10**9
    except ValueError:
        return None
    if abs(start) > _MOST or not (np.abs(numbers.astype(np.float64)) * unit <= _MOST).all():
        return None
    whole = numbers.astype(np.int64)
    return (whole * unit + start).view("datetime64[ns]") if (whole == numbers).all() else None


def _by_xarray(numbers: NDArray[Any], units: Any, calendar: Any, where: str) -> Times:
    import xarray as xr  # half a second to import

    coded = xr.Dataset(coords={"time": ("time", numbers, {"units": units, "calendar": calendar})})
    found = f"the time axis of {where} has units {units!r}, calendar {calendar!r}"
    expected = "expected CF times of a real calendar, such as seconds since 1970-01-01"
    try:
        times: NDArray[Any] = xr.decode_cf(coded)["time"].values
    except (ValueError, OverflowError) as error:
        raise InputError(f"{found}; {expected}") from error
    if times.dtype.kind != "M":
        raise InputError(f"{found}; {expected}")
    return times.astype("datetime64[ns]")
