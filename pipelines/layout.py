"""How one cycle is cut into shards and chunks: integers and packing, no files."""

import re
from dataclasses import dataclass
from math import ceil

import numpy as np

from pipelines.errors import ConfigError, OutputError
from pipelines.grid import Window
from pipelines.product import OutputSpec

FILL_VALUES = {"int16": -32768, "uint16": 65535, "uint8": 255}
SHARD_EDGE, SHARD_MULTIPLE, CHUNK_EDGE = 1024, 128, 512  # cells; docs/decisions/002-shards-written-directly.md
_AXES = ("lead", "y", "x")


@dataclass(frozen=True)
class Layout:
    """The packed array of one cycle: (lead, y, x) cells, cut into shards of whole chunks.

    A shard holds every lead time; a chunk holds one. Codes unpack as code * scale_factor + add_offset;
    `fill_value` is the code of missing cells.
    """

    variable: str
    shape: tuple[int, int, int]
    shard: tuple[int, int, int]
    chunk: tuple[int, int, int]
    dtype: str
    scale_factor: float
    add_offset: float
    fill_value: int

    def __post_init__(self) -> None:
        for axis, shard, chunk in zip(_AXES, self.shard, self.chunk, strict=True):
            if chunk < 1 or shard < 1 or shard % chunk:
                fitting = " or ".join(str(edge) for edge in _fitting(shard, chunk))
                raise ConfigError(
                    f"chunk {chunk} along {axis} does not divide the shard {shard} of {self.variable!r}; use {fitting}"
                )

    @property
    def shard_grid(self) -> tuple[int, int]:
        """Number of shards along (y, x)."""
        return ceil(self.shape[1] / self.shard[1]), ceil(self.shape[2] / self.shard[2])

    @property
    def shards(self) -> list[tuple[int, int]]:
        """(row, column) of every shard of the cycle."""
        rows, columns = self.shard_grid
        return [(row, column) for row in range(rows) for column in range(columns)]

    @property
    def chunks_per_shard(self) -> tuple[int, int, int]:
        lead, y, x = (s // c for s, c in zip(self.shard, self.chunk, strict=True))
        return lead, y, x

    def shard_key(self, row: int, column: int) -> str:
        """The name of a shard inside the store of its cycle."""
        return f"{self.variable}/c/0/0/{row}/{column}"

    def shard_window(self, row: int, column: int) -> Window:
        """The cells of a shard that lie on the grid."""
        (_, y, x), (_, height, width) = self.shape, self.shard
        y0, x0 = row * height, column * width
        return Window(y0, min(y0 + height, y), x0, min(x0 + width, x))

    def shards_of(self, window: Window) -> list[tuple[int, int]]:
        """(row, column) of the shards that a block is made of.

        Raises:
            OutputError: the block is not whole shards (names the axis, the offset and what to use instead);
                two workers would write one shard.
        """
        self._check_edges("y", window.y0, window.y1, self.shard[1], self.shape[1])
        self._check_edges("x", window.x0, window.x1, self.shard[2], self.shape[2])
        rows = range(window.y0 // self.shard[1], ceil(window.y1 / self.shard[1]))
        columns = range(window.x0 // self.shard[2], ceil(window.x1 / self.shard[2]))
        return [(row, column) for row in rows for column in columns]

    def _check_edges(self, axis: str, start: int, stop: int, shard: int, size: int) -> None:
        if not 0 <= start < stop <= size:
            raise OutputError(f"block {start}:{stop} along {axis} is empty or leaves the grid 0:{size}")
        for offset in (start, stop):
            if offset % shard and offset != size:
                below, above = offset // shard * shard, min(ceil(offset / shard) * shard, size)
                raise OutputError(
                    f"block {start}:{stop} along {axis} cuts a shard: offset {offset} is no multiple of the shard "
                    f"{shard} nor the end of the grid {size}; use {below} or {above}"
                )


def choose_layout(grid_shape: tuple[int, int], n_leads: int, output: OutputSpec) -> Layout:
    """The layout of every cycle of a product; `auto` depends on the grid alone, so all cycles share it.

    Args:
        grid_shape: (y, x) cells of the grid.

    Raises:
        ConfigError: shards or chunks of the product file do not fit each other (proposes numbers that do).
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", output.variable):
        raise ConfigError(f"output.variable {output.variable!r} must be letters, digits and _, and start with a letter")
    if n_leads < 1 or min(grid_shape) < 1:
        raise ConfigError(f"a forecast of {n_leads} lead times on a grid of {grid_shape} cells holds nothing")
    multiples = (SHARD_MULTIPLE, SHARD_MULTIPLE) if output.chunks == "auto" else output.chunks
    if output.shards == "auto":
        height, width = (shard_edge(n, m) for n, m in zip(grid_shape, multiples, strict=True))
    else:
        height, width = output.shards
    chunk_y, chunk_x = (chunk_edge(height), chunk_edge(width)) if output.chunks == "auto" else output.chunks
    packing = output.packing
    return Layout(
        variable=output.variable,
        shape=(n_leads, *grid_shape),
        shard=(n_leads, height, width),
        chunk=(1, chunk_y, chunk_x),
        dtype=packing.dtype,
        scale_factor=packing.scale_factor,
        add_offset=packing.add_offset,
        fill_value=FILL_VALUES[packing.dtype],
    )


def shard_edge(size: int, multiple: int = SHARD_MULTIPLE) -> int:
    """An even split of `size` cells into shards of at most about 1024, rounded up to the multiple.

    >>> [shard_edge(n) for n in (3500, 7000, 1226, 760, 50)]
    [896, 1024, 640, 768, 128]
    """
    count = ceil(size / SHARD_EDGE)
    return ceil(size / count / multiple) * multiple


def chunk_edge(shard: int) -> int:
    """The divisor of a shard edge nearest to 512 by ratio.

    >>> [chunk_edge(n) for n in (896, 1024, 640, 768, 128)]
    [448, 512, 640, 384, 128]
    """
    return min(_divisors(shard), key=lambda edge: abs(np.log(edge / CHUNK_EDGE)))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _fitting(shard: int, chunk: int) -> list[int]:
    """The divisors of the shard just below and just above a chunk that does not divide it."""
    divisors = _divisors(max(shard, 1))
    below = [d for d in divisors if d < chunk][-1:]
    return below + [d for d in divisors if d > chunk][:1]
