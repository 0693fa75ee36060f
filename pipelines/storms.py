"""Synthetic rain for demos and tests: storms that look and move like those of a radar composite.

Everything lives in the air and the air turns rigidly about a far point, so every trajectory is an exact arc.
Knows nothing of models or forecasts.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from pipelines.errors import ConfigError, OutputError

SCALE_FACTOR = 0.01
FILL_VALUE = -32768
LEAST_RATE = 0.05  # mm h-1; weaker echo is no echo
GREATEST_RATE = 150.0  # mm h-1

Positions = NDArray[np.complex128]  # x + 1j y, km, y to the north
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Wind:
    """The air's motion: a rigid turn about `centre` (x + 1j y, km) by `turn` radians a minute."""

    centre: complex
    turn: float

    @classmethod
    def through(cls, place: complex, velocity: complex, turn: float) -> "Wind":
        """The wind that blows with `velocity` (km a minute, eastward + 1j northward) at `place`."""
        return cls(place - velocity / (1j * turn), turn)

    def velocity(self, place: complex) -> complex:
        """Eastward + 1j northward velocity at `place`, km a minute."""
        return 1j * self.turn * (place - self.centre)

    def carry(self, places: Positions, minutes: float) -> Positions:
        """Where air found at `places` is after `minutes` (before, when negative)."""
        return np.asarray(self.centre + (places - self.centre) * np.exp(1j * self.turn * minutes))


@dataclass(frozen=True)
class Texture:
    """Unit-variance noise of the air at two instants, blended as time passes: detail forgets sooner than shape."""

    lifetime: float  # minutes
    now: Field
    later: Field

    def sample(self, places: Positions, minutes: float, spacing: float) -> Field:
        """The noise at `places` (km) after `minutes`, between cells bilinearly; it repeats beyond its edges."""
        angle = minutes / self.lifetime
        blend = np.float32(np.cos(angle)) * self.now + np.float32(np.sin(angle)) * self.later
        return _bilinear(blend, places / spacing)


@dataclass(frozen=True)
class Cell:
    """A convective shower that grows and decays while the wind carries it."""

    place: complex  # x + 1j y at minute 0, km
    peak: float  # mm h-1
    radius: float  # km
    birth: float  # minutes
    life: float  # minutes

    def strength(self, minutes: float) -> float:
        """Share of the peak reached at `minutes`, 0 outside its life."""
        age = (minutes - self.birth) / self.life
        return float(np.sin(np.pi * age) ** 2) if 0 < age < 1 else 0.0


