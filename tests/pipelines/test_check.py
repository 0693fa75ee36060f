"""A product that does not fit its store, its model or its disk is told so before it runs, everything at once."""

import os
import shutil
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from pipelines.check import check_product, largest_cycle_bytes, packed_range
from pipelines.errors import InputError
from pipelines.layout import choose_layout
from pipelines.model_space import ModelSpace
from pipelines.planner import Needs
from pipelines.product import OutputSpec, Packing
from pipelines.source import open_source
from pipelines.transform import Encoder, ModelNeeds
from pipelines.units import Quantity

MINUTE = timedelta(minutes=1)
RAIN = Quantity("lwe_precipitation_rate", "mm h-1")
LEADS = tuple(5 * n * MINUTE for n in range(1, 19))
MODEL = ModelNeeds("advection", "1.0", 3, 5 * MINUTE, RAIN, ModelSpace(), LEADS, RAIN, ModelSpace())
TILE = Needs(radius=4, stride=2, bytes_per_cell=100.0)


@pytest.fixture
def problems(frames, tmp_path):
    """The problems of a product, a store and a model, as a reader sees them."""

    def find(needs=MODEL, tile=TILE, store=None, **changes):
        path = frames.write(tmp_path / "radar.zarr", **(store or {}))
        product = frames.product(path, str(tmp_path / "forecasts"), **changes)
        return [str(problem) for problem in check_product(product, open_source(product.input), needs, tile)]

    return find


def test_a_product_that_fits_has_no_problem(problems):
    assert problems() == []


def test_the_last_frames_fit_if_the_store_steps_as_the_model_does(problems):
    assert problems(history={"last": 3}) == []


def minutes(*numbers):
    return {"time": (np.array(numbers), {"units": "minutes since 2024-06-01"})}


UNEVEN = np.arange(41.0) + (np.arange(41) == 7) * 0.5
MISFITS = {
    "an uneven coordinate": (
        {"store": {"axes": {"x": (UNEVEN, {"units": "m"})}}},
        "input.store: coordinate 'x' is not regular: cell 7 is at 7.5, not 7; expected even steps",
    ),
    "a coordinate that stands still": (
        {"store": {"axes": {"x": (np.ones(41), {"units": "m"})}}},
        "input.store: coordinate 'x' is not regular: it starts and ends at 1; expected even steps",
    ),
    "units that are no length": (
        {"store": {"axes": {"x": (np.arange(41.0), {"units": "rad"})}}, "model": {"package": "builtin:advection"}},
        "input.store: coordinate 'x' has units 'rad'; expected m, km or degrees, by which builtin:advection knows",
    ),
    "too few frames": (
        {"history": ["-5min", "0min"]},
        "input.history: 2 frame(s); expected 3 for the model advection 1.0",
    ),
    "frames too far apart": (
        {"history": ["-20min", "-10min", "0min"]},
        "input.history: frames 10min apart; expected 5min for the model advection 1.0",
    ),
    "a store that steps otherwise": (
        {"history": {"last": 3}, "store": {"axes": minutes(0, 2, 4, 6, 8, 10)}},
        "input.history: frames 2min apart; expected 5min for the model advection 1.0",
    ),
    "other units": (
        {"store": {"fill_value": 0, "attributes": {"standard_name": "rainfall_rate", "units": "mm"}}},
        "found rainfall_rate in mm; expected lwe_precipitation_rate in mm h-1, or units that convert to them",
    ),
    "another quantity": (
        {"store": {"fill_value": 0, "attributes": {"standard_name": "eastward_wind", "units": "m s-1"}}},
        "does not fit the model advection 1.0: found eastward_wind in m s-1; expected lwe_precipitation_rate in mm h-1",
    ),
    "sums": (
        {"store": {"fill_value": 0, "attributes": {"units": "mm"}}},
        "for sums of 5 minutes, say, write input.attributes: {standard_name: lwe_precipitation_rate, units: mm/(5 min",
    ),
    "reflectivity": (
        {"store": {"fill_value": 0, "attributes": {"units": "dBZ"}}}, "from reflectivity write input.convert: zr"
    ),
    "reflectivity without a Z-R relation": (
        {"store": {"fill_value": 0, "attributes": {"units": "dBZ"}}, "convert": "zr"},
        "write those of your radars, such as input.attributes: {zr_a: 200, zr_b: 1.6}",
    ),
    "no units": (
        {"store": {"fill_value": 0, "attributes": {}}},
        "found no standard_name in no units; expected lwe_precipitation_rate in mm h-1, or units that convert to them; "
        "if the store is wrong or silent, write what is true, such as input.attributes: {units: mm h-1}",
    ),
    "no reflectivity to convert": ({"convert": "zr"}, "zr expects equivalent_reflectivity_factor in dBZ"),
    "a lead time that the model does not make": (
        {"lead_times": ["5min", "7min", "2h"]},
        "lead_times: 7min, 2h not made by the model advection 1.0; expected some of 5min, 10min, 15min, ..., 90min",
    ),
    "another version": (
        {"model": {"package": "builtin:advection", "version": "2.0"}},
        "model.version: 2.0, but the package holds 1.0; expected 1.0",
    ),
    "a halo below the radius": ({"tiling": {"halo": 2}}, "tiling: halo 2 is less than the model's receptive radius 4"),
    "a tile that is no multiple of the stride": (
        {"tiling": {"tile": [17, 16], "halo": 4}},
        "tiling: tile (17, 16) is not a multiple of the model's stride 2; use [18, 16]",
    ),
    "too little memory": ({"tiling": {"memory": 100}}, "tiling: no tile fits"),
}  # fmt: skip


