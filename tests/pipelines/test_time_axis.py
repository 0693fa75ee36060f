"""A cycle needs the end of the time axis only: what it is made from is what the whole axis would give."""

import contextlib
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import WrapperStore

from pipelines import frames as frames_module
from pipelines import source as source_module
from pipelines import time_axis, zarr_store
from pipelines.errors import InputError, PipelineError
from pipelines.frames import check_times, choose_frames, suffice
from pipelines.product import InputSpec
from pipelines.source import arrived, find_inputs, open_source
from pipelines.time_axis import CHUNKS_AT_ONCE, earlier

START = np.datetime64("2024-06-01T00:00", "ns")
MINUTE = np.timedelta64(1, "m")
UNITS = "minutes since 2024-06-01T00:00"
FILLS = {"fill": ("<i8", 0, {}), "_FillValue": ("<i8", 0, {"_FillValue": -1}), "float": ("<f8", np.nan, {})}
"""How times that are not there yet are stored: dtype, fill value of the array, attributes."""

minutes = st.lists(st.sampled_from([1, 5, 5, 5, 5, 5, 6, 10, 35]), min_size=1, max_size=40).map(np.cumsum)
histories = st.one_of(
    st.builds(lambda last: {"last": last}, st.integers(1, 5)),
    st.sets(st.integers(1, 9)).map(lambda back: [*(f"-{5 * n}min" for n in sorted(back, reverse=True)), "0min"]),
)
specs = st.fixed_dictionaries(
    {
        "history": histories,
        "tolerance": st.sampled_from(["30s", "2min", "6min"]),
        "missing_frame": st.sampled_from(["refuse", "use_available"]),
    }
)


def times_of(numbers) -> Any:
    return START + np.asarray(numbers) * MINUTE


def outcome(action) -> Any:
    """What an action gives, or what it refuses with."""
    try:
        return action()
    except PipelineError as error:
        return type(error), str(error)


@contextlib.contextmanager
def reads(counted: list[str]):
    """Notes which objects are fetched."""

    class Counting(WrapperStore):
        async def get(self, key, *args, **kwargs):
            counted.append(key)
            return await super().get(key, *args, **kwargs)

    connect = zarr_store.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_store, "connect", lambda url: Counting(connect(url)))
        yield counted


@contextlib.contextmanager
def short_steps(chunks: int, recent: int, look_back: int = 1):
    """As if an axis of a few times were a long one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "_LOOK_BACK", look_back)
        patch.setattr(time_axis, "CHUNKS_AT_ONCE", chunks)
        for module in (time_axis, frames_module):
            patch.setattr(module, "RECENT", recent)
        yield


def write_axis(store: Path, numbers, chunk: int = 1, stored=None, length=None, fill="fill", frames=None) -> str:
    """A store of 2 x 2 cells whose frames in `stored` are written; `length` beyond the numbers is nobody's yet."""
    dtype, fill_value, attributes = FILLS[fill]
    length = len(numbers) if length is None else length
    group = zarr.open_group(store, mode="w")
    options = {"dimension_names": ("time",), "attributes": {"units": UNITS, **attributes}}
    axis = group.create_array("time", shape=(length,), chunks=(chunk,), dtype=dtype, fill_value=fill_value, **options)
    axis[: len(numbers)] = np.asarray(numbers)
    if fill == "_FillValue":
        axis[len(numbers) :] = -1
    for name in "yx":
        group.create_array(name, data=np.arange(2.0), dimension_names=(name,), attributes={"units": "m"})
    shape = (length if frames is None else frames, 2, 2)
    options = {"dimension_names": ("time", "y", "x"), "attributes": {"units": "mm h-1", "_FillValue": -1}}
    rain = group.create_array("rain", shape=shape, chunks=(1, 2, 2), dtype="i2", fill_value=-1, **options)
    for index in range(len(numbers)) if stored is None else stored:
        rain[index] = 7
    return str(store)


