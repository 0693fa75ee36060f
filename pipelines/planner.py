"""Chooses how a grid is cut: the tile or whole frame of least padded work that fits the memory limit."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product as pairs

from pipelines.errors import ConfigError
from pipelines.product import TilingSpec
from pipelines.tiling import Shape, Tiling, round_up


@dataclass(frozen=True)
class Needs:
    """What a model asks of its tiles.

    Attributes:
        radius: cells that reach each result; None = every cell of the frame does.
        stride: tile sizes and starts are multiples of it, cells.
        bytes_per_cell: working memory of one inference per cell of a tile, bytes.
        size: the one tile size (y, x) that the model takes; None = any.
    """

    radius: int | None
    stride: int
    bytes_per_cell: float
    size: Shape | None = None


@dataclass(frozen=True)
class Plan:
    """A tiling, the tiles of one inference, and the reason in a sentence."""

    tiling: Tiling
    batch: int
    memory_bytes: int
    reason: str


@dataclass(frozen=True)
class Crew:
    """Who will work: `workers` at most; on a CPU (`shared`) fewer workers take more threads each."""

    workers: int = 1
    shared: bool = True


def make_plan(grid: Shape, shard: Shape, needs: Needs, spec: TilingSpec, crew: Crew = Crew()) -> Plan:
    """How to cut the grid: as the product says, and by least padded work where it says auto.

    Args:
        grid: cells (y, x).
        shard: cells (y, x) of one stored object; blocks are whole shards.
        needs: of the model.
        spec: `tiling` of the product.
        crew: who will work; the plan keeps all of them busy, the forecast does not depend on it.

    Raises:
        ConfigError: nothing fits; names the number that is in the way.
    """
    halo = _halo(needs, spec)
    tilings = list(_candidates(grid, shard, halo, needs, spec))
    if not tilings:
        raise ConfigError(_no_tile(grid, halo, needs, spec))
    batch = 1 if spec.batch == "auto" else spec.batch
    fitting = [t for t in tilings if batch * _memory(t, needs) <= spec.memory]
    if not fitting:
        least = batch * min(_memory(t, needs) for t in tilings)
        raise ConfigError(
            f"no tile fits: the smallest, in batches of {batch}, needs {least / 1e9:.2f} GB, tiling.memory allows "
            f"{spec.memory / 1e9:.2f} GB"
        )
    best = min(fitting, key=lambda t: (_cost(t, crew), len(t.blocks()), -t.tile[0] * t.tile[1]))
    memory = batch * _memory(best, needs)
    return Plan(best, batch, memory, _reason(best, memory, len(tilings), len(fitting), spec))


def _halo(needs: Needs, spec: TilingSpec) -> int:
    if spec.halo == "auto":
        return round_up(needs.radius or 0, needs.stride)
    if spec.mode == "crop" and needs.radius is not None and spec.halo < needs.radius:
        raise ConfigError(
            f"halo {spec.halo} is less than the model's receptive radius {needs.radius}, so tiles would "
            f"leave seams; use {round_up(needs.radius, needs.stride)} or tiling.mode=feather"
        )
    return round_up(spec.halo, needs.stride)


def _candidates(grid: Shape, shard: Shape, halo: int, needs: Needs, spec: TilingSpec) -> Iterator[Tiling]:
    size = _size(needs, spec)
    if spec.mode == "feather":
        tilings = iter([_feather(grid, shard, halo, needs, spec)])
    elif size and needs.radius is None and any(s < round_up(g, needs.stride) for s, g in zip(size, grid, strict=True)):
        raise ConfigError(
            f"tile {size} cannot be cropped exactly: every cell reaches every result of this model; "
            "use tiling.tile=whole or tiling.mode=feather"
        )
    else:
        cuts = _cuts(grid, shard, halo, needs, spec)
        tilings = (Tiling(grid, block, core, halo, needs.stride) for core, block in cuts)
    yield from (tiling for tiling in tilings if needs.size in (None, tiling.tile))


def _size(needs: Needs, spec: TilingSpec) -> Shape | None:
    """The tile size that the model or the product prescribes."""
    if needs.size is not None and spec.tile not in ("auto", needs.size):
        raise ConfigError(f"the model takes tiles of {needs.size} only; found tiling.tile={spec.tile}, use auto")
    size = spec.tile if isinstance(spec.tile, tuple) else needs.size
    if size and any(edge % needs.stride for edge in size):
        proposed = [round_up(edge, needs.stride) for edge in size]
        raise ConfigError(f"tile {size} is not a multiple of the model's stride {needs.stride}; use {proposed}")
    return size


def _cuts(grid: Shape, shard: Shape, halo: int, needs: Needs, spec: TilingSpec) -> Iterator[tuple[Shape, Shape]]:
    """Pairs of core and block: the whole grid at once, or cores that divide a block evenly."""
    whole = round_up(grid[0], shard[0]), round_up(grid[1], shard[1])
    size = _size(needs, spec)
    if size is not None:
        y, x = (_axis_cut(grid[axis], shard[axis], size[axis], halo, needs.stride) for axis in (0, 1))
        if min(y[0], x[0]) >= 1:
            yield (y[0], x[0]), (y[1], x[1])
        return
    yield grid, whole
    if spec.tile == "auto" and needs.radius is not None:
        rows, columns = (_axis_cuts(grid[axis], shard[axis], needs.stride) for axis in (0, 1))
        for y, x in pairs(rows, columns):
            yield (y[0], x[0]), (y[1], x[1])


def _axis_cut(grid: int, shard: int, tile: int, halo: int, stride: int) -> tuple[int, int]:
    """The core and the block along one axis that make tiles of a given size; the core is below 1 if there is none."""
    if tile >= round_up(grid, stride):
        return grid, round_up(grid, shard)
    slack = 0 if shard % stride == 0 or shard >= grid else stride  # blocks that start between two lattice points
    return tile - 2 * halo - slack, shard


def _axis_cuts(grid: int, shard: int, stride: int) -> list[tuple[int, int]]:
    """Pairs of core and block along one axis: several shards as one core, or one shard as several cores."""
    several = [(shard * n, shard * n) for n in range(2, -(-grid // shard) + 1)]
    parts = {round_up(-(-shard // n), stride) for n in range(1, max(2, shard // 64))}
    return several + [(core, shard) for core in sorted(parts)]


def _feather(grid: Shape, shard: Shape, halo: int, needs: Needs, spec: TilingSpec) -> Tiling:
    size = _size(needs, spec)
    if size is None:
        raise ConfigError(
            f"tiling.mode=feather blends overlapping tiles, so it needs a tile size; found "
            f"tiling.tile={spec.tile}; give one such as [512, 512]"
        )
    if spec.halo == "auto":
        halo = round_up(min(size) // 8, needs.stride)
    core = size[0] - 2 * halo, size[1] - 2 * halo
    if min(core) < 1:
        raise ConfigError(_no_tile(grid, halo, needs, spec))
    return Tiling(grid, shard, core, halo, needs.stride, "feather")


def _memory(tiling: Tiling, needs: Needs) -> int:
    return int(tiling.tile[0] * tiling.tile[1] * needs.bytes_per_cell)


def _cost(tiling: Tiling, crew: Crew) -> float:
    """Padded work until the busiest worker is done, in grids."""
    blocks = len(tiling.blocks())
    workers = min(crew.workers, blocks)
    threads = crew.workers // workers if crew.shared else 1
    return tiling.padded_work / blocks * -(-blocks // workers) / threads


def _no_tile(grid: Shape, halo: int, needs: Needs, spec: TilingSpec) -> str:
    if needs.size and any(s > round_up(g, needs.stride) for s, g in zip(needs.size, grid, strict=True)):
        return f"the model takes tiles of {needs.size} cells only, and the grid of {grid} is smaller"
    return (
        f"tile {_size(needs, spec)} leaves no core inside a halo of {halo} cells on every side; "
        f"use more than {2 * halo} cells"
    )


def _reason(best: Tiling, memory: int, seen: int, fitting: int, spec: TilingSpec) -> str:
    whole = best.tile == best.frame
    what = f"whole frame {best.tile[0]} x {best.tile[1]}" if whole else f"tile {best.tile[0]} x {best.tile[1]}"
    why = "least padded work" if spec.tile == "auto" else "as the product says"
    return (
        f"{what}, {why}: {best.padded_work:.2f} cells inferred per cell of the grid, "
        f"{memory / 1e9:.2f} of {spec.memory / 1e9:.2f} GB; {fitting} of {seen} cuts fit"
    )
