"""Frames are found by their times and read as they are stored, whatever the layout of the store."""

import http.server
import pickle
import shutil
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from pipelines.encoding import Encoding, count_missing, is_missing, read_encoding, unpack
from pipelines.errors import CorruptInputError, InputError, NotYetError, RewrittenError
from pipelines.frames import find_nearest, text_of, usual_step
from pipelines.grid import Window
from pipelines.source import Part, arrived, check_missing, cut, find_inputs, open_source

DATA = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.exists(), reason="the real radar data lies beside the repository, not in it")
HALO = Window(-3, 25, 10, 50)

RAIN = {"standard_name": "rainfall_rate", "units": "mm h-1", "scale_factor": 0.1, "_FillValue": -32768}

LAYOUTS = {
    "v3": {},
    "v3 not consolidated": {"consolidated": False},
    "v3 chunks": {"chunks": (1, 8, 16)},
    "v3 several frames a chunk": {"chunks": (4, 8, 41)},
    "v3 shards": {"chunks": (1, 8, 16), "shards": (1, 32, 48)},
    "v3 crc32c": {"compressors": [ZstdCodec(level=1), Crc32cCodec()]},
    "v3 big-endian": {"dtype": ">i2"},
    "v2": {"zarr_format": 2},
    "v2 not consolidated": {"zarr_format": 2, "consolidated": False},
    "v2 F-order": {"zarr_format": 2, "order": "F", "chunks": (2, 8, 16)},
    "v2 big-endian": {"zarr_format": 2, "dtype": ">i2"},
    "v2 raw": {"zarr_format": 2, "compressors": None},
}


def wanted(codes, indices, window):
    """What a read must give, cell by cell."""
    y, x = np.mgrid[window.y0 : window.y1, window.x0 : window.x1]
    inside = (y >= 0) & (y < codes.shape[1]) & (x >= 0) & (x < codes.shape[2])
    picked = codes[list(indices)][:, y.clip(0, codes.shape[1] - 1), x.clip(0, codes.shape[2] - 1)]
    return np.where(inside, picked, -32768)


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_reads_the_same(frames, tmp_path, options):
    product = frames.product(frames.write(tmp_path / "radar.zarr", **options))
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    raw = source.read(cycle, HALO)
    assert raw.dtype == np.int16
    np.testing.assert_array_equal(raw, wanted(frames.codes(), (3, 4, 5), HALO))
    assert source.encoding.fill == -32768
    assert source.encoding.scale_factor == 0.1
    assert source.grid.crs_attrs == {"crs_wkt": "PROJCRS[]"}


DIMS = ("time", "y", "x")
ORDERS = {
    "GPM: x before y": ("time", "x", "y"),
    "time last": ("y", "x", "time"),
    "time between": ("x", "time", "y"),
    "a level": ("time", "height", "y", "x"),
    "a band without coordinate, last": ("time", "x", "y", "band"),
}


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_dims_in_any_order_read_the_same(frames, tmp_path, order, consolidated):
    more = [name for name in order if name not in DIMS]
    codes = frames.codes()
    codes[2] = -32768  # of which nothing is stored
    stored = codes.reshape((*codes.shape, *(1 for _ in more)))
    stored = stored.transpose([[*DIMS, *more].index(name) for name in order])
    axes = {
        "time": (np.arange(6) * 300, {"units": "seconds since 2024-06-01T12:00"}),
        "y": (np.arange(30.0)[::-1] * 1000, {"units": "m"}),
        "x": (np.arange(41.0) * 1000, {"units": "m"}),
        "height": (np.full(1, 10.0), {"units": "m"}),
    }
    axes = {name: axes.get(name) for name in order}
    chunks = tuple({"time": 1, "y": 8, "x": 16}.get(name, 1) for name in order)
    path = frames.write(
        tmp_path / "radar.zarr", stored, dims=order, axes=axes, chunks=chunks, consolidated=consolidated
    )
    product = frames.product(path)
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    assert source.grid.shape == (30, 41)
    assert source.chunks == (1, 8, 16)
    np.testing.assert_array_equal(source.read(cycle, HALO), wanted(codes, (3, 4, 5), HALO))
    assert [source.is_stored(index) for index in range(6)] == [True, True, False, True, True, True]
    assert len(source.refresh().times) == 6


QUARTER = np.timedelta64(15, "m")


def laid_out(frames, path, stored, **options):
    """A source of six frames 5 minutes apart, of which only some were written."""
    codes = frames.codes()
    codes[[n for n in range(6) if n not in stored]] = options.get("fill_value", -32768)
    return open_source(frames.product(frames.write(path / "radar.zarr", codes, **options)).input)