@pytest.mark.parametrize("units", ["seconds since 1970-01-01", UNITS])
@pytest.mark.parametrize("known", [True, False])
def test_an_append_in_progress_to_a_store_of_zarr_2_is_no_broken_axis(tmp_path, units, known):
    """There xarray gives times no fill value: those that it has not written yet read as 0."""
    store, times = tmp_path / "radar.zarr", times_of([5, 10, 15])
    coordinates = {"time": times, "y": np.arange(2.0), "x": np.arange(2.0)}
    rain = xr.DataArray(np.ones((3, 2, 2), np.float32), coordinates, ("time", "y", "x"), attrs={"units": "mm h-1"})
    encoding = {"time": {"units": units, "dtype": "i8", "chunks": (1,)}, "rain": {"chunks": (1, 2, 2)}}
    rain.to_dataset(name="rain").to_zarr(store, zarr_format=2, consolidated=False, encoding=encoding)
    source = open_source(InputSpec(store=str(store), variable="rain", history=["0min"]))
    group = zarr.open_group(store)
    group["time"].resize((4,))
    group["rain"].resize((4, 2, 2))
    source = source.refresh() if known else open_source(InputSpec(store=str(store), variable="rain", history=["0min"]))
    assert source.times.tolist() == times.tolist()


@given(minutes, specs, st.one_of(st.none(), st.integers(-20, 300)), st.integers(1, 12), st.data())
@settings(max_examples=300)
def test_times_that_suffice_give_the_frames_of_the_whole_axis(numbers, keys, minute, recent, data):
    times, spec = times_of(numbers), InputSpec(store="s", variable="v", **keys)
    reference = None if minute is None else times_of(minute)
    first = data.draw(st.integers(0, len(times)))
    with short_steps(1, recent):
        if suffice(times[first:], spec, reference):
            end = outcome(lambda: choose_frames(times[first:], "p", spec, reference, "v in s", first))
            assert end == outcome(lambda: choose_frames(times, "p", spec, reference, "v in s"))


