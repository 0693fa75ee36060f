from itertools import groupby
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.colors import to_rgb
from nbclient import NotebookClient

from pipelines import colours
from pipelines.colours import rain_rate
from pipelines.errors import ConfigError
from pipelines.plot import draw_figure, draw_forecast, thin
from pipelines.storms import write_storms

ROOT = Path(__file__).parents[2]
FMI = ROOT.parent / "shared" / "data" / "fmi_20160928.zarr"
START = np.datetime64("2024-06-01T23:50", "ns")
MINUTE = np.timedelta64(1, "m")


def frames(values, minutes, units="mm h-1", y_step=-1000.0, **attrs):
    """(time, y, x) rain on a 1 km grid, `minutes` from the start of the forecast."""
    values = np.asarray(values, np.float32)
    y = np.arange(values.shape[1]) * y_step
    coords = {
        "time": START + np.asarray(minutes) * MINUTE,
        "y": ("y", y, {"units": "m"}),
        "x": ("x", np.arange(values.shape[2]) * 1000.0, {"units": "m"}),
    }
    return xr.DataArray(values, coords, ("time", "y", "x"), name="rain", attrs={"units": units} | attrs)


def cycle(values, minutes, **options):
    """(lead_time, y, x) forecast from START."""
    leads = frames(values, minutes, **options)
    return leads.rename(time="lead_time").assign_coords(lead_time=leads.time.values - START, init_time=START)


@pytest.fixture
def past():
    return frames(np.zeros((3, 40, 40)), (-10, -5, 0))


@pytest.fixture
def forecast():
    return cycle(np.zeros((6, 40, 40)), (5, 10, 15, 20, 25, 30))


def words(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts] + [text.get_text() for text in figure.texts]


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def pixels_of(figure, colour):
    return int(np.all(pixels(figure) == np.rint(np.array(to_rgb(colour)) * 255), axis=-1).sum())


# thinning

fields = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.floats(0, 100, width=32) | st.just(float("nan")),
)


@given(fields, st.integers(1, 50), st.integers(1, 50))
def test_thinning_keeps_the_greatest_and_fits(field, rows, columns):
    small = thin(field, (rows, columns))
    assert small.shape == (min(rows, field.shape[0]), min(columns, field.shape[1]))
    assert np.array_equal(np.fmax.reduce(small, axis=None), np.fmax.reduce(field, axis=None), equal_nan=True)


