"""Would CUDA graphs help? The same batch queued by TensorRT and launched as a captured graph, in turn, on one GPU.

    python -m benchmarks.cuda_graphs [--width 32] [--depth 4] [--tile 1088 1216] [--repeats 200]

Prints, for both ways: what the host spends to queue a batch, a batch from start to end, batches in a row, and whether
the results are equal. Nothing of squall uses graphs: this decides whether it should.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engines import cuda
from engines.model import load_package
from engines.precision import Precision
from engines.trt.engine import TensorRTEngine, TensorRTLane
from engines.zoo import UnetSpec, write_package
from jobs.engine import EngineOrder, batch_spec, open_engine, typed_graph

Queue = Callable[[], None]


@contextmanager
def captured(queue: Queue, stream: cuda.Stream) -> Iterator[Queue]:
    """Launches what `queue` puts into a stream, as one graph."""
    mode = cuda.runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda.call("cudaStreamBeginCapture", stream.handle, mode)
    queue()
    graph = cuda.call("cudaStreamEndCapture", stream.handle)
    ready = cuda.call("cudaGraphInstantiate", graph, 0)
    try:
        yield lambda: cuda.call("cudaGraphLaunch", ready, stream.handle)
    finally:
        stream.synchronize()
        cuda.call("cudaGraphExecDestroy", ready)
        cuda.call("cudaGraphDestroy", graph)


def measure(queue: Queue, stream: cuda.Stream, in_row: int = 20) -> tuple[float, float, float]:
    """Seconds to queue one batch, from its start to its end, and of each of several in a row."""
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


def compare(engine: TensorRTEngine, lane: TensorRTLane, repeats: int) -> None:
    """Both ways in turn, on one lane, whose addresses a graph keeps to."""
    shape = lane.given.shape
    lane.given[...] = np.random.default_rng(0).uniform(0, 2, shape)
    expected = lane.run().copy()
    with engine._queue() as streams:  # the engine is nobody else's here
        stream = streams.compute

        def direct() -> None:
            engine._infer(shape, lane.buffers, stream)

        with captured(direct, stream) as graph:
            readings: dict[str, list[tuple[float, float, float]]] = {"enqueue": [], "graph": []}
            for _ in range(repeats):
                readings["enqueue"].append(measure(direct, stream))
                readings["graph"].append(measure(graph, stream))
            graph()
            stream.synchronize()
            cuda.copy(lane.buffers.staged_out, lane.buffers.returned, expected.nbytes, stream)
            stream.synchronize()
    found = lane.buffers.staged_out.array(expected.shape, expected.dtype)
    report(readings, np.array_equal(found, expected))


def report(readings: dict[str, list[tuple[float, float, float]]], are_equal: bool) -> None:
    print("| way | host ms to queue | ms a batch alone | ms a batch in a row |\n|---|---|---|---|")
    for name, rows in readings.items():
        medians = (statistics.median(column) * 1e3 for column in zip(*rows, strict=True))
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in medians) + " |")
    print(f"results equal: {are_equal}")


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
        engine = open_engine(EngineOrder(graph, batch_spec(shape, graph.precision), "tensorrt")).engine
        assert isinstance(engine, TensorRTEngine)
        engine.warm(shape)
        with engine.lane(shape) as lane:
            compare(engine, lane, arguments.repeats)
        engine.close()


if __name__ == "__main__":
    main()
