"""What writing and opening the forecast store costs: our shards against zarr-python, and an archive of many cycles.

python benchmarks/store.py ../shared/data/mrms_20190610.zarr
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipelines.archive import list_cycles, open_archive
from pipelines.cf import Provenance, store_files
from pipelines.cycles import cycle_name
from pipelines.grid import Grid
from pipelines.layout import Layout, choose_layout
from pipelines.product import OutputSpec
from pipelines.shard import encode_shard
from pipelines.sink import open_draft, publish, write_block

LEADS = tuple(timedelta(minutes=5 * n) for n in range(1, 19))
OUTPUT = OutputSpec(store="", variable="rain_rate")
UNITS = {"units": "mm h-1"}
PROVENANCE = Provenance("benchmark", "none", "none", {}, "none", ())
START = np.datetime64("2019-06-10", "ns")
LZ4 = BloscCodec(cname="lz4", clevel=9, shuffle="shuffle")


def forecast(store: str) -> NDArray[np.int16]:
    """(lead, y, x) codes of 0.01 mm h-1: every second frame of the store, smoothed as a forecast is."""
    array = zarr.open_array(f"{store}/precip_rate", mode="r")
    codes = array[0 : 2 * len(LEADS) : 2]
    missing = codes == array.attrs["_FillValue"]
    rate = codes * np.float32(array.attrs["scale_factor"] * 100)
    rate[:, 1:, 1:] = (rate[:, 1:, 1:] + rate[:, :-1, 1:] + rate[:, 1:, :-1] + rate[:, :-1, :-1]) / 4
    return np.where(missing, -32768, np.clip(np.rint(rate), 0, 32767)).astype(np.int16)


def grid(shape: tuple[int, int]) -> Grid:
    return Grid(np.arange(shape[0], 0.0, -1), np.arange(0.0, shape[1]), "y", "x", {"units": "m"}, {"units": "m"})


def write_ours(root: str, layout: Layout, codes: NDArray[np.int16]) -> None:
    draft = open_draft(root, "rain", START, grid(codes.shape[1:]), LEADS, layout, UNITS, PROVENANCE)
    for shard in layout.shards:
        window = layout.shard_window(*shard)
        write_block(draft, window, codes[:, *window.slices])
    publish(draft)


def write_zarr(root: str, layout: Layout, codes: NDArray[np.int16], compressor: Any = LZ4) -> None:
    """The same shards by zarr-python, without fsync, check or publication."""
    array = zarr.create_array(
        f"{root}/array", shape=layout.shape, shards=layout.shard, chunks=layout.chunk, dtype=layout.dtype,
        fill_value=layout.fill_value, compressors=[compressor, Crc32cCodec()],
        config={"write_empty_chunks": False},
    )  # fmt: skip
    for shard in layout.shards:
        window = layout.shard_window(*shard).slices
        array[:, *window] = codes[:, *window]


def report(name: str, work: Callable[[str], Any], repeats: int = 5) -> None:
    laps = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as root:
            wall, cpu = time.perf_counter(), time.process_time()
            work(root)
            laps.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (statistics.median(column) for column in zip(*laps, strict=True))
    print(f"{name:48} wall {wall:6.3f} s   cpu {cpu:6.3f} s")


def write_archive(root: str, cycles: int) -> None:
    """Cycles of FMI size that are dry everywhere; not fsynced, to be quick."""
    layout = choose_layout((1226, 760), len(LEADS), OUTPUT)
    windows = {layout.shard_key(*s): layout.shard_window(*s) for s in layout.shards}
    dry = {k: b"".join(encode_shard(np.zeros((len(LEADS), *w.shape), np.int16), layout)) for k, w in windows.items()}
    for number in range(cycles):
        moment = START + np.timedelta64(5 * number, "m")
        files = store_files("rain", moment, grid((1226, 760)), LEADS, layout, UNITS, PROVENANCE)
        for key, data in (files | dry).items():
            path = Path(root, "rain", cycle_name(moment), key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def main(store: str) -> None:
    codes = forecast(store)
    layout = choose_layout(codes.shape[1:], len(LEADS), OUTPUT)
    print(f"{codes.shape} int16, shard {layout.shard}, chunk {layout.chunk}, zarr {zarr.__version__}")
    report("ours: draft, write, fsync, check, publish", lambda root: write_ours(root, layout, codes))
    report("zarr-python, default pipeline", lambda root: write_zarr(root, layout, codes))
    report("the same, zstd level 1", lambda root: write_zarr(root, layout, codes, ZstdCodec(level=1)))
    if hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
        with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline"}):
            report("zarr-python, fused pipeline", lambda root: write_zarr(root, layout, codes))
    with tempfile.TemporaryDirectory() as root:
        write_archive(root, 2000)
        report("list 2000 cycles", lambda _: list_cycles(root, "rain"))
        report("open 2000 cycles as one array", lambda _: open_archive(root, "rain"))
        archive = open_archive(root, "rain").rain_rate
        report("one field of them", lambda _: archive[1000, 3].load())
        report("one cell through all of them", lambda _: archive[:, 0, 600, 300].load())


if __name__ == "__main__":
    main(sys.argv[1])
