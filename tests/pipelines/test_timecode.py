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


@given(
    st.sampled_from(["seconds", "minutes", "hours", "days"]),
    st.sampled_from(["1970-01-01", "2000-01-01T12:00", "0001-01-01"]),
    st.lists(st.integers(1_500_000_000, 2_000_000_000), min_size=1, max_size=8),
)
def test_parts_of_a_unit_that_mean_whole_seconds_are_whole_seconds(unit, date, seconds):
    times = np.array(seconds).astype("datetime64[s]")
    numbers = (times - np.datetime64(date, "s")).astype(np.int64) / SECONDS[unit]
    attributes = {"units": f"{unit} since {date}", "calendar": "proleptic_gregorian"}
    np.testing.assert_array_equal(decode_times(numbers, attributes, "rain"), times)


@given(st.lists(st.integers(0, 86400), min_size=1, max_size=8))
def test_hours_of_a_day_in_float32_are_whole_seconds(seconds):
    numbers = (np.array(seconds) / 3600).astype(np.float32)
    expected = np.datetime64("2024-06-01", "ns") + np.array(seconds).astype("timedelta64[s]")
    np.testing.assert_array_equal(decode_times(numbers, {"units": "h since 2024-06-01"}, "rain"), expected)


def test_parts_of_a_second_stay():
    times = decode_times(np.array([0.25, 1.5]), {"units": "seconds since 2024-06-01"}, "rain")
    np.testing.assert_array_equal(times, np.datetime64("2024-06-01", "ns") + np.array([250, 1500], "timedelta64[ms]"))


@pytest.mark.parametrize(
    ("numbers", "units"),
    [
        (np.array([1717245000], np.float32), "seconds since 1970-01-01"),
        (np.array([28620750], np.float32), "minutes since 1970-01-01"),
        (np.array([19875.524], np.float32), "days since 1970-01-01"),
    ],
)
def test_numbers_too_coarse_for_seconds_are_refused(numbers, units):
    with pytest.raises(InputError, match=r"time axis of rain holds float32 of '.*', exact to [\d.]+ s only; expected"):
        decode_times(numbers, {"units": units}, "rain")


def test_whole_numbers_of_a_coarse_type_are_exact():
    days = decode_times(np.array([19875], np.float32), {"units": "days since 1970-01-01"}, "rain")
    assert days[0] == np.datetime64("2024-06-01", "ns")


@pytest.mark.parametrize("units", ["s since 2024-06-01", "SECONDS SINCE 2024-06-01", "msec since 2024-06-01T00:00Z"])
def test_units_as_udunits_writes_them(units):
    number = 3000 if units.startswith("msec") else 3
    assert decode_times(np.array([number]), {"units": units}, "rain")[0] == np.datetime64("2024-06-01T00:00:03", "ns")


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
        ("days since 0001-01-01", "standard"),
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


@pytest.mark.parametrize("packing", [{"scale_factor": 5}, {"add_offset": 60}])
def test_packed_times_are_refused(packing):
    with pytest.raises(InputError, match=r"time axis of rain is packed .*expected times as they are"):
        decode_times(np.arange(3), {"units": "minutes since 2024-06-01", **packing}, "rain")
