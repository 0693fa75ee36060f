"""The floor of a cycle: what its work takes at least on this machine, each part measured here and now.

    floor = the longest of (GPU, host link, cores, disk) + the rest of one block's way

The longest part is done without a break; the last block's share of the others cannot be hidden behind it.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import xarray as xr

from engines import cuda
from engines.base import Timed
from engines.cuda import DeviceBuffer, Event, PinnedBuffer, Stream
from jobs.prepare import Prepared
from pipelines.files import write_files
from pipelines.shard import encode_shard
from pipelines.source import Cycle

MOST_LAPS, CORE_LAPS, LINK_BYTES = 24, 5, 256_000_000
PARTS = ("GPU", "host link", "cores", "disk")


@dataclass(frozen=True)
class Floor:
    """Seconds that each resource needs for a cycle if nothing else holds it up; `blocks` that share them evenly.

    Raises:
        ValueError: a negative time, or no blocks (found, expected).
    """

    gpu: float
    link: float
    cores: float
    disk: float
    blocks: int

    def __post_init__(self) -> None:
        if min(self.parts.values()) < 0 or self.blocks < 1:
            raise ValueError(f"{self} has a negative time or no blocks; expected times of 0 or more, 1 block or more")

    @property
    def parts(self) -> dict[str, float]:
        return dict(zip(PARTS, (self.gpu, self.link, self.cores, self.disk), strict=True))

    @property
    def bound(self) -> str:
        """The resource that is needed longest."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def busy(self) -> float:
        """Time of that resource: what many cycles in a row take each at least."""
        return self.parts[self.bound]

    @property
    def seconds(self) -> float:
        """What one cycle takes at least."""
        return self.busy + (sum(self.parts.values()) - self.busy) / self.blocks

    def crowded(self, times: float) -> "Floor":
        """The same work where the cores take so many times the processor seconds, because all are busy at once."""
        return replace(self, cores=self.cores * times)

    def on_gpus(self, count: int) -> "Floor":
        """The same work with as many GPUs and links, and the same cores and disk."""
        return Floor(self.gpu / count, self.link / count, self.cores, self.disk, self.blocks)


@dataclass(frozen=True)
class Bare:
    """The engine alone on a few batches, seconds a batch unless it says otherwise.

    Attributes:
        gpu: compute on the GPU; 0 where the cores infer.
        core: of one core that infers; 0 where a GPU does.
        in_row: wall time, batches in a row with several in flight.
        bytes_in, bytes_out: over the host link, of a batch.
    """

    gpu: float
    core: float
    in_row: float
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class Coding:
    """Processor seconds of a whole cycle to read, decode, pack and compress it, and the seconds that the disk needs."""

    read: float
    decode: float
    pack: float
    compress: float
    disk: float

    @property
    def cores(self) -> float:
        return self.read + self.decode + self.pack + self.compress


def floor_of(bare: Bare, coding: Coding, batches: float, link: tuple[float, float], cores: int, blocks: int) -> Floor:
    """The floor of a cycle that must run so many batches.

    Args:
        link: bytes a second from host to GPU and back; they do not hinder each other.
    """
    over = max(batches * bare.bytes_in / link[0], batches * bare.bytes_out / link[1])
    core_seconds = coding.cores + batches * bare.core
    return Floor(batches * bare.gpu, over if bare.gpu else 0.0, core_seconds / cores, coding.disk, blocks)


