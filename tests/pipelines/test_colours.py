import numpy as np
import pytest
import xarray as xr

from pipelines.colours import ColourTable, rain_rate
from pipelines.errors import ConfigError


def field(values, **attrs):
    return xr.DataArray(np.asarray(values, np.float32), dims="x", name="rain", attrs=attrs)


def test_reflectivity_becomes_the_rain_rate_of_its_relation():
    dbz = field([-32.0, np.nan, 23.483], units="dBZ", zr_a=223.0, zr_b=1.53, no_echo_value=-32.0)
    rate = rain_rate(dbz)
    np.testing.assert_allclose(rate.values, [0, np.nan, 1], rtol=1e-3)
    assert rate.attrs["units"] == "mm h-1"


@pytest.mark.parametrize(
    ("units", "value"),
    [("mm h-1", 3.6), ("m s-1", 1e-6), ("kg m-2 s-1", 1e-3)]
    + [(text, 3.6) for text in ("mm/hour", "mm h^-1", "mm per hour", "millimeters/hour")],
)
def test_rain_rate_in_other_units_is_the_same_rain_rate(units, value):
    assert float(rain_rate(field([value], units=units))[0]) == pytest.approx(3.6, rel=1e-6)


@pytest.mark.parametrize("attrs", [{}, {"units": "mm"}, {"units": "m s-1", "standard_name": "wind_speed"}])
def test_what_is_no_rain_rate_has_no_colours(attrs):
    with pytest.raises(ConfigError, match=r"no colour table for rain in .*; expected dBZ or a rain rate"):
        rain_rate(field([1.0], **attrs))


def test_a_colour_table_with_falling_breaks_is_refused():
    with pytest.raises(ConfigError, match="must ascend"):
        ColourTable("rain rate", "mm h-1", (1, 0.5), ("red", "blue"))


def test_a_colour_table_without_a_colour_for_each_break_is_refused():
    with pytest.raises(ConfigError, match="2 breaks needs as many colours, found 1"):
        ColourTable("rain rate", "mm h-1", (0.5, 1), ("red",))
