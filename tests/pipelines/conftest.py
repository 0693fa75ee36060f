"""Tiny stores: a product that tests publish cycles of, and frames that they read."""

import os
import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipelines import objects
from pipelines.cf import Provenance
from pipelines.cycles import PublishedCycle
from pipelines.grid import Grid
from pipelines.layout import Layout, choose_layout
from pipelines.objects import is_url
from pipelines.product import OutputSpec, Product
from pipelines.shelf import STAGING, Draft
from pipelines.shelf import Shelf as Place
from pipelines.shelves import open_shelf
from pipelines.sink import open_draft, publish, write_block

SHARDED = OutputSpec(store="", variable="rain_rate", shards=(12, 8), chunks=(4, 8))
PROVENANCE = Provenance("name: rain\n", "persistence 1.0", "ort", {"squall": "0.1"}, "in.zarr", ())


def utc(text: str) -> np.datetime64:
    return np.datetime64(text, "ns")


def tiny_grid(shape: tuple[int, int] = (20, 13)) -> Grid:
    height, width = shape
    return Grid(
        y=np.linspace(1000.0 * height, 1000.0, height),
        x=np.linspace(0.0, 1000.0 * (width - 1), width),
        y_name="y",
        x_name="x",
        y_attrs={"standard_name": "projection_y_coordinate", "units": "m", "_FillValue": np.nan},
        x_attrs={"standard_name": "projection_x_coordinate", "units": "m"},
        crs_name="crs",
        crs_attrs={"grid_mapping_name": "polar_stereographic", "straight_vertical_longitude_from_pole": 25.0},
    )


@dataclass(frozen=True)
class Shelf:
    """Publishes cycles of a product below `root`: 2 x 2 shards of 2 lead times on 20 x 13 cells."""

    root: str
    product: str = "rain"
    grid: Grid = field(default_factory=tiny_grid)
    leads: tuple[timedelta, ...] = (timedelta(minutes=5), timedelta(minutes=10))
    output: OutputSpec = SHARDED
    provenance: Provenance = PROVENANCE
    long_name: str = "rain rate"

    @property
    def layout(self) -> Layout:
        return choose_layout(self.grid.shape, len(self.leads), self.output)

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.product

    @property
    def place(self) -> Place:
        return open_shelf(self.root, self.product)

    @property
    def staged(self) -> list[str]:
        """Names of work in progress."""
        return sorted(self.place.names(STAGING))

    def contents(self, store: str) -> dict[str, bytes]:
        """The files of a store."""
        return {key: self.place.read(store, key).read() for key in self.place.keys(store)}

    def damage(self, store: str, key: str, change: Callable[[bytearray], Any] | None = None) -> None:
        """Changes a file of a store behind the back of squall; removes it if no change is told."""
        if is_url(store):
            data = bytearray(objects.get(f"{store}/{key}"))
            objects.delete(f"{store}/{key}")
            write = partial(objects.put, f"{store}/{key}")
        else:
            data = bytearray(Path(store, key).read_bytes())
            Path(store, key).unlink()
            write = Path(store, key).write_bytes
        if change is not None:
            change(data)
            write(bytes(data))

    def but(self, **changes: Any) -> "Shelf":
        return replace(self, **changes)

    def codes(self, seed: int = 0) -> NDArray[Any]:
        """(lead, y, x) codes with missing, dry and wet cells."""
        random = np.random.default_rng(seed)
        codes = random.integers(0, 300, self.layout.shape).astype(self.layout.dtype)
        codes[:, :9] = self.layout.fill_value
        codes[:, 15:] = 0
        return codes

    def draft(self, time: str, replace: bool = False) -> Draft:
        attributes = {"standard_name": "lwe_precipitation_rate", "long_name": self.long_name, "units": "mm h-1"}
        return open_draft(
            self.root, self.product, utc(time), self.grid, self.leads, self.layout, attributes, self.provenance, replace
        )

    def filled(self, time: str, seed: int = 0, replace: bool = False) -> Draft:
        draft = self.draft(time, replace)
        for shard in self.layout.shards:
            window = self.layout.shard_window(*shard)
            write_block(draft, window, self.codes(seed)[:, *window.slices])
        return draft

    def publish(self, time: str, seed: int = 0, replace: bool = False) -> PublishedCycle:
        return publish(self.filled(time, seed, replace), replace=replace)


ROOTS = {"folder": "", "memory": "memory://", "file": "file://"}
"""What may stand before a path: nothing, or the schemes of an object store in memory and in a folder."""
if "SQUALL_TEST_STORE" in os.environ:  # such as s3://BUCKET/PATH, to try a real one
    ROOTS["named"] = f"{os.environ['SQUALL_TEST_STORE'].rstrip('/')}/{secrets.token_hex(8)}"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(str(tmp_path))