@pytest.mark.parametrize(
    ("stored", "now", "newest"),
    [
        ((0, 1, 2, 3), "12:07", "12:15"),  # laid out ahead
        ((0, 1, 2, 3), "12:16", "12:15"),  # by less than clocks may differ by
        ((0, 1, 2, 3), "12:24", "12:15"),
        ((0, 1, 3), "11:55", "12:05"),  # a frame of a time to come is not one that has arrived
        ((0, 1, 2, 3), "12:25", "12:25"),  # the newest frame is late
        ((0, 1, 2, 3, 5), "11:57", "12:25"),  # a frame of a time to come, refused elsewhere
    ],
)
def test_where_the_time_axis_is_laid_out_ahead_the_newest_frame_is_the_last_one_stored(
    frames, tmp_path, stored, now, newest
):
    source = laid_out(frames, tmp_path, stored)
    found = arrived(source, np.datetime64(f"2024-06-01T{now}", "ns"), QUARTER)
    assert found.times[-1] == np.datetime64(f"2024-06-01T{newest}", "ns")
    assert len(arrived(source.refresh(), source.times[-1], QUARTER).times) == 6


def test_an_axis_ahead_of_no_frames_says_so(frames, tmp_path):
    source = laid_out(frames, tmp_path, ())
    with pytest.raises(NotYetError, match=r"goes on to 2024-06-01T12:25Z, but nothing is stored of the last 3 frames"):
        arrived(source, np.datetime64("2024-06-01T11:57", "ns"), QUARTER)


@pytest.mark.parametrize("options", [{"chunks": (4, 8, 41)}, {"chunks": (1, 8, 16), "shards": (2, 32, 48)}])
@pytest.mark.parametrize("fill", [-32768, 0])
def test_an_axis_ahead_of_frames_that_share_chunks_is_refused_for_they_would_read_as_rain_of_the_fill_value(
    frames, tmp_path, options, fill
):
    source = laid_out(frames, tmp_path, (0, 1, 2, 3, 4), fill_value=fill, **options)
    now = np.datetime64("2024-06-01T12:21", "ns")
    assert source.is_stored(5)
    with pytest.raises(InputError, match=r"goes on to 2024-06-01T12:25Z, and \d frames share a chunk.*--time"):
        arrived(source, now, QUARTER)
    there = laid_out(frames, tmp_path, range(6), fill_value=fill, **options)
    assert arrived(there, now, QUARTER) is there


@pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, {"dims": ("x", "y", "time")}])
@pytest.mark.parametrize("fill", [np.nan, -1.0, 0.0])
def test_a_frame_of_nothing_but_the_fill_value_is_blank(frames, tmp_path, options, fill):
    codes = frames.codes().astype(np.float32)
    codes[2] = fill
    codes = codes.T.copy() if "dims" in options else codes
    axes = {"time": (np.arange(6) * 300, {"units": "seconds since 2024-06-01"})} if "dims" in options else {}
    if "dims" in options:
        axes |= {"y": (np.arange(30) * 1000.0, {"units": "m"}), "x": (np.arange(41) * 1000.0, {"units": "m"})}
    attributes = {"units": "mm h-1", "_FillValue": -32768.0}
    store = frames.write(
        tmp_path / "radar.zarr", codes, frames.every(5, 6), attributes, fill_value=fill, axes=axes, **options
    )
    source = open_source(frames.product(store).input)
    assert [source.is_blank(index) for index in range(6)] == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("y", "x", "y_attributes", "x_attributes"),
    [
        ("south_north", "west_east", {}, {}),
        ("Y", "X", {}, {}),
        ("row", "column", {"units": "degrees_north"}, {"units": "degrees_east"}),
        ("row", "column", {"axis": "Y"}, {"axis": "X"}),
        ("row", "column", {"standard_name": "grid_latitude"}, {"standard_name": "grid_longitude"}),
    ],
)
def test_dims_are_known_by_what_their_coordinates_say(frames, tmp_path, y, x, y_attributes, x_attributes):
    axes = {y: (np.arange(30.0), y_attributes), x: (np.arange(41.0), x_attributes)}
    path = frames.write(tmp_path / "radar.zarr", dims=("when", y, x), axes=axes)
    grid = open_source(frames.product(path).input).grid
    assert (grid.y_name, grid.x_name) == (y, x)


