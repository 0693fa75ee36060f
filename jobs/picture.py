"""Draws a published cycle beside the frames it was made from, and what was observed since, if anything."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xarray as xr

from pipelines.archive import find_cycle, open_cycle
from pipelines.encoding import Encoding
from pipelines.errors import ConfigError, InputError
from pipelines.grid import Window
from pipelines.model_space import ModelSpace
from pipelines.plot import draw_forecast
from pipelines.product import Product, load_product
from pipelines.source import Cycle, Source, find_inputs, open_source
from pipelines.transform import Decoder, input_quantity
from pipelines.units import UNCHANGED, Quantity, convert_units


def draw_cycle(file: Path, overrides: Sequence[str], reference_time: np.datetime64, out: Path) -> Path:
    """The path of a PNG of a published cycle of a product.

    Raises:
        InputError: the cycle is not published.
        ConfigError: what was observed cannot be drawn in the units of the forecast.
    """
    product = load_product(file, overrides)
    published = find_cycle(product.output.store, product.name, reference_time)
    if published is None:
        raise InputError(f"cycle {reference_time} of {product.name} is not published in {product.output.store}")
    forecast = open_cycle(published.path, dtype=np.float64)
    source = open_source(product.input, all_times=False)
    field = forecast[product.output.variable]
    past = observed_fields(source, product, find_inputs(source, product, reference_time), field)
    title = f"{product.name}"
    model = model_shown(str(forecast.attrs["squall_model"]))
    credit = ""
    return draw_forecast(past, field, out, title=title, model=model, credit=credit)


def model_shown(identity: str) -> str:
    """Name and version of a model's identity.

    >>> model_shown("my-unet-1.0-50d32fd29b99")
    'my-unet 1.0'
    """
    name, _, version = identity.rpartition("-")[0].rpartition("-")
    return f"{name} {version}"


def observed_fields(source: Source, product: Product, cycle: Cycle, forecast: xr.DataArray) -> xr.DataArray:
    """Values (time, y, x) float32 of the frames of a cycle, in the units of a forecast; missing = NaN.

    Raises:
        ConfigError: what was observed and the forecast do not fit each other.
    """
    convert = conversion(source.encoding, product.input.convert, quantity_of(forecast))
    decoder = Decoder(source.encoding, ModelSpace(missing=float("nan")), is_zr=convert == "zr")
    quantity = input_quantity(source.encoding, convert)
    grid = source.grid
    window = Window(0, grid.shape[0], 0, grid.shape[1])
    observed = xr.DataArray(
        decoder.decode(source.read(cycle, window)),
        dims=("time", grid.y_name, grid.x_name),
        coords={
            "time": np.array(cycle.frame_times),
            grid.y_name: (grid.y_name, grid.y, dict(grid.y_attrs)),
            grid.x_name: (grid.x_name, grid.x, dict(grid.x_attrs)),
        },
        name=product.input.variable,
        attrs={"units": quantity.units, "standard_name": quantity.standard_name or ""},
    )
    return in_units_of(forecast, observed)


def conversion(encoding: Encoding, convert: str, wanted: Quantity) -> str:
    """A product's `input.convert`, or `zr` where only that leads to what its model makes, of reflectivity itself."""
    for tried in (convert, "zr"):
        with suppress(ConfigError):
            convert_units(input_quantity(encoding, tried), wanted)
            return tried
    return convert


def quantity_of(field: xr.DataArray) -> Quantity:
    return Quantity(field.attrs.get("standard_name") or None, str(field.attrs["units"]))


def in_units_of(forecast: xr.DataArray, observed: xr.DataArray) -> xr.DataArray:
    """What was observed, in the units of the forecast.

    Raises:
        ConfigError: the units do not fit each other.
    """
    wanted = quantity_of(forecast)
    change = convert_units(quantity_of(observed), wanted)
    if change == UNCHANGED:
        return observed
    changed = observed * np.float32(change.factor) + np.float32(change.offset)
    return changed.assign_attrs(observed.attrs, units=wanted.units)
