import pickle
from datetime import timedelta

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.archive import open_archive, open_cycle
from pipelines.cycles import list_cycles
from pipelines.errors import InputError
from pipelines.product import Packing


@pytest.fixture
def shelf(any_shelf):
    return any_shelf


TIMES = ["2016-09-28T15:25", "2016-09-28T15:30", "2016-09-29T00:00"]


def physical(codes: np.ndarray) -> np.ndarray:
    return np.where(codes == -32768, np.float32(np.nan), codes * np.float32(0.01)).astype(np.float32)


def remove(shelf, store: str, below: str = "") -> None:
    for key in shelf.place.keys(store):
        if key.startswith(below):
            shelf.damage(store, key)


def publish_all(shelf):
    for seed, time in enumerate(TIMES):
        shelf.publish(time, seed)


def test_one_cycle_is_float32_and_knows_its_grid_mapping(shelf):
    dataset = open_cycle(shelf.publish(TIMES[0]).path)
    assert dataset.rain_rate.dtype == np.float32
    assert set(dataset.data_vars) == {"rain_rate"}
    assert "crs" in dataset.coords
    np.testing.assert_array_equal(dataset.rain_rate.values[0], physical(shelf.codes()))


def test_packing_with_an_offset_is_float32_too(shelf):
    packing = Packing(dtype="uint8", scale_factor=0.5, add_offset=-32.0)
    other = shelf.but(output=shelf.output.model_copy(update={"packing": packing}))
    dataset = open_cycle(other.publish(TIMES[0]).path)
    codes = other.codes()
    expected = np.where(codes == 255, np.nan, codes * 0.5 - 32.0)
    assert dataset.rain_rate.dtype == np.float32
    np.testing.assert_array_equal(dataset.rain_rate.values[0], expected)


def test_what_is_not_a_cycle_is_refused(tmp_path):
    with pytest.raises(InputError, match="no published cycle at"):
        open_cycle(tmp_path / "1530.zarr")


def test_the_archive_holds_every_cycle_along_init_time(shelf):
    publish_all(shelf)
    archive = open_archive(shelf.root, "rain")
    assert archive.rain_rate.dtype == np.float32
    assert (archive.init_time.values == np.array(TIMES, "M8[ns]")).all()
    leads = np.array(shelf.leads, "m8[ns]")
    assert (archive.valid_time.values == archive.init_time.values[:, None] + leads).all()
    expected = np.stack([physical(shelf.codes(seed)) for seed in range(3)])
    np.testing.assert_array_equal(archive.rain_rate.values, expected)


def test_the_archive_equals_the_cycles_put_together_by_xarray(shelf):
    publish_all(shelf)
    parts = [open_cycle(cycle.path).drop_attrs(deep=False) for cycle in list_cycles(shelf.root, "rain")]
    together = xr.concat(parts, dim="init_time", data_vars="minimal", coords="minimal", compat="override", join="exact")
    xr.testing.assert_identical(together.load(), open_archive(shelf.root, "rain").drop_attrs(deep=False).load())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_part_of_the_archive_is_the_same_part_of_the_whole(data, shelf):
    if not list_cycles(shelf.root, "rain"):
        publish_all(shelf)
    archive = open_archive(shelf.root, "rain")
    values = np.stack([physical(shelf.codes(seed)) for seed in range(3)])
    index = tuple(
        data.draw(st.integers(0, size - 1) | st.slices(size).filter(lambda s: (s.step or 1) > 0), label=dim)
        for dim, size in archive.rain_rate.sizes.items()
    )
    np.testing.assert_array_equal(archive.rain_rate[index].values, values[index])


def test_start_is_included_and_stop_is_not(shelf):
    publish_all(shelf)
    part = open_archive(shelf.root, "rain", np.datetime64(TIMES[1], "ns"), np.datetime64(TIMES[2], "ns"))
    assert (part.init_time.values == [np.datetime64(TIMES[1], "ns")]).all()


def test_the_highest_revision_counts(shelf):
    publish_all(shelf)
    shelf.publish(TIMES[1], seed=9, replace=True)
    found = open_archive(shelf.root, "rain").rain_rate.sel(init_time=TIMES[1]).values
    np.testing.assert_array_equal(found, physical(shelf.codes(9)))