@given(st.data(), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_a_thinned_cell_stays_where_it_was(data, side, rows, columns):
    y, x = (data.draw(st.integers(0, side - 1)) for _ in "yx")
    field = np.full((side, side), np.nan, np.float32)
    field[y, x] = 7
    small = thin(field, (rows, columns))
    (found,) = np.argwhere(small == 7)
    assert np.isfinite(small).sum() == 1
    for place, cell, limit in zip(found, (y, x), small.shape, strict=True):
        assert abs((place + 0.5) / limit - (cell + 0.5) / side) <= 1 / limit


# colours and units


def test_every_colour_of_the_table_means_its_rain_rates(past):
    rates = np.array([0.0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100], np.float32)
    stripes = np.broadcast_to(rates.repeat(4), (1, 44, 44))
    picture = pixels(draw_figure(frames(np.zeros((1, 44, 44)), [0]), cycle(stripes, [5]), title="stripes"))
    found = [colour for colour, _ in groupby(tuple(pixel) for pixel in picture[int(0.7 * len(picture))])]
    expected = [tuple(np.rint(np.array(to_rgb(c)) * 255)) for c in (colours.NO_ECHO, *colours.RAIN_RATE.colours)]
    assert [colour for colour in dict.fromkeys(found) if colour in expected[1:]] == expected[1:]


def test_missing_is_grey_and_dry_is_not(past):
    missing = cycle(np.full((6, 40, 40), np.nan), range(5, 35, 5))
    grey = pixels_of(draw_figure(past, missing, title="missing"), colours.NO_COVERAGE)
    dry = pixels_of(draw_figure(past, missing.fillna(0), title="dry"), colours.NO_COVERAGE)
    assert grey > 500_000
    assert dry < 2_000


def test_every_wet_cell_of_a_large_grid_is_seen(past):
    values = np.zeros((1, 900, 1800), np.float32)
    values[0, 11:900:31, 17:1800:61] = 30
    dry, wet = (pixels(draw_figure(past, cycle(v, [5]), title="cells")) for v in (values * 0, values))
    assert np.any(dry != wet, axis=-1).sum() >= np.count_nonzero(values)


def test_a_map_does_not_depend_on_the_order_of_rows(past, forecast):
    values = np.zeros((6, 40, 40), np.float32)
    values[:, 3, 5] = 8
    north_first = cycle(values, range(5, 35, 5))
    south_first = north_first.isel(y=slice(None, None, -1))
    figures = [draw_figure(past, f, title="rows") for f in (north_first, south_first)]
    # the past is dry, its own order does not matter
    np.testing.assert_array_equal(pixels(figures[0]), pixels(figures[1]))


def test_a_reflectivity_forecast_has_a_table_of_its_own(past):
    dbz = {"units": "dBZ"}
    forecast = cycle(np.full((6, 40, 40), 47.0), range(5, 35, 5), **dbz)
    figure = draw_figure(past.assign_attrs(dbz), forecast, title="reflectivity")
    assert pixels_of(figure, colours.REFLECTIVITY.colours[8]) > 500_000


# words


def test_maps_say_their_valid_time_and_lead(past, forecast):
    found = words(draw_figure(past, forecast, title="rain-test", model="advection 1.0", credit="Radar: someone"))
    expected = {"23:50 UTC", "0 min", "−10 min", "23:55 UTC", "+5 min", "02 Jun 00:20 UTC", "+30 min"}
    assert expected | {"rain-test", "advection 1.0", "forecast from 2024-06-01 23:50 UTC", "Radar: someone"} <= {*found}


def test_long_leads_are_told_in_hours(past):
    found = words(draw_figure(past, cycle(np.zeros((3, 40, 40)), (90, 150, 180)), title="long"))
    assert {"+90 min", "+2 h 30 min", "+3 h"} <= {*found}


def test_a_time_that_was_not_observed_is_an_empty_map(past, forecast):
    observed = frames(np.zeros((5, 40, 40)), (5, 10, 15, 20, 25))
    found = words(draw_figure(past, forecast, title="verified", observed=observed))
    assert found.count("not observed") == 1
    assert found.count("02 Jun 00:15 UTC") == 2


def test_degrees_are_told_with_their_hemisphere(past, forecast):
    names = {"y": "latitude", "x": "longitude"}
    degrees = {
        "latitude": ("latitude", np.linspace(55, -20, 40), {"units": "degrees_north"}),
        "longitude": ("longitude", np.linspace(-30, 30, 40), {"units": "degrees_east"}),
    }
    figure = draw_figure(
        past.rename(names).assign_coords(degrees), forecast.rename(names).assign_coords(degrees), title=""
    )
    labels = {label.get_text() for ax in figure.axes for label in ax.get_xticklabels() + ax.get_yticklabels()}
    assert {"0°", "40°N", "20°N"} <= labels
    assert any(label.endswith("°W") for label in labels)
    assert any(label.endswith("°E") for label in labels)


@pytest.mark.parametrize(
    ("first", "west", "east"), [(359.5, -0.505, -0.105), (230.0, -130.005, -129.605), (24.0, 23.995, 24.395)]
)
def test_longitudes_up_to_360_are_drawn_where_they_are(past, forecast, first, west, east):
    names = {"y": "lat", "x": "lon"}
    degrees = {"lat": np.linspace(55, 54.61, 40), "lon": (first + np.arange(40) / 100) % 360}
    moved = (field.rename(names).assign_coords(degrees) for field in (past, forecast))
    figure = draw_figure(*moved, title="")
    maps = [ax for ax in figure.axes if ax.images]
    assert maps
    assert all(ax.get_xlim() == pytest.approx((west, east)) for ax in maps)


def test_the_axes_of_a_projected_grid_are_in_km(past, forecast):
    figure = draw_figure(past, forecast, title="km")
    labels = {label.get_text() for ax in figure.axes for label in ax.get_xticklabels()}
    assert "20 km" in labels


# files


def test_the_picture_is_a_png_and_pyplot_knows_nothing_of_it(past, forecast, tmp_path):
    path = draw_forecast(past, forecast.expand_dims("init_time"), tmp_path / "out.png", title="rain-test")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


@pytest.mark.skipif(not FMI.exists(), reason=f"no real radar data at {FMI}")
def test_real_reflectivity_stands_beside_a_rain_rate_forecast():
    dbz = xr.open_zarr(FMI).reflectivity.isel(time=slice(0, 12))
    leads = rain_rate(dbz.isel(time=slice(3, 9))).astype(np.float32)
    start = dbz.time.values[2]
    forecast = leads.rename(time="lead_time").assign_coords(lead_time=leads.time.values - start, init_time=start)
    figure = draw_figure(dbz.isel(time=slice(0, 3)), forecast, title="rain-fmi", observed=dbz)
    assert "not observed" not in words(figure)
    assert all(pixels_of(figure, colour) > 1_000 for colour in (*colours.RAIN_RATE.colours[:7], colours.NO_COVERAGE))


# refusals


def test_a_forecast_without_a_colour_table_is_refused(past, forecast):
    with pytest.raises(
        ConfigError, match="no colour table for rain in 'K'; expected dBZ or a rain rate, such as in mm"
    ):
        draw_figure(past, forecast.assign_attrs(units="K"), title="")


def test_several_init_times_are_refused(past, forecast):
    two = xr.concat([forecast, forecast.assign_coords(init_time=START + 5 * MINUTE)], "init_time")
    with pytest.raises(ConfigError, match="one init_time, found 2"):
        draw_figure(past, two, title="")


def test_a_forecast_with_other_axes_is_refused(past):
    with pytest.raises(ConfigError, match=r"expected \(lead_time, y, x\) and the coordinate init_time"):
        draw_figure(past, past, title="")


def test_a_forecast_without_init_time_is_refused(past, forecast):
    with pytest.raises(ConfigError, match="the coordinate init_time"):
        draw_figure(past, forecast.drop_vars("init_time"), title="")


def test_a_lead_time_that_is_no_duration_is_refused(past, forecast):
    with pytest.raises(ConfigError, match="lead_time is int64, expected a duration"):
        draw_figure(past, forecast.assign_coords(lead_time=np.arange(6)), title="")


def test_a_past_without_frames_is_refused(past, forecast):
    with pytest.raises(ConfigError, match=r"past has axes .*'time': 0"):
        draw_figure(past.isel(time=[]), forecast, title="")


def test_reflectivity_without_its_relation_is_refused(past, forecast):
    with pytest.raises(ConfigError, match="expected a rain rate, or the attributes zr_a and zr_b"):
        draw_figure(past.assign_attrs(units="dBZ"), forecast, title="")


def test_a_past_of_rain_beside_a_forecast_of_reflectivity_is_refused(past, forecast):
    with pytest.raises(ConfigError, match="rain is in mm h-1, the forecast in dBZ"):
        draw_figure(past, forecast.assign_attrs(units="dBZ"), title="")


# the notebook


def test_the_notebook_shows_and_scores_a_forecast_store(tmp_path, monkeypatch):
    observations = write_storms(tmp_path / "storms.zarr", (64, 64), frames=10)
    rain = xr.open_zarr(observations).precip_rate
    leads = rain.isel(time=slice(4, 10)).load()
    start = rain.time.values[3]
    forecast = leads.rename(time="lead_time").assign_coords(lead_time=leads.time.values - start, init_time=start)
    forecast.drop_encoding().expand_dims("init_time").to_dataset().to_zarr(tmp_path / "1215.zarr", zarr_format=3)
    monkeypatch.setenv("SQUALL_FORECAST", str(tmp_path / "1215.zarr"))
    monkeypatch.setenv("SQUALL_OBSERVATIONS", str(observations))
    pictures = [
        output
        for cell in run_notebook(ROOT / "notebooks" / "look_at_a_forecast.ipynb", SCORES_ARE_RIGHT)
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2


SCORES_ARE_RIGHT = """
perfect = csi(forecast, truth, 0.1)
assert perfect.sizes == {"lead_time": 6}
np.testing.assert_array_equal(perfect, 1)
assert np.all(csi(persistence, truth, 0.1) < 1)
"""


def run_notebook(path, code):
    """The cells of a notebook after a kernel has run them, and `code` after them."""
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    place = {"metadata": {"path": str(path.parent)}}
    return NotebookClient(notebook, kernel_name="python3", resources=place).execute().cells
