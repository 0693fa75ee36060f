"""What a store says of its codes is believed; where it is wrong or silent, the product file speaks for it."""

import numpy as np
import pytest
import zarr

from pipelines.encoding import unpack
from pipelines.errors import InputError
from pipelines.product import Product
from pipelines.source import find_inputs, open_source

RATE = {"standard_name": "rainfall_rate", "units": "mm h-1"}


def physical(product):
    """Values of the newest frame, (y, x), in the store's units."""
    source = open_source(product.input)
    raw = source.read_frames(find_inputs(source, product))
    return unpack(raw, source.encoding)[-1]


def rain(seed=3, frames=3, shape=(30, 41)):
    """Codes of 0.1 mm h-1, 0 to 200, a third of them dry."""
    return np.random.default_rng(seed).integers(-100, 200, (frames, *shape)).clip(0)


def test_several_missing_values_are_all_missing(frames, tmp_path):
    values = rain() / np.float32(10)
    values[:, :3], values[:, 3:5] = -3, -999
    attributes = RATE | {"missing_value": [-3.0, -999.0]}
    path = frames.write(tmp_path / "radar.zarr", values, attributes=attributes, fill_value=0)
    found = physical(frames.product(path))
    assert np.isnan(found[:5]).all()
    np.testing.assert_allclose(found[5:], values[-1, 5:])


def test_attributes_of_the_product_count_instead_of_those_of_the_store(frames, tmp_path):
    codes = rain().astype(np.int16)
    codes[:, :4], codes[:, 4] = -1, -2
    store = {"units": "unknown", "scale_factor": 1.0, "_FillValue": -1}
    path = frames.write(tmp_path / "radar.zarr", codes, attributes=store)
    given = {"units": "mm h-1", "scale_factor": 0.1, "missing_value": [-2], "zr_a": 200, "zr_b": "1.6"}
    source = open_source(frames.product(path, attributes=given).input)
    encoding = source.encoding
    assert (encoding.units, encoding.scale_factor) == ("mm h-1", 0.1)
    assert (encoding.missing, encoding.zr) == ((-1, -2), (200, 1.6))
    assert source.refresh().encoding == encoding
    found = physical(frames.product(path, attributes=given))
    assert np.isnan(found[:5]).all()
    np.testing.assert_allclose(found[5:], codes[-1, 5:] * 0.1)


def test_the_grid_mapping_can_be_given(frames, tmp_path):
    attributes = RATE | {"_FillValue": -32768, "grid_mapping": "nothing"}
    path = frames.write(tmp_path / "radar.zarr", attributes=attributes)
    zarr.open_group(path, mode="r+", use_consolidated=False).create_array(
        "polar", shape=(), dtype="i4", attributes={"grid_mapping_name": "polar_stereographic"}
    )
    zarr.consolidate_metadata(path)
    grid = open_source(frames.product(path, attributes={"grid_mapping": "polar"}).input).grid
    assert grid.crs_name == "polar"
    assert grid.crs_attrs == {"grid_mapping_name": "polar_stereographic"}


def test_a_product_keeps_the_attributes_it_gives(frames):
    given = {"units": "mm h-1", "missing_value": [-3, -999.5]}
    product = frames.product("radar.zarr", attributes=given)
    again = Product.model_validate(product.model_dump(mode="json"))
    assert again == product
    assert again.input.attributes == {"units": "mm h-1", "missing_value": (-3, -999.5)}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("stored", ["i1", "u1"])
def test_unsigned_codes_in_signed_integers_as_netcdf_stores_them(frames, tmp_path, zarr_format, stored):
    codes = rain().astype(np.uint8)
    codes[:, :10] = 255
    attributes = RATE | {"_Unsigned": "true", "scale_factor": 0.1, "_FillValue": int(np.uint8(255).view(stored))}
    path = frames.write(
        tmp_path / "radar.zarr",
        codes.view(stored),
        attributes=attributes,
        zarr_format=zarr_format,
        fill_value=attributes["_FillValue"],
        chunks=(1, 10, 41),
    )
    found = physical(frames.product(path))
    np.testing.assert_array_equal(found, np.where(codes[-1] == 255, np.nan, codes[-1] * 0.1))


def test_signed_integers_that_are_not_unsigned_stay_signed(frames, tmp_path):
    path = frames.write(tmp_path / "radar.zarr", attributes=frames.attributes | {"_Unsigned": "false"})
    assert open_source(frames.product(path).input).encoding.dtype == "int16"