@pytest.mark.parametrize("of_store", [True, False])
def test_a_crs_without_a_variable_of_its_own_is_kept(frames, tmp_path, of_store):
    proj4 = {"proj4": "+proj=stere +lat_0=90 +lon_0=10"}
    attributes = frames.attributes | {"grid_mapping": "nothing"} | ({} if of_store else proj4)
    path = frames.write(tmp_path / "radar.zarr", attributes=attributes, consolidated=False)
    group = zarr.open_group(path, mode="r+")
    group.attrs.update(proj4 if of_store else {"title": "rain"})
    assert open_source(frames.product(path).input).grid.crs_attrs == {"crs_wkt": "PROJCRS[]"}
    del group["crs"]
    grid = open_source(frames.product(path).input).grid
    assert (grid.crs_name, grid.crs_attrs) == ("crs", proj4)


@given(st.data())
@settings(max_examples=30)
def test_any_window_of_the_parts_that_it_meets_is_what_a_read_gives(frames_once, data):
    source, cycle, whole = frames_once
    first = Window(0, data.draw(st.integers(0, 40)), 0, data.draw(st.integers(0, 50)))
    parts = data.draw(st.sampled_from([*(source.parts(first, least) for least in (1, 8, 99)), (source.grid.window,)]))
    y0, x0 = data.draw(st.integers(-40, 40)), data.draw(st.integers(-50, 50))
    window = Window(y0, y0 + data.draw(st.integers(0, 40)), x0, x0 + data.draw(st.integers(0, 50)))
    expected = wanted(whole, range(3), window)
    met = [Part(part, whole[:, *part.slices]) for part in parts if window.clip(part).cells]
    if met:
        np.testing.assert_array_equal(cut(met, window, source.encoding.fill), expected)
    np.testing.assert_array_equal(source.read(cycle, window), expected)


@pytest.fixture(scope="module")
def frames_once(tmp_path_factory, request):
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).with_name("conftest.py")))
    store = conftest.write_frames(tmp_path_factory.mktemp("once") / "radar.zarr", chunks=(1, 8, 16))
    product = conftest.make_product(store)
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    return source, cycle, source.read_frames(cycle)


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.integers(-3, 8), st.integers(-3, 14))
def test_cells_that_are_in_no_part_hold_the_fill(there, y0, x0):
    cells = np.arange(2 * 9 * 12, dtype=np.int16).reshape(2, 9, 12)
    windows = [Window(y, y + 3, x, x + 3) for y in range(0, 9, 3) for x in range(0, 12, 3)]
    parts = [Part(w, cells[:, *w.slices]) for w, is_there in zip(windows, there, strict=True) if is_there]
    if not parts:
        return
    known = np.full((2, 40, 40), -1, np.int16)
    for part in parts:
        known[:, *(slice(s.start + 10, s.stop + 10) for s in part.window.slices)] = part.raw
    expected = known[:, y0 + 10 : y0 + 17, x0 + 10 : x0 + 15]
    np.testing.assert_array_equal(cut(parts, Window(y0, y0 + 7, x0, x0 + 5), -1), expected)


def test_a_window_inside_one_part_is_cut_without_a_copy():
    parts = [Part(Window(y, y + 10, 0, 41), np.zeros((3, 10, 41), np.int16)) for y in (0, 10, 20)]
    assert np.shares_memory(cut(parts, Window(12, 19, 3, 9), -1), parts[1].raw)


def test_a_frame_that_is_not_there_is_filled(frames, tmp_path):
    product = frames.product(
        frames.write(tmp_path / "radar.zarr", times=np.delete(frames.every(5, 7), 5)), missing_frame="use_available"
    )
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    assert cycle.frame_indices == (4, None, 5)
    assert cycle.missing_times == (np.datetime64("2024-06-01T12:25"),)
    raw = source.read(cycle, source.grid.window)
    assert (raw[1] == -32768).all()
    np.testing.assert_array_equal(raw[[0, 2]], frames.codes()[[4, 5]])


def test_frames_are_found_by_time_and_not_by_position(frames, tmp_path):
    product = frames.product(frames.write(tmp_path / "radar.zarr"), history=["-20min", "-5min", "0min"])
    cycle = find_inputs(open_source(product.input), product, np.datetime64("2024-06-01T12:20"))
    assert cycle.frame_indices == (0, 3, 4)
    assert cycle.reference_time == np.datetime64("2024-06-01T12:20")


