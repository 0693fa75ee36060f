"""What CUDA graphs save: batches that TensorRT queues itself and batches that squall replays, in turn, on one GPU.

    python -m benchmarks.cuda_graphs [--width 32] [--depth 4] [--tile 1088 1216] [--repeats 200]

Two engines of one file, one of them loaded with SQUALL_CUDA_GRAPHS=0. Prints, for both: what the host spends to queue
a batch, a batch from start to end, batches in a row, batches of two threads with their copies, how many graphs there
are, whether the results are equal, and what a capture costs once. See docs/decisions/022-cuda-graphs.md.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import cuda
from engines.model import load_package
from engines.precision import Precision
from engines.trt.engine import TensorRTEngine, TensorRTLane
from engines.trt.replay import SWITCH
from engines.zoo import UnetSpec, write_package
from jobs.engine import EngineOrder, batch_spec, open_engine, typed_graph

WARM = 4  # runs of a lane: queued, captured, launched


@contextmanager
def opened(order: EngineOrder, graphs: str) -> Iterator[TensorRTEngine]:
    """The engine of an order, with or without CUDA graphs ("1" or "0")."""
    os.environ[SWITCH] = graphs
    engine = open_engine(order).engine
    del os.environ[SWITCH]
    assert isinstance(engine, TensorRTEngine)
    with closing(engine):
        yield engine


class Subject:
    """One engine, with two of its lanes taken and each used often enough to be replayed."""

    def __init__(self, engine: TensorRTEngine, lanes: Sequence[TensorRTLane]) -> None:
        self.engine, self.lanes, self.readings = engine, lanes, list[tuple[float, ...]]()
        for _ in range(WARM):
            self.forecasts(seed=0)

    def forecasts(self, seed: int) -> list[NDArray[Any]]:
        """Of each lane, for noise of its own."""
        found = []
        for number, lane in enumerate(self.lanes):
            lane.given[...] = np.random.default_rng((seed, number)).uniform(0, 2, lane.given.shape)
            found.append(lane.run().copy())
        return found

    def measure(self) -> None:
        self.readings.append((*self._queued(), self._in_lanes()))

    def _queued(self, in_row: int = 20) -> tuple[float, float, float]:
        """Seconds to queue one batch, from its start to its end, and of each of several in a row; without copies."""
        lane = self.lanes[0]
        with self.engine._queue() as streams:  # the engine is nobody else's here
            stream = streams.compute

            def queue() -> None:
                self.engine._infer(lane.given.shape, lane.buffers, stream)

            started = time.perf_counter()
            queue()
            queued = time.perf_counter() - started
            stream.synchronize()
            alone = time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(in_row):
                queue()
            stream.synchronize()
            return queued, alone, (time.perf_counter() - started) / in_row

    def _in_lanes(self, times: int = 10) -> float:
        """Seconds a batch where two threads run batches, each in its lane."""

        def work(lane: TensorRTLane) -> None:
            for _ in range(times):
                lane.run()

        started = time.perf_counter()
        with ThreadPoolExecutor(len(self.lanes)) as pool:
            list(pool.map(work, self.lanes))
        return (time.perf_counter() - started) / times / len(self.lanes)


def measure_captures(subject: Subject, times: int = 20) -> tuple[float, int]:
    """Seconds that a capture takes of the host, and the most bytes of the GPU that were gone after one."""
    engine, lane, seconds, gone = subject.engine, subject.lanes[0], [], 0
    with engine._queue() as streams:
        for _ in range(times):
            engine._replay.forget()
            engine._infer(lane.given.shape, lane.buffers, streams.compute)
            streams.compute.synchronize()
            free, started = cuda.free_bytes(), time.perf_counter()
            engine._infer(lane.given.shape, lane.buffers, streams.compute)  # queued by TensorRT, then captured
            seconds.append(time.perf_counter() - started)
            engine._infer(lane.given.shape, lane.buffers, streams.compute)
            streams.compute.synchronize()
            gone = max(gone, free - cuda.free_bytes())
    return statistics.median(seconds), gone


def report(plain: Subject, replayed: Subject) -> None:
    head = "way", "host ms to queue", "ms a batch alone", "ms a batch in a row", "ms a batch, 2 lanes", "graphs"
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, subject in (("enqueue", plain), ("replay", replayed)):
        medians = [statistics.median(column) * 1e3 for column in zip(*subject.readings, strict=True)]
        numbers = " | ".join(f"{value:.3f}" for value in medians)
        print(f"| {name} | {numbers} | {len(subject.engine._replay)} |")
    print(f"results equal: {np.array_equal(plain.forecasts(seed=1), replayed.forecasts(seed=1))}")
    seconds, gone = measure_captures(replayed)
    print(f"queued and captured: {seconds * 1e3:.3f} ms of the host, {gone / 1e6:.1f} MB of the GPU")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--tile", type=int, nargs=2, default=[1088, 1216])
    parser.add_argument("--repeats", type=int, default=200)
    return parser.parse_args()


def main() -> None:
    arguments: Any = parse()
    if not cuda.device_count():
        raise SystemExit("CUDA graphs need an NVIDIA GPU; there is none here")
    with tempfile.TemporaryDirectory() as folder:
        write_package(UnetSpec(arguments.width, arguments.depth, 4, 18, 5), Path(folder) / "model")
        graph = typed_graph(load_package(Path(folder) / "model"), Precision.parse("half"))
        shape = (1, 4, *arguments.tile)
        order = EngineOrder(graph, batch_spec(shape, graph.precision), "tensorrt")
        with opened(order, "0") as plain, opened(order, "1") as replayed, ExitStack() as held:
            subjects = [
                Subject(engine, [held.enter_context(engine.lane(shape)) for _ in range(2)])
                for engine in (plain, replayed)
            ]
            for _ in range(arguments.repeats):
                for subject in subjects:
                    subject.measure()
            report(*subjects)


if __name__ == "__main__":
    main()