@dataclass(frozen=True)
class Storms:
    """One weather situation over a grid, drawn for any minute.

    `covered` is (y, x), False outside radar range; row 0 is the north edge.
    """

    places: Positions  # (y, x) cell centres
    spacing: float  # km
    covered: NDArray[np.bool_]
    wind: Wind
    front: complex  # a point of the band's axis at minute 0
    width: float  # of the band, km
    shape: Texture
    detail: Texture
    cells: tuple[Cell, ...]

    def rain(self, minutes: float) -> Field:
        """(y, x) rain rate after `minutes`, mm h-1; 0 where there is no echo, NaN outside coverage."""
        origin = self.wind.carry(self.places, -minutes)
        shape = self.shape.sample(origin, minutes, self.spacing)
        detail = self.detail.sample(origin, minutes, self.spacing)
        ragged = origin + self.width * (0.14 * shape + 0.1j * detail)
        rate = self._band(ragged, shape, detail) + self._showers(ragged, detail, minutes)
        rate = np.minimum(rate, GREATEST_RATE)
        rate[rate < LEAST_RATE] = 0.0
        rate[~self.covered] = np.nan
        return np.asarray(rate, np.float32)

    def _band(self, origin: Positions, shape: Field, detail: Field) -> Field:
        """Stratiform rain along a bent axis across the wind, mm h-1."""
        across = (origin - self.front) / self.wind.velocity(self.front) * abs(self.wind.velocity(self.front))
        offset = across.real + across.imag**2 / (14 * self.width)
        profile = np.exp(-((offset / self.width) ** 2)).astype(np.float32)
        return np.asarray(profile * np.exp(0.9 * shape + 0.55 * detail + 2.2 * profile - 2.2), np.float32) - 0.12

    def _showers(self, origin: Positions, detail: Field, minutes: float) -> Field:
        """All living cells, each drawn only where it reaches, mm h-1."""
        rate = np.zeros(origin.shape, np.float32)
        for cell in self.cells:
            strength = cell.strength(minutes)
            box = self._reach(cell, minutes) if strength else None
            if box is not None:
                away = np.abs(origin[box] - cell.place) / cell.radius
                rate[box] += cell.peak * strength * np.exp(-(away**1.5) + 0.45 * detail[box])
        return rate

    def _reach(self, cell: Cell, minutes: float) -> tuple[slice, slice] | None:
        """The part of the grid that the cell can wet; None if it is outside."""
        here = (self.wind.carry(np.asarray(cell.place), minutes) - self.places[0, 0]) / self.spacing
        row, column = round(-float(here.imag)), round(float(here.real))
        reach = int((4.5 * cell.radius + 0.3 * self.width) / self.spacing) + 1
        box = (
            slice(max(0, row - reach), max(0, row + reach + 1)),
            slice(max(0, column - reach), max(0, column + reach + 1)),
        )
        return box if self.places[box].size else None


def draw_storms(shape: tuple[int, int], minutes: float, seed: int = 1, spacing: float = 1.0) -> Storms:
    """A weather situation for `minutes` over a (y, x) grid of `spacing` km, the same for the same seed.

    A bent band of stratiform rain passes the middle of the grid half-way through, with showers along and ahead
    of it. The air moves at 60 km h-1, slower where it would cross more than half of the grid.
    """
    rng = np.random.default_rng(seed)
    places = _centres(shape, spacing)
    extent = spacing * max(shape)
    middle = complex(places.mean())
    speed = min(1.0, 0.55 * extent / max(minutes, 1.0))  # km a minute
    heading = np.deg2rad(rng.uniform(5, 50))  # towards east to north-east
    turn = rng.choice([-1, 1]) * rng.uniform(0.04, 0.1) / 60
    wind = Wind.through(middle, complex(speed * np.exp(1j * heading)), turn)
    width = 0.13 * extent
    front = complex(wind.carry(np.asarray(middle), -minutes / 2))
    side = 1 << int(np.ceil(np.log2(1.4 * max(shape))))
    return Storms(
        places=places,
        spacing=spacing,
        covered=_coverage(rng, places, extent),
        wind=wind,
        front=front,
        width=width,
        shape=Texture(240.0, *(_noise(rng, side, 0.25 * extent, 0.03 * extent, spacing) for _ in range(2))),
        detail=Texture(60.0, *(_noise(rng, side, 40.0, 2.0, spacing) for _ in range(2))),
        cells=_cells(rng, wind, front, width, extent, minutes),
    )