def test_frames_within_the_tolerance_are_taken_at_their_own_times(frames, tmp_path):
    late = frames.every(5, 6) + np.timedelta64(20, "s")
    product = frames.product(frames.write(tmp_path / "radar.zarr", times=late))
    cycle = find_inputs(open_source(product.input), product, np.datetime64("2024-06-01T12:20"))
    assert cycle.frame_times == tuple(late[2:5])
    assert cycle.reference_time == np.datetime64("2024-06-01T12:20")


def test_the_last_frames_are_a_usual_step_apart(frames, tmp_path):
    product = frames.product(frames.write(tmp_path / "radar.zarr"), history={"last": 4})
    assert find_inputs(open_source(product.input), product).frame_indices == (2, 3, 4, 5)


def test_one_last_frame_needs_no_step(frames, tmp_path):
    product = frames.product(frames.write(tmp_path / "radar.zarr", frames.codes(1)), history={"last": 1})
    assert find_inputs(open_source(product.input), product).frame_indices == (0,)


def test_a_store_that_grew_is_refreshed_and_its_old_times_are_kept(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path, frames.codes(5)))
    source = open_source(product.input)
    frames.write(path, frames.codes(8), times=frames.every(5, 8))
    assert len(source.times) == 5
    grown = source.refresh()
    np.testing.assert_array_equal(grown.times, frames.every(5, 8))
    assert grown.grid is source.grid
    assert find_inputs(grown, product).frame_indices == (5, 6, 7)


def test_a_time_without_its_frame_is_left_out_while_an_append_is_going_on(frames, tmp_path):
    times = (np.arange(7) * 300, {"units": "seconds since 2024-06-01T12:00"})
    product = frames.product(frames.write(tmp_path / "radar.zarr", axes={"time": times}))
    assert find_inputs(open_source(product.input), product).reference_time == np.datetime64("2024-06-01T12:25")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kind", ["<i8", "<f8", "M8[s]"])
def test_an_axis_that_an_append_has_lengthened_but_not_written_yet_ends_before(frames, tmp_path, zarr_format, kind):
    path = tmp_path / "radar.zarr"
    times = frames.every(5, 6).astype("M8[s]").astype(np.int64).astype(kind)
    axis = {"time": (times, {"units": "seconds since 1970-01-01"} if kind != "M8[s]" else {})}
    product = frames.product(frames.write(path, axes=axis, zarr_format=zarr_format, consolidated=False))
    source = open_source(product.input)
    group = zarr.open_group(path, mode="r+")
    for name in ("time", "rain"):
        group[name].resize((8, *group[name].shape[1:]))
    for found in (open_source(product.input), source.refresh()):
        np.testing.assert_array_equal(found.times, frames.every(5, 6))
    group["time"][6] = group["time"][5] + (times[1] - times[0])
    assert len(source.refresh().times) == 7


def test_times_that_are_missing_at_the_end_are_of_frames_to_come(frames, tmp_path):
    path, laid_out = tmp_path / "radar.zarr", {"units": "seconds since 2024-06-01T12:00", "_FillValue": -1}
    product = frames.product(frames.write(path, axes={"time": (np.array([0, 300, 600, -1, -1, -1]), laid_out)}))
    source = open_source(product.input)
    assert find_inputs(source, product).reference_time == np.datetime64("2024-06-01T12:10")
    zarr.open_group(path, mode="r+")["time"][3] = 900
    assert find_inputs(source.refresh(), product).frame_indices == (1, 2, 3)


def test_a_store_that_moved_on_is_refreshed(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    source = open_source(frames.product(frames.write(path)).input)
    frames.write(path, times=frames.every(5, 6, "2024-06-01T12:05"))
    np.testing.assert_array_equal(source.refresh().times, frames.every(5, 6, "2024-06-01T12:05"))


@pytest.mark.parametrize("before", [2, 3])
def test_a_store_that_was_written_anew_in_the_other_format_is_refreshed(frames, tmp_path, before):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path, zarr_format=before))
    source = open_source(product.input)
    shutil.rmtree(path)
    with pytest.raises(InputError, match=r"Zarr store .*radar.zarr is not there$"):
        source.refresh()
    frames.write(path, frames.codes(8), times=frames.every(5, 8), zarr_format=5 - before)
    grown = source.refresh()
    assert grown.metadata.zarr_format == 5 - before
    assert find_inputs(grown, product).frame_indices == (5, 6, 7)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attributes": RAIN | {"scale_factor": 0.2}}, "scale_factor is 0.2, before 0.1"),
        ({"attributes": RAIN | {"add_offset": -1.5}}, "add_offset is -1.5, before 0.0"),
        ({"attributes": RAIN | {"_FillValue": -1}}, "fill is -1, before -32768; missing is (-1,), before (-32768,)"),
        ({"attributes": RAIN | {"units": "m s-1"}}, "units is 'm s-1', before 'mm h-1'"),
        ({"dtype": "int32"}, "dtype is 'int32', before 'int16'"),
    ],
)
def test_a_store_that_was_written_anew_with_other_codes_is_refused(frames, tmp_path, changed, said, zarr_format):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path, zarr_format=zarr_format))
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    shutil.rmtree(path)
    frames.write(path, zarr_format=zarr_format, **changed)
    for use in (source.refresh, lambda: source.read(cycle, HALO)):
        with pytest.raises(RewrittenError) as refused:
            use()
        assert f"'rain' in {path} was written anew since it was opened: {said}" in str(refused.value)
        assert "Start again" in str(refused.value)
    assert find_inputs(open_source(product.input), product) == cycle


