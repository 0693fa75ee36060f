"""Units are read as institutes write them."""

import pytest

from pipelines.errors import ConfigError
from pipelines.units import Quantity, convert_units, least_value

RAIN = Quantity("lwe_precipitation_rate", "mm h-1")


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        *[(text, 1) for text in ("mm/h", "mm/hr", "mm hr-1", "mm h^-1", "mm.h-1", "mm / hour", "mm per hour")],
        *[(text, 12) for text in ("mm/5min", "mm/(5 min)", "mm / 5 min", "mm (5 min)-1")],
        *[(text, 3600) for text in ("kg m-2 s-1", "kg.m-2.s-1", "kg/m2/s", "kg/(m^2 s)", "mm/s")],
        ("0.1 mm/h", 0.1),
        ("millimeters per hour", 1),
        ("mm/24h", 1 / 24),
        ("in/hr", 25.4),
    ],
)
def test_every_way_to_write_a_rain_rate(units, factor):
    assert convert_units(Quantity(None, units), RAIN).factor == pytest.approx(factor)
    assert convert_units(Quantity("rainfall_flux", units), RAIN).offset == 0


@pytest.mark.parametrize(
    "units",
    ["", "mm", "kg m-2", "dBZ", "mm h", "mm/h/h", "9**9**9**9 mm/h", "(9 mm/h)**9**9", "(5 mm)**99999999/h", "2 " * 99],
)
def test_what_is_no_rain_rate_is_refused(units):
    with pytest.raises(ConfigError, match="expected lwe_precipitation_rate in mm h-1, or units that convert"):
        convert_units(Quantity(None, units), RAIN)


@pytest.mark.parametrize(
    ("name", "units", "least"),
    [
        ("rainfall_rate", "mm h-1", -0.01),
        ("precipitation_flux", "kg m-2 s-1", -0.01 / 3600),
        (None, "mm/5min", -0.01 / 12),
        (None, "m s-1", None),
        ("air_temperature", "K", None),
        ("rainfall_rate", "", None),
        (None, "mm", None),
    ],
)
def test_a_rain_rate_is_not_negative(name, units, least):
    assert least_value(Quantity(name, units)) == (None if least is None else pytest.approx(least))