def test_nothing_is_read_before_it_is_asked_for(shelf):
    publish_all(shelf)
    archive = open_archive(shelf.root, "rain")
    for cycle in list_cycles(shelf.root, "rain"):
        remove(shelf, cycle.path, "rain_rate/c/")
    assert archive.rain_rate.shape == (3, 2, 20, 13)


def test_a_cycle_removed_after_opening_is_an_error_and_not_missing_data(shelf):
    publish_all(shelf)
    archive = open_archive(shelf.root, "rain")
    remove(shelf, list_cycles(shelf.root, "rain")[0].path)
    with pytest.raises(InputError, match=r"1525\..*zarr.* is gone: its cycle was removed"):
        archive.rain_rate[0].values  # noqa: B018
    assert np.isfinite(archive.rain_rate[1].values).any()


def test_a_flipped_byte_in_one_cycle_is_an_error_there_only(shelf):
    publish_all(shelf)
    store = list_cycles(shelf.root, "rain")[1].path
    shelf.damage(store, "rain_rate/c/0/0/0/0", lambda data: data.__setitem__(30, data[30] ^ 1))
    archive = open_archive(shelf.root, "rain")
    with pytest.raises(ValueError, match="checksum"):
        archive.rain_rate[1].values  # noqa: B018
    assert np.isfinite(archive.rain_rate[2].values).any()


def test_opening_writes_nothing(shelf):
    publish_all(shelf)
    before = shelf.contents(shelf.place.home)
    open_archive(shelf.root, "rain").load()
    assert shelf.contents(shelf.place.home) == before


def test_provenance_of_one_cycle_does_not_stand_for_all(shelf):
    publish_all(shelf)
    attributes = open_archive(shelf.root, "rain").attrs
    assert attributes["Conventions"] == "CF-1.11"
    assert not [name for name in attributes if name.startswith("squall_")]


def test_chunks_give_dask_arrays_that_travel(shelf):
    pytest.importorskip("dask")
    publish_all(shelf)
    archive = open_archive(shelf.root, "rain", chunks={})
    assert archive.rain_rate.chunks is not None
    if shelf.root.startswith("memory"):
        pytest.skip("a store in memory does not travel")
    copy = pickle.loads(pickle.dumps(archive))  # noqa: S301
    np.testing.assert_array_equal(copy.rain_rate.values, open_archive(shelf.root, "rain").rain_rate.values)


def test_no_cycles_are_an_error_that_names_root_and_time(shelf):
    shelf.publish(TIMES[0])
    with pytest.raises(InputError, match=r"no cycle of rain is published in .* from 2017"):
        open_archive(shelf.root, "rain", np.datetime64("2017-01-01", "ns"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"grid": (26, 13)}, "shape, squall_grid"),
        ({"leads": (timedelta(minutes=5), timedelta(minutes=15))}, "squall_grid"),
        ({"packing": Packing(scale_factor=0.1)}, "scale_factor"),
        ({"shards": (20, 16)}, "chunk_grid"),
    ],
    ids=["grid", "leads", "packing", "shards"],
)
def test_cycles_that_do_not_fit_together_are_named_with_a_start_that_works(shelf, change, named):
    shelf.publish(TIMES[0])
    newer = changed(shelf, change)
    newer.publish(TIMES[1])
    newer.publish(TIMES[2])
    with pytest.raises(InputError, match=rf"1525\..*zarr differs .* in .*{named}.*start=2016-09-28T15:30:00 on"):
        open_archive(shelf.root, "rain")
    assert open_archive(shelf.root, "rain", np.datetime64(TIMES[1], "ns")).sizes["init_time"] == 2


def changed(shelf, change):
    if "grid" in change:
        return shelf.but(grid=type(shelf.grid)(**{**vars(shelf.grid), "y": np.arange(26.0)}))
    if "leads" in change:
        return shelf.but(leads=change["leads"])
    return shelf.but(output=shelf.output.model_copy(update=change))


def test_a_better_description_does_not_split_an_archive(shelf):
    shelf.publish(TIMES[0])
    shelf.but(long_name="rain rate at the ground").publish(TIMES[1])
    assert open_archive(shelf.root, "rain").rain_rate.attrs["long_name"] == "rain rate at the ground"