@given(
    numbers=minutes,
    keys=specs,
    minute=st.one_of(st.none(), st.none(), st.integers(-20, 300)),
    chunk=st.integers(1, 4),
    chunks=st.integers(1, 4),
    recent=st.integers(1, 8),
    look_back=st.integers(1, 12),
    unwritten=st.integers(0, 12),
    absent=st.integers(0, 12),
    fill=st.sampled_from(sorted(FILLS)),
    data=st.data(),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_end_of_an_axis_gives_the_frames_of_the_whole_axis(
    frames, numbers, keys, minute, chunk, chunks, recent, look_back, unwritten, absent, fill, data
):
    stored, length = range(max(0, len(numbers) - absent)), len(numbers) + unwritten
    shape = data.draw(st.integers(max(1, length - 14), length + 2))
    now = times_of(data.draw(st.integers(0, int(numbers[-1]) + 20)))
    reference = None if minute is None else times_of(minute)

    def found(source, product):
        ready = arrived(source, now, 15 * MINUTE) if reference is None else source
        return find_inputs(ready, product, reference)

    with tempfile.TemporaryDirectory() as folder, short_steps(chunks, recent, look_back):
        stored = [index for index in stored if index < shape]
        store = write_axis(Path(folder, "s.zarr"), numbers, chunk, stored, length, fill, shape)
        product = frames.product(store, **keys)
        whole, end = (open_source(product.input, all_times) for all_times in (True, False))
        np.testing.assert_array_equal(whole.times[end.first :], end.times)
        expected = outcome(lambda: found(whole, product))
        assert outcome(lambda: found(end, product)) == expected
        assert outcome(lambda: found(end.refresh(), product)) == expected


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_steps_backwards_are_whole_chunks_few_and_end_at_the_start(length, chunk):
    first, steps = length, 0
    while first:
        start = earlier(first, length, chunk)
        assert start < first
        assert start % chunk == 0
        first, steps = start, steps + 1
    assert steps <= 6


LONG = range(5, 5 * 701, 5)


def of_times(keys) -> list[int]:
    return sorted(int(key.rsplit("/", 1)[1]) for key in keys if key.startswith("time/c/"))


@pytest.mark.parametrize("history", [{"last": 3}, ["-10min", "-5min", "0min"]])
def test_a_cycle_of_the_newest_frames_fetches_the_end_of_the_axis_once(frames, tmp_path, history):
    product = frames.product(write_axis(tmp_path / "s.zarr", LONG, stored=range(690, 700)), history=history)
    with reads([]) as keys:
        source = open_source(product.input, all_times=False)
        assert find_inputs(source, product).frame_indices == (697, 698, 699)
    assert of_times(keys) == [*range(700 - CHUNKS_AT_ONCE, 700)]
    with reads([]) as keys:
        assert find_inputs(source.refresh(), product).frame_indices == (697, 698, 699)
    assert of_times(keys) == [699]


def test_a_cycle_of_long_ago_fetches_each_time_once(frames, tmp_path):
    product = frames.product(write_axis(tmp_path / "s.zarr", LONG, stored=range(10)))
    source = open_source(product.input, all_times=False)
    with reads([]) as keys:
        assert find_inputs(source, product, times_of(30)).frame_indices == (3, 4, 5)
    assert of_times(keys) == [*range(700 - CHUNKS_AT_ONCE)]
    with pytest.raises(InputError, match=r"before the first frame, 2024-06-01T00:05Z"):
        find_inputs(source, product, times_of(10))


def test_an_axis_laid_out_ahead_is_read_back_to_the_newest_frame(frames, tmp_path):
    product = frames.product(write_axis(tmp_path / "s.zarr", LONG, stored=range(600)), history={"last": 3})
    source = open_source(product.input, all_times=False)
    assert source.first == 700 - CHUNKS_AT_ONCE
    with reads([]) as keys:
        ready = arrived(source, times_of(LONG[599] + 1), 30 * MINUTE)
        assert find_inputs(ready, product).frame_indices == (597, 598, 599)
    assert of_times(keys) == [*range(earlier(source.first, 700, 1), source.first)]


def test_the_newest_frame_may_lie_before_the_times_that_were_read_first(frames, tmp_path):
    product = frames.product(write_axis(tmp_path / "s.zarr", LONG, stored=range(500)))
    source = open_source(product.input, all_times=False)
    ready = arrived(source, times_of(LONG[590]), 30 * MINUTE)
    assert source.first > 500
    assert find_inputs(ready, product).frame_indices == (497, 498, 499)


def test_an_axis_in_few_chunks_is_read_whole(frames, tmp_path):
    product = frames.product(write_axis(tmp_path / "s.zarr", LONG, chunk=6))
    assert open_source(product.input, all_times=False).first == 0


def test_all_times_are_read_unless_the_newest_are_asked_for(frames, tmp_path):
    product = frames.product(write_axis(tmp_path / "s.zarr", LONG, stored=[]))
    source = open_source(product.input)
    np.testing.assert_array_equal(source.times, times_of(LONG))
    np.testing.assert_array_equal(source.refresh().times, times_of(LONG))


def test_the_end_of_an_axis_pickles_and_reads_on_elsewhere(frames, tmp_path):
    product = frames.product(write_axis(tmp_path / "s.zarr", LONG, stored=range(10)))
    source = pickle.loads(pickle.dumps(open_source(product.input, all_times=False)))  # noqa: S301
    np.testing.assert_array_equal(source.reaching(lambda times: False).times, times_of(LONG))


def test_a_store_that_was_written_anew_is_read_from_its_end_again(frames, tmp_path):
    product = frames.product(write_axis(tmp_path / "s.zarr", LONG, stored=[]))
    source = open_source(product.input, all_times=False)
    write_axis(tmp_path / "s.zarr", [number + 1 for number in LONG[:500]], stored=[])
    again = source.refresh()
    assert again.first == 500 - CHUNKS_AT_ONCE
    assert again.times[-1] == times_of(LONG[499] + 1)


BROKEN = {
    "not sorted": ({690: 5}, r"not sorted: 2024-06-01T00:05Z follows 2024-06-03T09:30Z at position 690; expected"),
    "duplicated": ({690: LONG[689]}, r"2024-06-03T09:30Z stands twice in .* \(positions 689, 690\)"),
    "missing": ({690: -1}, r"time 690 of .* is missing; expected a time"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("all_times", [True, False])
def test_what_is_wrong_at_the_end_of_an_axis_is_named_by_its_position(frames, tmp_path, change, message, all_times):
    numbers = [change.get(position, number) for position, number in enumerate(LONG)]
    product = frames.product(write_axis(tmp_path / "s.zarr", numbers, stored=[], fill="_FillValue"))
    with pytest.raises(InputError, match=message):
        find_inputs(open_source(product.input, all_times), product)


def test_what_is_wrong_far_back_is_refused_where_all_times_are_read(frames, tmp_path):
    numbers = [5 if position == 10 else number for position, number in enumerate(LONG)]
    product = frames.product(write_axis(tmp_path / "s.zarr", numbers))
    with pytest.raises(InputError, match=r"not sorted: .* at position 10;"):
        find_inputs(open_source(product.input), product)
    assert find_inputs(open_source(product.input, all_times=False), product).frame_indices == (697, 698, 699)


def test_positions_count_from_the_start_of_the_axis():
    with pytest.raises(InputError, match=r"positions 41, 42"):
        check_times(times_of([0, 5, 5]), "v in s", first=40)
