"""One block of one cycle: read its frames, cut tiles, infer, fit the results together, write its shards.

Each block is a straight line, run by one thread. A worker has several blocks in flight, so parts of different blocks
overlap; an engine has a few lanes, each with room for one batch, in which the ways to, on and from a GPU overlap:

    block 0   read ─ decode ─▶ lane 0: H2D ═ compute ═ D2H ═▶ pack ─ compress ─ write
    block 1          read ─ decode ─▶ lane 1: H2D ═ compute ═ D2H ═▶ pack ─ compress ─ write
    block 2                 read ─ decode ─▶ (no lane is free) lane 0: H2D ═ compute ═ D2H ═▶ pack ─ ...

An engine on a GPU may take and return codes: then decoding, masking and packing are done there, beside inference.

What is in memory is bounded: frames and codes of the blocks in flight, the batches of the lanes, reused tiles.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.buffers import Buffers
from pipelines.canvas import Canvas, CropCanvas, FeatherCanvas
from pipelines.grid import Window
from pipelines.memory import Memory
from pipelines.reuse import Key, Result, Reuse, constant_key
from pipelines.sink import Draft, write_block
from pipelines.source import count_missing
from pipelines.spans import Seconds, Span, Stopwatch
from pipelines.team import ALONE, Team, Turn
from pipelines.tiling import Block, Tile, Tiling
from pipelines.transform import Decoder, Encoder

log = logging.getLogger(__name__)

_ROWS = 128  # that are masked at once: what is missing there stays in the nearest caches for all lead times

Raw = NDArray[np.generic]
Read = Callable[[Window], Raw]


class Lane(Protocol):
    """Room for one batch on its way through an engine."""

    @property
    def given(self) -> NDArray[Any]:
        """(n, channel, h, w), model space or codes as stored, to be filled."""
        ...

    def run(self) -> NDArray[Any]:
        """The forecast (n, lead, h, w), model space or packed; good until the lane is given back."""
        ...


OpenLane = Callable[[tuple[int, int, int, int]], AbstractContextManager[Lane]]
"""Takes a lane for a batch of this shape; may wait for one."""


@dataclass(frozen=True)
class BlockResult:
    """What a worker reports of a block it has written.

    Attributes:
        missing: missing cells of each input frame inside the block.
        has_values: of each lead time, whether any cell of the block is not missing.
        engine: what ran, as the worker calls it.
        spans: what was done when.
        worker: name of the worker, as its pool calls it.
        memory: of the worker, when it had made the block.
    """

    block: int
    tiles_run: int
    tiles_reused: int
    missing: tuple[int, ...]
    bytes_written: int
    seconds: Seconds
    has_values: tuple[bool, ...] = ()
    engine: str = ""
    spans: tuple[Span, ...] = ()
    worker: str = ""
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True)
class Forecaster:
    """Everything that turns the frames of a block into packed codes; one a worker, kept from cycle to cycle.

    Attributes:
        lane: of the engine.
        dtype: that the engine takes.
        takes_codes: lanes are given codes as stored, and their results are masked.
        team: that decodes, packs and compresses for all blocks; the forecast does not depend on it.
    """

    tiling: Tiling
    decoder: Decoder
    encoder: Encoder
    lane: OpenLane
    leads: int
    batch: int = 1
    mask_from_input: bool = True
    team: Team = field(default_factory=Team)
    dtype: str = "float32"
    takes_codes: bool = False
    reuse: Reuse = field(default_factory=Reuse)
    buffers: Buffers = field(default_factory=Buffers)


def run_block(block: Block, read: Read, forecaster: Forecaster, draft: Draft) -> BlockResult:
    """The block's part of the forecast, written into the draft.

    Args:
        read: gives the cycle's frames (frame, y, x), codes as stored, in a window that may reach beyond the grid.

    Raises:
        InputError: the store cannot give the frames.
        OutputError: the shards cannot be written.
    """
    watch, seen, turn = Stopwatch(), forecaster.tiling.reads(block), forecaster.team.turn()
    with watch("read"):
        raw = read(seen)
    here = raw[:, *block.window.within(seen).slices]
    with forecaster.buffers.borrow((forecaster.leads, *block.window.shape), forecaster.encoder.dtype) as codes:
        run, reused = infer_block(raw, seen, block, forecaster, codes, watch, turn)
        with watch("write"):
            if forecaster.mask_from_input and not forecaster.takes_codes:
                missing_now = forecaster.decoder.is_missing(here[-1])
                strips = -(-len(missing_now) // _ROWS)
                turn.map(forecaster.encoder.mask, np.array_split(codes, strips, 1), np.array_split(missing_now, strips))
            has_values = forecaster.encoder.has_values(codes)
            counts = turn.map(partial(count_missing, encoding=forecaster.decoder.encoding), here[:, None])
            written = write_block(draft, block.window, codes, turn)
    missing = tuple(int(count) for (count,) in counts)
    return BlockResult(block.index, run, reused, missing, written, watch.seconds(), has_values, spans=watch.spans)


def infer_block(
    raw: Raw,
    seen: Window,
    block: Block,
    forecaster: Forecaster,
    codes: NDArray[Any],
    watch: Stopwatch,
    turn: Turn = ALONE,
) -> tuple[int, int]:
    """Fills the packed codes (lead, y, x) of a block; tiles run, and tiles reused.

    Args:
        raw: (frame, y, x) codes as stored, of the window `seen`.
        turn: of the block with the team that does its parts.
    """
    tiles, step = forecaster.tiling.tiles(block), forecaster.batch
    canvas = _canvas(block, forecaster, codes, turn)
    with ExitStack() as held:
        work = _Inference(raw, seen, forecaster, partial(_given, raw, forecaster, held, turn), watch)
        run = sum(work.add(tiles[at : at + step], canvas) for at in range(0, len(tiles), step))
    with watch("pack"):
        canvas.finish()
    return run, len(tiles) - run


def _canvas(block: Block, forecaster: Forecaster, codes: NDArray[Any], turn: Turn) -> Canvas:
    if forecaster.tiling.mode == "feather":
        return FeatherCanvas(block, forecaster.encoder, codes, forecaster.tiling, turn)
    return CropCanvas(block, forecaster.encoder, codes, turn)


def _given(raw: Raw, forecaster: Forecaster, held: ExitStack, turn: Turn) -> NDArray[Any]:
    """The frames (frame, y, x) as lanes take them, good while `held` is."""
    if forecaster.takes_codes:
        return raw
    space = held.enter_context(forecaster.buffers.borrow(raw.shape, forecaster.dtype))
    turn.map(forecaster.decoder.decode, raw, space)
    return space


class _TooManyError(Exception):
    """The tiles of a batch do not fit the engine's memory together."""