def test_a_newest_frame_that_makes_no_sense_is_named(frames, problems):
    codes = frames.codes()
    codes[-1, 0, 0] = -3
    (found,) = problems(store={"codes": codes})
    assert "input.variable: frame 2024-06-01T12:25Z of 'rain' in " in found
    assert "has values down to -0.3 mm h-1" in found


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_frames_that_consolidated_metadata_does_not_show_are_named(frames, tmp_path, zarr_format):
    path = frames.write(tmp_path / "radar.zarr", zarr_format=zarr_format)
    product = frames.product(path, str(tmp_path / "forecasts"))
    assert check_product(product, open_source(product.input), MODEL, TILE) == []
    rain = zarr.open_group(path, mode="r+", use_consolidated=False)["rain"]
    rain.append(frames.codes(2))
    (found,) = map(str, check_product(product, open_source(product.input), MODEL, TILE))
    assert "holds 2 frame(s) that its consolidated metadata does not show; expected a writer that renews it" in found


def test_a_grid_across_the_meridian_is_regular(problems):
    degrees = {"y": (np.arange(30.0) / 10 + 40, {"units": "degrees_north"})}
    across = (359 + np.arange(41) / 10) % 360
    assert problems(store={"axes": degrees | {"x": (across, {"units": "degrees_east"})}}) == []


def test_coordinates_in_float32_are_regular(problems):
    fine = (230 + np.arange(41) / 1000).astype(np.float32)
    assert problems(store={"axes": {"x": (fine, {"units": "degrees_east"})}}) == []


def test_units_that_are_no_length_matter_only_to_a_model_made_for_the_cells(problems):
    assert problems(store={"axes": {"x": (np.arange(41.0), {"units": "rad"})}}) == []


