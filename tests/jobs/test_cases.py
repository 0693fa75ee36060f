"""Cases: the strongest weather is always among them, the same inputs give the same, and what does not fit is said."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import xarray as xr
import zarr

from engines.cases import Case, CaseError, digest, intensity, save_cases
from engines.model import load_package
from engines.zoo import AdvectionSpec, UnetSpec, write_package
from jobs.cases import archive_cases, fit_case, stored_cases, storm_cases
from jobs.contract import model_needs
from pipelines.errors import ConfigError
from pipelines.product import load_product
from pipelines.source import find_inputs, open_source
from pipelines.units import Quantity

SIZE = (64, 48)


@pytest.fixture
def needs(tmp_path):
    """Of a U-Net that takes two frames in log10."""
    return model_needs(load_package(write_package(UnetSpec(width=2, depth=1, frames=2), tmp_path / "unet")).contract)


def case(name="a", group="extreme", shape=(2, 64, 48), value=1.0):
    return Case(name, group, np.full(shape, value, np.float32))


# stored


def test_stored_cases_get_the_size_of_a_tile_and_keep_their_strongest_cell(tmp_path, needs):
    big = case("big", shape=(2, 200, 300))
    big.inputs[:, 150, 20] = 9
    path = save_cases(str(tmp_path / "storms.npz"), [big, case("small", "ordinary", (2, 30, 40))])
    found = stored_cases(path, needs, SIZE)
    assert [c.inputs.shape for c in found.cases] == [(2, *SIZE)] * 2
    assert [(c.name, c.group) for c in found.cases] == [("big", "extreme"), ("small", "ordinary")]
    assert found.cases[0].inputs[-1].max() == 9
    assert "stored in storms.npz" in found.about["cases"]


def test_a_case_of_the_right_size_is_not_changed():
    one = case()
    np.testing.assert_array_equal(fit_case(one, SIZE).inputs, one.inputs)


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        ([case(shape=(5, 64, 48)), case("b", "ordinary")], "has 5 channels; unet takes 2"),
        ([case()], "is ordinary; at least one"),
    ],
)
def test_stored_cases_that_do_not_fit_are_refused(tmp_path, needs, cases, says):
    with pytest.raises(CaseError, match=says):
        stored_cases(save_cases(tmp_path / "c.npz", cases), needs, SIZE)


# from an archive


def test_cases_of_an_archive_have_its_strongest_window_whatever_the_time(product, needs):
    radar = zarr.open_group(product.parent / "radar.zarr", mode="r+")
    rain = radar["precip_rate"][:]
    rain[:, : 300 // 2] //= 10
    rain[3, 10:30, 10:30] = 9000  # 90 mm h-1
    radar["precip_rate"][:] = rain
    tiny = load_product(product)
    found = archive_cases(tiny, open_source(tiny.input), needs, SIZE)
    strongest = max(found.cases, key=lambda c: intensity(c.inputs))
    assert (strongest.group, strongest.name) == ("extreme", "20240601T121500-y0-x0")
    assert {c.group for c in found.cases} == {"ordinary", "extreme"}
    assert {c.inputs.shape for c in found.cases} == {(2, *SIZE)}
    assert digest(archive_cases(tiny, open_source(tiny.input), needs, SIZE).cases) == digest(found.cases)
    assert "cut from precip_rate of radar.zarr, 2024-06-01T12:00Z to 2024-06-01T12:25Z" in found.origin


def test_cases_of_an_archive_are_what_a_worker_would_give_the_model(product, needs):
    tiny = load_product(product)
    found = archive_cases(tiny, open_source(tiny.input), needs, SIZE)
    one = found.cases[-1]
    at, y, x = one.name.split("-")
    rain = xr.open_zarr(product.parent / "radar.zarr").precip_rate
    now = np.datetime64(f"{at[:4]}-{at[4:6]}-{at[6:8]}T{at[9:11]}:{at[11:13]}")
    window = rain.sel(time=[now - np.timedelta64(5, "m"), now])[:, int(y[1:]) :, int(x[1:]) :][:, : SIZE[0], : SIZE[1]]
    wanted = np.where(window.values >= 0.1, np.log10(np.maximum(window.values, 0.1)), -2.0)
    np.testing.assert_allclose(one.inputs, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (100, r"all \d+ windows looked at are equally strong \(0 in model space\) in 'precip_rate' in "),
        (-32768, "all windows looked at are missing in 'precip_rate' in "),
    ],
)
def test_an_archive_in_which_no_window_is_stronger_than_another_is_refused(product, needs, code, says):
    zarr.open_group(product.parent / "radar.zarr", mode="r+")["precip_rate"][:] = code
    tiny = load_product(product)
    with pytest.raises(CaseError, match=says):
        archive_cases(tiny, open_source(tiny.input), needs, SIZE)


def test_an_archive_of_one_window_is_refused(product, needs, monkeypatch):
    monkeypatch.setattr("jobs.cases._cycles", lambda product, source: [find_inputs(source, product)])
    tiny = load_product(product)
    with pytest.raises(CaseError, match="there is one window only"):
        archive_cases(tiny, open_source(tiny.input), needs, (300, 260))


def test_a_grid_smaller_than_a_tile_is_given_with_missing_cells_around_it(product, tmp_path):
    spec = AdvectionSpec((1, 1), (-5, 0), (5, 10, 15))
    needs = model_needs(load_package(write_package(spec, tmp_path / "advection")).contract)
    tiny = load_product(product)
    found = archive_cases(tiny, open_source(tiny.input), needs, (320, 512))
    assert {c.inputs.shape for c in found.cases} == {(2, 320, 512)}
    assert (found.cases[0].inputs[:, 300:] == -1).all()


# made up


def test_storms_are_the_same_every_time_and_the_strongest_are_extreme(needs):
    found = storm_cases(needs, SIZE)
    assert digest(found.cases) == digest(storm_cases(needs, SIZE).cases)
    extreme = [intensity(c.inputs) for c in found.cases if c.group == "extreme"]
    ordinary = [intensity(c.inputs) for c in found.cases if c.group == "ordinary"]
    assert min(extreme) >= max(ordinary)
    assert "made up by squall, not the user's archive" in found.about["cases"]
    assert all((c.inputs[0] != c.inputs[1]).any() for c in found.cases)
    assert needs.cadence == timedelta(minutes=5)


def test_storms_are_no_cases_for_a_model_of_something_else(needs):
    with pytest.raises(ConfigError, match="eastward_wind in m s-1, and squall's own storms are rain"):
        storm_cases(replace(needs, quantity=Quantity("eastward_wind", "m s-1")), SIZE)
