"""What stored codes mean: CF packing, missing values and the radar attributes of a variable. Knows no store."""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from math import ceil, inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError

_AT_ONCE = 262_144  # cells whose codes and masks stay in the caches
_MISSING_ATTRIBUTES = ("_FillValue", "missing_value")


@dataclass(frozen=True)
class Encoding:
    """How codes as read mean physical values: value = code * scale_factor + add_offset.

    Attributes:
        dtype: of the codes, native byte order. Integers stored without any missing value are read in the next
            wider type, so that cells outside the grid have a code of their own.
        missing: codes that mean missing; NaN and infinite floats always do.
        fill: the code of cells that are not there: the first missing code, or NaN.
        units: of the physical values, as the store writes them; "" if it says nothing.
        no_echo_value: physical value of a cell that was measured and had no echo.
        least: physical value below which a code that does not mean missing makes no sense; None = there is none.
        zr: (a, b) of the Z-R relation Z = a R^b.
    """

    dtype: str
    fill: float
    missing: tuple[float, ...] = ()
    scale_factor: float = 1.0
    add_offset: float = 0.0
    units: str = ""
    standard_name: str | None = None
    no_echo_value: float | None = None
    least: float | None = None
    zr: tuple[float, float] | None = None

    @property
    def is_float(self) -> bool:
        return np.dtype(self.dtype).kind == "f"


def read_encoding(
    dtype: np.dtype[Any], attributes: Mapping[str, Any], chunk_fill: Any, where: str, means_missing: bool = True
) -> Encoding:
    """The encoding that CF attributes describe.

    Args:
        chunk_fill: the array's own fill value, None = it has none.
        means_missing: that value, if no attribute says otherwise (Zarr v2); in Zarr v3 it only stands for chunks that
            were not written.

    Raises:
        InputError: an attribute is no number, or does not fit the type (names it and what was found).
    """
    if dtype.kind not in "iuf":
        raise InputError(f"{where} holds {dtype}; expected integers or floats")
    dtype = _as_signed(dtype, attributes.get("_Unsigned"), where)
    missing = _missing_codes(dtype, attributes, chunk_fill if means_missing else None, where)
    read_as, fill = _read_as(dtype, missing)
    found = Encoding(
        dtype=read_as.name,
        fill=fill,
        missing=missing or ((fill,) if dtype.kind != "f" else ()),
        scale_factor=_scale(attributes, where),
        add_offset=_offset(attributes, where),
        units=str(attributes.get("units", "")),
        standard_name=attributes.get("standard_name"),
        no_echo_value=_number(attributes, "no_echo_value", where),
        zr=_zr(attributes, where),
    )
    if chunk_fill is not None and chunk_fill == chunk_fill and not any(n in attributes for n in _MISSING_ATTRIBUTES):
        _check_fill(float(chunk_fill), found, where, means_missing)
    return found


def changes(before: Encoding, now: Encoding) -> list[str]:
    """In words, what of an encoding is not as it was before; NaN is as NaN.

    >>> changes(Encoding("int16", -1.0, scale_factor=0.5), Encoding("int16", -1.0, scale_factor=0.1))
    ['scale_factor is 0.1, before 0.5']
    """
    pairs = ((name, repr(value), repr(vars(now)[name])) for name, value in vars(before).items())
    return [f"{name} is {found}, before {known}" for name, known, found in pairs if found != known]


def _check_fill(fill: float, encoding: Encoding, where: str, means_missing: bool) -> None:
    """Refuses a fill value of which nobody can tell whether it means missing.

    By 0, which zarr writes unasked, cells without rain would be missing in Zarr v2; another number that somebody chose
    would be a measurement in Zarr v3.
    """
    value = fill * encoding.scale_factor + encoding.add_offset
    is_no_echo = value == (encoding.no_echo_value or 0.0)
    is_doubtful = is_no_echo if means_missing else fill != 0 and not is_no_echo
    if is_doubtful:
        raise InputError(
            f"{where} has the fill_value {fill:g} and no _FillValue, so that a cell of {value:g} {encoding.units} "
            f"would be {'missing' if means_missing else 'a measurement'}; expected what is true in the product file: "
            f"input.attributes: {{_FillValue: {fill:g}}} if such a cell is missing, {{_FillValue: NaN}} if not"
        )


