"""What plain readers make of the metadata, and what is refused before anything is written."""

import json
import warnings
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import xarray as xr

from pipelines.cf import Provenance, add_attributes, as_json, store_files
from pipelines.errors import ConfigError

ATTRIBUTES = {"standard_name": "lwe_precipitation_rate", "units": "mm h-1"}


def files(shelf, **changes):
    arguments = {
        "product": "rain",
        "reference_time": np.datetime64("2016-09-28T15:30", "ns"),
        "grid": shelf.grid,
        "lead_times": shelf.leads,
        "layout": shelf.layout,
        "attributes": ATTRIBUTES,
        "provenance": shelf.provenance,
    }
    return store_files(**(arguments | changes))


@pytest.fixture
def plain(shelf):
    """A published cycle as xarray opens it with no help; a warning is a failure."""
    cycle = shelf.publish("2016-09-28T15:30")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_zarr(cycle.path, chunks=None)


def test_plain_xarray_reads_times(plain):
    assert plain.init_time.values == np.datetime64("2016-09-28T15:30", "ns")
    assert plain.lead_time.values.tolist() == [timedelta(minutes=5) // timedelta(microseconds=1) * 1000, 600 * 10**9]
    assert plain.lead_time.dtype == "timedelta64[ns]"
    assert (plain.valid_time.values == [np.array(["2016-09-28T15:35", "2016-09-28T15:40"], "M8[ns]")]).all()


def test_plain_xarray_reads_coordinates_units_and_grid_mapping(plain, shelf):
    assert plain.rain_rate.dims == ("init_time", "lead_time", "y", "x")
    assert (plain.y.values == shelf.grid.y).all()
    assert (plain.x.values == shelf.grid.x).all()
    assert plain.rain_rate.attrs["units"] == "mm h-1"
    assert set(plain.rain_rate.coords) == {"init_time", "lead_time", "valid_time", "y", "x"}
    assert plain.rain_rate.attrs["grid_mapping"] == "crs"
    assert plain.crs.attrs == shelf.grid.crs_attrs


def test_plain_xarray_reads_values_and_missing(plain, shelf):
    codes = shelf.codes()
    expected = np.where(codes == -32768, np.nan, codes * 0.01)
    np.testing.assert_array_equal(plain.rain_rate.values[0], expected)


def test_cf_names_and_axes_are_there(plain):
    names = {name: plain[name].attrs.get("standard_name") for name in plain.variables}
    assert names["init_time"] == "forecast_reference_time"
    assert names["lead_time"] == "forecast_period"
    assert names["valid_time"] == "time"
    assert [plain[name].attrs.get("axis") for name in ("init_time", "y", "x")] == ["T", "Y", "X"]
    assert plain.attrs["Conventions"] == "CF-1.11"


def test_the_fill_value_has_the_type_of_the_codes(shelf):
    document = json.loads(files(shelf)["rain_rate/zarr.json"])
    assert document["fill_value"] == document["attributes"]["_FillValue"] == -32768
    assert "add_offset" not in document["attributes"]


def test_provenance_can_be_read_back(shelf):
    provenance = Provenance(
        "name: rain\n", "advection 1.0", "ort cpu", {"zarr": "3", "squall": "0.1"}, "in.zarr",
        (np.datetime64("2016-09-28T15:25", "ns"), np.datetime64("2016-09-28T15:30", "ns")),
    )  # fmt: skip
    root = json.loads(files(shelf, provenance=provenance)["zarr.json"])["attributes"]
    assert root["squall_versions"] == "squall 0.1, zarr 3"
    assert root["squall_frame_times"] == "2016-09-28T15:25:00 2016-09-28T15:30:00"
    assert root["squall_product"] == "name: rain\n"
    assert "squall_missing_frame_times" not in root
    late = replace(provenance, missing_times=provenance.frame_times[:1])
    root = json.loads(files(shelf, provenance=late)["zarr.json"])["attributes"]
    assert root["squall_missing_frame_times"] == "2016-09-28T15:25:00"


def test_lead_times_off_the_minute_are_kept_in_seconds(shelf):
    leads = (timedelta(seconds=90), timedelta(minutes=3))
    document = json.loads(files(shelf, lead_times=leads)["lead_time/zarr.json"])
    assert document["attributes"]["units"] == "seconds"


def test_numpy_attributes_of_a_source_become_json(shelf):
    grid = replace(shelf.grid, crs_attrs={"standard_parallel": np.array([50.0, 60.0]), "n": np.int64(2)})
    document = json.loads(files(shelf, grid=grid)["crs/zarr.json"])
    assert document["attributes"] == {"standard_parallel": [50.0, 60.0], "n": 2}


def test_coordinates_name_no_variable_that_is_not_there(shelf):
    grid = replace(shelf.grid, y_attrs={"units": "m", "bounds": "y_bnds"})
    document = json.loads(files(shelf, grid=grid)["y/zarr.json"])
    assert document["attributes"] == {"axis": "Y", "units": "m"}


def test_a_grid_without_a_mapping_names_none(shelf):
    found = files(shelf, grid=replace(shelf.grid, crs_name=None))
    assert "grid_mapping" not in json.loads(found["rain_rate/zarr.json"])["attributes"]
    assert not [key for key in found if key.startswith("crs")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": {"long_name": "rain"}}, "'rain_rate' has no units"),
        ({"lead_times": (timedelta(minutes=5),)}, r"\(2, 20, 13\); the forecast has \(1, 20, 13\)"),
        ({"lead_times": (timedelta(seconds=1.5), timedelta(minutes=5))}, "not a whole number of seconds"),
    ],
)
def test_what_does_not_fit_is_refused(shelf, changes, message):
    with pytest.raises(ConfigError, match=message):
        files(shelf, **changes)


def test_a_name_used_twice_is_refused(shelf):
    with pytest.raises(ConfigError, match="rain_rate would name two arrays"):
        files(shelf, grid=replace(shelf.grid, crs_name="rain_rate"))


def test_a_template_filled_in_for_each_cycle_gives_documents_as_written_in_one_piece(shelf):
    for name, data in files(shelf).items():
        if name.endswith("zarr.json"):
            assert data == as_json(json.loads(data))


def test_attributes_are_added_without_parsing_the_arrays(shelf):
    root = files(shelf)["zarr.json"]
    group = json.loads(root)
    group["attributes"] |= {"squall_note": 'two\nlines, "quoted",\n "consolidated_metadata": '}
    found = add_attributes(root, {"squall_note": 'two\nlines, "quoted",\n "consolidated_metadata": '})
    assert found == as_json(group)
    assert add_attributes(found, {}) == found