def test_other_chunks_are_seen_by_a_refresh_and_refused_by_a_read_that_looks_for_the_old_ones(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path))
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    shutil.rmtree(path)
    frames.write(path, chunks=(1, 8, 16))
    with pytest.raises(RewrittenError, match=r"chunks are \(1, 8, 16\), before \(1, 30, 41\)"):
        source.read(cycle, HALO)
    np.testing.assert_array_equal(source.refresh().read(cycle, HALO), wanted(frames.codes(), cycle.frame_indices, HALO))


def test_another_grid_is_refused(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    source = open_source(frames.product(frames.write(path)).input)
    frames.write(path, frames.codes(shape=(31, 41)))
    with pytest.raises(RewrittenError, match="the grid is 31 x 41, before 30 x 41"):
        source.refresh()


@pytest.mark.parametrize(("start", "is_same"), [(0.0, True), (500.0, False)])
def test_a_grid_whose_dims_have_other_names_may_be_the_same_grid(frames, tmp_path, start, is_same):
    path = tmp_path / "radar.zarr"
    source = open_source(frames.product(frames.write(path)).input)
    easting = start + np.arange(41) * 1000.0, {"units": "m", "standard_name": "projection_x_coordinate"}
    frames.write(path, dims=("time", "y", "easting"), axes={"easting": easting})
    if is_same:
        assert source.refresh().grid.x_name == "easting"
        return
    with pytest.raises(RewrittenError, match="the coordinates of the grid are others"):
        source.refresh()


def test_floats_whose_missing_cells_are_nan_are_what_they_were(frames, tmp_path):
    floats = np.where(frames.codes() < 0, np.nan, frames.codes()).astype(np.float32)
    rain = {"standard_name": "rainfall_rate", "units": "mm h-1"}
    product = frames.product(frames.write(tmp_path / "radar.zarr", floats, attributes=rain, fill_value=np.nan))
    source = open_source(product.input).refresh()
    assert np.isnan(source.encoding.fill)
    source.read(find_inputs(source, product), HALO)


def test_a_chunk_that_is_damaged_in_a_store_that_is_the_same_stays_damaged(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path))
    source = open_source(product.input)
    (path / "rain/c/5/0/0").write_bytes(b"damaged")
    with pytest.raises(CorruptInputError, match="cannot be read"):
        source.read(find_inputs(source, product), HALO)


def test_a_store_that_lost_its_times_is_refused_by_a_refresh(frames, tmp_path):
    path = frames.write(tmp_path / "radar.zarr", consolidated=False)
    source = open_source(frames.product(path).input)
    shutil.rmtree(Path(path, "time"))
    with pytest.raises(InputError, match=r"'time' of 'rain' in .* has no one-dimensional coordinate variable"):
        source.refresh()


def test_a_refresh_reads_the_metadata_and_the_newest_times_and_nothing_else(frames, tmp_path, monkeypatch):
    source, read, get = open_source(frames.product(frames.write(tmp_path / "radar.zarr")).input), [], LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda at, key, *how, **more: read.append(key) or get(at, key, *how, **more))
    source.refresh()
    assert read == ["zarr.json", "time/c/0"]


def test_a_frame_whose_time_came_before_its_data_has_not_arrived(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path, fill_value=0, attributes=frames.attributes))
    (path / "rain/c/5/0/0").unlink()
    with pytest.raises(NotYetError, match=r"frame 2024-06-01T12:25Z .* nothing of it is stored"):
        find_inputs(open_source(product.input), product)