def write_storms(
    path: str | os.PathLike[str],
    shape: tuple[int, int] = (512, 512),
    frames: int = 36,
    step: str | np.timedelta64 = "5min",
    start: str | np.datetime64 = "2024-06-01T12:00",
    seed: int = 1,
) -> Path:
    """The path of a new Zarr v3 store of synthetic rain: `precip_rate` (time, y, x), mm h-1, one chunk a frame.

    int16 with scale_factor 0.01; `_FillValue` -32768 = outside radar coverage (missing), 0 = measured, no echo.
    Cells are 1 km wide. The store appears under its name only when it is whole. The same arguments give the
    same values.

    Raises:
        ConfigError: no frames, a grid under 16 cells a side, or a step that is not positive.
        OutputError: something already lies at `path`.
    """
    target = Path(path)
    every = _checked_step(shape, frames, step)
    if target.exists():
        raise OutputError(f"{target} already exists; storms are written to a new path only")
    minutes = every / np.timedelta64(1, "m") * np.arange(frames)
    storms = draw_storms(shape, float(minutes[-1]), seed)
    times = pd.Timestamp(start).to_datetime64().astype("datetime64[ns]") + every * np.arange(frames)
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _write_store(draft, _skeleton(storms, times, seed), (storms.rain(float(m)) for m in minutes))
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _checked_step(shape: tuple[int, int], frames: int, step: str | np.timedelta64) -> np.timedelta64:
    every: np.timedelta64 = pd.Timedelta(step).to_timedelta64().astype("timedelta64[ns]")
    if min(shape) < 16:
        raise ConfigError(f"storms need a grid of at least 16 x 16 cells, found {shape[0]} x {shape[1]}")
    if frames < 1:
        raise ConfigError(f"storms need at least 1 frame, found {frames}")
    if every <= np.timedelta64(0, "ns"):
        raise ConfigError(f"the step between frames must be positive, found {step}")
    return every


def _centres(shape: tuple[int, int], spacing: float) -> Positions:
    """(y, x) cell centres, the lower left corner of the grid at 0; row 0 is the north edge."""
    y = (np.arange(shape[0])[::-1] + 0.5) * spacing
    x = (np.arange(shape[1]) + 0.5) * spacing
    return x[None, :] + 1j * y[:, None]


def _noise(rng: np.random.Generator, side: int, longest: float, shortest: float, spacing: float) -> Field:
    """(side, side) Gaussian noise of unit variance with power-law spectrum between two wavelengths in km."""
    white = np.fft.rfft2(rng.standard_normal((side, side)))
    ky = np.fft.fftfreq(side, spacing)[:, None]
    kx = np.fft.rfftfreq(side, spacing)[None, :]
    k = np.hypot(ky, kx)
    k[0, 0] = np.inf
    amplitude = k**-1.9 * np.exp(-((1 / (longest * k)) ** 4) - (shortest * k) ** 2)
    field = np.fft.irfft2(white * amplitude, (side, side))
    return np.asarray(field / field.std(), np.float32)


def _bilinear(field: Field, places: Positions) -> Field:
    """`field` between its cells at x + 1j y (in cells), repeated beyond its edges."""
    side = field.shape[0]
    row, column = np.floor(places.imag).astype(np.intp), np.floor(places.real).astype(np.intp)
    fy, fx = (places.imag - row).astype(np.float32), (places.real - column).astype(np.float32)
    upper, lower = row % side * side, (row + 1) % side * side
    left, right = column % side, (column + 1) % side
    flat = field.ravel()
    first = flat[upper + left] * (1 - fx) + flat[upper + right] * fx
    second = flat[lower + left] * (1 - fx) + flat[lower + right] * fx
    return np.asarray(first * (1 - fy) + second * fy, np.float32)


def _coverage(rng: np.random.Generator, places: Positions, extent: float) -> NDArray[np.bool_]:
    """(y, x) True within range of one of a few radars scattered about the grid."""
    width, height = places[0, -1].real, places[0, 0].imag
    covered = np.zeros(places.shape, bool)
    for u, v in ((0.27, 0.27), (0.74, 0.3), (0.3, 0.74), (0.7, 0.72), (0.5, 0.5)):
        du, dv = rng.uniform(-0.04, 0.04, 2)
        radar = (u + du) * width + 1j * (v + dv) * height
        covered |= np.abs(places - radar) < 0.3 * extent
    return covered


