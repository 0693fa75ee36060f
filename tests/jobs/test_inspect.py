"""What is shown of a store that others have written."""

import re
import warnings

import numpy as np
import pytest
import xarray as xr

from jobs.inspect import describe


@pytest.mark.parametrize("consolidated", [True, False])
def test_a_store_is_shown_whatever_its_times_are_called_and_without_a_warning(tmp_path, consolidated):
    times = np.datetime64("2024-06-01T12:00", "ns") + np.arange(3) * np.timedelta64(5, "m")
    coordinates = {"t": ("t", times, {"standard_name": "time"}), "y": np.arange(4.0), "x": np.arange(5.0)}
    rain = xr.DataArray(np.zeros((3, 4, 5), np.float32), coordinates, ("t", "y", "x"), attrs={"units": "mm/h"})
    path = str(tmp_path / "radar.zarr")
    rain.to_dataset(name="rain").to_zarr(path, zarr_format=2, consolidated=consolidated)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = describe(path)
    assert facts["t"] == "2024-06-01T12:00:00Z to 2024-06-01T12:10:00Z, 3 of them"
    assert facts["rain"].startswith("(t 3, y 4, x 5) float32, no standard_name, mm/h")


@pytest.mark.parametrize(
    ("numbers", "attributes", "says"),
    [
        ([0, 5], {"units": "minutes since 2024-06-01", "calendar": "noleap"}, "2 of them; the time axis of .*'noleap'"),
        ([42639 + 905 / 1440, 42640.0], {"units": "days since 1900-01-01"}, "2016-09-28T15:05:00Z to .*-29T00:00:00Z"),
    ],
)
def test_times_are_shown_as_a_run_reads_them_or_with_the_reason_why_it_does_not(tmp_path, numbers, attributes, says):
    rain = xr.Dataset({"rain": (("time", "y", "x"), np.zeros((2, 4, 5)))}, {"time": ("time", numbers, attributes)})
    rain.to_zarr(tmp_path / "radar.zarr", zarr_format=2)
    facts = describe(str(tmp_path / "radar.zarr"))
    assert re.match(says, facts["time"])
    assert facts["rain"].startswith("(time 2, y 4, x 5)")
