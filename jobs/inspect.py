"""What a store holds, in words: a published cycle with its provenance, or an input store."""

import warnings
from typing import Any

import numpy as np
import xarray as xr

from jobs.show import utc
from pipelines.errors import InputError
from pipelines.shelves import as_opened
from pipelines.timecode import decode_times

_PROVENANCE = "squall_"


def describe(path: str) -> dict[str, Any]:
    """Names and values to show of a store; of every variable its shape, units and chunks.

    Raises:
        InputError: there is no readable store at the path.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata", RuntimeWarning)
            ds = xr.open_zarr(as_opened(path), decode_times=False, decode_timedelta=True, mask_and_scale=False)
    except Exception as error:  # zarr, fsspec and xarray share no base class
        raise InputError(f"no readable Zarr store at {path}: {error}") from error
    facts: dict[str, Any] = {"store": path}
    for name, variable in ds.data_vars.items():
        if variable.ndim >= 2:
            facts[str(name)] = _variable(variable)
    for name, coordinate in ds.coords.items():
        if " since " in str(coordinate.attrs.get("units")) and coordinate.ndim == 1 and coordinate.size:
            facts[str(name)] = _times(coordinate, path)
    if "lead_time" in ds.coords:
        minutes = ds.lead_time.values / np.timedelta64(1, "m")
        facts["lead_time"] = f"{minutes[0]:g} to {minutes[-1]:g} min, {len(minutes)} of them"
    return facts | {k.removeprefix(_PROVENANCE): v for k, v in ds.attrs.items() if k.startswith(_PROVENANCE)}


def _variable(variable: xr.DataArray) -> str:
    dims = ", ".join(f"{dim} {size}" for dim, size in variable.sizes.items())
    chunks = "x".join(map(str, variable.encoding.get("chunks") or ()))
    shards = variable.encoding.get("shards")
    sharded = f" in shards {'x'.join(map(str, shards))}" if shards else ""
    name = variable.attrs.get("standard_name", "no standard_name")
    return f"({dims}) {variable.dtype}, {name}, {variable.attrs.get('units', 'no units')}; chunks {chunks}{sharded}"


def _times(coordinate: xr.DataArray, path: str) -> str:
    """The times as a run would read them, or why it would not."""
    try:
        return _span(decode_times(coordinate.values, coordinate.attrs, path))
    except InputError as error:
        return f"{coordinate.size} of them; {error}"


def _span(times: np.ndarray) -> str:
    return utc(times[0]) if len(times) == 1 else f"{utc(times[0])} to {utc(times[-1])}, {len(times)} of them"