def test_a_source_pickles_small_and_reads_elsewhere(frames, tmp_path):
    product = frames.product(frames.write(tmp_path / "radar.zarr"))
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    source.read(cycle, HALO)
    pickled = pickle.dumps((source, cycle))
    assert len(pickled) < 10_000
    again, same_cycle = pickle.loads(pickled)  # noqa: S301
    assert same_cycle == cycle
    np.testing.assert_array_equal(again.read(cycle, HALO), source.read(cycle, HALO))


@given(st.data())
def test_the_chunks_of_a_window_are_those_that_share_a_cell_with_it(frames_once, data):
    source, _, _ = frames_once
    rows, columns = (sorted(data.draw(st.tuples(*[st.integers(-9, end)] * 2))) for end in (40, 50))
    window = Window(*rows, *columns)
    chunks = [Window(y, y + 8, x, x + 16).clip(source.grid.window) for y in range(0, 30, 8) for x in range(0, 41, 16)]
    assert source.chunks == (1, 8, 16)
    inside = window.clip(source.grid.window)
    assert source.count_chunks(window) == sum(bool(chunk.clip(inside).cells) for chunk in chunks)


def test_parts_are_rows_of_chunks_and_the_first_row_begins_with_small_ones(frames_once):
    source, _, _ = frames_once
    first_row = (Window(0, 8, 0, 16), Window(0, 8, 16, 32), Window(0, 8, 32, 41))
    assert source.parts(Window(0, 5, 0, 7)) == (*first_row, *(Window(y, min(y + 8, 30), 0, 41) for y in (8, 16, 24)))
    assert source.parts(Window(0, 9, 0, 17)) == (
        Window(0, 16, 0, 32), Window(0, 16, 32, 41), Window(16, 30, 0, 41)
    )  # fmt: skip
    assert [len(source.parts(Window(0, 5, 0, 7), least)) for least in (1, 8, 12, 99)] == [6, 9, 12, 12]


@given(bottom=st.integers(0, 30), right=st.integers(0, 41), least=st.integers(1, 40))
def test_parts_are_whole_chunks_and_cover_the_grid(frames_once, bottom, right, least):
    source, _, _ = frames_once
    first = Window(0, bottom, 0, right)
    parts = source.parts(first, least)
    assert sum(source.count_chunks(part) for part in parts) == source.count_chunks(source.grid.window)
    assert sum(part.cells for part in parts) == source.grid.window.cells
    assert parts[0].contains(first)


def test_frames_of_one_chunk_are_one_part(frames, tmp_path):
    source = open_source(frames.product(frames.write(tmp_path / "radar.zarr")).input)
    assert source.parts(Window(0, 5, 0, 5)) == source.parts(Window(0, 5, 0, 5), 8) == (source.grid.window,)


class _Files(http.server.SimpleHTTPRequestHandler):
    """A web server that knows byte ranges, as object stores do."""

    def send_head(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, stop = 0, len(data)
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            stop = min(len(data), int(last) + 1) if first and last else len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Last-Modified", "Sat, 01 Jun 2024 12:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:stop])
        return

    def do_GET(self):
        self.send_head()

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: _Files(*args, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 8, 16), "shards": (1, 32, 48)}, {"consolidated": False}])
def test_a_store_on_a_web_server_reads_the_same(frames, tmp_path, web, options):
    frames.write(tmp_path / "radar.zarr", **options)
    product = frames.product(f"{web}/radar.zarr")
    source = open_source(product.input)
    raw = source.read(find_inputs(source, product), HALO)
    np.testing.assert_array_equal(raw, wanted(frames.codes(), (3, 4, 5), HALO))


def test_a_variable_that_a_web_server_cannot_list_is_still_refused(frames, tmp_path, web):
    frames.write(tmp_path / "radar.zarr", consolidated=False)
    with pytest.raises(InputError, match="no variable 'snow'"):
        open_source(frames.product(f"{web}/radar.zarr", variable="snow").input)


def test_a_store_that_fsspec_knows_reads_the_same(frames):
    url = f"memory://{uuid.uuid4()}/radar.zarr"
    product = frames.product(frames.write(url))
    source = open_source(product.input)
    raw = source.read(find_inputs(source, product), HALO)
    np.testing.assert_array_equal(raw, wanted(frames.codes(), (3, 4, 5), HALO))


