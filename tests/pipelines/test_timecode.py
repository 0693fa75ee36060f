import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.timecode import decode_times

SECONDS = {"milliseconds": 0.001, "second": 1, "seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
dates = st.dates(min_value=np.datetime64("1900-01-01").item(), max_value=np.datetime64("2100-01-01").item())
clocks = st.sampled_from(["", " 00:00", "T06:30", " 23:59:59", "T12:00:00Z", " 12:00 +2:00"])


def by_xarray(numbers, attributes):
    coded = xr.Dataset(coords={"time": ("time", numbers, attributes)})
    return xr.decode_cf(coded)["time"].values.astype("datetime64[ns]")


@given(
    st.sampled_from(sorted(SECONDS)),
    dates,
    clocks,
    st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=8),
    st.sampled_from(["int32", "int64", "float64", ">i4"]),
    st.sampled_from(["standard", "gregorian", "proleptic_gregorian"]),
)
@example("days", np.datetime64("1970-01-01").item(), "", [106751, -106751], "int64", "standard")
def test_times_are_those_of_xarray(unit, date, clock, seconds, dtype, calendar):
    numbers = (np.array(seconds, np.int64) // max(1, int(SECONDS[unit]))).astype(dtype)
    attributes = {"units": f"{unit} since {date}{clock}", "calendar": calendar}
    np.testing.assert_array_equal(decode_times(numbers, attributes, "rain"), by_xarray(numbers, attributes))


@pytest.mark.parametrize("numbers", [np.arange(4) / 288, np.array([0.5, 1.25])])
def test_parts_of_a_unit_are_those_of_xarray(numbers):
    attributes = {"units": "days since 2024-06-01"}
    np.testing.assert_array_equal(decode_times(numbers, attributes, "rain"), by_xarray(numbers, attributes))


def test_a_fill_value_is_no_time():
    times = decode_times(np.array([0, -1, 2]), {"units": "hours since 2024-06-01", "_FillValue": -1}, "rain")
    assert np.isnat(times).tolist() == [False, True, False]
    assert times[2] == np.datetime64("2024-06-01T02", "ns")


@pytest.mark.parametrize(
    ("units", "calendar"),
    [
        (None, "standard"),
        ("mm h-1", "standard"),
        ("seconds since the flood", "standard"),
        ("seconds since 2024-13-01", "standard"),
        ("days since 2024-06-01", "360_day"),
        ("days since 2024-06-01", "gregorien"),
    ],
)
def test_what_is_no_time_is_refused_with_what_was_found(units, calendar):
    with pytest.raises(InputError, match=r"time axis of rain in x\.zarr has units") as caught:
        decode_times(np.arange(3), {"units": units, "calendar": calendar}, "rain in x.zarr")
    assert repr(units) in str(caught.value)
    assert calendar in str(caught.value)


def test_times_beyond_nanoseconds_are_refused():
    with pytest.raises(InputError):
        decode_times(np.array([10**9]), {"units": "days since 1970-01-01"}, "rain")
