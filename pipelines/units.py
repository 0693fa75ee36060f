"""Quantities and the linear conversion between compatible units. pint is asked only where units differ."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipelines.errors import ConfigError

# CF names of what a radar composite gives as rain rate. They differ in phase or in mass against depth; for a
# nowcast they are one quantity, water at 1000 kg m-3: snow counts as its liquid equivalent.
RAIN_RATE_NAMES = frozenset(
    {
        "lwe_precipitation_rate",
        "precipitation_flux",
        "precipitation_rate",
        "rainfall_flux",
        "rainfall_rate",
    }
)
WATER_KG_PER_M3 = 1000.0


@dataclass(frozen=True)
class Quantity:
    """What numbers measure: a CF standard name (None = the store does not say) and units as text."""

    standard_name: str | None
    units: str

    @property
    def is_rain_rate(self) -> bool:
        return self.standard_name in RAIN_RATE_NAMES

    def __str__(self) -> str:
        return f"{self.standard_name or 'no standard_name'} in {self.units or 'no units'}"


@dataclass(frozen=True)
class Linear:
    """A change of units: y = x * factor + offset."""

    factor: float = 1.0
    offset: float = 0.0


UNCHANGED = Linear()

THRESHOLDS = (0.1, 1.0, 5.0)  # mm h-1, at which rain is scored unless told otherwise
_RAIN_RATE = Quantity("lwe_precipitation_rate", "mm h-1")
_NEGLIGIBLE = 0.01  # mm h-1; rain rates of models may be a little below zero by rounding
_LONGEST = 80  # characters of units
_POWERS = re.compile(r"\d\s*\*\*|\*\*\s*[-+(]*\d{2}|\*\*\s*[^-\d]")  # of numbers, or high ones
_DEPTH = re.compile(r"\s*(mm|millimet)")


def least_value(quantity: Quantity) -> float | None:
    """The value, in the quantity's units, below which it cannot be what it says: a rain rate is not negative.

    None for other quantities. Without a standard_name, depth in mm by time is a rain rate.
    """
    if not quantity.is_rain_rate and (quantity.standard_name is not None or not _DEPTH.match(quantity.units)):
        return None
    try:
        return -_NEGLIGIBLE / convert_units(quantity, _RAIN_RATE).factor
    except ConfigError:
        return None


def convert_units(found: Quantity, wanted: Quantity) -> Linear:
    """How values of one quantity become another's units.

    Rain rate as flux (kg m-2 s-1) becomes depth by time (mm h-1) at 1 kg m-2 = 1 mm of water. A store without
    standard_name is taken at its units.

    Raises:
        ConfigError: the quantities or their units do not fit each other (names both).
    """
    same_name = found.standard_name in (None, wanted.standard_name) or wanted.standard_name is None
    if not same_name and not (found.is_rain_rate and wanted.is_rain_rate):
        raise ConfigError(f"found {found}; expected {wanted}")
    if _words(found.units) == _words(wanted.units):
        return UNCHANGED
    as_water = wanted.is_rain_rate or found.is_rain_rate
    change = _linear(found.units, wanted.units, as_water)
    if change is None:
        raise ConfigError(f"found {found}; expected {wanted}, or units that convert to them")
    return change


def mm_per_hour_in(quantity: Quantity) -> float:
    """1 mm h-1 in the units of a rain rate; 1.0 for what is none.

    >>> mm_per_hour_in(Quantity("rainfall_rate", "mm/(30 min)")), mm_per_hour_in(Quantity(None, "K"))
    (0.5, 1.0)
    """
    try:
        return 1 / convert_units(quantity, _RAIN_RATE).factor
    except ConfigError:
        return 1.0


def usual_thresholds(quantity: Quantity) -> tuple[float, ...]:
    """`THRESHOLDS` in the units of a rain rate; the same numbers for what is none."""
    unit = mm_per_hour_in(quantity)
    return tuple(unit * threshold for threshold in THRESHOLDS)


def _words(units: str) -> str:
    """Units as pint reads them: `kg m-2 s-1`, `kg/m^2/s` and `kg m**-2 s**-1` differ only in writing.

    >>> _words("kg m-2 s-1")
    'kg*m**-2*s**-1'
    """
    text = re.sub(r"\s+per\s+", "/", units.strip())
    text = re.sub(r"/\s*(\d+)\s*([A-Za-z]+)", r"/(\1*\2)", text)  # mm/5min
    text = re.sub(r"([A-Za-z)])\s*(?:\^|\*\*)?\s*(-?\d+)", r"\1**\2", text)
    text = re.sub(r"(?<=[\w)])(?:\s+|\.)(?=[A-Za-z(])", "*", text)
    return re.sub(r"\s*([*/])\s*", r"\1", text)


@lru_cache(maxsize=64)
def _linear(found: str, wanted: str, as_water: bool) -> Linear | None:
    registry = _registry()
    try:
        start, end = (_quantity(registry, number, found) for number in (0.0, 1.0))
        target = registry.Unit(_words(wanted))
        if as_water and start.dimensionality != target.dimensionality:
            density = registry.Quantity(WATER_KG_PER_M3, "kg/m**3")
            by_mass = "[mass]" in start.dimensionality
            start, end = (q / density if by_mass else q * density for q in (start, end))
        offset, last = start.to(target).magnitude, end.to(target).magnitude
    except Exception:  # pint raises its own, the tokenizer's and attribute errors for units it does not know
        return None
    return Linear(_tidy(last - offset), _tidy(offset))


def _quantity(registry: Any, number: float, units: str) -> Any:
    """A number of units, which may hold a factor: `mm/(5 min)`, `0.1 mm/h`."""
    words = _words(units)
    if len(words) > _LONGEST or _POWERS.search(words):
        raise ValueError(words)  # pint would compute 9**9**9
    try:
        return registry.Quantity(number, words)
    except ValueError:
        return number * registry.parse_expression(words)


def _tidy(number: float) -> float:
    """Without the rounding noise of chained conversions: 3600.0000000000005 becomes 3600.0."""
    return float(f"{number:.12g}")


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint  # half a second to import, and most products need no conversion

    registry = pint.UnitRegistry()
    registry.define("dBZ = [reflectivity]")
    registry.define("degrees_north = degree = degree_north = degreesN")
    return registry
