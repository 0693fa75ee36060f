"""Made-up stores for the benchmarks: rain in every cell, and an archive of the frames of another store."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from pipelines.storms import FILL_VALUE, SCALE_FACTOR

START = np.datetime64("2024-06-01T12:00", "ns")
OCTAVES = ((96, 1.0), (24, 0.5), (6, 0.25))  # cells between the knots of the noise, and its size
SHIFT = 6  # cells from frame to frame
CHUNK = 1024  # cells
STEP_CODES = 10  # rates are multiples of 0.1 mm h-1, as those of MRMS


def wet_codes(shape: tuple[int, int], seed: int = 1) -> NDArray[np.int16]:
    """(y, x) codes of 0.01 mm h-1, 0.1 mm h-1 or more in every cell: smooth noise that compresses like rain."""
    random, field = np.random.default_rng(seed), np.zeros(shape, np.float32)
    for spacing, size in OCTAVES:
        knots = random.standard_normal([n // spacing + 2 for n in shape]).astype(np.float32)
        field += size * _between(knots, spacing, shape)
    rate = np.rint(np.exp(field + 1) * 100 / STEP_CODES) * STEP_CODES
    return np.clip(rate, STEP_CODES, 15_000).astype(np.int16)


def _between(knots: NDArray[np.float32], spacing: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A field between knots, bilinearly."""
    for axis, size in enumerate(shape):
        place = np.arange(size, dtype=np.float32) / spacing
        low = place.astype(int)
        share = (place - low).reshape((-1, 1) if axis == 0 else (1, -1))
        knots = np.take(knots, low, axis) * (1 - share) + np.take(knots, low + 1, axis) * share
    return knots


def write_wet(path: Path, shape: tuple[int, int], frames: int, step_minutes: int) -> Path:
    """A new store cut as that of MRMS, a shard a frame and chunks of 1024 x 1024; rain in every cell, moving east."""
    times = START + np.arange(frames) * np.timedelta64(step_minutes, "m")
    axes = {
        axis: (axis, cells * 1000.0, {"units": "m", "standard_name": f"projection_{axis}_coordinate"})
        for axis, cells in (("y", np.arange(shape[0])[::-1]), ("x", np.arange(shape[1])))
    }
    attributes = {"standard_name": "lwe_precipitation_rate", "units": "mm h-1", "scale_factor": SCALE_FACTOR}
    first = wet_codes(shape)
    rain = np.stack([np.roll(first, SHIFT * frame, 1) for frame in range(frames)])
    variable = (("time", "y", "x"), rain, attributes | {"_FillValue": FILL_VALUE, "no_echo_value": 0.0})
    ds = xr.Dataset({"precip_rate": variable}, {"time": times, **axes})
    whole = [-(-edge // CHUNK) * CHUNK for edge in shape]
    chunked = {"chunks": (1, CHUNK, CHUNK), "shards": (1, *whole)}
    ds.to_zarr(path, encoding={"precip_rate": chunked}, zarr_format=3, consolidated=False)
    return path


def write_archive(path: Path, store: Path, variable: str, frames: int) -> Path:
    """A new store with the frames of another one again and again, at the same steps; the same files, linked.

    Raises:
        ValueError: a stored object of the other one holds more than one frame.
    """
    source = xr.open_zarr(store, mask_and_scale=False)
    times, known = source.time.values, zarr.open_array(str(store / variable), mode="r")
    if (known.shards or known.chunks)[0] != 1:
        raise ValueError(f"{variable} in {store} has {(known.shards or known.chunks)[0]} frames an object; expected 1")
    longer = times[0] + np.arange(frames) * (times[1] - times[0])
    rest = source.drop_vars(variable).drop_vars("time").assign_coords(time=longer)
    rest.to_zarr(path, zarr_format=3, consolidated=False)
    _copy(store / variable, path / variable, shutil.copyfile)
    zarr.open_array(str(path / variable), mode="r+").resize((frames, *known.shape[1:]))
    for frame in range(len(times), frames):
        objects = path / variable / "c"
        _copy(objects / str(frame % len(times)), objects / str(frame), os.link)
    return path


def _copy(source: Path, target: Path, copy: Callable[[Path, Path], Any]) -> None:
    """All files below a folder into a new one that may be written to; a folder that is not there has none."""
    for file in [path for path in source.rglob("*") if path.is_file()]:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        copy(file, place)