@contextmanager
def _judge_memory(tiles: int) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        if tiles == 1:
            raise
        raise _TooManyError(str(error)) from error


class _Inference:
    """The inference of one block: every tile is run, or reused where its input is one value.

    Args:
        given: gives the block's frames (frame, y, x) as lanes take them; called once for all tiles, and only if one
            must be run.
    """

    def __init__(
        self, raw: Raw, seen: Window, forecaster: Forecaster, given: Callable[[], NDArray[Any]], watch: Stopwatch
    ) -> None:
        self._raw, self._seen, self._forecaster, self._watch = raw, seen, forecaster, watch
        self._given = cache(given)

    def add(self, tiles: Sequence[Tile], canvas: Canvas) -> int:
        """Adds tiles to the canvas, in their order, fewer at once if memory is short; how many had to be run."""
        try:
            return self._add(tiles, canvas)
        except _TooManyError as error:
            half = len(tiles) // 2
            log.warning("%d tiles at once are too many, so %d are run: %s", len(tiles), half, error)
        return self.add(tiles[:half], canvas) + self.add(tiles[half:], canvas)

    def _add(self, tiles: Sequence[Tile], canvas: Canvas) -> int:
        windows = [tile.window.within(self._seen) for tile in tiles]
        with self._watch("infer"):
            keys = [constant_key(self._raw[:, *window.slices]) for window in windows]
        first = {key: window for key, window in zip(keys, windows, strict=True) if key is not None}
        known = {key: self._constant(key, window, canvas) for key, window in first.items()}
        fresh = [window for key, window in zip(keys, windows, strict=True) if key is None]
        with self._results(fresh) as outs, self._watch("pack"):
            ran = iter(outs)
            for key, tile in zip(keys, tiles, strict=True):
                canvas.add(next(ran) if key is None else known[key][0], tile)
        return len(fresh) + sum(is_new for _, is_new in known.values())

    def _constant(self, key: Key, window: Window, canvas: Canvas) -> tuple[Result, bool]:
        """The result of a tile whose input is one value, and whether it had to be run; no lane is held meanwhile."""
        reuse = self._forecaster.reuse
        result, is_new = reuse.claim(key)
        if is_new:
            try:
                with self._results([window]) as outs, self._watch("pack"):
                    reuse.keep(key, canvas.ready(outs[0]))
            except BaseException as error:
                reuse.fail(key, error)
                raise
        return result.result(), is_new

    @contextmanager
    def _results(self, windows: Sequence[Window]) -> Iterator[Sequence[Result]]:
        """The results (lead, h, w) of tiles, good inside the context."""
        if not windows:
            yield ()
            return
        with ExitStack() as held:
            with self._watch("infer"), _judge_memory(len(windows)):
                with self._watch("decode"):
                    frames = self._given()
                with self._watch("lane"):
                    lane = held.enter_context(self._forecaster.lane((len(windows), len(frames), *windows[0].shape)))
                for target, window in zip(lane.given, windows, strict=True):
                    target[...] = frames[:, *window.slices]
                outs = list(lane.run())
            yield outs