def _cells(
    rng: np.random.Generator, wind: Wind, front: complex, width: float, extent: float, minutes: float
) -> tuple[Cell, ...]:
    """Showers born and gone all the time: half along the band's leading edge, half in scattered groups."""
    ahead = wind.velocity(front) / abs(wind.velocity(front))
    count = int(46 * (minutes + 120) / 120)
    edge = width * rng.normal(0.9, 0.1, count) + 1j * extent * rng.uniform(-0.6, 0.6, count)
    groups = extent * (rng.uniform(-1.2, 1.2, 12) + 1j * rng.uniform(-0.8, 0.8, 12))
    scattered = rng.choice(groups, count) + 0.06 * extent * (rng.normal(size=count) + 1j * rng.normal(size=count))
    return tuple(
        Cell(
            place=complex(front + ahead * (edge, scattered)[i % 2][i]),
            peak=float(rng.lognormal(np.log(11), 0.8)),
            radius=float(rng.uniform(2.5, 7.0)),
            birth=float(rng.uniform(-90, minutes)),
            life=float(rng.uniform(40, 130)),
        )
        for i in range(count)
    )


def _skeleton(storms: Storms, times: NDArray[np.datetime64], seed: int) -> xr.Dataset:
    """Coordinates, grid mapping and attributes of the store, without the rain."""
    width, height = storms.spacing * storms.places.shape[1], storms.spacing * storms.places.shape[0]
    crs = pyproj.CRS.from_proj4(
        f"+proj=laea +lat_0=52 +lon_0=10 +x_0={500 * width} +y_0={500 * height} +ellps=WGS84 +units=m"
    )
    axes = {n: {"standard_name": f"projection_{n}_coordinate", "axis": n.upper(), "units": "m"} for n in "yx"}
    return xr.Dataset(
        coords={
            "time": ("time", times, {"standard_name": "time", "axis": "T", "long_name": "nominal time (UTC)"}),
            "y": ("y", storms.places[:, 0].imag * 1000, axes["y"]),
            "x": ("x", storms.places[0].real * 1000, axes["x"]),
            "crs": ((), np.int32(0), crs.to_cf() | {"spatial_ref": crs.to_wkt()}),
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "Synthetic storms",
            "institution": "squall",
            "source": f"squall pipelines.storms, seed {seed}; no real weather",
            "license": "CC0-1.0",
        },
    )


def _write_store(path: Path, skeleton: xr.Dataset, frames: Iterator[Field]) -> None:
    """Writes coordinates, then one chunk a frame, then the consolidated metadata."""
    skeleton.to_zarr(path, mode="w", zarr_format=3, consolidated=False)
    array = _create_rain(zarr.open_group(path, mode="r+"), tuple(skeleton.sizes[d] for d in ("time", "y", "x")))
    for index, rain in enumerate(frames):
        array[index] = _packed(rain)
    with warnings.catch_warnings():  # zarr warns that consolidation is not yet in the v3 specification
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)


def _create_rain(group: zarr.Group, shape: tuple[int, ...]) -> zarr.Array:
    """The empty array of the rain rate (time, y, x), one chunk a frame."""
    return group.create_array(
        "precip_rate",
        shape=shape,
        chunks=(1, *shape[1:]),
        dtype="int16",
        fill_value=FILL_VALUE,
        dimension_names=("time", "y", "x"),
        serializer=BytesCodec(),
        compressors=(ZstdCodec(level=1), Crc32cCodec()),
        attributes={
            "standard_name": "lwe_precipitation_rate",
            "long_name": "synthetic radar rain rate",
            "units": "mm h-1",
            "scale_factor": SCALE_FACTOR,
            "_FillValue": FILL_VALUE,
            "no_echo_value": 0.0,
            "cell_methods": "time: point",
            "comment": "missing = outside radar coverage; 0 = measured, no echo",
            "grid_mapping": "crs",
        },
    )


def _packed(rain: Field) -> NDArray[np.int16]:
    """int16 codes; NaN becomes the fill value."""
    return np.where(np.isnan(rain), FILL_VALUE, np.rint(np.nan_to_num(rain) / SCALE_FACTOR)).astype(np.int16)
