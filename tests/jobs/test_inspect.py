"""What is shown of a store that others have written."""

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
