"""Frames for cycle after cycle: the same codes as `Source.read`, each decoded once, memory bounded."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from pipelines.errors import CorruptInputError, InputError, NotYetError
from pipelines.grid import Window
from pipelines.history import History
from pipelines.product import InputSpec
from pipelines.source import Source, find_inputs, open_source

FRAMES = np.arange("2024-06-01T12:00", "2024-06-01T13:00", 5, dtype="datetime64[m]").astype("datetime64[ns]")


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(5)
    rain = rng.integers(0, 2000, (len(FRAMES), 20, 30)).astype(np.int16)
    attrs = {"units": "mm h-1", "scale_factor": 0.01, "_FillValue": -1}
    y = ("y", np.arange(20.0), {"standard_name": "projection_y_coordinate"})
    x = ("x", np.arange(30.0), {"standard_name": "projection_x_coordinate"})
    ds = xr.Dataset({"rain": (("time", "y", "x"), rain, attrs)}, {"time": FRAMES, "y": y, "x": x})
    ds.to_zarr(tmp_path / "r.zarr", encoding={"rain": {"chunks": (1, 10, 30)}}, zarr_format=3)
    return tmp_path / "r.zarr"


class Product:
    """What of a product the history of its frames asks for."""

    name = "rain"

    def __init__(self, store, **changes):
        history = {"history": ("-10min", "-5min", "0min")} | changes
        self.input = InputSpec(store=str(store), variable="rain", **history)


@pytest.fixture
def counted(monkeypatch):
    """Positions of the frames that were decoded."""
    seen, read = [], Source.read
    monkeypatch.setattr(
        Source, "read", lambda source, cycle, window: seen.extend(cycle.frame_indices) or read(source, cycle, window)
    )
    return seen


def history_of(product, **options) -> tuple[History, Source]:
    source = open_source(product.input)
    return History(source, product, **options), source


WINDOWS = [
    Window(0, 20, 0, 30),
    Window(-3, 25, -1, 33),
    Window(5, 9, 28, 30),
    Window(2, 4, 30, 34),
    Window(25, 27, 0, 2),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_codes_are_those_of_the_source_also_beyond_the_grid(store, window):
    history, source = history_of(Product(store))
    for time in FRAMES[2:5]:
        inputs = history.find(time)
        assert inputs.cycle == find_inputs(source, Product(store), time)
        np.testing.assert_array_equal(inputs.read(window), source.read(inputs.cycle, window))
        assert inputs.read(window).dtype == source.read(inputs.cycle, window).dtype


def test_each_frame_is_decoded_once_while_cycles_rise(store, counted):
    history, _ = history_of(Product(store))
    for time in FRAMES[2:]:
        history.find(time)
    assert counted == list(range(len(FRAMES)))


def test_threads_that_want_one_frame_decode_it_once(store, counted):
    history, _ = history_of(Product(store))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(history.find, np.repeat(FRAMES[4], 12)))
    assert sorted(counted) == [2, 3, 4]
    assert len({id(inputs.frames[-1]) for inputs in found}) == 1


def test_frames_that_no_later_cycle_needs_are_forgotten(store):
    history, _ = history_of(Product(store, history=("-20min", "0min")))
    for time in FRAMES[4:]:
        history.find(time)
        assert len(history._frames) <= 5


def test_no_more_bytes_are_kept_than_allowed(store, counted):
    history, _ = history_of(Product(store), limit_bytes=20 * 30 * 2)
    for time in FRAMES[2:6]:
        assert len(history.find(time).frames) == 3
    assert len(counted) > 6


def test_a_frame_that_cannot_be_read_is_named_and_tried_again(store):
    chunk = store / "rain" / "c" / "4" / "0" / "0"
    whole = chunk.read_bytes()
    history, _ = history_of(Product(store))
    chunk.write_bytes(whole[:20])
    with pytest.raises(CorruptInputError, match="12:20Z"):
        history.find(FRAMES[4])
    assert history.find(FRAMES[3]).cycle.frame_indices == (1, 2, 3)
    chunk.write_bytes(whole)
    assert history.find(FRAMES[4]).cycle.frame_indices == (2, 3, 4)


def test_a_frame_of_which_nothing_is_stored_is_refused_or_done_without(store):
    for row in (0, 1):
        (store / "rain" / "c" / "4" / str(row) / "0").unlink()
    history, _ = history_of(Product(store))
    with pytest.raises(NotYetError, match="12:20Z"):
        history.find(FRAMES[5])
    product = Product(store, missing_frame="use_available")
    history, source = history_of(product)
    inputs = history.find(FRAMES[5])
    assert inputs.cycle == find_inputs(source, product, FRAMES[5])
    assert inputs.cycle.frame_indices == (3, None, 5)
    np.testing.assert_array_equal(inputs.read(WINDOWS[1]), source.read(inputs.cycle, WINDOWS[1]))
    with pytest.raises(NotYetError):
        history.find(FRAMES[4])


def test_a_broken_time_axis_is_refused_at_once(store):
    product = Product(store)
    source = replace(open_source(product.input), times=FRAMES[::-1])
    with pytest.raises(InputError, match="not sorted"):
        History(source, product)