@pytest.fixture(params=ROOTS)
def any_shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    """A shelf in a folder, and one on each object store of this machine."""
    return Shelf(f"{ROOTS[request.param]}{tmp_path}")


@pytest.fixture(params=[name for name in ROOTS if name != "memory"])
def shared_shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    """A shelf that other processes see."""
    return Shelf(f"{ROOTS[request.param]}{tmp_path}")


@pytest.fixture(params=[name for name in ROOTS if name != "folder"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    """A shelf on an object store: one that compares and swaps, and one that does not."""
    return Shelf(f"{ROOTS[request.param]}{tmp_path}")


RAIN = {"standard_name": "rainfall_rate", "units": "mm h-1", "scale_factor": 0.1, "_FillValue": -32768}
METRES = {"units": "m"}
SHAPE = (30, 41)


def every(minutes: int, count: int, start: str = "2024-06-01T12:00") -> NDArray[np.datetime64]:
    """Times `minutes` apart, datetime64[ns]."""
    return np.datetime64(start, "ns") + np.arange(count) * np.timedelta64(minutes, "m")


def rain_codes(frames: int = 6, shape: tuple[int, int] = SHAPE) -> NDArray[np.int16]:
    """(time, y, x) codes: missing in the north-west corner, dry in the south, rain between; no two frames equal."""
    codes = np.random.default_rng(7).integers(0, 900, (frames, *shape)).astype(np.int16)
    codes[:, : shape[0] // 4, : shape[1] // 3] = -32768
    codes[:, -shape[0] // 3 :] = 0
    return codes


def write_frames(
    store: Any,
    codes: NDArray[Any] | None = None,
    times: NDArray[Any] | None = None,
    attributes: dict[str, Any] = RAIN,
    dims: tuple[str, ...] = ("time", "y", "x"),
    zarr_format: int = 3,
    consolidated: bool = True,
    fill_value: Any = -32768,
    axes: dict[str, tuple[Any, dict[str, Any]]] | None = None,
    **options: Any,
) -> str:
    """Writes a store of frames, variable `rain`, one chunk a frame; gives back its path.

    Args:
        axes: values and attributes of coordinates, to replace the usual ones; None leaves one out.
        options: of `zarr.create_array`.
    """
    codes = rain_codes() if codes is None else codes
    times = every(5, len(codes)) if times is None else times
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    usual = {
        dims[0]: (times.astype("datetime64[s]").astype(np.int64), {"units": "seconds since 1970-01-01"}),
        dims[-2]: (np.arange(codes.shape[-2])[::-1] * 1000.0, METRES | {"standard_name": "projection_y_coordinate"}),
        dims[-1]: (np.arange(codes.shape[-1]) * 1000.0, METRES | {"standard_name": "projection_x_coordinate"}),
    }
    for name, axis in (usual | (axes or {})).items():
        if axis is not None:
            _write_array(group, name, axis[0], axis[1], (name,), zarr_format)
    _write_array(group, "crs", np.zeros((), np.int32), {"crs_wkt": "PROJCRS[]"}, (), zarr_format)
    options = {"chunks": (1, *codes.shape[1:])} | options
    attributes = {"grid_mapping": "crs", **attributes}
    _write_array(group, "rain", codes, attributes, dims, zarr_format, fill_value=fill_value, **options)
    if consolidated:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Zarr v3 does not have it in its specification yet
            zarr.consolidate_metadata(group.store)
    return str(store)


def _write_array(
    group: Any,
    name: str,
    values: Any,
    attributes: dict[str, Any],
    dims: tuple[str, ...],
    zarr_format: int,
    **options: Any,
) -> None:
    named = {"dimension_names": dims} if zarr_format == 3 else {}
    extra = {"_ARRAY_DIMENSIONS": list(dims)} if zarr_format == 2 else {}
    options = {"dtype": values.dtype} | options
    array = group.create_array(name, shape=values.shape, attributes=attributes | extra, **named, **options)
    array[...] = values


def make_product(store: str, root: str = "forecasts", **changes: Any) -> Product:
    """A product of the last three frames of `rain`; `changes` are of its input, or whole parts."""
    tree: dict[str, Any] = {
        "name": "rain",
        "input": {"store": store, "variable": "rain", "history": ["-10min", "-5min", "0min"]},
        "model": {"package": "builtin:persistence"},
        "lead_times": {"step": "5min", "until": "30min"},
        "output": {"store": root, "variable": "rain_rate"},
    }
    parts = {key: value for key, value in changes.items() if key in Product.model_fields and key != "input"}
    tree["input"] |= {key: value for key, value in changes.items() if key not in parts}
    return Product.model_validate(tree | parts)


@pytest.fixture
def frames() -> Any:
    """The helpers that write stores of frames and the products that read them."""
    return SimpleNamespace(
        write=write_frames, product=make_product, codes=rain_codes, every=every, attributes=RAIN, shape=SHAPE
    )