NEGATIVE = {
    "MRMS, float": (np.float32, {}, {0: -3, 4: -999}, r"down to -999 mm h-1, .*missing_value: \[-999, -3\]"),
    "Nimrod, 1/32": (np.int16, {"scale_factor": 1 / 32}, {0: -1}, r"down to -0.03125 mm h-1, .*missing_value: \[-1\]"),
    "flux": (
        np.float32, {"standard_name": "precipitation_flux", "units": "kg m-2 s-1"}, {7: -1},
        r"down to -1 kg m-2 s-1, which no precipitation_flux can be; expected 0 or more",
    ),
    "beside a missing value": (np.int16, {"_FillValue": -9}, {0: -9, 9: -2}, r"down to -2 .*missing_value: \[-2\]"),
    "no standard_name": (np.float32, {"standard_name": None}, {3: -9}, "down to -9 mm h-1, which no rain rate can be"),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "attributes", "rows", "message"), NEGATIVE.values(), ids=NEGATIVE)
def test_codes_for_missing_that_nobody_names_are_refused(frames, tmp_path, dtype, attributes, rows, message):
    codes = rain().astype(dtype)
    for row, code in rows.items():
        codes[-1, row, 5:9] = code
    named = {key: value for key, value in (RATE | attributes).items() if value is not None}
    path = frames.write(tmp_path / "radar.zarr", codes, attributes=named, fill_value=0)
    with pytest.raises(InputError, match=r"^frame 2024-06-01T12:10Z of 'rain' .* has values " + message):
        physical(frames.product(path))
    given = {"missing_value": sorted(set(rows.values()))}
    found = physical(frames.product(path, attributes=given))
    assert np.isnan(found).sum() == 4 * len(rows)


@pytest.mark.parametrize(
    "attributes",
    [{"units": "K", "standard_name": "air_temperature"}, {"units": "m s-1"}, {"units": "dBZ"}, {}],
)
def test_what_may_be_negative_is_not_refused(frames, tmp_path, attributes):
    values = np.full((3, 30, 41), -3, np.float32)
    path = frames.write(tmp_path / "radar.zarr", values, attributes=attributes, fill_value=0)
    assert (physical(frames.product(path)) == -3).all()


def test_rounding_below_zero_is_not_refused(frames, tmp_path):
    values = np.full((3, 30, 41), -1e-3, np.float32)
    path = frames.write(tmp_path / "radar.zarr", values, attributes=RATE, fill_value=0)
    assert (physical(frames.product(path)) < 0).all()


@pytest.mark.parametrize(("dtype", "attributes"), [("f4", {}), ("u1", {"scale_factor": 0.1})])
def test_a_fill_value_by_which_dry_cells_would_be_missing_must_be_meant(frames, tmp_path, dtype, attributes):
    codes = rain().astype(dtype)
    path = frames.write(tmp_path / "radar.zarr", codes, attributes=RATE | attributes, zarr_format=2, fill_value=0)
    message = (
        r"fill_value 0 and no _FillValue, so that a cell of 0 mm h-1 would be missing; .* \{_FillValue: NaN\} if not"
    )
    with pytest.raises(InputError, match=message):
        open_source(frames.product(path).input)
    assert np.isnan(physical(frames.product(path, attributes={"_FillValue": 0}))).sum() == (codes[-1] == 0).sum()
    measured = physical(frames.product(path, attributes={"_FillValue": "NaN"}))
    np.testing.assert_allclose(measured, codes[-1] * attributes.get("scale_factor", 1.0))


def test_a_fill_value_that_somebody_chose_must_be_explained_in_v3(frames, tmp_path):
    codes = rain().astype(np.uint8)
    codes[:, :9] = 255
    path = frames.write(tmp_path / "radar.zarr", codes, attributes=RATE | {"scale_factor": 0.1}, fill_value=255)
    with pytest.raises(InputError, match=r"fill_value 255 .* so that a cell of 25\.5 mm h-1 would be a measurement"):
        open_source(frames.product(path).input)
    assert np.isnan(physical(frames.product(path, attributes={"_FillValue": 255}))[:9]).all()
    assert (physical(frames.product(path, attributes={"_FillValue": "NaN"}))[:9] == 25.5).all()


@pytest.mark.parametrize("fill_value", [0, -1])
def test_a_fill_value_of_no_echo_needs_no_explanation_in_v3(frames, tmp_path, fill_value):
    attributes = RATE | {"no_echo_value": float(fill_value)}
    path = frames.write(tmp_path / "radar.zarr", rain().astype(np.int16), attributes=attributes, fill_value=fill_value)
    assert np.isfinite(physical(frames.product(path))).all()


def test_a_fill_value_of_another_code_than_dry_is_meant(frames, tmp_path):
    codes = rain().astype(np.uint8)
    attributes = RATE | {"scale_factor": 0.1, "add_offset": -0.1}
    path = frames.write(tmp_path / "radar.zarr", codes, attributes=attributes, zarr_format=2, fill_value=0)
    assert np.isnan(physical(frames.product(path))).sum() == (codes[-1] == 0).sum()
