"""The axes of a stored variable: which of its dims are time, y and x, and the coordinates along them, after CF."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipelines.encoding import read_encoding, unpack
from pipelines.errors import InputError
from pipelines.grid import Grid

_CRS_NAME = "crs"
_CRS = (  # attributes of a store or a variable that say what a grid mapping variable should
    "grid_mapping_name", "crs_wkt", "spatial_ref", "proj4", "proj4_params", "proj4_string", "proj4text", "epsg",
)  # fmt: skip

_AXES = {
    "time": ("time", "valid_time"),
    "y": ("y", "projection_y_coordinate", "latitude", "lat", "grid_latitude", "rlat", "northing", "south_north"),
    "x": ("x", "projection_x_coordinate", "longitude", "lon", "grid_longitude", "rlon", "easting", "west_east"),
}
_AXIS_UNITS = {  # by which CF tells latitude and longitude
    "y": ("degrees_north", "degree_north", "degrees_n", "degree_n", "degreesn", "degreen"),
    "x": ("degrees_east", "degree_east", "degrees_e", "degree_e", "degreese", "degreee"),
}


def dim_names(metadata: Any) -> tuple[str, ...]:
    """Names of the dims of an array, as Zarr v3 or xarray in Zarr v2 keeps them; none if it does not name them all."""
    names = getattr(metadata, "dimension_names", None) or metadata.attributes.get("_ARRAY_DIMENSIONS") or ()
    return () if None in names else tuple(names)


def is_axis(array: Any) -> bool:
    """Whether what a group has under the name of a dim is a coordinate."""
    return isinstance(array, zarr.Array) and array.ndim == 1


def find_dims(array: Any, group: Any, where: str) -> dict[str, int]:
    """Names of the dims time, y and x, in this order, each with its place in the array; others have one cell."""
    names = dim_names(array.metadata)
    if not names:
        raise InputError(f"{where} does not name its dims; expected time, y and x")
    sizes = dict(zip(names, array.shape, strict=True))
    axes = {name: group.get(name) for name in sizes}
    kinds = {name: _kind_of_dim(name, axis, where) for name, axis in axes.items()}
    found = [[name for name, kind in kinds.items() if kind == wanted] for wanted in _AXES]
    over = [name for name, size in sizes.items() if size != 1 and kinds[name] is None]
    if over or [len(dims) for dims in found] != [1, 1, 1]:
        shape = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(
            f"{where} has dims ({shape}); expected one dim each of time, y (or latitude) and x (or longitude), known "
            "by the standard_name, axis, units or name of its coordinate, and any other of one cell"
        )
    for (name,) in found[1:]:
        if axes[name].shape != (sizes[name],):
            raise InputError(f"dim {name!r} of {where} has {sizes[name]} cells but {axes[name].shape[0]} coordinates")
    return {name: names.index(name) for (name,) in found}


def _kind_of_dim(name: str, axis: Any, where: str) -> str | None:
    """As `_kind`; None for a dim without a coordinate, if its name does not say what it should be."""
    if is_axis(axis):
        return _kind(name, axis.attrs)
    kind = _kind(name, {})
    if kind is None:
        return None
    expected = "the times of the frames" if kind == "time" else "the places of its cells in m, km or degrees"
    raise InputError(
        f"dim {name!r} of {where} has no one-dimensional coordinate variable; expected an array {name!r} of {expected}"
    )


def _kind(name: str, attributes: Mapping[str, Any]) -> str | None:
    """Which axis a coordinate is: time, y or x; by axis, then standard name, its own name, units."""
    by_axis = {"T": "time", "Y": "y", "X": "x"}.get(str(attributes.get("axis")))
    named = [str(attributes.get("standard_name")), name.lower()]
    units = str(attributes.get("units")).lower()
    found = [kind for text in named for kind, names in _AXES.items() if text in names]
    found += [kind for kind, known in _AXIS_UNITS.items() if units in known]
    return by_axis or (found[0] if found else "time" if " since " in units else None)


def read_grid(group: Any, attributes: Mapping[str, Any], names: Sequence[str], where: str) -> Grid:
    """The grid of the dims (time, y, x) of these names.

    Args:
        attributes: of the variable, which may name its CRS or hold it.

    Raises:
        InputError: a coordinate has missing values.
    """
    _, y_name, x_name = names
    y, x = (_read_axis(group[name], f"coordinate {name!r} of {where}") for name in (y_name, x_name))
    crs = _grid_mapping(group, attributes)
    said = {name: value for name, value in {**group.attrs, **attributes}.items() if name in _CRS}
    return Grid(
        y,
        x,
        y_name,
        x_name,
        _attributes(group[y_name]),
        _attributes(group[x_name]),
        crs or (_CRS_NAME if said else None),
        _attributes(group[crs]) if crs else said,
    )


def _attributes(array: Any) -> dict[str, Any]:
    """Attributes without the one in which xarray keeps the dims of Zarr v2."""
    return {name: value for name, value in array.attrs.items() if name != "_ARRAY_DIMENSIONS"}


def _read_axis(axis: Any, where: str) -> NDArray[np.float64]:
    values = unpack(axis[:], read_encoding(axis.dtype, dict(axis.attrs), None, where))
    if not np.isfinite(values).all():
        raise InputError(f"{where} holds {np.count_nonzero(~np.isfinite(values))} missing values; expected none")
    return values


def _grid_mapping(group: Any, attributes: Mapping[str, Any]) -> str | None:
    """Name of the variable that holds the CRS; CF also allows `crs: x y`."""
    named = str(attributes.get("grid_mapping", "")).partition(":")[0].strip()
    return next((name for name in (named, "spatial_ref", "crs") if name and name in group), None)
