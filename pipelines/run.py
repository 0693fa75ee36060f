"""One block of one cycle: read its frames, cut tiles, infer, fit the results together, write its shards."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Window
from pipelines.mosaic import Feather, crop
from pipelines.sink import Draft, write_block
from pipelines.source import count_missing
from pipelines.spans import Seconds, Span, Stopwatch
from pipelines.threads import map_on
from pipelines.tiling import Block, Tile, Tiling
from pipelines.transform import Decoder, Encoder

Raw = NDArray[np.generic]
Result = NDArray[Any]  # of a tile (lead, h, w): model space, or packed codes
Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Read = Callable[[Window], Raw]

Key = tuple[tuple[int, ...], bytes]

REUSE_BYTES = 256_000_000


@dataclass(frozen=True)
class BlockResult:
    """What a worker reports of a block it has written.

    Attributes:
        missing: missing cells of each input frame inside the block.
        engine: what ran, as the worker calls it.
        spans: what was done when.
        worker: name of the worker, as its pool calls it.
    """

    block: int
    tiles_run: int
    tiles_reused: int
    missing: tuple[int, ...]
    bytes_written: int
    seconds: Seconds
    engine: str = ""
    spans: tuple[Span, ...] = ()
    worker: str = ""


class Reuse:
    """Results of tiles whose whole input is one value (dry or missing), kept as the canvas wants them.

    Equal inputs give equal outputs, so the forecast is the same to the bit. Results are dropped, oldest first,
    when they outgrow `limit_bytes`.
    """

    def __init__(self, limit_bytes: int = REUSE_BYTES) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[Hashable, Result] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable) -> Result:
        return self._kept[key]

    def keep(self, key: Hashable, result: Result) -> None:
        self._kept[key] = result
        while sum(kept.nbytes for kept in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)


def constant_key(raw: Raw) -> Key | None:
    """What a tile (frame, h, w) holds if every cell of every frame has the same bits (NaN equals NaN), else None."""
    bits = raw.view(f"u{raw.dtype.itemsize}")
    first = bits[0, 0, 0]
    if (bits[:, ::17, ::17] != first).any() or (bits != first).any():
        return None
    return raw.shape, first.tobytes()


@dataclass(frozen=True)
class Forecaster:
    """Everything that turns the frames of a block into packed codes; one a worker, kept from cycle to cycle.

    Attributes:
        threads: that pack, encode and write a block; the forecast does not depend on them.
    """

    tiling: Tiling
    decoder: Decoder
    encoder: Encoder
    infer: Infer
    leads: int
    batch: int = 1
    mask_from_input: bool = True
    threads: int = 1
    reuse: Reuse = field(default_factory=Reuse)


class CropCanvas:
    """A block's packed codes (lead, y, x), each cell written by the one tile whose core it is in."""

    def __init__(self, forecaster: Forecaster, block: Block) -> None:
        self._encoder, self._window, self._threads = forecaster.encoder, block.window, forecaster.threads
        self.codes = np.empty((forecaster.leads, *block.window.shape), forecaster.encoder.dtype)

    def add(self, out: Result, tile: Tile) -> None:
        target, part = self.codes[:, *tile.core.within(self._window).slices], crop(out, tile)
        if part.dtype == target.dtype:
            target[...] = part
        else:
            pieces = (np.array_split(array, self._threads) for array in (part, target))
            map_on(self._threads, self._encoder.encode, *pieces)

    def ready(self, out: NDArray[np.float32]) -> Result:
        """Packed codes of a whole tile: packed once, added many times."""
        codes = np.empty(out.shape, self.codes.dtype)
        self._encoder.encode(out, codes)
        return codes

    def finish(self) -> NDArray[np.generic]:
        return self.codes


class FeatherCanvas:
    """A block's packed codes (lead, y, x), each cell blended from the tiles that overlap it."""

    def __init__(self, forecaster: Forecaster, block: Block) -> None:
        self._encoder = forecaster.encoder
        self._blend = Feather(forecaster.tiling, block.window, forecaster.leads)

    def add(self, out: Result, tile: Tile) -> None:
        self._blend.add(self._encoder.mark_missing(out), tile)

    def ready(self, out: NDArray[np.float32]) -> Result:
        return out.copy()

    def finish(self) -> NDArray[np.generic]:
        values = self._blend.result()
        codes = np.empty(values.shape, self._encoder.dtype)
        self._encoder.encode(values, codes)
        return codes


def run_block(block: Block, read: Read, forecaster: Forecaster, draft: Draft) -> BlockResult:
    """The block's part of the forecast, written into the draft.

    Args:
        read: gives the cycle's frames (frame, y, x), codes as stored, in a window that may reach beyond the grid.

    Raises:
        InputError: the store cannot give the frames.
        OutputError: the shards cannot be written.
    """
    watch, seen = Stopwatch(), forecaster.tiling.reads(block)
    with watch("read"):
        raw = read(seen)
    here = raw[:, *block.window.within(seen).slices]
    codes, run, reused = infer_block(raw, seen, block, forecaster, watch)
    with watch("write"):
        if forecaster.mask_from_input:
            forecaster.encoder.mask(codes, forecaster.decoder.is_missing(here[-1]))
        written = write_block(draft, block.window, codes, forecaster.threads)
    missing = tuple(int(n) for n in count_missing(here, forecaster.decoder.encoding))
    return BlockResult(block.index, run, reused, missing, written, watch.seconds(), spans=watch.spans)


def infer_block(
    raw: Raw, seen: Window, block: Block, forecaster: Forecaster, watch: Stopwatch
) -> tuple[NDArray[np.generic], int, int]:
    """Packed codes (lead, y, x) of a block, tiles run, and tiles reused.

    Args:
        raw: (frame, y, x) codes as stored, of the window `seen`.
    """
    canvas = (FeatherCanvas if forecaster.tiling.mode == "feather" else CropCanvas)(forecaster, block)
    tiles, run = forecaster.tiling.tiles(block), 0

    @cache
    def decoded() -> NDArray[np.float32]:  # once for all tiles, and only if one must be run
        with watch("decode"):
            return forecaster.decoder.decode(raw)

    for start in range(0, len(tiles), forecaster.batch):
        batch = tiles[start : start + forecaster.batch]
        with watch("infer"):
            outs, ran = _infer_tiles(raw, decoded, [t.window.within(seen) for t in batch], forecaster, canvas.ready)
        run += ran
        with watch("pack"):
            for tile, out in zip(batch, outs, strict=True):
                canvas.add(out, tile)
    with watch("pack"):
        return canvas.finish(), run, len(tiles) - run


def _infer_tiles(
    raw: Raw,
    decoded: Callable[[], NDArray[np.float32]],
    windows: Sequence[Window],
    forecaster: Forecaster,
    ready: Callable[[NDArray[np.float32]], Result],
) -> tuple[list[Result], int]:
    """Results (lead, h, w) of a few tiles, in order, and how many had to be run; those kept are made `ready` once."""
    names: list[Hashable] = [constant_key(raw[:, *w.slices]) or index for index, w in enumerate(windows)]
    fresh = {name: w for name, w in zip(names, windows, strict=True) if name not in forecaster.reuse}
    kept = {name: forecaster.reuse.get(name) for name in names if name not in fresh}
    outs = forecaster.infer(np.stack([decoded()[:, *w.slices] for w in fresh.values()])) if fresh else ()
    for name, out in zip(fresh, outs, strict=True):
        kept[name] = out if isinstance(name, int) else ready(out)
        if not isinstance(name, int):
            forecaster.reuse.keep(name, kept[name])
    return [kept[name] for name in names], len(fresh)
