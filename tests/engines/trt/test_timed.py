"""The way of a batch to the GPU and back, part by part, and a bench of TensorRT over a GPU that is host memory."""

import numpy as np
import pytest

from engines import cuda
from engines.base import Accounted, InferenceError, Overlapping, Split, Timed
from engines.bench import Effort, Subject, bench
from engines.environment import describe_environment
from engines.trt import engine as engine_module
from engines.trt.engine import TensorRTEngine


@pytest.fixture
def load(surface, host_cuda, monkeypatch):
    """Loads the stand-in engine: channel 0 times 1, 2, 3."""
    monkeypatch.setattr(engine_module, "load_surface", lambda name: surface)
    monkeypatch.setattr("engines.environment.load_surface", lambda: surface)
    return lambda: TensorRTEngine(b"engine file")


def noise(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def test_the_engine_can_do_all_that_a_bench_asks_for(load):
    engine = load()
    for ability in (Timed, Overlapping, Accounted):
        assert isinstance(engine, ability)


def test_each_part_is_timed_between_marks_on_the_gpu(load):
    split = load().timed(noise(2, 2, 8, 8))
    assert (split.h2d_seconds, split.compute_seconds, split.d2h_seconds) == (1.5e-3,) * 3
    assert split.enqueue_seconds >= 0


def test_calls_before_and_after_are_as_ever(load):
    engine, batch = load(), noise(3, 2, 8, 8)
    before = engine(batch)
    engine.timed(noise(4, 2, 16, 16))
    np.testing.assert_array_equal(engine(batch), before)


def test_timing_takes_no_memory_and_gives_its_marks_back(load, host_cuda):
    engine = load()
    blocks, handles = set(host_cuda.blocks), set(host_cuda.handles)
    engine.timed(noise(1, 2, 8, 8))
    assert (set(host_cuda.blocks), set(host_cuda.handles)) == (blocks, handles)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((5, 2, 8, 8), np.float32), "no optimization profile"),
        (np.zeros((1, 2, 8, 8), np.float64), "a batch of float64 does not fit"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_before_anything_is_queued(load, host_cuda, batch, message):
    engine = load()
    host_cuda.fail["cudaMemcpyAsync"] = "cudaErrorUnknown"
    with pytest.raises(InferenceError, match=message):
        engine.timed(batch)


def test_a_closed_engine_says_so(load):
    engine = load()
    engine.close()
    with pytest.raises(InferenceError, match="the engine is closed"):
        engine.timed(noise(1, 2, 8, 8))


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaEventCreate", "cudaEventRecord", "cudaEventElapsedTime"])
def test_an_error_of_the_gpu_is_an_error(load, host_cuda, function):
    engine = load()
    host_cuda.fail[function] = "cudaErrorIllegalAddress"
    with pytest.raises(InferenceError, match=f"{function} failed: cudaErrorIllegalAddress"):
        engine.timed(noise(1, 2, 8, 8))


def test_after_a_refused_inference_the_copy_is_over_and_the_next_batch_runs(load, surface, host_cuda):
    engine, seen = load(), []
    surface.module.refuse["IExecutionContext.execute_async_v3"] = False
    host_cuda._cudaMemcpyAsync = lambda *given: seen.append("copy") or ()
    host_cuda._cudaStreamSynchronize = lambda handle: seen.append("wait") or ()
    with pytest.raises(InferenceError, match="refuses execute_async_v3"):
        engine.timed(noise(1, 2, 8, 8))
    assert seen[seen.index("copy") + 1] == "wait"
    surface.module.refuse.clear()
    assert engine.timed(noise(1, 2, 8, 8)).latency_seconds == pytest.approx(4.5e-3)


def test_a_bench_reports_parts_rows_and_memory(load, surface, host_cuda):
    shapes = [(1, 2, 8, 8), (4, 2, 16, 16)]
    report = bench([Subject("first", load), Subject("second", load)], shapes, Effort(0.004, 2, 8))
    assert not report.errors
    first = report.reference
    assert first.memory.activation_bytes == 256
    assert first.memory.device_bytes == 0
    assert first.tensors == ("x: float32 (?, 2, ?, ?)", "y: float32 (?, 3, ?, ?)")
    for one in first.measurements:
        assert isinstance(one.split, Split)
        assert one.split.latency_seconds == pytest.approx(4.5e-3)
        assert one.rows.count == 2
    assert report.results[1].at(shapes[1]).difference.largest == 0
    assert report.environment.releases[surface.flavour] == surface.version
    assert not host_cuda.blocks


def test_the_environment_describes_the_gpu_and_its_driver(load):
    told = describe_environment().describe()
    assert told["GPU"] == "Stand-in, compute capability 9.0, 2 GiB, 132 multiprocessors"
    assert told["CUDA driver"] == cuda.driver_version() == "12.4"


def test_a_machine_without_a_gpu_is_said_to_have_none(no_gpu, monkeypatch):
    monkeypatch.setattr("engines.environment.load_surface", lambda: pytest.fail("TensorRT was asked without a GPU"))
    found = describe_environment()
    assert found.describe()["GPU"] == "none"
    assert "CUDA driver" not in found.describe()
