"""How many cells a batch must have until a GPU is full: one engine, batches of 1 to n tiles, in turn.

    python -m benchmarks.batches [--width 32] [--depth 4] [--tile 256 256] [--most 16] [--repeats 30]

Prints the time on the GPU of a batch and of a tile in it: whether the planner's `FULL_CELLS` fits a GPU.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines import cuda
from engines.base import Timed
from engines.model import load_package
from engines.precision import Precision
from engines.zoo import UnetSpec, write_package
from jobs.engine import EngineOrder, batch_spec, open_engine, typed_graph

FRAMES, LEADS, STEP_MINUTES = 4, 18, 5


def sizes_up_to(most: int) -> list[int]:
    """1, 2, 4 ... and the most itself.

    >>> sizes_up_to(12)
    [1, 2, 4, 8, 12]
    """
    return [size for size in (1 << power for power in range(most.bit_length())) if size < most] + [most]


def measure(engine: Timed, tile: Sequence[int], sizes: Sequence[int], repeats: int) -> dict[int, float]:
    """Seconds on the GPU of a batch of each size, medians of repeats in turn."""
    batches = {n: np.random.default_rng(n).uniform(0, 2, (n, FRAMES, *tile)).astype(np.float32) for n in sizes}
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(repeats):
        for n, batch in batches.items():
            seconds[n].append(engine.timed(batch).compute_seconds)
    return {n: statistics.median(found) for n, found in seconds.items()}


def report(seconds: dict[int, float], cells: int) -> None:
    print("| tiles | cells | ms a batch | ms a tile | of one alone |\n|---|---|---|---|---|")
    for n, spent in seconds.items():
        each = spent / n
        print(f"| {n} | {n * cells} | {spent * 1e3:.3f} | {each * 1e3:.3f} | {each / seconds[1]:.2f} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--tile", type=int, nargs=2, default=[256, 256])
    parser.add_argument("--most", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    return parser.parse_args()


def main() -> None:
    arguments: Any = parse()
    if not cuda.device_count():
        raise SystemExit("this needs an NVIDIA GPU; there is none here")
    with tempfile.TemporaryDirectory() as folder:
        spec = UnetSpec(arguments.width, arguments.depth, FRAMES, LEADS, STEP_MINUTES)
        graph = typed_graph(load_package(write_package(spec, Path(folder) / "model")), Precision.parse("half"))
        shape = (arguments.most, FRAMES, *arguments.tile)
        engine: Any = open_engine(EngineOrder(graph, batch_spec(shape, graph.precision), "tensorrt")).engine
        engine.warm(shape)
        sizes = sizes_up_to(arguments.most)
        report(measure(engine, arguments.tile, sizes, arguments.repeats), arguments.tile[0] * arguments.tile[1])
        engine.close()


if __name__ == "__main__":
    main()
