"""What engines of a model package are built and judged for: the shape of its batches, and cases to try it on."""

from dataclasses import dataclass
from pathlib import Path

from engines import cuda
from engines.base import ModelError
from engines.cores import usable_cores
from engines.model import ModelPackage
from engines.spec import Shape
from jobs.cases import CaseSet, archive_cases, stored_cases, storm_cases
from jobs.contract import model_needs
from jobs.needs import needs_on, tile_needs
from jobs.pace import known_pace
from jobs.pool import Resources
from jobs.prepare import choose_plan, require_fit
from pipelines.errors import ConfigError
from pipelines.planner import Needs, Pace
from pipelines.product import Product, load_product
from pipelines.source import Source, open_source
from pipelines.tiling import round_up
from pipelines.transform import ModelNeeds

SIDE = 512  # cells of a tile where nobody says otherwise
CASE_SIDE = 1024

Tile = tuple[int, int, int]
"""Tiles of a batch, and (y, x) cells of each."""


@dataclass(frozen=True)
class Purpose:
    """What the user says of the runs that a model is meant for; all of it may be left out.

    Attributes:
        tile: of the batches; that of the product if None.
        product: file of a product that will run the model.
        cases: file of stored cases.
    """

    tile: Tile | None = None
    product: Path | None = None
    cases: Path | None = None


@dataclass(frozen=True)
class Setting:
    """A model package, what it needs, and the batches that it will run on, (n, channel, h, w).

    Attributes:
        use: the product that will run it, and its store, if the user names one.
    """

    package: ModelPackage
    needs: ModelNeeds
    tiles: Needs
    shape: Shape
    use: tuple[Product, Source] | None

    def gather_cases(self, file: Path | None, takes_one_size: bool) -> CaseSet:
        """Cases stored in `file`, else cut from the product's store, else made-up storms.

        Args:
            takes_one_size: the engine takes tiles of `shape` only; else a larger case than `CASE_SIDE` is not worth
                its time on a CPU.

        Raises:
            CaseError, InputError, ConfigError: there are none that fit.
        """
        size = self.shape[2:] if takes_one_size or self.tiles.size else self._size_of_cases()
        if file is not None:
            return stored_cases(file, self.needs, size)
        if self.use is not None:
            return archive_cases(*self.use, self.needs, size)
        return storm_cases(self.needs, size)

    def _size_of_cases(self) -> tuple[int, int]:
        most = round_up(CASE_SIDE, self.tiles.stride)
        return min(self.shape[2], most), min(self.shape[3], most)


def find_setting(package: ModelPackage, purpose: Purpose) -> Setting:
    """The setting of a package for a purpose.

    Raises:
        ConfigError: the product or its store does not fit the model, or the tile does not.
        InputError: the product's store cannot be opened.
    """
    needs = model_needs(package.contract)
    use = None if purpose.product is None else _open_use(purpose.product, needs)
    tiles = tile_needs(package) if use is None else needs_on(package, use[1].grid.shape, use[0].tiling)
    tile = purpose.tile or (_planned(*use, tiles, known_pace(package) or Pace()) if use else _usual(tiles))
    _check_tile(tile, package, tiles)
    return Setting(package, needs, tiles, (tile[0], needs.frames, tile[1], tile[2]), use)


def _open_use(file: Path, needs: ModelNeeds) -> tuple[Product, Source]:
    product = load_product(file)
    source = open_source(product.input)
    require_fit(product, source, needs, file)
    return product, source


def _planned(product: Product, source: Source, tiles: Needs, pace: Pace) -> Tile:
    """The batches into which workers of this machine would cut the product's grid."""
    _, _, plan = choose_plan(product, source, tiles, Resources(cuda.device_count(), usable_cores()), pace)
    return plan.batch, *plan.tiling.tile


def _usual(tiles: Needs) -> Tile:
    side = round_up(SIDE, tiles.stride)
    return 1, *(tiles.size or (side, side))


def _check_tile(tile: Tile, package: ModelPackage, tiles: Needs) -> None:
    """Raises ConfigError for a tile that the model does not take."""
    _, *size = tile
    if tiles.size is not None and tuple(size) != tiles.size:
        raise ConfigError(f"tiles of {size[0]} x {size[1]} cells; {package.identity} takes {tiles.size} only")
    if any(edge % tiles.stride for edge in size):
        wanted = " x ".join(str(round_up(edge, tiles.stride)) for edge in size)
        raise ConfigError(
            f"tiles of {size[0]} x {size[1]} cells are no multiples of the stride {tiles.stride} of "
            f"{package.identity}; use {wanted}"
        )
    if tiles.batch not in (None, tile[0]):
        raise ModelError(f"batches of {tile[0]} tiles; {package.identity} takes {tiles.batch} only")
