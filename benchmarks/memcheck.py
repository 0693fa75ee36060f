r"""A small squall cycle in one process without Ray, for compute-sanitizer to watch.

    python -m benchmarks.memcheck                   # builds the engine, which is not what is to be watched
    compute-sanitizer --tool memcheck --report-api-errors no --kernel-name-exclude kns=xmma --error-exitcode 9 \
        python -m benchmarks.memcheck

Small storms, a small U-Net, in half on a GPU: three blocks in flight through three lanes of one engine, published, and
compared with a plain loop through the same engine. Ends with 0 if all went well, 9 if the sanitizer found something.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

from benchmarks.cases import write_product
from benchmarks.codes import compare, open_published
from benchmarks.cycle import Store
from benchmarks.sections.exact import forecast_plainly
from engines import cuda
from engines.cores import usable_cores
from engines.zoo import UnetSpec
from jobs.make import CycleReport, Filled, describe_cycle, make_cycle
from jobs.outfit import Outfit, open_outfit
from jobs.pool import Resources
from jobs.prepare import Prepared, load, prepare
from pipelines.run import BlockResult, run_block
from pipelines.sink import Draft
from pipelines.source import Cycle, find_inputs
from pipelines.spans import Stopwatch
from pipelines.storms import write_storms
from pipelines.tiling import Block

GRID, IN_FLIGHT = (384, 512), 3
SPEC = UnetSpec(width=8, depth=2, frames=4, leads=4)
SETTINGS = {
    "workers": 1,
    "blocks_in_flight": IN_FLIGHT,
    "tiling": {"tile": [128, 128]},
    "output": {"store": "out", "variable": "rain", "shards": [128, 128], "chunks": [128, 128]},
}


def prepare_storms(home: Path, gpus: int) -> Prepared:
    """The product, in a folder that keeps its storms from run to run."""
    frames = home / "storms.zarr"
    if not frames.exists():
        write_storms(frames, GRID, SPEC.frames)
    store = Store(frames, "precip_rate", "none", 5)
    file = write_product(home / "product", store, SPEC, SETTINGS, "half" if gpus else "float32")
    return prepare(load(file, []), Resources(min(1, gpus), usable_cores()))


@contextmanager
def opened(prepared: Prepared) -> Iterator[Outfit]:
    """The engine and its forecaster, as a worker has them; closed with the context."""
    outfit = open_outfit(prepared.setup, lambda text: print(text, flush=True))
    try:
        yield outfit
    finally:
        outfit.engine.close()


def make(prepared: Prepared, outfit: Outfit, cycle: Cycle) -> CycleReport:
    """The cycle, its blocks made by as many threads as a worker has blocks in flight."""
    watch = Stopwatch()

    def make_block(block: Block, draft: Draft) -> BlockResult:
        result = run_block(block, lambda window: prepared.source.read(cycle, window), outfit.forecaster, draft)
        return replace(result, engine=outfit.label)

    def fill(draft: Draft) -> Filled:
        describe_cycle(prepared, cycle, draft, watch)
        with ThreadPoolExecutor(prepared.setup.blocks_in_flight) as threads:
            return Filled(list(threads.map(lambda block: make_block(block, draft), prepared.plan.tiling.blocks())))

    return make_cycle(prepared, cycle, fill, monotonic(), watch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/memcheck"))
    home, gpus = parser.parse_args().out.resolve(), cuda.device_count()
    os.environ.setdefault("SQUALL_CACHE", str(home / "cache"))
    prepared = prepare_storms(home, gpus)
    cycle = find_inputs(prepared.source, prepared.product)
    with opened(prepared) as outfit:
        report = make(prepared, outfit, cycle)
        plain = forecast_plainly(prepared, outfit.engine, prepared.plan.tiling, cycle)
    found, order = compare(open_published(report.path), plain), prepared.setup.order
    print(f"{outfit.label}; {report.blocks} blocks, {report.tiles_run} tiles run, {report.tiles_reused} reused, "
          f"{prepared.setup.blocks_in_flight} blocks in flight, {order.lanes} lanes")  # fmt: skip
    print(f"against a plain loop: {found.differing} of {found.cells} cells differ, {found.verdict}")
    if not gpus:
        print("no GPU: there is nothing for compute-sanitizer to check")
    if found.most > 1:
        raise SystemExit("the forecast is another one than that of a plain loop")


if __name__ == "__main__":
    main()
