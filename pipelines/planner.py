"""Chooses how a grid is cut: the tile or whole frame that fits the memory limit and is done first.

On a CPU inference takes nearly all of the time, so least padded work is done first. Beside a GPU the cores that decode,
pack, compress and write take as long as the GPU: small blocks then keep both busy, and the last one ends sooner.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product as pairs
from math import gcd

from pipelines.errors import ConfigError
from pipelines.product import TilingSpec
from pipelines.tiling import Shape, Tiling, round_up

FULL_CELLS = 1 << 20  # of a batch that fills a GPU; assumed, benchmarks/batches.py shows it for a GPU at hand
_ALONE = 0.3  # of the host's work on a block, what one thread does: reading and decoding


@dataclass(frozen=True)
class Needs:
    """What a model asks of its tiles.

    Attributes:
        radius: cells that reach each result; None = every cell of the frame does.
        stride: tile sizes and starts are multiples of it, cells.
        bytes_per_cell: working memory of one inference per cell of a tile, bytes.
        size: the one tile size (y, x) that the model takes; None = any.
        batch: the one count of tiles in a batch that it takes; None = any, and their results do not depend on it.
    """

    radius: int | None
    stride: int
    bytes_per_cell: float
    size: Shape | None = None
    batch: int | None = None


@dataclass(frozen=True)
class Plan:
    """A tiling, the tiles of one inference, and the reason in a sentence."""

    tiling: Tiling
    batch: int
    memory_bytes: int
    reason: str


@dataclass(frozen=True)
class Crew:
    """Who will work: `workers` at most; on a CPU (`shared`) fewer workers take more threads each.

    Attributes:
        cores: of all workers together; beside GPUs they do everything but infer.
        in_flight: blocks that each has under way at the same time; None = one on a CPU, two a core beside GPUs: while
            the disk takes one, the cores work on another.
        per_gpu: workers that share a GPU.
    """

    workers: int = 1
    shared: bool = True
    cores: int = 1
    in_flight: int | None = None
    per_gpu: int = 1

    def flight(self, blocks: int) -> "Flight":
        """How many of so many blocks each worker has in flight, and the threads for them."""
        workers = max(1, min(self.workers, blocks))
        cores = max(1, self.cores // workers)
        usual = 1 if self.shared else 2 * cores
        return Flight(min(self.in_flight or usual, -(-blocks // workers)), cores)


@dataclass(frozen=True)
class Flight:
    """Blocks that a worker has under way at the same time, and threads of its team, on a CPU also of an inference."""

    blocks: int
    threads: int


@dataclass(frozen=True)
class Pace:
    """What work takes on the machines that will do it. `squall plan --calibrate` measures it there.

    Attributes:
        infer: of a worker's GPU, seconds for each cell of a tile.
        host: of a core, to decode, pack, compress and write, seconds for each cell of the grid.
    """

    infer: float = 1.5e-9
    host: float = 60e-9


def make_plan(
    grid: Shape, shard: Shape, needs: Needs, spec: TilingSpec, crew: Crew = Crew(), pace: Pace = Pace()
) -> Plan:
    """How to cut the grid: as the product says, and to be done first where it says auto.

    Args:
        grid: cells (y, x).
        shard: cells (y, x) of one stored object; blocks are whole shards.
        needs: of the model.
        spec: `tiling` of the product.
        crew: who will work; the plan keeps all of them busy, the forecast does not depend on it.
        pace: of the crew's GPUs and the cores beside them.

    Raises:
        ConfigError: nothing fits; names the number that is in the way.
    """
    needs = _padded(grid, needs) if spec.mode == "crop" else needs
    halo = _halo(needs, spec)
    tilings = list(_candidates(grid, shard, halo, needs, spec))
    if not tilings:
        raise ConfigError(_no_tile(grid, halo, needs, spec))
    batch = _least_batch(needs, spec)
    fitting = [t for t in tilings if batch * _memory(t, needs) <= spec.memory]
    if not fitting:
        least = batch * min(_memory(t, needs) for t in tilings)
        whole = needs.radius is None and spec.mode == "crop"
        what = "the whole frame, which is one tile as the model's radius is global" if whole else "the smallest"
        raise ConfigError(
            f"no tile fits: {what}, in batches of {batch}, needs {least / 1e9:.2f} GB, tiling.memory allows "
            f"{spec.memory / 1e9:.2f} GB"
        )
    best = min(fitting, key=lambda t: (_cost(t, crew, pace), len(t.blocks()), -t.tile[0] * t.tile[1]))
    if spec.batch == "auto" and needs.batch is None and not crew.shared:
        batch = _full_batch(best, spec.memory // _memory(best, needs))
    memory = batch * _memory(best, needs)
    return Plan(best, batch, memory, _reason(best, memory, len(tilings), len(fitting), spec, crew))


def _least_batch(needs: Needs, spec: TilingSpec) -> int:
    batch = 1 if spec.batch == "auto" else spec.batch
    if needs.batch is not None and not needs.batch == batch == 1:  # the last batch of a block may be smaller
        raise ConfigError(
            f"the model takes batches of {needs.batch} only; found tiling.batch={spec.batch}; export the model with a "
            "dynamic batch axis and nothing that mixes its tiles, or with a batch of 1 and use auto"
        )
    return batch


def _full_batch(tiling: Tiling, most: int) -> int:
    """So many tiles that a GPU is full: those of one block at most, and no more than there is memory for.

    Batches of a block are as even as they go, for a batch of another size costs more than one that is not quite full.
    """
    tiles = len(tiling.tiles(tiling.blocks()[0]))
    most = max(1, min(tiles, most, FULL_CELLS // (tiling.tile[0] * tiling.tile[1])))
    return -(-tiles // -(-tiles // most))


def _padded(grid: Shape, needs: Needs) -> Needs:
    """The needs of a model of one size that is the grid, padded to multiples of more than its stride."""
    if needs.size is None:
        return needs
    step = gcd(*needs.size)
    fits = step % needs.stride == 0 and all(round_up(g, step) == s for g, s in zip(grid, needs.size, strict=True))
    return replace(needs, stride=step) if fits else needs


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
        remedy = "declare tile.radius in model.yaml if it is smaller" if needs.size else "use tiling.tile=whole"
        raise ConfigError(
            f"tile {size} cannot be cropped exactly: every cell reaches every result of this model; "
            f"{remedy}, or use tiling.mode=feather"
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


def _cost(tiling: Tiling, crew: Crew, pace: Pace) -> float:
    """Time until the busiest worker is done: on a CPU in grids inferred, beside GPUs in seconds."""
    blocks = len(tiling.blocks())
    workers = min(crew.workers, blocks)
    rounds = -(-blocks // workers)
    padded = tiling.padded_work / blocks
    if crew.shared:
        return padded * rounds / (crew.workers // workers)
    infer = padded * tiling.grid[0] * tiling.grid[1] * pace.infer
    cells = min(tiling.block[0], tiling.grid[0]) * min(tiling.block[1], tiling.grid[1])
    cores = max(1, crew.cores // workers)
    first = infer + cells * pace.host * (_ALONE + (1 - _ALONE) / cores)
    return first + (rounds - 1) * max(infer * crew.per_gpu, cells * pace.host / cores)


def _no_tile(grid: Shape, halo: int, needs: Needs, spec: TilingSpec) -> str:
    if needs.size and any(s > round_up(g, needs.stride) for s, g in zip(needs.size, grid, strict=True)):
        return (
            f"the model takes tiles of {needs.size} cells only, and the grid of {grid} is smaller; export it with "
            "dynamic h and w"
        )
    return (
        f"tile {_size(needs, spec)} leaves no core inside a halo of {halo} cells on every side; "
        f"use more than {2 * halo} cells"
    )


def _reason(best: Tiling, memory: int, seen: int, fitting: int, spec: TilingSpec, crew: Crew) -> str:
    whole = best.tile == best.frame
    what = f"whole frame {best.tile[0]} x {best.tile[1]}" if whole else f"tile {best.tile[0]} x {best.tile[1]}"
    auto = "least padded work" if crew.shared else "done first by GPU and cores together"
    why = auto if spec.tile == "auto" else "as the product says"
    return (
        f"{what}, {why}: {best.padded_work:.2f} cells inferred per cell of the grid, "
        f"{memory / 1e9:.2f} of {spec.memory / 1e9:.2f} GB; {fitting} of {seen} cuts fit"
    )
