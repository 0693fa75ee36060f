"""A product on a tiny grid that tests publish cycles of."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.cf import Provenance
from pipelines.cycles import PublishedCycle
from pipelines.grid import Grid
from pipelines.layout import Layout, choose_layout
from pipelines.product import OutputSpec
from pipelines.sink import Draft, open_draft, publish, write_block

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


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(str(tmp_path))
