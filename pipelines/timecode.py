"""Times of CF numbers: steps since a date by sums of integers, everything else by xarray."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.encoding import is_missing, read_encoding
from pipelines.errors import InputError
from pipelines.frames import Times

_UNITS = re.compile(
    r"(milliseconds?|msecs?|seconds?|secs?|s|minutes?|mins?|hours?|hrs?|h|days?|d) since "
    r"(\d{4}-\d\d-\d\d)(?:[t ](\d\d:\d\d(?::\d\d)?))?z?"
)
_SECOND = 10**9  # nanoseconds
_NANOSECONDS = {"m": 60 * _SECOND, "ms": 10**6, "s": _SECOND, "h": 3600 * _SECOND, "d": 86400 * _SECOND}
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")  # one and the same since 1582
_REFORM = "1582-10-15"
_MOST = 2**62  # nanoseconds on either side of 1970, 146 years


def decode_times(numbers: NDArray[Any], attributes: Mapping[str, Any], where: str) -> Times:
    """Times of the codes of a time axis, datetime64[ns], UTC; a fill value becomes NaT.

    Parts of a unit are taken for the whole second that they are nearest to, where they are no farther from it than
    the numbers are precise: 0.1 days or 12.58333 hours are seldom exact.

    Raises:
        InputError: the units or the calendar are not those of real times, the numbers are too coarse to tell
            seconds, or they are packed (names what was found).
    """
    if numbers.dtype.kind == "M":
        return numbers.astype("datetime64[ns]")
    encoding = read_encoding(numbers.dtype, attributes, None, where)
    if (encoding.scale_factor, encoding.add_offset) != (1.0, 0.0):
        raise InputError(
            f"the time axis of {where} is packed (scale_factor {encoding.scale_factor:g}, add_offset "
            f"{encoding.add_offset:g}); expected times as they are"
        )
    missing = is_missing(numbers, encoding)
    units, calendar = attributes.get("units"), attributes.get("calendar", "standard")
    unit = _unit_of(units)
    _check_precise(numbers[~missing], unit, units, where)
    if not missing.any():
        times = _plain_times(numbers, units, calendar)
        if times is not None:
            return times
    times = _by_xarray(np.where(missing, np.nan, numbers) if missing.any() else numbers, units, calendar, where)
    return _to_whole_seconds(times, _precision(numbers, unit))


def _unit_of(units: Any) -> int | None:
    """Nanoseconds of the unit of CF times; None if it is not known."""
    found = _UNITS.match(units.lower()) if isinstance(units, str) else None
    return None if found is None else _NANOSECONDS["ms" if found[1].startswith(("ms", "milli")) else found[1][0]]


def _precision(numbers: NDArray[Any], unit: int | None) -> NDArray[np.float64]:
    """How far apart numbers are that differ in the last bit, nanoseconds; 0 of integers."""
    if numbers.dtype.kind != "f" or unit is None:
        return np.zeros(numbers.shape)
    steps: NDArray[np.float64] = np.spacing(np.abs(numbers)).astype(np.float64) * unit
    return steps


def _check_precise(numbers: NDArray[Any], unit: int | None, units: Any, where: str) -> None:
    """Raises InputError if numbers cannot tell times a second apart, and are not whole by chance of their unit."""
    steps = _precision(numbers, unit)
    if unit is None or not steps.size or steps.max() <= _SECOND:
        return
    if steps.max() > unit or (numbers != np.rint(numbers)).any():
        raise InputError(
            f"the time axis of {where} holds {numbers.dtype} of {units!r}, exact to {steps.max() / _SECOND:.3g} s "
            "only; expected integers or float64"
        )


def _plain_times(numbers: NDArray[Any], units: Any, calendar: Any) -> Times | None:
    """Times of numbers of a plain unit by sums of integers; None if they are not such."""
    found = _UNITS.fullmatch(units.lower()) if isinstance(units, str) else None
    unit = _unit_of(units)
    if found is None or unit is None or calendar not in _CALENDARS or numbers.dtype.kind not in "iuf":
        return None
    date, clock = found[2], found[3] or "00:00"
    if calendar != "proleptic_gregorian" and date < _REFORM:
        return None
    try:
        start = int(np.datetime64(f"{date}T{clock}", "s").astype(np.int64)) * _SECOND
    except ValueError:
        return None
    if not len(numbers) or not (np.abs(numbers.astype(np.float64)) < 2**62).all():
        return None
    whole = np.floor(numbers).astype(np.int64)
    start += int(whole[0]) * unit  # in Python, so that a start long ago does no harm
    since = whole - whole[0]
    if abs(start) > _MOST or not (np.abs(since.astype(np.float64)) * unit <= _MOST).all():
        return None
    parts = np.rint((numbers - whole) * unit).astype(np.int64) if numbers.dtype.kind == "f" else 0
    return _to_whole_seconds((since * unit + start + parts).view("datetime64[ns]"), _precision(numbers, unit))


def _to_whole_seconds(times: Times, precision: NDArray[np.float64]) -> Times:
    """Times, those that lie within a few times their precision of a whole second on it."""
    if not precision.any():
        return times
    whole = (times + np.timedelta64(_SECOND // 2, "ns")).astype("datetime64[s]").astype("datetime64[ns]")
    return np.where(np.abs(whole - times).astype(np.int64) <= 4 * precision, whole, times)


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
