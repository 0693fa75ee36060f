"""The packed codes of a block, made tile by tile."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.mosaic import Feather, crop
from pipelines.threads import map_on
from pipelines.tiling import Block, Tile, Tiling
from pipelines.transform import Encoder

Result = NDArray[Any]  # of a tile (lead, h, w): model space, or packed codes


class Canvas(Protocol):
    """Packed codes (lead, y, x) of a block while its tiles come in, in the order of the tiling."""

    def add(self, out: Result, tile: Tile) -> None:
        """The result of a tile (lead, h, w), in model space or made ready."""
        ...

    def ready(self, out: Result) -> Result:
        """A result of its own to keep and to add many times."""
        ...

    def finish(self) -> None:
        """All tiles are there."""
        ...


class CropCanvas:
    """Each cell is written by the one tile whose core it is in.

    Args:
        codes: (lead, y, x) of the block, to be filled.
        threads: that pack a tile.
    """

    def __init__(self, block: Block, encoder: Encoder, codes: NDArray[Any], threads: int = 1) -> None:
        self._encoder, self._window, self._codes, self._threads = encoder, block.window, codes, threads

    def add(self, out: Result, tile: Tile) -> None:
        target, part = self._codes[:, *tile.core.within(self._window).slices], crop(out, tile)
        if part.dtype == target.dtype:
            target[...] = part
        else:
            pieces = (np.array_split(array, self._threads) for array in (part, target))
            map_on(self._threads, self._encoder.encode, *pieces)

    def ready(self, out: Result) -> Result:
        """Packed codes of a whole tile: packed once, added many times."""
        if out.dtype == self._codes.dtype:
            return out.copy()
        codes = np.empty(out.shape, self._codes.dtype)
        self._encoder.encode(out, codes)
        return codes

    def finish(self) -> None:
        pass


class FeatherCanvas:
    """Each cell is blended from the tiles that overlap it.

    Args: of `CropCanvas`, and the tiling.
    """

    def __init__(self, block: Block, encoder: Encoder, codes: NDArray[Any], tiling: Tiling) -> None:
        self._encoder, self._codes = encoder, codes
        self._blend = Feather(tiling, block.window, len(codes))

    def add(self, out: Result, tile: Tile) -> None:
        self._blend.add(self._encoder.mark_missing(out), tile)

    def ready(self, out: Result) -> Result:
        return out.copy()

    def finish(self) -> None:
        self._encoder.encode(self._blend.result(), self._codes)
