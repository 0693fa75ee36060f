"""The loaded engine on every recorded release, over a GPU that is host memory: shapes, profiles, statuses, memory."""

import numpy as np
import pytest

from engines.base import DeviceLostError, Engine, EngineError, InferenceError, OutOfMemoryError
from engines.trt import engine as engine_module
from engines.trt.engine import TensorRTEngine


@pytest.fixture
def load(surface, host_cuda, monkeypatch):
    """Loads the stand-in engine: channel 0 times 1, 2, 3; profiles up to (4, 2, 16, 16) and (4, 2, 17, 17)."""
    monkeypatch.setattr(engine_module, "load_surface", lambda name: surface)
    return lambda **named: TensorRTEngine(b"engine file", **named)


def noise(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def expected(batch):
    return batch[:, :1] * np.float32([1, 2, 3]).reshape(3, 1, 1)


def count(surface, name):
    return sum(called == name for called, _ in surface.module.calls)


def test_it_is_an_engine_that_knows_its_tensors_and_profiles(load):
    engine = load()
    assert isinstance(engine, Engine)
    assert [str(spec) for spec in engine.specs] == ["x: float32 (?, 2, ?, ?)", "y: float32 (?, 3, ?, ?)"]
    assert [str(p) for p in engine.profiles] == [
        "1x2x8x8..4x2x16x16, best 2x2x16x16",
        "1x2x9x9..4x2x17x17, best 2x2x17x17",
    ]
    assert engine.activation_bytes == 256


def test_batches_of_any_shape_of_a_profile_come_back_computed(load):
    engine = load()
    for shape in [(1, 2, 8, 8), (4, 2, 16, 16), (2, 2, 9, 13), (4, 2, 17, 17), (1, 2, 8, 8)]:
        np.testing.assert_array_equal(engine(noise(*shape)), expected(noise(*shape)))


def test_a_result_is_the_callers_own(load):
    engine, first, second = load(), noise(1, 2, 8, 8), noise(2, 2, 8, 8)[:1]
    kept = engine(first)
    engine(second)
    np.testing.assert_array_equal(kept, expected(first))


def test_a_shape_and_the_addresses_are_bound_once(load, surface):
    engine = load()
    engine(noise(2, 2, 8, 8))
    before = count(surface, "IExecutionContext.set_input_shape"), count(surface, "IExecutionContext.set_tensor_address")
    for _ in range(3):
        engine(noise(2, 2, 8, 8))
    after = count(surface, "IExecutionContext.set_input_shape"), count(surface, "IExecutionContext.set_tensor_address")
    assert before == after


def test_memory_is_taken_once_and_all_given_back(load, host_cuda):
    engine = load()
    engine.warm((1, 2, 8, 8))
    blocks, handles = set(host_cuda.blocks), set(host_cuda.handles)
    engine(noise(4, 2, 17, 17))
    assert (set(host_cuda.blocks), set(host_cuda.handles)) == (blocks, handles)
    assert (engine.lanes, engine.buffer_bytes) == (3, 3 * 4 * 17 * 17 * 5 * 4)
    engine.close()
    engine.close()
    assert not host_cuda.blocks
    assert not host_cuda.handles


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((5, 2, 8, 8), np.float32), r"no optimization profile .* \(5, 2, 8, 8\); it has 1x2x8x8\.\.4x2x16x16"),
        (np.zeros((1, 3, 8, 8), np.float32), "no optimization profile"),
        (np.zeros((2, 8, 8), np.float32), "no optimization profile"),
        (np.zeros((1, 2, 8, 8), np.float64), "a batch of float64 does not fit the input x: float32"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_the_next_one_runs(load, batch, message):
    engine = load()
    with pytest.raises(InferenceError, match=message):
        engine(batch)
    np.testing.assert_array_equal(engine(noise(1, 2, 8, 8)), expected(noise(1, 2, 8, 8)))


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_a_refused_call_is_an_error_and_is_tried_again_the_next_time(load, surface, call):
    engine = load()
    surface.module.refuse[f"IExecutionContext.{call}"] = False
    with pytest.raises(InferenceError, match=f"refuses {call}"):
        engine(noise(3, 2, 8, 8))
    surface.module.refuse.clear()
    np.testing.assert_array_equal(engine(noise(3, 2, 8, 8)), expected(noise(3, 2, 8, 8)))


def test_a_refused_change_of_profile_is_an_error_and_the_old_profile_stays(load, surface):
    engine = load()
    engine(noise(1, 2, 8, 8))
    surface.module.refuse["IExecutionContext.set_optimization_profile_async"] = False
    with pytest.raises(InferenceError, match="refuses set_optimization_profile_async to 1"):
        engine(noise(1, 2, 17, 17))
    np.testing.assert_array_equal(engine(noise(1, 2, 8, 8)), expected(noise(1, 2, 8, 8)))


def test_an_engine_that_cannot_be_loaded_is_refused(load, surface, host_cuda):
    surface.module.refuse["Runtime.deserialize_cuda_engine"] = None
    with pytest.raises(EngineError, match="cannot load this engine: TensorRT gives no reason; build it again here"):
        load()
    assert not host_cuda.blocks


@pytest.mark.parametrize(
    ("function", "status", "kind"),
    [
        ("cudaMalloc", "cudaErrorMemoryAllocation", OutOfMemoryError),
        ("cudaHostAlloc", "cudaErrorMemoryAllocation", OutOfMemoryError),
        ("cudaStreamCreateWithFlags", "cudaErrorUnknown", InferenceError),
    ],
)
def test_loading_that_fails_half_way_gives_everything_back(load, host_cuda, function, status, kind):
    host_cuda.fail[function] = status
    with pytest.raises(kind, match=f"{function} failed: {status}"):
        load()
    assert not host_cuda.blocks
    assert not host_cuda.handles


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaEventSynchronize", "cudaEventRecord"])
def test_an_error_of_the_gpu_is_not_a_forecast(load, host_cuda, function):
    engine = load()
    host_cuda.fail[function] = "cudaErrorIllegalAddress"
    with pytest.raises(InferenceError, match=f"{function} failed: cudaErrorIllegalAddress"):
        engine(noise(1, 2, 8, 8))


def test_a_lost_gpu_is_told_from_a_failed_batch(load, host_cuda):
    engine = load()
    host_cuda.fail["cudaMemcpyAsync"] = "cudaErrorInvalidValue"
    with pytest.raises(InferenceError) as failed:
        engine(noise(1, 2, 8, 8))
    host_cuda.fail["cudaMemcpyAsync"] = "cudaErrorECCUncorrectable"
    with pytest.raises(DeviceLostError):
        engine(noise(1, 2, 8, 8))
    assert not isinstance(failed.value, DeviceLostError)


def test_a_gpu_is_known_to_be_lost_where_tensorrt_only_refuses(load, surface, host_cuda):
    engine = load()
    surface.module.refuse["IExecutionContext.execute_async_v3"] = False
    with pytest.raises(InferenceError) as failed:
        engine(noise(1, 2, 8, 8))
    assert not isinstance(failed.value, DeviceLostError)
    host_cuda.fail["cudaStreamSynchronize"] = "cudaErrorIllegalAddress"
    with pytest.raises(DeviceLostError) as lost:
        engine(noise(1, 2, 8, 8))
    assert "TensorRT refuses execute_async_v3" in str(lost.value.__cause__)


def test_a_closed_engine_says_so(load):
    engine = load()
    engine.close()
    with pytest.raises(InferenceError, match="the engine is closed"):
        engine(noise(1, 2, 8, 8))


def test_a_gpu_that_is_not_there_is_refused(load):
    with pytest.raises(EngineError, match="GPU 3 was asked for; this process may use 1"):
        load(device=3)


def test_without_a_gpu_tensorrt_is_not_even_asked(surface, no_gpu, monkeypatch):
    monkeypatch.setattr(engine_module, "load_surface", lambda name: surface)
    with pytest.raises(EngineError, match=r"running an engine with \S+ \S+ needs an NVIDIA GPU"):
        TensorRTEngine(b"engine file")
    assert not surface.module.calls


def test_code_that_an_engine_file_brings_for_the_host_is_never_allowed(load, surface):
    load()(noise(1, 2, 8, 8))
    assert not [name for name, _ in surface.module.calls if "host_code" in name]