ENCODINGS = {
    "int16": (np.dtype("i2"), {"_FillValue": -32768}, None, "int16", -32768),
    "v2 fill only in the array": (np.dtype("u1"), {}, 255, "uint8", 255),
    "the attribute wins over the array's fill": (np.dtype("i2"), {"_FillValue": -1}, 0, "int16", -1),
    "missing_value": (np.dtype("i2"), {"missing_value": -9}, None, "int16", -9),
    "big-endian": (np.dtype(">i2"), {"_FillValue": -1}, None, "int16", -1),
    "nothing is missing, 8 bits": (np.dtype("u1"), {}, None, "int16", -32768),
    "nothing is missing, 16 bits": (np.dtype("u2"), {}, None, "int32", -(2**31)),
    "xarray's base64 of a float": (np.dtype("f8"), {"_FillValue": "AAAAAAAA+H8="}, None, "float64", np.nan),
    "NaN as text": (np.dtype("f4"), {"_FillValue": "NaN"}, None, "float32", np.nan),
    "a float fill": (np.dtype("f4"), {"_FillValue": -9999.9}, None, "float32", float(np.float32(-9999.9))),
    "a list of one": (np.dtype("i2"), {"_FillValue": [-1]}, None, "int16", -1),
}


@pytest.mark.parametrize(("dtype", "attributes", "chunk_fill", "read_as", "fill"), ENCODINGS.values(), ids=ENCODINGS)
def test_the_missing_code_is_found(dtype, attributes, chunk_fill, read_as, fill):
    encoding = read_encoding(dtype, attributes, chunk_fill, "rain")
    assert encoding.dtype == read_as
    assert encoding.fill == fill or (np.isnan(encoding.fill) and np.isnan(fill))


@pytest.mark.parametrize(
    ("dtype", "attributes", "message"),
    [
        ("U3", {}, "holds <U3; expected integers or floats"),
        ("u1", {"_FillValue": -1}, "_FillValue -1, which no uint8 can hold"),
        ("i2", {"_FillValue": 0.5}, "_FillValue 0.5, which no int16 can hold"),
        ("i2", {"scale_factor": "a lot"}, "scale_factor 'a lot'; expected one number"),
        ("i2", {"scale_factor": [1, 2]}, "expected one number"),
        ("i2", {"scale_factor": 0}, "scale_factor 0; expected a number other than 0"),
        ("i2", {"scale_factor": "NaN"}, "scale_factor nan; expected a number other than 0"),
        ("i1", {"_Unsigned": "yes"}, "holds int8 and has _Unsigned 'yes'; expected 'true' or 'false'"),
        ("u1", {"_Unsigned": "false"}, "holds uint8 and has _Unsigned 'false'; expected 'true', or signed integers"),
        ("i2", {"missing_value": [-1, 40000]}, "missing_value 40000, which no int16 can hold"),
        ("i2", {"zr_a": -1, "zr_b": 1.5}, "expected finite numbers above 0"),
        ("i2", {"zr_a": "NaN", "zr_b": 1.5}, "expected finite numbers above 0"),
        ("i2", {"zr_a": 200, "zr_b": "Infinity"}, "expected finite numbers above 0"),
        ("f4", {"add_offset": "NaN"}, "has add_offset nan; expected a finite number"),
        ("i2", {"missing_value": "-Infinity"}, "has missing_value -inf, which no int16 can hold"),
    ],
)
def test_an_encoding_that_makes_no_sense_is_refused(dtype, attributes, message):
    with pytest.raises(InputError, match=message):
        read_encoding(np.dtype(dtype), attributes, None, "rain")


def test_both_missing_codes_of_cf_count_as_missing():
    encoding = read_encoding(np.dtype("i2"), {"_FillValue": -1, "missing_value": -2, "scale_factor": 0.5}, None, "")
    np.testing.assert_array_equal(unpack(np.array([-2, -1, 0, 3], np.int16), encoding), [np.nan, np.nan, 0, 1.5])


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8"])
def test_integers_without_a_missing_code_are_all_there(dtype):
    encoding = read_encoding(np.dtype(dtype), {"scale_factor": 0.5}, None, "rain")
    bounds = np.array([np.iinfo(dtype).min, 0, np.iinfo(dtype).max], dtype)[1 if dtype == "i8" else 0 :]
    np.testing.assert_array_equal(unpack(bounds, encoding), bounds * 0.5)


def test_not_a_number_and_infinity_are_missing():
    raw = np.array([[np.nan, np.inf, -np.inf, -9.0, 0.0]], np.float32)
    encoding = Encoding("float32", -9.0, (-9.0,))
    np.testing.assert_array_equal(is_missing(raw, encoding), [[True, True, True, True, False]])


