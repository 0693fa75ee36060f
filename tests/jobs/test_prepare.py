"""Which commands read all times of a store, and which the newest only."""

import numpy as np
import pytest
import zarr

from jobs import nowcast
from jobs.backfill import Wanted, reference_times
from jobs.cycle import wait_for_inputs
from jobs.pool import Resources
from jobs.prepare import load, prepare
from pipelines import frames, time_axis
from pipelines.source import find_inputs

FRAMES = np.arange("2024-06-01T12:00", "2024-06-01T12:30", 5, dtype="datetime64[m]").astype("datetime64[ns]")


@pytest.fixture
def long_axis(product, monkeypatch):
    """The product's store with times in chunks of one, more of them than are read at once."""
    monkeypatch.setattr(time_axis, "CHUNKS_AT_ONCE", 1)
    for module in (time_axis, frames):
        monkeypatch.setattr(module, "RECENT", 2)
    group = zarr.open_group(product.parent / "radar.zarr", mode="r+", use_consolidated=False)
    codes, attributes = group["time"][:], dict(group["time"].attrs)
    del group["time"]
    axis = group.create_array("time", shape=codes.shape, chunks=(1,), dtype=codes.dtype, dimension_names=("time",))
    axis.attrs.update(attributes)
    axis[:] = codes
    zarr.consolidate_metadata(group.store)
    return product


def test_a_backfill_knows_all_times(long_axis):
    loaded = load(long_axis, [])
    assert loaded.source.first == 0
    assert [*reference_times(loaded, Wanted(stop=FRAMES[-1]))] == [*FRAMES[1:]]


@pytest.mark.parametrize("time", [None, FRAMES[1]])
def test_a_run_waits_for_the_same_frames_whether_all_times_are_read_or_not(long_axis, time):
    newest, whole = (prepare(load(long_axis, [], all_times), Resources(0, 1)) for all_times in (False, True))
    assert newest.source.first > 0
    expected = find_inputs(whole.source, whole.product, time)
    assert wait_for_inputs(newest, time)[1] == wait_for_inputs(whole, time)[1] == expected


def test_a_run_reads_the_newest_times_only(long_axis, monkeypatch):
    class Stop(Exception):
        pass

    def stop(loaded, *args):
        assert loaded.source.first > 0
        raise Stop

    monkeypatch.setattr(nowcast, "connect", lambda: None)
    monkeypatch.setattr(nowcast, "disconnect", lambda: None)
    monkeypatch.setattr(nowcast, "_on_workers", stop)
    with pytest.raises(Stop):
        nowcast.forecast(long_axis, [], None, False, lambda *args: None)
