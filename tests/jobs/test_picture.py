"""What was observed is drawn in the units of the forecast."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from jobs.picture import conversion, in_units_of, model_shown
from pipelines.colours import RAIN_RATE, colour_table
from pipelines.encoding import Encoding
from pipelines.errors import ConfigError
from pipelines.units import Quantity


def field(value: float, units: str) -> xr.DataArray:
    return xr.DataArray(np.full((1, 2, 2), value, np.float32), dims=("time", "y", "x"), attrs={"units": units})


@pytest.mark.parametrize(
    ("units", "value"), [("mm/(5 min)", 0.5), ("0.1 mm/h", 60.0), ("kg m-2 s-1", 6 / 3600), ("mm/h", 6.0)]
)
def test_rain_in_any_units_has_the_colours_of_the_forecast(units, value):
    forecast = field(0, "mm h-1").assign_attrs(standard_name="lwe_precipitation_rate")
    found = in_units_of(forecast, field(value, units))
    assert colour_table(found) is RAIN_RATE
    np.testing.assert_allclose(found.values, 6, rtol=1e-6)


def test_what_is_as_the_forecast_stays_as_it_is():
    observed = field(30, "dBZ")
    assert in_units_of(field(0, "dBZ"), observed) is observed


def test_other_quantities_are_not_drawn_as_the_forecast():
    with pytest.raises(ConfigError, match="found no standard_name in dBZ; expected no standard_name in mm h-1"):
        in_units_of(field(0, "mm h-1"), field(30, "dBZ"))


DBZ = Encoding("int16", -32768, (-32768,), 0.01, units="dBZ", standard_name="equivalent_reflectivity_factor")
RAIN = Quantity("lwe_precipitation_rate", "mm h-1")
ECHO = Quantity("equivalent_reflectivity_factor", "dBZ")


@pytest.mark.parametrize(
    ("zr", "convert", "wanted", "found"),
    [
        ((223.0, 1.53), "none", RAIN, "zr"),  # the model makes rain of reflectivity
        ((223.0, 1.53), "none", ECHO, "none"),
        ((223.0, 1.53), "zr", RAIN, "zr"),
        (None, "none", RAIN, "none"),  # refused later, with what was found
        ((223.0, 1.53), "none", Quantity("probability", "1"), "none"),
    ],
)
def test_reflectivity_is_compared_as_rain_where_the_forecast_is_rain(zr, convert, wanted, found):
    assert conversion(replace(DBZ, zr=zr), convert, wanted) == found


def test_a_dash_in_the_name_of_a_model_stays():
    assert model_shown("my-unet-1.0-50d32fd29b99") == "my-unet 1.0"
