"""Tiles into a block: `crop` keeps the core of each tile, `feather` blends overlapping tiles."""

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Window
from pipelines.tiling import Tile, Tiling


def crop(out: NDArray[np.float32], tile: Tile) -> NDArray[np.float32]:
    """The core (lead, y, x) of a tile's result (lead, h, w); a view."""
    rows, columns = tile.core.within(tile.window).slices
    return out[:, rows, columns]


class Feather:
    """Blends overlapping tiles into one block, in model space.

    Every cell is a weighted mean of the tiles that see it, added in the order of the frame's lattice, so the
    result does not depend on how the grid was cut into blocks. Missing values (NaN) carry no weight; a cell of
    which less than half the weight is present is missing.

    Args:
        tiling: a tiling in mode `feather`.
        window: the block.
        leads: lead times of the model's result.
    """

    def __init__(self, tiling: Tiling, window: Window, leads: int) -> None:
        self._window = window
        self._ramps = _ramp(tiling.tile[0], tiling.halo), _ramp(tiling.tile[1], tiling.halo)
        self._total = np.zeros(window.shape, np.float32)
        self._sum = np.zeros((leads, *window.shape), np.float32)
        self._present = np.zeros((leads, *window.shape), np.float32)

    def add(self, out: NDArray[np.float32], tile: Tile) -> None:
        """Add a tile's result (lead, h, w); NaN = missing. Tiles must come in the order of the tiling."""
        shared = tile.core.clip(self._window)
        here, there = shared.within(self._window).slices, shared.within(tile.window).slices
        weight = np.outer(self._ramps[0][there[0]], self._ramps[1][there[1]])
        values = out[:, there[0], there[1]]
        present = ~np.isnan(values)
        self._total[here] += weight
        self._sum[:, here[0], here[1]] += np.where(present, values, 0) * weight
        self._present[:, here[0], here[1]] += present * weight

    def result(self) -> NDArray[np.float32]:
        """The block (lead, y, x), model space; NaN = missing."""
        enough = self._present >= 0.5 * self._total
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(enough, self._sum / self._present, np.float32(np.nan)).astype(np.float32)


def _ramp(size: int, halo: int) -> NDArray[np.float32]:
    """Weights along a tile: rising over twice the halo at either end, never zero."""
    edge = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1.0
    return np.minimum(edge / (2 * halo + 1), 1.0).astype(np.float32)
