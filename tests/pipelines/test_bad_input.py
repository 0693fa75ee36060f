"""Accidents of the input, each with its agreed outcome: an error that names what, where and what was expected.

By design:
- Every refusal is an InputError; NotYetError where waiting may help, CorruptInputError where stored bytes are at fault.
- A changed byte is always noticed under a checksum (crc32c). Without one the codec may decode it to wrong values.
- A chunk that was never written reads as fill, as Zarr says; a frame of which nothing is stored has not arrived.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from pipelines.encoding import count_missing
from pipelines.errors import CorruptInputError, InputError, NotYetError
from pipelines.grid import Window
from pipelines.source import check_missing, find_inputs, open_source

CHECKED = {"compressors": [ZstdCodec(level=1), Crc32cCodec()]}
SHARDED = {"chunks": (1, 8, 16), "shards": (1, 32, 48), "compressors": [ZstdCodec(level=1), Crc32cCodec()]}


def read_cycle(product, reference_time=None):
    """What a run does with its input."""
    source = open_source(product.input)
    cycle = find_inputs(source, product, reference_time)
    raw = source.read_frames(cycle)
    counts = count_missing(raw, source.encoding)
    check_missing(
        counts, source.grid.window.cells, product.input.max_missing, cycle, missing_frame=product.input.missing_frame
    )
    return cycle


def seconds(*numbers, units="seconds since 2024-06-01T12:00", **attributes):
    return {"time": (np.array(numbers, np.int64), {"units": units, **attributes})}


def with_missing(frames, cells, frame=-1):
    codes = frames.codes()
    codes[frame].reshape(-1)[:cells] = -32768
    return codes


EVERY_CELL = 30 * 41
TIMES = {
    "not sorted": (
        {"axes": seconds(0, 300, 900, 600, 1200, 1500)}, {},
        r"not sorted: 2024-06-01T12:10Z follows 2024-06-01T12:15Z at position 3; expected rising times, as ds.sortby",
    ),
    "descending": ({"axes": seconds(1500, 1200, 900, 600, 300, 0)}, {}, "not sorted: .* at position 1"),
    "duplicated": (
        {"axes": seconds(0, 300, 600, 600, 900, 1200)}, {},
        r"the time 2024-06-01T12:10Z stands twice .*positions 2, 3\); expected rising times",
    ),
    "a time is missing": ({"axes": seconds(0, 300, -1, 900, 1200, 1500, _FillValue=-1)}, {}, "time 2 .* is missing"),
    "wrong step": (
        {"axes": seconds(0, 300, 600, 900, 1020, 1320)}, {"history": {"last": 3}},
        r"frame 2024-06-01T12:12Z \(-10min\) .* is missing: the nearest is 2024-06-01T12:10Z \(2min away, "
        r"input.tolerance is 30s\); history last: 3 takes frames one usual step apart",
    ),
    "missing frame": (
        {"axes": seconds(0, 300, 600, 900, 1500, 1800)}, {},
        r"frame 2024-06-01T12:20Z \(-10min\) .* is missing: the nearest is 2024-06-01T12:15Z \(5min away",
    ),
    "just beyond the tolerance": (
        {"axes": seconds(0, 300, 600, 900, 1231, 1500)}, {}, r"frame 2024-06-01T12:20Z \(-5min\) .* \(31s away"
    ),
    "fewer frames than the history": ({}, {"history": ["-1h", "0min"]}, r"\(-60min\) .* before the first frame"),
    "one frame and no step": ({"axes": seconds(0)}, {"history": {"last": 2}}, "holds 1 frame; history last: 2"),
    "one frame for two wanted times": (
        {}, {"history": ["-6min", "-5min", "0min"], "tolerance": "2min"}, "nearest to two wanted times, .* too wide"
    ),
    "no CF units": ({"axes": seconds(*range(6), units="fortnights")}, {}, "units 'fortnights', .* expected CF times"),
    "a calendar without real days": (
        {"axes": seconds(*range(6), calendar="360_day")}, {}, "calendar '360_day'"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "changes", "message"), TIMES.values(), ids=TIMES)
def test_a_time_axis_that_does_not_fit_is_refused(frames, tmp_path, options, changes, message):
    product = frames.product(frames.write(tmp_path / "radar.zarr", **options), **changes)
    with pytest.raises(InputError, match=message) as refused:
        read_cycle(product)
    assert "'rain' in " in str(refused.value)
    assert type(refused.value) is InputError


ARRIVALS = {
    "the frame has not arrived": ({}, "12:30", r"frame 2024-06-01T12:30Z \(0s\) .* the newest is 2024-06-01T12:25Z"),
    "no frame has arrived": ({"axes": seconds()}, None, "the time axis of .* is empty"),
    "all frames are to come": ({"axes": seconds(*[-1] * 6, _FillValue=-1)}, None, "the time axis of .* is empty"),
    "the time is there and the data is not": ({"absent": "rain/c/5/0/0"}, None, "nothing of it is stored"),
}


@pytest.mark.parametrize(("options", "clock", "message"), ARRIVALS.values(), ids=ARRIVALS)
def test_a_frame_that_may_still_come_is_not_yet_there(frames, tmp_path, options, clock, message):
    absent = options.pop("absent", None)
    product = frames.product(frames.write(tmp_path / "radar.zarr", **options))
    if absent:
        (tmp_path / "radar.zarr" / absent).unlink()
    with pytest.raises(NotYetError, match=message):
        read_cycle(product, np.datetime64(f"2024-06-01T{clock}") if clock else None)


def test_the_latest_cycle_is_of_a_whole_second(frames, tmp_path):
    axes = seconds(*(300_000 * n + 400 for n in range(6)), units="milliseconds since 2024-06-01T12:00")
    cycle = read_cycle(frames.product(frames.write(tmp_path / "radar.zarr", axes=axes)))
    assert cycle.reference_time == np.datetime64("2024-06-01T12:25:00", "ns")
    assert cycle.frame_times[-1] == np.datetime64("2024-06-01T12:25:00.400", "ns")


def test_a_cycle_before_the_archive_is_refused(frames, tmp_path):
    product = frames.product(frames.write(tmp_path / "radar.zarr"))
    with pytest.raises(InputError, match="before the first frame, 2024-06-01T12:00Z"):
        read_cycle(product, np.datetime64("2024-06-01T12:05"))


def test_an_older_frame_may_be_missing_if_the_product_says_so(frames, tmp_path):
    path = frames.write(tmp_path / "radar.zarr", axes=seconds(0, 300, 600, 900, 1500, 1800))
    cycle = read_cycle(frames.product(path, missing_frame="use_available"))
    assert cycle.frame_indices == (None, 4, 5)
    times = frames.every(5, 7)
    assert (cycle.found_times, cycle.missing_times) == ((times[5], times[6]), (times[4],))


def test_an_older_frame_may_be_unwritten_or_empty_if_the_product_says_so(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path, with_missing(frames, EVERY_CELL, 3)), missing_frame="use_available")
    (path / "rain/c/4/0/0").unlink()
    assert read_cycle(product).frame_indices == (None, None, 5)


@pytest.mark.parametrize("clock", ["12:22", "12:30"])
def test_the_newest_frame_may_never_be_missing(frames, tmp_path, clock):
    product = frames.product(frames.write(tmp_path / "radar.zarr"), missing_frame="use_available")
    with pytest.raises(InputError, match=f"frame 2024-06-01T{clock}Z"):
        read_cycle(product, np.datetime64(f"2024-06-01T{clock}"))


MISSING = {
    "the newest frame is all missing": (EVERY_CELL, -1, "refuse", "frame 2024-06-01T12:25Z of rain is all missing"),
    "an older frame is all missing": (EVERY_CELL, -2, "refuse", "frame 2024-06-01T12:20Z of rain is all missing"),
    "the newest is all missing, others may be": (EVERY_CELL, -1, "use_available", "12:25Z of rain is all missing"),
    "too much is missing": (1200, -2, "refuse", r"12:20Z of rain has 97.6% missing cells; expected at most 95.0%"),
    "too much, though frames may be missing": (1200, -2, "use_available", "12:20Z of rain has 97.6% missing cells"),
}


@pytest.mark.parametrize(("cells", "frame", "policy", "message"), MISSING.values(), ids=MISSING)
def test_frames_with_too_much_missing_are_refused(frames, tmp_path, cells, frame, policy, message):
    path = frames.write(tmp_path / "radar.zarr", with_missing(frames, cells, frame), fill_value=0)
    with pytest.raises(InputError, match=message):
        read_cycle(frames.product(path, missing_frame=policy))


STORES = {
    "dims of other names": (
        {"dims": ("time", "row", "column"), "axes": {"row": (np.arange(30.0), {}), "column": (np.arange(41.0), {})}},
        r"dims \(time 6, row 30, column 41\); expected one dim each of time, y \(or latitude\) and x .* by the "
        "standard_name, axis, units or name of its coordinate",
    ),
    "two dims of one kind": (
        {"dims": ("time", "y", "lat"), "axes": {"lat": (np.arange(41.0), {})}}, r"dims \(time 6, y 30, lat 41\)"
    ),
    "a coordinate is not there": ({"axes": {"x": None}}, "dim 'x' of 'rain' .* no one-dimensional coordinate"),
    "a coordinate of another length": (
        {"axes": {"y": (np.arange(29.0), {"units": "m"})}}, "dim 'y' .* has 30 cells but 29 coordinates"
    ),
    "a coordinate with holes": (
        {"axes": {"x": (np.where(np.arange(41) == 7, np.nan, 1.0), {"units": "m"})}}, "'x' .* 1 missing values"
    ),
    "a packing that is no number": ({"attributes": {"scale_factor": "small"}}, "scale_factor 'small'"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), STORES.values(), ids=STORES)
def test_a_store_of_another_shape_is_refused(frames, tmp_path, options, message):
    path = frames.write(tmp_path / "radar.zarr", **options)
    with pytest.raises(InputError, match=message):
        open_source(frames.product(path).input)


def _without_dims(node):
    """A metadata document without the names of dims."""
    if not isinstance(node, dict):
        return node
    return {key: _without_dims(value) for key, value in node.items() if key != "dimension_names"}


def test_a_store_that_does_not_name_its_dims_is_refused(frames, tmp_path):
    path = frames.write(tmp_path / "radar.zarr")
    file = tmp_path / "radar.zarr" / "zarr.json"
    file.write_text(json.dumps(_without_dims(json.loads(file.read_text()))))
    with pytest.raises(InputError, match="does not name its dims; expected time, y and x"):
        open_source(frames.product(path).input)


def test_a_dim_of_several_cells_beside_time_y_and_x_is_refused(frames, tmp_path):
    codes = np.repeat(frames.codes()[:, None], 3, axis=1)
    path = frames.write(
        tmp_path / "radar.zarr", codes, dims=("time", "member", "y", "x"), axes={"member": (np.arange(3), {})}
    )
    with pytest.raises(InputError, match=r"dims \(time 6, member 3, y 30, x 41\); .* any other of one cell"):
        open_source(frames.product(path).input)


def test_a_variable_that_is_not_there_is_refused_with_those_that_are(frames, tmp_path):
    path = frames.write(tmp_path / "radar.zarr")
    with pytest.raises(InputError, match=r"no variable 'snow'; it has crs, rain, time, x, y"):
        open_source(frames.product(path, variable="snow").input)


@pytest.mark.parametrize("variable", ["rain", "radar/rain"])
@pytest.mark.parametrize("consolidated", [True, False])
def test_a_variable_of_a_group_is_refused_with_the_groups_there_are(frames, tmp_path, variable, consolidated):
    whole = tmp_path / "radar.zarr"
    zarr.open_group(whole, mode="w", zarr_format=2)
    frames.write(whole / "radar", zarr_format=2, consolidated=False)
    if consolidated:
        zarr.consolidate_metadata(str(whole))
    with pytest.raises(InputError, match=r"no array, and the groups radar; a group is part of input\.store"):
        open_source(frames.product(str(whole), variable=variable).input)
    assert open_source(frames.product(str(whole / "radar")).input).grid.shape == frames.shape


def _garbage(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_')


def _array(path: Path) -> None:
    zarr.create_array(str(path), shape=(3,), dtype="i2")


UNREADABLE = {
    "no such path": (lambda path: None, InputError, "is not there"),
    "a folder that is no store": (
        lambda path: path.mkdir(), InputError, r"is not there; the folder holds no Zarr group \(zarr.json or .zgroup\)"
    ),
    "a file": (lambda path: path.write_text("rain"), InputError, "it is a file, expected the folder of a Zarr store"),
    "metadata cut short": (_garbage, CorruptInputError, "cannot be read: JSONDecodeError"),
    "an array, not a group": (_array, InputError, "it is an array, expected the group that holds it"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_store_that_cannot_be_opened_is_refused(frames, tmp_path, make, error, message):
    make(tmp_path / "radar.zarr")
    with pytest.raises(error, match=message) as refused:
        open_source(frames.product(str(tmp_path / "radar.zarr")).input)
    assert str(tmp_path / "radar.zarr") in str(refused.value)


def test_a_host_that_does_not_answer_is_an_unreadable_store(frames):
    with pytest.raises(InputError, match=r"Zarr store nowhere://radar\.zarr cannot be read"):
        open_source(frames.product("nowhere://radar.zarr").input)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("options", "chunk"),
    [(CHECKED, "rain/c/4/0/0"), ({"compressors": [Crc32cCodec()]}, "rain/c/4/0/0"), (SHARDED, "rain/c/4/0/0")],
    ids=["zstd, crc32c", "crc32c", "shards"],
)
@pytest.mark.parametrize("position", [0, 10, 50, -200, -1])
def test_a_changed_byte_under_a_checksum_is_always_noticed(frames, tmp_path, options, chunk, position):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path, **options))
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    flip(path / chunk, position)
    with pytest.raises(CorruptInputError) as refused:
        source.read(cycle, Window(-2, 40, 0, 60))
    assert str(refused.value).startswith(
        f"frame 2024-06-01T12:20Z of 'rain' in {path}, window y 0:30, x 0:41, cannot be read: "
    )


def test_a_changed_byte_elsewhere_does_not_disturb_a_window(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path, **SHARDED))
    flip(path / "rain/c/4/0/0", 0)
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    far = Window(24, 30, 32, 41)
    np.testing.assert_array_equal(source.read(cycle, far), frames.codes()[3:, 24:30, 32:41])


def test_a_changed_byte_without_a_checksum_may_be_read_as_another_value(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path, compressors=[], serializer=BytesCodec()))
    flip(path / "rain/c/5/0/0", -1 - 41)
    source = open_source(product.input)
    raw = source.read_frames(find_inputs(source, product))
    assert (raw != frames.codes()[3:]).sum() == 1


@pytest.mark.parametrize("size", [0, 7, 300])
def test_a_chunk_cut_short_is_corrupt(frames, tmp_path, size):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path))
    chunk = path / "rain/c/5/0/0"
    chunk.write_bytes(chunk.read_bytes()[:size])
    source = open_source(product.input)
    with pytest.raises(CorruptInputError, match="frame 2024-06-01T12:25Z"):
        source.read_frames(find_inputs(source, product))


def test_a_store_that_vanishes_is_not_read_as_missing_cells(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path))
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    shutil.rmtree(path)
    with pytest.raises(CorruptInputError, match="which was there a moment ago, is not there"):
        source.read(cycle, Window(0, 5, 0, 5))
    with pytest.raises(InputError, match="is not there"):
        source.refresh()


def test_a_chunk_that_cannot_be_opened_names_the_reason(frames, tmp_path):
    path = tmp_path / "radar.zarr"
    product = frames.product(frames.write(path))
    source = open_source(product.input)
    cycle = find_inputs(source, product)
    chunk = path / "rain/c/5/0/0"
    chunk.unlink()
    chunk.symlink_to(chunk)
    with pytest.raises(CorruptInputError, match="OSError"):
        source.read_frames(cycle)