def stack(tiles: Sequence[np.ndarray], batch: int, dtype: str) -> list[np.ndarray]:
    """Full batches (n, frame, h, w) of tiles (frame, h, w), no more than are worth a measurement."""
    count = max(1, min(len(tiles) // batch, MOST_LAPS))
    return [np.stack([tiles[(n * batch + k) % len(tiles)] for k in range(batch)]).astype(dtype) for n in range(count)]


def measure_bare(engine: Any, batches: Sequence[np.ndarray]) -> Bare:
    """The engine alone on these batches, in the dtype of its input."""
    sizes = batches[0].nbytes, _returned_bytes(engine, batches[0])
    if not isinstance(engine, Timed):
        few = [batches[n % len(batches)] for n in range(CORE_LAPS)]
        core = float(np.median([_processor(partial(_call, engine, batch))[0] for batch in few]))
        return Bare(0.0, core, _wall(lambda: [_call(engine, batch) for batch in few]) / CORE_LAPS, *sizes)
    splits = [engine.timed(_for_call(batches[n % len(batches)])) for n in range(MOST_LAPS)]
    gpu = float(np.median([split.compute_seconds for split in splits]))
    row = _wall(lambda: _in_row(engine, batches)) / len(batches)
    return Bare(min(gpu, row), 0.0, row, *sizes)


def _in_row(engine: Any, batches: Sequence[np.ndarray]) -> None:
    """Batches one after the other, as many in flight as the engine has lanes."""
    with ThreadPoolExecutor(getattr(engine, "lanes", 1)) as threads:
        list(threads.map(partial(_call, engine), batches))


def _call(engine: Any, batch: np.ndarray) -> None:
    """One batch the way that squall sends it: where there are lanes, its result is not copied."""
    _returned_bytes(engine, batch)


def _returned_bytes(engine: Any, batch: np.ndarray) -> int:
    """Runs a batch; bytes of its result as the engine returns it."""
    if not hasattr(engine, "lane"):
        return int(engine(_for_call(batch)).nbytes)
    with engine.lane(batch.shape) as lane:
        lane.given[...] = batch
        return int(lane.run().nbytes)


def _for_call(batch: np.ndarray) -> np.ndarray:
    """A batch as a call takes it: half is cast by the engine."""
    return batch.astype(np.float32) if batch.dtype == np.float16 else batch


def measure_link() -> tuple[float, float]:
    """Bytes a second from host to GPU and back, pinned memory, one copy after the other; endless without a GPU."""
    if not cuda.device_count():
        return float("inf"), float("inf")
    with ExitStack() as owned:
        take = owned.enter_context
        host, device, stream = take(PinnedBuffer(LINK_BYTES)), take(DeviceBuffer(LINK_BYTES)), take(Stream())
        marks = take(Event()), take(Event())
        ways = ((device, host), (host, device))
        return tuple(LINK_BYTES / min(_copy_seconds(*way, stream, *marks) for _ in range(8)) for way in ways)


def _copy_seconds(target: Any, source: Any, stream: Stream, start: Event, end: Event) -> float:
    start.record(stream)
    cuda.copy(target, source, LINK_BYTES, stream)
    end.record(stream)
    end.synchronize()
    return end.milliseconds_since(start) / 1e3


def measure_coding(
    prepared: Prepared, cycle: Cycle, published: Path, scratch: Path, share: float, dtype: str
) -> Coding:
    """What a published cycle cost beside the engine, done again: one thing after the other, in memory but for the disk.

    Args:
        share: of its tiles that must be run; others are neither decoded nor packed.
        dtype: of the engine's output.
    """
    setup, layout = prepared.setup, prepared.layout
    read, raw = _processor(lambda: prepared.source.read_frames(cycle))
    decode, _ = _processor(lambda: setup.decoder.decode(raw))
    codes = _published_codes(prepared, published)
    pack = compress = 0.0
    for row, column in layout.shards:
        shard = codes[:, *layout.shard_window(row, column).slices].values
        pack += _pack_seconds(prepared, shard, dtype)
        compress += _processor(partial(encode_shard, shard, layout))[0]
    return Coding(read, decode * share, pack * share, compress, measure_disk(published, scratch))


def measure_crowding(prepared: Prepared, published: Path, cores: int) -> float:
    """Processor seconds to compress a cycle where all cores do it at once, by those where one does; the best of three.

    Cores that share units, caches and memory are slower together, so a cycle that keeps all of them busy cannot take
    the processor seconds that `measure_coding` finds alone.
    """
    layout, codes = prepared.layout, _published_codes(prepared, published)
    shards = [codes[:, *layout.shard_window(*shard).slices].values for shard in layout.shards]
    work = shards * max(1, 2 * cores // len(shards))

    def compress(threads: int) -> float:
        with ThreadPoolExecutor(threads) as team:
            return _processor(lambda: list(team.map(partial(encode_shard, layout=layout), work)))[0]

    return min(compress(cores) for _ in range(3)) / min(compress(1) for _ in range(3))


def _published_codes(prepared: Prepared, published: Path) -> xr.DataArray:
    return xr.open_zarr(published, mask_and_scale=False)[prepared.product.output.variable][0]


def _pack_seconds(prepared: Prepared, codes: np.ndarray, dtype: str) -> float:
    """Processor seconds to pack a forecast: wet where the codes are, dry elsewhere."""
    encoder = prepared.setup.encoder
    values, packed = np.where(codes > 0, 0.5, -2.0).astype(dtype), np.zeros(codes.shape, encoder.dtype)
    return _processor(lambda: encoder.encode(values, packed))[0]


def measure_disk(published: Path, scratch: Path) -> float:
    """Seconds to write the files of a published cycle anew and have them safe on disk; the best of three."""
    files = [path.read_bytes() for path in sorted(published.rglob("*")) if path.is_file()]
    return min(_write_seconds(files, scratch / str(lap)) for lap in range(3))


def _write_seconds(files: Sequence[bytes], folder: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    seconds = _wall(lambda: write_files({folder / str(n): data for n, data in enumerate(files)}))
    shutil.rmtree(folder)
    return seconds


def _processor(action: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of an action in all threads, and what it gives."""
    started = process_time()
    result = action()
    return process_time() - started, result


def _wall(action: Callable[[], Any]) -> float:
    started = perf_counter()
    action()
    return perf_counter() - started