def is_missing(raw: NDArray[Any], encoding: Encoding) -> NDArray[np.bool_]:
    """True where codes as stored mean missing; the shape of `raw`."""
    exact = raw.dtype.type if encoding.is_float else int  # an integer may be out of bounds
    marked: list[NDArray[np.bool_]] = [raw == exact(code) for code in encoding.missing]
    if encoding.is_float:
        marked.append(~np.isfinite(raw))
    return reduce(np.logical_or, marked) if marked else np.zeros(raw.shape, np.bool_)


def check_sense(raw: NDArray[Any], encoding: Encoding, where: str) -> None:
    """Raises InputError if values are less than their quantity can be: codes that mean missing, but are not said to.

    Args:
        raw: (y, x) codes as stored.
        where: names them in the message.
    """
    if encoding.least is None or encoding.scale_factor <= 0:
        return
    limit = (encoding.least - encoding.add_offset) / encoding.scale_factor
    if not encoding.is_float:
        limit = ceil(limit)
        if limit <= np.iinfo(encoding.dtype).min:
            return
    rows = max(1, _AT_ONCE // max(1, raw.shape[-1]))
    known = [code for code in encoding.missing if code < limit]
    for start in range(0, len(raw), rows):
        part = raw[start : start + rows]
        low = np.count_nonzero(part < limit)
        if low <= sum(np.count_nonzero(part == code) for code in known):  # counts are much faster than masks
            continue
        senseless = part[(part < limit) & ~is_missing(part, encoding)]
        if senseless.size:
            raise _senseless(senseless, encoding, where)


def _senseless(codes: NDArray[Any], encoding: Encoding, where: str) -> InputError:
    found = np.unique(codes)
    few = ", ".join(f"{code:g}" for code in found[:3]) + (", ..." if len(found) > 3 else "")
    least = f"{found[0] * encoding.scale_factor + encoding.add_offset:g} {encoding.units}"
    return InputError(
        f"{where} has values down to {least}, which no {encoding.standard_name or 'rain rate'} can be; expected 0 or "
        f"more. If these codes mean missing, say so in the product file: "
        f"input.attributes: {{missing_value: [{few}]}}"
    )


def count_missing(raw: NDArray[Any], encoding: Encoding) -> NDArray[np.int64]:
    """Missing cells of each frame, (frame,).

    Args:
        raw: (frame, y, x) codes as stored; cells outside the grid count as missing, so leave them out.
    """
    return np.array([_count_missing(frame, encoding) for frame in raw], np.int64)


def _count_missing(frame: NDArray[Any], encoding: Encoding) -> int:
    """Missing cells of a frame (y, x); counts of single codes are much faster than masks of all of them."""
    if encoding.is_float:
        return int(np.count_nonzero(is_missing(frame, encoding)))
    return sum(int(np.count_nonzero(frame == int(code))) for code in set(encoding.missing))


def unpack(raw: NDArray[Any], encoding: Encoding) -> NDArray[np.float64]:
    """Physical values of codes as stored, in the store's units; missing becomes NaN."""
    values = raw * np.float64(encoding.scale_factor) + np.float64(encoding.add_offset)
    values[is_missing(raw, encoding)] = np.nan
    return values


def _missing_codes(
    dtype: np.dtype[Any], attributes: Mapping[str, Any], chunk_fill: Any, where: str
) -> tuple[float, ...]:
    named = [(name, value) for name in _MISSING_ATTRIBUTES for value in _numbers(attributes, name, where)]
    if chunk_fill is not None and "_FillValue" not in attributes:
        named = [("fill_value", float(chunk_fill)), *named]
    is_unsigned = attributes.get("_Unsigned") is not None
    codes = {_as_code(value, dtype, name, where, is_unsigned): None for name, value in named if value == value}
    return tuple(codes)


def _as_signed(dtype: np.dtype[Any], unsigned: Any, where: str) -> np.dtype[Any]:
    """The type that integers mean: by netCDF's `_Unsigned`, stored int8 may be uint8."""
    said = None if unsigned is None else str(unsigned).strip().lower()
    if dtype.kind == "f" or said in (None, "true" if dtype.kind == "u" else "false"):
        return dtype
    if dtype.kind == "u" or said != "true":
        expected = "'true', or signed integers" if dtype.kind == "u" else "'true' or 'false'"
        raise InputError(f"{where} holds {dtype} and has _Unsigned {unsigned!r}; expected {expected}")
    return np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")


def _as_code(value: float, dtype: np.dtype[Any], name: str, where: str, wraps: bool) -> float:
    """The value as `dtype` holds it: -9999.9 as a float32 is another number than as a float64.

    Args:
        wraps: negative integers stand for the unsigned ones of the same bits.
    """
    if dtype.kind == "f":
        return float(dtype.type(value))
    limits = np.iinfo(dtype)
    value += limits.max + 1 if wraps and dtype.kind == "u" and value < 0 else 0
    if not isfinite(value) or value != int(value) or not limits.min <= value <= limits.max:
        raise InputError(f"{where} has {name} {value:g}, which no {dtype} can hold")
    return int(value)


def _read_as(dtype: np.dtype[Any], missing: tuple[float, ...]) -> tuple[np.dtype[Any], float]:
    """The type to read codes in, and the code of cells that are not there."""
    if dtype.kind == "f":
        return dtype.newbyteorder("="), missing[0] if missing else float("nan")
    if missing:
        return dtype.newbyteorder("="), missing[0]
    wider = np.dtype(f"i{min(2 * dtype.itemsize, 8)}")
    return wider, int(np.iinfo(wider).min)


def _number(attributes: Mapping[str, Any], name: str, where: str) -> float | None:
    value = attributes.get(name)
    if value is None:
        return None
    try:
        return _parse_number(value)
    except (ValueError, TypeError, struct.error) as error:
        raise InputError(f"{where} has {name} {value!r}; expected one number") from error


def _numbers(attributes: Mapping[str, Any], name: str, where: str) -> list[float]:
    """One number or several: CF allows more than one `missing_value`."""
    value = attributes.get(name)
    values = value if isinstance(value, list | tuple) else [value]
    return [number for each in values if (number := _number({name: each}, name, where)) is not None]


def _parse_number(value: Any) -> float:
    """Numbers, lists of one number, "NaN", and the base64 of eight bytes that xarray writes into Zarr v3."""
    if not isinstance(value, str):
        return float(np.asarray(value, np.float64).reshape(1)[0])
    try:
        return float(value)
    except ValueError:
        return float(struct.unpack("<d", base64.b64decode(value, validate=True))[0])


def _scale(attributes: Mapping[str, Any], where: str) -> float:
    scale = _number(attributes, "scale_factor", where)
    if scale is not None and (scale == 0 or not isfinite(scale)):
        raise InputError(f"{where} has scale_factor {scale:g}; expected a number other than 0")
    return 1.0 if scale is None else scale


def _offset(attributes: Mapping[str, Any], where: str) -> float:
    offset = _number(attributes, "add_offset", where) or 0.0
    if not isfinite(offset):
        raise InputError(f"{where} has add_offset {offset:g}; expected a finite number")
    return offset


def _zr(attributes: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    a, b = _number(attributes, "zr_a", where), _number(attributes, "zr_b", where)
    if a is None or b is None:
        return None
    if not (0 < a < inf and 0 < b < inf):
        raise InputError(f"{where} has zr_a {a:g} and zr_b {b:g}; expected finite numbers above 0")
    return a, b
