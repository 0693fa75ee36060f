"""How a grid is cut: blocks of whole shards, tiles on a lattice. Pure functions of integers.

frame   the grid, padded with missing cells at the bottom and right to multiples of the stride
block   whole shards that one worker owns; the lattice of cores starts anew at every block
core    the cells that one tile decides
tile    the core and its halo: what the model sees; all tiles of a tiling have one shape

 ┌─ block ────────────┬─ block ──      A tile at the border of the frame moves inward instead of
 │ core │ core │ core │ core           shrinking: its halo is larger on the inner side, its border
 │ ┌tile──┐    │      │                is the frame's own, so its core is still exact.
 │ │▒core▒│    │      │
 │ └──────┘    │      │
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product as pairs

from pipelines.errors import ConfigError
from pipelines.grid import Window

Shape = tuple[int, int]


def round_up(value: int, step: int) -> int:
    """The least multiple of `step` that is not less than `value`.

    >>> round_up(1226, 16)
    1232
    """
    return -(-value // step) * step


@dataclass(frozen=True)
class Block:
    """A rectangle of whole shards owned by one worker; `index` counts row by row."""

    index: int
    window: Window

    def __str__(self) -> str:
        return f"block {self.index} ({self.window})"


@dataclass(frozen=True)
class Tile:
    """What the model sees at once (`window`, of the frame) and what of it counts (`core`, of the grid).

    Under `feather` the core is the whole tile inside the grid, and cores overlap.
    """

    core: Window
    window: Window


@dataclass(frozen=True)
class Tiling:
    """A grid cut into blocks and tiles; every number is in cells, every pair is (y, x).

    Raises:
        ConfigError: a size below 1 or a negative halo.
    """

    grid: Shape
    block: Shape
    core: Shape
    halo: int
    stride: int = 1
    mode: str = "crop"

    def __post_init__(self) -> None:
        if min(*self.grid, *self.block, *self.core, self.stride) < 1 or self.halo < 0:
            raise ConfigError(f"{self} has a size below 1 or a negative halo")

    @property
    def frame(self) -> Shape:
        """The grid padded to whole strides."""
        return round_up(self.grid[0], self.stride), round_up(self.grid[1], self.stride)

    @property
    def tile(self) -> Shape:
        """The one shape of all tiles."""
        return self._tile(0), self._tile(1)

    def _tile(self, axis: int) -> int:
        slack = 0 if self.mode == "feather" or self._is_aligned(axis) else self.stride - 1
        return min(round_up(self.core[axis] + 2 * self.halo + slack, self.stride), self.frame[axis])

    def _is_aligned(self, axis: int) -> bool:
        """True if every core, less its halo, starts on the lattice of the stride."""
        is_one_block = self.block[axis] >= self.grid[axis]
        starts = (self.halo, 0 if is_one_block else self.block[axis], self.core[axis])
        return all(start % self.stride == 0 for start in starts)

    def blocks(self) -> tuple[Block, ...]:
        """All blocks, row by row; the last of a row or column may be smaller."""
        spans = (cut(0, self.grid[axis], self.block[axis]) for axis in (0, 1))
        windows = (Window(*rows, *columns) for rows, columns in pairs(*spans))
        return tuple(Block(index, window) for index, window in enumerate(windows))

    def tiles(self, block: Block) -> tuple[Tile, ...]:
        """The tiles that decide the cells of a block, row by row."""
        axes = [list(self._spans(axis, span)) for axis, span in enumerate(_sides(block.window))]
        return tuple(
            Tile(Window(*rows[0], *columns[0]), Window(*rows[1], *columns[1])) for rows, columns in pairs(*axes)
        )

    def _spans(self, axis: int, side: tuple[int, int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        if self.mode == "feather":
            yield from self._feather_spans(axis, side)
            return
        size, frame = self.tile[axis], self.frame[axis]
        for start, end in cut(*side, self.core[axis]):
            begin = (start - self.halo) // self.stride * self.stride
            begin = min(max(begin, 0), frame - size)
            yield (start, end), (begin, begin + size)

    def _feather_spans(self, axis: int, side: tuple[int, int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Tiles of the whole frame's lattice that touch the side, whatever the block is."""
        for begin in self.feather_starts(axis):
            end = begin + self.tile[axis]
            if begin < side[1] and end > side[0]:
                yield (begin, min(end, self.grid[axis])), (begin, end)

    def feather_starts(self, axis: int) -> tuple[int, ...]:
        """Where the overlapping tiles of the frame start along an axis."""
        size, frame = self.tile[axis], self.frame[axis]
        step = max(self.stride, self.core[axis] // self.stride * self.stride)
        return tuple(sorted({min(start, frame - size) for start in range(0, frame - size + step, step)}))

    def reads(self, block: Block) -> Window:
        """The part of the frame that the tiles of a block see together."""
        tiles = self.tiles(block)
        return Window(
            min(t.window.y0 for t in tiles),
            max(t.window.y1 for t in tiles),
            min(t.window.x0 for t in tiles),
            max(t.window.x1 for t in tiles),
        )

    @property
    def padded_work(self) -> float:
        """Cells inferred for each cell of the grid, without reuse."""
        return self.tile_count * self.tile[0] * self.tile[1] / (self.grid[0] * self.grid[1])

    @property
    def tile_count(self) -> int:
        """Tiles of all blocks together."""
        counts = [
            sum(len(list(self._spans(axis, side))) for side in cut(0, self.grid[axis], self.block[axis]))
            for axis in (0, 1)
        ]
        return counts[0] * counts[1]


def cut(start: int, end: int, step: int) -> list[tuple[int, int]]:
    """The half-open spans of `step` that cover start..end; the last may be shorter.

    >>> cut(0, 10, 4)
    [(0, 4), (4, 8), (8, 10)]
    """
    return [(at, min(at + step, end)) for at in range(start, end, step)]


def _sides(window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    return (window.y0, window.y1), (window.x0, window.x1)