@pytest.mark.parametrize(("changes", "message"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_is_named(problems, changes, message):
    found = problems(**changes)
    assert len(found) == 1
    assert message in found[0]


def test_rain_is_not_made_for_a_model_of_reflectivity(problems):
    reflectivity = replace(MODEL, quantity=Quantity("equivalent_reflectivity_factor", "dBZ"))
    store = {"fill_value": 0, "attributes": {"units": "dBZ", "zr_a": 223, "zr_b": 1.53}}
    (found,) = problems(reflectivity, store=store, convert="zr")
    assert "for a model of reflectivity leave out input.convert" in found


def output(**changes):
    return {"output": {"store": "/tmp", "variable": "rain_rate", **changes}}


OUTPUTS = {
    "a range too small": (
        output(packing={"dtype": "uint8", "scale_factor": 0.1}),
        "output.packing: holds 0 to 25.4; expected a range that holds 0 to 150",
    ),
    "a range without zero": (
        output(packing={"dtype": "uint16", "scale_factor": 0.01, "add_offset": 0.5}),
        "output.packing: holds 0.5 to 655.84; expected a range that holds 0 to 150",
    ),
    "a step too coarse": (
        output(packing={"scale_factor": 0.5}), "output.packing.scale_factor: 0.5; expected at most 0.1"
    ),
    "a range in other units": (
        output(attributes={"units": "m s-1"}), "output.packing.scale_factor: 0.01; expected at most 2.77778e-08"
    ),
    "units that do not fit": (
        output(attributes={"units": "K"}), "output.attributes: output.attributes do not fit the output of the model"
    ),
    "chunks that do not divide the shards": (output(shards=[32, 32], chunks=[5, 8]), "output.shards: chunk 5 along y"),
    "a name that is no name": (output(variable="rain rate"), "output.shards: output.variable 'rain rate'"),
    "a web server": (output(store="https://host/out"), "output.store: no forecasts can be kept at https://host; a"),
    "a folder of no root": (output(store="file://out"), "output.store: no forecasts can be kept at file://out"),
    "a URL of no bucket": (output(store="s3:///out"), "output.store: no forecasts can be kept at s3://; expected"),
    "a file": (output(store=__file__), f"output.store: {__file__} is a file; expected a folder"),
    "below a file": (output(store=__file__ + "/out"), f"output.store: {__file__} is a file; expected a folder"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_that_cannot_hold_the_forecast_is_named(problems, changes, message):
    found = problems(**changes)
    assert len(found) == 1
    assert message in found[0]


def test_reflectivity_needs_room_below_zero(problems):
    model = replace(MODEL, output_quantity=Quantity("equivalent_reflectivity_factor", "dBZ"))
    packing = {"dtype": "uint8", "scale_factor": 0.5}
    assert problems(model, **output(packing=packing)) == [
        "output.packing: holds 0 to 127; expected a range that holds -30 to 70"
    ]
    assert problems(model, **output(packing=packing | {"add_offset": -32.0})) == []


def test_a_forecast_is_not_written_into_the_store_that_is_read(frames, tmp_path):
    path = frames.write(tmp_path / "radar.zarr")
    product = frames.product(path, path + "/forecasts")
    (problem,) = check_product(product, open_source(product.input), MODEL, TILE)
    assert "lies in the store that is read" in str(problem)


def test_an_object_store_is_asked_whether_it_takes_forecasts(problems, tmp_path, monkeypatch):
    assert problems(**output(store=f"file://{tmp_path}/bucket")) == []
    monkeypatch.setattr("pipelines.objects.create", lambda url, data: True)
    (problem,) = problems(**output(store=f"file://{tmp_path}/bucket"))
    assert problem.startswith(f"output.store: the store of file://{tmp_path}/bucket/rain overwrites")


def test_a_forecast_is_not_written_into_the_bucket_store_that_is_read(frames, tmp_path):
    path = "file://" + frames.write(tmp_path / "radar.zarr")
    product = frames.product(path, path + "/forecasts")
    (problem,) = check_product(product, open_source(product.input), MODEL, TILE)
    assert "lies in the store that is read" in str(problem)


def test_a_forecast_is_not_written_into_the_memory_of_one_process(frames, tmp_path):
    product = frames.product(frames.write(tmp_path / "radar.zarr"), "memory:///forecasts")
    (problem,) = check_product(product, open_source(product.input), MODEL, TILE)
    assert "is in the memory of one process; expected a place that all workers see" in str(problem)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_named(frames, tmp_path):
    (tmp_path / "forecasts").mkdir(mode=0o555)
    product = frames.product(frames.write(tmp_path / "radar.zarr"), str(tmp_path / "forecasts"))
    (problem,) = check_product(product, open_source(product.input), MODEL, TILE)
    assert "cannot be written" in str(problem)


def test_a_folder_that_the_system_says_cannot_be_written_is_named(problems, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written; expected a folder with write permission" in problems()[0]


def test_a_disk_without_room_for_a_cycle_is_named(problems, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    (problem,) = problems()
    assert problem.startswith("output.store: 0 MB free at ")
    assert problem.endswith("a cycle that does not compress")


def test_the_largest_cycle_holds_every_code_of_every_shard():
    layout = choose_layout((30, 41), 6, OutputSpec(store="", variable="rain", shards=(32, 32), chunks=(16, 16)))
    codes = 2 * 6 * 32 * 32 * 2
    assert largest_cycle_bytes(layout) == codes + 2 * (24 * (4 + 16) + 4)


@pytest.mark.parametrize("name", ["init_time", "lead_time", "valid_time", "y", "x", "crs"])
def test_a_variable_named_as_a_coordinate_is_a_problem(frames, tmp_path, name):
    product = frames.product(frames.write(tmp_path / "radar.zarr"), str(tmp_path / "forecasts"))
    product = product.model_copy(update={"output": product.output.model_copy(update={"variable": name})})
    source = open_source(product.input)
    source = replace(source, grid=replace(source.grid, crs_name="crs"))
    (problem,) = check_product(product, source, MODEL, TILE)
    assert str(problem) == (
        f"output.variable: {name} would name two arrays of the forecast store; rename output.variable"
    )


def test_lead_times_of_parts_of_a_second_are_a_problem(problems):
    lead = timedelta(seconds=1.5)
    assert problems(replace(MODEL, leads=(lead,)), lead_times=[lead]) == [
        "lead_times: lead time 1.5 s is not a whole number of seconds"
    ]


def test_the_packed_range_leaves_the_fill_code_out():
    assert packed_range(Encoder(Packing(dtype="int16", scale_factor=1.0))) == (-32767, 32767)
    assert packed_range(Encoder(Packing(dtype="uint8", scale_factor=1.0, add_offset=-10))) == (-10, 244)


def test_a_store_and_a_model_that_cannot_be_opened_are_both_named(frames, tmp_path):
    product = frames.product(str(tmp_path / "none.zarr"), str(tmp_path / "forecasts"), model={"package": "none"})
    found = check_product(product, InputError("no store"), ValueError("no package"), None)
    assert [str(problem) for problem in found] == ["input.store: no store", "model.package: no package"]


def test_every_problem_is_named_at_once(problems):
    found = problems(
        history=["-10min", "0min"],
        lead_times=["7min"],
        tiling={"halo": 1},
        store={"axes": {"x": (UNEVEN, {"units": "m"})}, "attributes": {"units": "K", "_FillValue": -32768}},
        **output(packing={"scale_factor": 1.0}),
    )
    keys = [problem.partition(":")[0] for problem in found]
    assert keys == [
        "tiling",
        "input.store",
        "lead_times",
        "output.packing.scale_factor",
        "input.history",
        "input.history",
        "input.variable",
    ]


def test_a_history_that_is_not_there_is_a_problem(problems):
    (problem,) = problems(store={"axes": minutes(0, 5, 10, 15, 25, 30)})
    assert problem.startswith("input.history: frame 2024-06-01T00:20Z (-10min) of 'rain'")
