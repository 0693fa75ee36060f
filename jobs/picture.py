"""Draws a published cycle beside the frames it was made from, and what was observed since, if anything."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from pipelines.archive import find_cycle, open_cycle
from pipelines.errors import InputError
from pipelines.grid import Window
from pipelines.model_space import ModelSpace
from pipelines.plot import draw_forecast
from pipelines.product import Product, load_product
from pipelines.source import Cycle, Source, find_inputs, open_source
from pipelines.transform import Decoder, input_quantity


def draw_cycle(file: Path, overrides: Sequence[str], reference_time: np.datetime64, out: Path) -> Path:
    """The path of a PNG of a published cycle of a product.

    Raises:
        InputError: the cycle is not published.
    """
    product = load_product(file, overrides)
    published = find_cycle(product.output.store, product.name, reference_time)
    if published is None:
        raise InputError(f"cycle {reference_time} of {product.name} is not published in {product.output.store}")
    forecast = open_cycle(published.path)
    source = open_source(product.input)
    past = observed_fields(source, product, find_inputs(source, product, reference_time))
    title = f"{product.name}"
    model = str(forecast.attrs["squall_model"]).rpartition("-")[0].replace("-", " ")
    credit = ""
    return draw_forecast(past, forecast[product.output.variable], out, title=title, model=model, credit=credit)


def observed_fields(source: Source, product: Product, cycle: Cycle) -> xr.DataArray:
    """Physical values (time, y, x) float32 of the frames of a cycle, in the units the model takes; missing = NaN."""
    decoder = Decoder(source.encoding, ModelSpace(missing=float("nan")), is_zr=product.input.convert == "zr")
    quantity = input_quantity(source.encoding, product.input.convert)
    grid = source.grid
    window = Window(0, grid.shape[0], 0, grid.shape[1])
    return xr.DataArray(
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