def test_missing_cells_are_counted_for_each_frame(frames):
    codes = frames.codes()
    counts = count_missing(codes, Encoding("int16", -32768, (-32768,)))
    assert counts.tolist() == [7 * 13] * 6
    assert counts.dtype == np.int64


def test_unpacked_values_equal_those_of_xarray(frames, tmp_path):
    for zarr_format in (2, 3):
        path = frames.write(tmp_path / f"v{zarr_format}.zarr", zarr_format=zarr_format)
        product = frames.product(path)
        source = open_source(product.input)
        raw = source.read_frames(find_inputs(source, product))
        with xr.open_zarr(path) as there:
            np.testing.assert_array_equal(unpack(raw, source.encoding), there["rain"].values[3:])


@pytest.mark.parametrize(
    "axis",
    [
        (np.arange(6) * 5, {"units": "minutes since 2024-06-01T12:00:00Z"}),
        (np.arange(6) / 288, {"units": "days since 2024-06-01 12:00", "calendar": "standard"}),
        ((np.arange(6) * 300).astype(">i4"), {"units": "seconds since 2024-06-01 12:00", "_FillValue": -1}),
        (np.arange(6) * 5, {"units": "minutes since 2024-06-01 14:00:00 +2:00"}),
    ],
)
def test_cf_times_are_utc_in_nanoseconds(frames, tmp_path, axis):
    path = frames.write(tmp_path / "radar.zarr", axes={"time": axis})
    times = open_source(frames.product(path).input).times
    assert times.dtype == np.dtype("datetime64[ns]")
    np.testing.assert_array_equal(times.astype("datetime64[s]"), frames.every(5, 6).astype("datetime64[s]"))


minutes = st.integers(0, 10_000)


@given(st.lists(minutes, min_size=1, max_size=20, unique=True).map(sorted), minutes, st.integers(0, 30))
def test_the_nearest_time_is_the_nearest(times, wanted_minute, reach):
    axis = np.array(times, "timedelta64[m]") + np.datetime64("2024-01-01", "ns")
    found = find_nearest(
        axis, np.datetime64("2024-01-01", "ns") + np.timedelta64(wanted_minute, "m"), np.timedelta64(reach, "m")
    )
    distances = [abs(t - wanted_minute) for t in times]
    assert found == (distances.index(min(distances)) if min(distances) <= reach else None)


def test_a_usual_step_survives_gaps_and_jitter(frames):
    jitter = frames.every(5, 40) + np.random.default_rng(0).integers(-2, 3, 40) * np.timedelta64(1, "s")
    gappy = np.delete(jitter, [3, 9, 10, 25])
    assert abs(usual_step(gappy) - np.timedelta64(5, "m")) <= np.timedelta64(2, "s")


def test_the_usual_step_is_that_of_the_newest_frames(frames):
    once, now = frames.every(15, 3000, "2004-06-01"), frames.every(5, 150)
    assert usual_step(np.concatenate([once, now])) == np.timedelta64(5, "m")


def test_missing_within_limits_is_no_problem(frames, tmp_path):
    product = frames.product(frames.write(tmp_path / "radar.zarr"))
    cycle = find_inputs(open_source(product.input), product)
    check_missing([0, 60, 95], 100, 0.95, cycle)


def test_times_are_written_as_one_says_them():
    assert text_of(np.datetime64("2024-06-01T12:00:07", "ns")) == "2024-06-01T12:00:07Z"


@real_data
@pytest.mark.parametrize(
    ("name", "variable", "missing"),
    [("fmi_20160928", "reflectivity", 0.2435), ("mrms_20190610", "precip_rate", 0.3573)],
)
def test_the_real_stores_are_read_unchanged(frames, name, variable, missing):
    product = frames.product(str(DATA / f"{name}.zarr"), variable=variable, history=["-20min", "-10min", "0min"])
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    assert len(set(cycle.frame_indices)) == 3
    window = Window(-50, 700, -50, 500)
    raw = source.read(cycle, window)
    with xr.open_zarr(product.input.store, mask_and_scale=False) as there:
        expected = there[variable][list(cycle.frame_indices), :700, :500].values
    np.testing.assert_array_equal(raw[:, 50:, 50:], expected)
    assert (raw[:, :50] == source.encoding.fill).all()
    whole = source.read_frames(cycle)
    assert count_missing(whole, source.encoding)[-1] / source.grid.window.cells == pytest.approx(missing, abs=1e-3)
