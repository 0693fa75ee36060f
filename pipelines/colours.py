"""What colours mean: tables of rain rate and reflectivity, and fields in the units of a table. Draws nothing."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap

from pipelines.errors import ConfigError
from pipelines.units import Quantity, convert_units

_MM_PER_HOUR = Quantity("lwe_precipitation_rate", "mm h-1")
NO_COVERAGE = "#c9c9c6"
NO_ECHO = "#fbfbf8"


@dataclass(frozen=True)
class ColourTable:
    """Colours between ascending breaks in `units`; the last one is for all that reaches the last break."""

    quantity: str
    units: str
    breaks: tuple[float, ...]
    colours: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.colours) != len(self.breaks):
            raise ConfigError(
                f"a colour table with {len(self.breaks)} breaks needs as many colours, found {len(self.colours)}"
            )
        if any(b <= a for a, b in zip(self.breaks, self.breaks[1:], strict=False)):
            raise ConfigError(f"the breaks of a colour table must ascend, found {self.breaks}")


RAIN_RATE = ColourTable(
    "rain rate",
    "mm h⁻¹",
    (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
    (
        "#cfe5f5",
        "#9bcbec",
        "#56a5dc",
        "#1f6fbf",
        "#2c9c4b",
        "#f6e13a",
        "#f79a1f",
        "#e2301f",
        "#b0189b",
        "#4d0d66",
    ),
)


REFLECTIVITY = ColourTable(
    "reflectivity",
    "dBZ",
    (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60),
    (
        "#dfe9f0",
        "#c3dced",
        "#8fc2e6",
        "#4b98d3",
        "#1f64b3",
        "#2c9c4b",
        "#8ccb3f",
        "#f6e13a",
        "#f79a1f",
        "#e2301f",
        "#b0189b",
        "#4d0d66",
    ),
)


def colour_table(field: xr.DataArray) -> ColourTable:
    """The colour table for the units of `field`, however they are written.

    Raises:
        ConfigError: neither a rain rate nor a reflectivity (names the units).
    """
    if field.attrs.get("units") == "dBZ":
        return REFLECTIVITY
    _per_hour(field)
    return RAIN_RATE


def _per_hour(field: xr.DataArray) -> np.float32:
    """What makes mm h-1 of the units of a rain rate."""
    units = str(field.attrs.get("units", ""))
    try:
        return np.float32(convert_units(Quantity(field.attrs.get("standard_name") or None, units), _MM_PER_HOUR).factor)
    except ConfigError as error:
        found = f"no colour table for {field.name} in {units!r}"
        raise ConfigError(f"{found}; expected dBZ or a rain rate, such as in mm h-1") from error


def rain_rate(field: xr.DataArray) -> xr.DataArray:
    """`field` as rain rate in mm h-1; reflectivity by its attributes `zr_a` and `zr_b`. NaN stays NaN.

    Raises:
        ConfigError: other units, or reflectivity without `zr_a` and `zr_b`.

    Source: Z = a R**b (Marshall & Palmer, 1948); no echo is no rain.
    """
    known = {"standard_name": _MM_PER_HOUR.standard_name, "units": _MM_PER_HOUR.units}
    if colour_table(field) is RAIN_RATE:
        return (field * _per_hour(field)).assign_attrs(known)
    if not {"zr_a", "zr_b"} <= field.attrs.keys():
        raise ConfigError(f"{field.name} is in dBZ; expected a rain rate, or the attributes zr_a and zr_b to make one")
    a, b = (np.float32(field.attrs[name]) for name in ("zr_a", "zr_b"))
    rate = (10 ** (field / 10) / a) ** (1 / b)
    return rate.where(field != field.attrs.get("no_echo_value", -np.inf), 0).assign_attrs(known)


def in_units(field: xr.DataArray, table: ColourTable) -> xr.DataArray:
    """`field` in the units of the colour table."""
    if table is RAIN_RATE:
        return rain_rate(field)
    if colour_table(field) is not table:
        units = field.attrs["units"]
        raise ConfigError(f"{field.name} is in {units}, the forecast in {table.units}; expected the same")
    return field


def colour_map(table: ColourTable) -> tuple[Colormap, BoundaryNorm]:
    """The colours of a table for Matplotlib, missing and no echo among them, and which values have which."""
    colours = ListedColormap(table.colours[:-1]).with_extremes(bad=NO_COVERAGE, under=NO_ECHO, over=table.colours[-1])
    return colours, BoundaryNorm(table.breaks, colours.N)
