"""What is forecast: stores of frames, product files, and products prepared as their workers will prepare them."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cycle import Store, product_on
from benchmarks.wet import write_archive, write_wet
from engines.zoo import UnetSpec, write_package
from jobs.prepare import Prepared
from pipelines.storms import write_storms

FRAMES, LEADS, MEMBERS = 4, 18, 10
CYCLES = 10  # of the wet store
MOST_HISTORY = 16  # frames before the first cycle
_RAIN, _ARCHIVE = ("precip_rate", "none"), "_archive"


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        mrms, fmi: cells (y, x) of made-up frames.
        width, depth: of the network.
        fmi_archive, mrms_archive: cycles of a backfill on one GPU.
        laps: warm cycles of squall; `peer_laps` where it takes turns with others.
        row: cycles in a row in which a leak is looked for; `soak` of them if there is time for it.
    """

    mrms: tuple[int, int] = (3500, 7000)
    fmi: tuple[int, int] = (1226, 760)
    width: int = 32
    depth: int = 4
    fmi_archive: int = 300
    mrms_archive: int = 48
    laps: int = 7
    peer_laps: int = 3
    row: int = 100
    soak: int = 500


FULL = Sizes()
QUICK = Sizes((800, 1200), (400, 320), width=8, depth=2, fmi_archive=16, mrms_archive=8, laps=3, peer_laps=2)

CUT = {"tiling": {"tile": [256, 256]}}  # of the small grids, which would fit into one tile
OF_MEMBERS = {"tiling": {"tile": [448, 448]}}  # so that a batch has no more cells than those of one member elsewhere


@dataclass(frozen=True)
class Case:
    """A product in a folder, prepared as its workers will prepare it."""

    name: str
    folder: Path
    prepared: Prepared

    @property
    def batch(self) -> int:
        return self.prepared.setup.batch


@dataclass(frozen=True)
class Stores:
    """The frames of every grid, made at the first call.

    Attributes:
        home: where stores are made.
        data: folder of the real stores; None = storms of the same sizes.
        times: as many cycles as `sizes` says are in an archive.
    """

    home: Path
    data: Path | None
    sizes: Sizes
    times: int = 1

    def find(self, grid: str) -> Store:
        """The frames of a grid: `mrms`, `fmi`, `wet` (rain in every cell), `fmi_archive` or `mrms_archive`."""
        if grid == "wet":
            return self._wet()
        if grid.endswith(_ARCHIVE):
            return self._archive(grid)
        return self._storms(grid) if self.data is None else self._real(self.data, grid)

    def _real(self, data: Path, grid: str) -> Store:
        real = {
            "fmi": Store(data / "fmi_20160928.zarr", "reflectivity", "zr", 5),
            "mrms": Store(data / "mrms_20190610.zarr", "precip_rate", "none", 10),
        }
        return real[grid]

    def _storms(self, grid: str) -> Store:
        path, frames = self.home / f"storms-{grid}.zarr", FRAMES + {"fmi": 8, "mrms": 3}[grid]
        return Store(path if path.exists() else write_storms(path, getattr(self.sizes, grid), frames), *_RAIN, 5)

    def _wet(self) -> Store:
        path, frames = self.home / "wet.zarr", FRAMES + CYCLES - 1
        return Store(path if path.exists() else write_wet(path, self.sizes.mrms, frames, 5), *_RAIN, 5)

    def _archive(self, grid: str) -> Store:
        store, cycles = self.find(grid.removesuffix(_ARCHIVE)), self.times * getattr(self.sizes, grid)
        path = self.home / f"{grid}-{cycles}.zarr"
        if not path.exists():
            write_archive(path, store.path, store.variable, cycles + MOST_HISTORY)
        return replace(store, path=path)


def write_product(
    folder: Path, store: Store, spec: UnetSpec, settings: Mapping[str, Any], precision: str = "float32"
) -> Path:
    """The product file of a U-Net on a store, with its package beside it, in a new folder.

    Args:
        settings: more of the product; a key of them replaces the whole part of that name.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_package(spec, folder / "model")
    step = store.step_minutes
    product = product_on(store, spec.frames) | {
        "model": {"package": "model", "precision": precision},
        "lead_times": {"step": f"{step}min", "until": f"{step * spec.leads}min"},
    }
    file = folder / "product.yaml"
    file.write_text(yaml.safe_dump(product | dict(settings)))
    return file
