"""The packed codes of a block, made tile by tile."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.mosaic import Feather, crop
from pipelines.team import ALONE, Turn
from pipelines.tiling import Block, Tile, Tiling
from pipelines.transform import SHARED_CELLS, Encoder

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
        turn: of the block with those who pack.
    """

    def __init__(self, block: Block, encoder: Encoder, codes: NDArray[Any], turn: Turn = ALONE) -> None:
        self._encoder, self._window, self._codes, self._turn = encoder, block.window, codes, turn

    def add(self, out: Result, tile: Tile) -> None:
        target, part = self._codes[:, *tile.core.within(self._window).slices], crop(out, tile)
        if part.dtype == target.dtype:
            _map_fields(self._turn.ahead, _copy, part, target)  # at once: others wait for the lane that it lies in
        else:
            _map_fields(self._turn, self._encoder.encode, part, target)

    def ready(self, out: Result) -> Result:
        """Packed codes of a whole tile: packed once, added many times."""
        if out.dtype == self._codes.dtype:
            return out.copy()
        codes = np.empty(out.shape, self._codes.dtype)
        self._encoder.encode(out, codes)
        return codes

    def finish(self) -> None:
        pass


def _map_fields(turn: Turn, put: Callable[..., None], source: NDArray[Any], target: NDArray[Any]) -> None:
    """Puts fields (lead, y, x) into others, some by each call of a team."""
    count = min(len(source), max(turn.threads, source.size // SHARED_CELLS))
    turn.map(put, *(np.array_split(array, count) for array in (source, target)))


def _copy(codes: NDArray[Any], target: NDArray[Any]) -> None:
    target[...] = codes


class FeatherCanvas:
    """Each cell is blended from the tiles that overlap it.

    Args: of `CropCanvas`, and the tiling.
    """

    def __init__(self, block: Block, encoder: Encoder, codes: NDArray[Any], tiling: Tiling, turn: Turn = ALONE) -> None:
        self._encoder, self._codes, self._turn = encoder, codes, turn
        self._blend = Feather(tiling, block.window, len(codes))

    def add(self, out: Result, tile: Tile) -> None:
        self._blend.add(self._encoder.mark_missing(out), tile)

    def ready(self, out: Result) -> Result:
        return out.copy()

    def finish(self) -> None:
        _map_fields(self._turn, self._encoder.encode, self._blend.result(), self._codes)
