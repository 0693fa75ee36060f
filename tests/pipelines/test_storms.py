import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import storms
from pipelines.errors import ConfigError, OutputError
from pipelines.storms import Wind, draw_storms, write_storms


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_storms(tmp_path_factory.mktemp("storms") / "storms.zarr", shape=(160, 128), frames=5)


places = st.complex_numbers(max_magnitude=1000, allow_nan=False)
winds = st.builds(Wind.through, places, st.complex_numbers(min_magnitude=0.1, max_magnitude=2), st.floats(1e-4, 5e-3))


@given(winds, places, st.floats(-300, 300))
def test_the_wind_brings_air_back_where_it_came_from(wind, place, minutes):
    there = wind.carry(np.asarray(place), minutes)
    assert wind.carry(there, -minutes) == pytest.approx(place, abs=1e-6)


@given(places, st.complex_numbers(min_magnitude=0.1, max_magnitude=2), st.floats(1e-4, 5e-3))
def test_the_wind_blows_as_asked_where_asked(place, velocity, turn):
    wind = Wind.through(place, velocity, turn)
    moved = wind.carry(np.asarray(place), 0.01) - place
    assert wind.velocity(place) == pytest.approx(velocity, rel=1e-6)
    assert moved / 0.01 == pytest.approx(velocity, rel=1e-3)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.integers(16, 120), st.integers(16, 120), st.sampled_from([0.0, 25.0, 175.0, 600.0]))
def test_every_frame_is_rain_between_no_echo_and_the_greatest_rate(seed, rows, columns, minutes):
    situation = draw_storms((rows, columns), minutes, seed)
    for minute in (0.0, minutes / 2, minutes):
        rain = situation.rain(minute)
        assert rain.shape == (rows, columns)
        np.testing.assert_array_equal(np.isnan(rain), ~situation.covered)
        wet = rain[situation.covered]
        assert np.all((wet == 0) | (wet >= storms.LEAST_RATE))
        assert np.all(wet <= storms.GREATEST_RATE)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_frame_looks_like_a_radar_picture(seed):
    situation = draw_storms((512, 512), 175, seed)
    for minute in (0.0, 90.0, 175.0):
        rain = situation.rain(minute)
        assert 0.75 < np.isfinite(rain).mean() < 0.98
        assert 0.1 < np.nanmean(rain >= 0.1) < 0.4
        assert np.nanmax(rain) > 10


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rain_moves_with_the_wind(seed):
    situation = draw_storms((512, 512), 175, seed)
    before, after = situation.rain(60), situation.rain(90)
    origin = situation.wind.carry(situation.places, -30)
    row = np.rint(511.5 - origin.imag).astype(int)
    column = np.rint(origin.real - 0.5).astype(int)
    inside = (row >= 0) & (row < 512) & (column >= 0) & (column < 512)
    carried = np.where(inside, before[row.clip(0, 511), column.clip(0, 511)], np.nan)
    assert _csi(carried, after, 1.0) > 0.55
    assert _csi(carried, after, 1.0) > 2 * _csi(before, after, 1.0)


def _csi(forecast, observed, threshold):
    both = np.isfinite(forecast) & np.isfinite(observed)
    said, seen = (field[both] >= threshold for field in (forecast, observed))
    return (said & seen).sum() / (said | seen).sum()


def test_the_store_is_a_radar_archive_that_xarray_reads(store):
    ds = xr.open_zarr(store, decode_coords="all", consolidated=True)
    rain = ds.precip_rate
    assert rain.dims == ("time", "y", "x")
    assert rain.shape == (5, 160, 128)
    assert (rain.attrs["standard_name"], rain.attrs["units"]) == ("lwe_precipitation_rate", "mm h-1")
    assert rain.attrs["no_echo_value"] == 0
    assert rain.encoding["grid_mapping"] == "crs"
    assert ds.crs.attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    assert "crs_wkt" in ds.crs.attrs
    assert ds.x.attrs["standard_name"] == "projection_x_coordinate"
    np.testing.assert_array_equal(np.diff(ds.time.values), np.timedelta64(5, "m"))
    np.testing.assert_array_equal(np.diff(ds.x.values), 1000)
    np.testing.assert_array_equal(np.diff(ds.y.values), -1000)


def test_a_frame_is_one_chunk_of_packed_integers(store):
    array = zarr.open_group(store, mode="r")["precip_rate"]
    assert array.metadata.zarr_format == 3
    assert array.chunks == (1, 160, 128)
    assert array.dtype == np.int16
    assert (array.attrs["scale_factor"], array.attrs["_FillValue"], array.fill_value) == (0.01, -32768, -32768)
    assert len([p for p in (store / "precip_rate" / "c").rglob("*") if p.is_file()]) == 5


def test_stored_rain_is_the_drawn_rain_to_half_a_step(store):
    drawn = draw_storms((160, 128), 20).rain(10)
    np.testing.assert_allclose(xr.open_zarr(store).precip_rate[2].values, drawn, atol=0.0051)


def test_a_flipped_byte_is_an_error_and_not_other_rain(tmp_path):
    path = write_storms(tmp_path / "storms.zarr", shape=(32, 32), frames=1)
    (chunk,) = (p for p in (path / "precip_rate" / "c").rglob("*") if p.is_file())
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(path, mode="r")["precip_rate"][:]


def test_the_same_seed_gives_the_same_rain_and_another_seed_another(tmp_path):
    first, same, other = (
        xr.open_zarr(write_storms(tmp_path / f"{name}.zarr", shape=(48, 64), frames=2, seed=seed)).precip_rate.values
        for name, seed in (("first", 4), ("same", 4), ("other", 5))
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other, equal_nan=True)


def test_frames_follow_the_given_start_and_step(tmp_path):
    path = write_storms(tmp_path / "s.zarr", (16, 16), 3, step="10min", start="2016-09-28T15:30")
    expected = np.array(["2016-09-28T15:30", "2016-09-28T15:40", "2016-09-28T15:50"], "datetime64[ns]")
    np.testing.assert_array_equal(xr.open_zarr(path).time.values, expected)


def test_nothing_that_lies_at_the_path_is_overwritten(store):
    with pytest.raises(OutputError, match="already exists"):
        write_storms(store)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storms, "_packed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_storms(tmp_path / "storms.zarr", shape=(16, 16), frames=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 0}, "at least 1 frame, found 0"),
        ({"shape": (15, 99)}, "found 15 x 99"),
        ({"step": "0min"}, "positive, found 0min"),
        ({"step": "-5min"}, "positive, found -5min"),
    ],
)
def test_a_store_that_cannot_be_is_refused(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        write_storms(tmp_path / "storms.zarr", **wrong)
