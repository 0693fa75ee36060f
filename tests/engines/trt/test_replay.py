"""Inferences replayed as CUDA graphs, on every recorded release: when they are captured, launched and forgotten."""

import logging

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines import cuda
from engines.base import DeviceLostError, EngineError, InferenceError
from engines.trt import digest as digest_module
from engines.trt import engine as engine_module
from engines.trt.engine import TensorRTEngine
from engines.trt.memory import Memory
from engines.trt.refit import digest_weights
from engines.trt.replay import Replay, is_wanted

SHAPE = (2, 2, 8, 8)
REFUSED = "IExecutionContext.execute_async_v3"


@pytest.fixture
def load(surface, host_cuda, monkeypatch):
    """Loads the stand-in engine: channel 0 times 1, 2, 3; profiles up to (4, 2, 16, 16) and (4, 2, 17, 17)."""
    if not surface.can_be_captured:
        pytest.skip("TensorRT for RTX is not captured")
    monkeypatch.setattr(engine_module, "load_surface", lambda name: surface)
    return lambda **named: TensorRTEngine(b"engine file", **named)


def noise(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def expected(batch):
    return batch[:, :1] * np.float32([1, 2, 3]).reshape(3, 1, 1)


def check(engine, shape=SHAPE, times=1):
    """Other numbers each time, so that a result of before is none."""
    for seed in range(times):
        np.testing.assert_array_equal(engine(noise(*shape, seed=seed)), expected(noise(*shape, seed=seed)))


def enqueued(surface):
    """How often TensorRT queued an inference, into whatever stream."""
    return sum(name == REFUSED for name, _ in surface.module.calls)


def kept(host_cuda):
    """What graphs leave behind; a kernel, once loaded, stays with the memory."""
    return host_cuda.handles - host_cuda.libraries.keys()


# Of an engine


def test_the_second_inference_is_captured_and_from_the_third_on_tensorrt_is_not_called(load, surface, host_cuda):
    engine = load()
    counts = []
    for _ in range(5):
        check(engine)
        counts.append((enqueued(surface), host_cuda.called["cudaGraphLaunch"]))
    assert counts == [(1, 0), (3, 1), (3, 2), (3, 3), (3, 4)]  # a capture is proven by a launch
    calls = len(surface.module.calls)
    check(engine)
    assert len(surface.module.calls) == calls


def test_a_capture_goes_into_a_stream_of_its_own_and_leaves_only_the_graph(load, surface, host_cuda):
    engine = load()
    check(engine)
    handles = kept(host_cuda)
    check(engine)
    streams = [args[0] for name, args in surface.module.calls if name == REFUSED]
    assert streams[0] == streams[1] == engine._memory.streams.compute.handle != streams[2]
    assert len(kept(host_cuda) - handles) == len(engine._replay) == 1
    assert not host_cuda.captures


def test_each_lane_has_a_graph_on_its_own_addresses(load, host_cuda):
    engine = load(lanes=3)
    with engine.lane(SHAPE) as one, engine.lane(SHAPE) as two, engine.lane(SHAPE) as three:
        for seed in range(6):
            for number, lane in enumerate((one, two, three, one)):
                lane.given[...] = batch = noise(*SHAPE, seed=(seed, number))
                np.testing.assert_array_equal(lane.run(), expected(batch))
    assert len(engine._replay) == 3
    assert host_cuda.called["cudaGraphInstantiate"] == 3


def test_another_shape_or_profile_forgets_the_graphs_of_the_one_before(load, host_cuda):
    engine, handles = load(), kept(host_cuda)
    for shape in [SHAPE, (1, 2, 8, 8), (2, 2, 17, 17), SHAPE]:
        check(engine, shape, times=4)
        assert len(engine._replay) == 1
        assert len(kept(host_cuda) - handles) == 1
    check(engine, (1, 2, 8, 8))
    assert not len(engine._replay)


def test_another_activation_block_forgets_them_and_the_next_ones_compute_there(load, host_cuda):
    memory = Memory(lanes=2)
    engine = load(memory=memory)
    check(engine, times=3)
    memory.reserve_activation(1000)
    check(engine)
    assert not len(engine._replay)
    check(engine, times=3)
    assert len(engine._replay) == 1
    engine.close()
    memory.close()
    assert not host_cuda.handles


def test_engines_in_one_memory_have_graphs_of_their_own_that_outlive_the_others(load, host_cuda):
    memory = Memory(lanes=1)
    first, second = load(memory=memory), load(memory=memory)
    for _ in range(4):
        check(first)
        check(second)
    assert len(first._replay) == len(second._replay) == 1
    first.close()
    check(second, times=2)
    second.close()
    memory.close()
    assert not host_cuda.handles


def test_a_refit_forgets_them_before_weights_move(load, surface, host_cuda, conv, tmp_path, monkeypatch):
    engine, model = load(), onnx.load(conv)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((3, 2, 3, 3), np.float32), "w"))
    onnx.save(model, tmp_path / "retrained.onnx")
    check(engine, times=3)
    there = []
    inner = surface.module.Refitter.refit_cuda_engine
    monkeypatch.setattr(
        surface.module.Refitter, "refit_cuda_engine", lambda self: (there.append(len(engine._replay)), inner(self))[1]
    )
    engine.refit(tmp_path / "retrained.onnx", digest_weights(conv))
    assert there == [0]
    launches = host_cuda.called["cudaGraphLaunch"]
    check(engine, times=2)
    assert host_cuda.called["cudaGraphLaunch"] == launches + 1  # the proof of a new one
    assert len(engine._replay) == 1


def test_closing_waits_then_destroys_the_graphs_then_the_context_then_the_memory(load, host_cuda, monkeypatch):
    engine = load()
    check(engine, times=3)
    waited, seen = host_cuda.called["cudaEventSynchronize"], []

    def destroy(handle):
        is_done = host_cuda.called["cudaEventSynchronize"] > waited
        seen.append((is_done, engine._context is not None, bool(host_cuda.blocks)))
        return host_cuda._drop_handle(handle)

    monkeypatch.setattr(host_cuda, "_cudaGraphExecDestroy", destroy)
    engine.close()
    assert seen == [(True, True, True)]
    assert not host_cuda.handles
    assert not host_cuda.blocks


def test_a_timed_batch_is_replayed_too(load, host_cuda):
    engine = load()
    for _ in range(3):
        engine.timed(noise(*SHAPE))
    assert host_cuda.called["cudaGraphLaunch"] == 2


# What cannot be captured


@pytest.mark.parametrize(
    ("function", "status"),
    [
        ("cudaStreamBeginCapture", "cudaErrorInvalidValue"),
        ("cudaStreamEndCapture", "cudaErrorStreamCaptureInvalidated"),
        ("cudaGraphGetNodes", "cudaErrorInvalidValue"),
        ("cudaGraphInstantiate", "cudaErrorMemoryAllocation"),
    ],
)
def test_an_engine_that_cannot_be_captured_is_queued_by_tensorrt_for_ever_and_says_so_once(
    load, surface, host_cuda, caplog, function, status
):
    caplog.set_level(logging.INFO, "engines.trt")
    engine = load()
    check(engine)
    handles = kept(host_cuda)
    host_cuda.fail[function] = status
    check(engine, times=5)
    host_cuda.fail.clear()
    tried, called = enqueued(surface), host_cuda.called["cudaStreamBeginCapture"]
    check(engine, times=3)
    assert enqueued(surface) == tried + 3
    assert host_cuda.called["cudaStreamBeginCapture"] == called == 1
    assert host_cuda.called["cudaGetLastError"] == 1
    assert kept(host_cuda) == handles
    told = [record for record in caplog.records if "CUDA graphs" in record.message]
    assert [record.levelname for record in told] == ["INFO"]
    assert f"TensorRT queues every batch: {function}" in told[0].message or "no work was captured" in told[0].message


def test_an_inference_that_tensorrt_refuses_to_have_captured_ends_the_capture_and_runs(
    load, surface, host_cuda, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "engines.trt")
    engine = load()
    inner = surface.module.IExecutionContext.execute_async_v3
    monkeypatch.setattr(
        surface.module.IExecutionContext,
        "execute_async_v3",
        lambda self, stream: stream not in host_cuda.captures and inner(self, stream),
    )
    check(engine, times=4)
    assert host_cuda.called["cudaStreamEndCapture"] == 1
    assert not host_cuda.captures
    assert "no CUDA graphs for this engine, TensorRT queues every batch: TensorRT refuses execute_async" in caplog.text


def test_a_graph_that_cannot_be_launched_costs_no_batch(load, surface, host_cuda, caplog):
    caplog.set_level(logging.INFO, "engines.trt")
    engine = load()
    check(engine, times=3)
    host_cuda.fail["cudaGraphLaunch"] = "cudaErrorInvalidValue"
    check(engine, times=3)
    assert caplog.text.count("CUDA graphs") == 1
    assert host_cuda.called["cudaGraphLaunch"] == 3
    assert not len(engine._replay)


def test_a_graph_that_gives_another_result_is_never_used(load, surface, host_cuda, caplog):
    caplog.set_level(logging.INFO, "engines.trt")
    engine, handles = load(), kept(host_cuda)
    host_cuda._cudaGraphLaunch = lambda graph, stream: ()  # leaves the output as it was: spoiled
    check(engine, times=5)
    assert host_cuda.called["cudaGraphLaunch"] == 1
    assert "TensorRT queues every batch: the replay of a batch gave another result" in caplog.text
    assert not len(engine._replay)
    assert kept(host_cuda) == handles


def test_a_proof_that_fails_half_way_costs_no_batch(load, host_cuda, caplog):
    caplog.set_level(logging.INFO, "engines.trt")
    engine, handles = load(), kept(host_cuda)
    host_cuda.fail["cudaGraphLaunch"] = "cudaErrorInvalidValue"
    check(engine, times=3)
    assert caplog.text.count("CUDA graphs") == 1
    assert kept(host_cuda) == handles


@pytest.mark.parametrize("function", ["cuLibraryLoadData", "cuLaunchKernel"])
def test_without_the_kernel_that_proves_them_there_are_no_graphs(load, host_cuda, caplog, function):
    caplog.set_level(logging.INFO, "engines.trt")
    engine, handles = load(), set(host_cuda.handles)
    host_cuda.fail[function] = "CUDA_ERROR_NOT_SUPPORTED"
    check(engine, times=4)
    assert caplog.text.count("no CUDA graphs for this engine, TensorRT queues every batch") == 1
    assert kept(host_cuda) == handles
    engine.close()
    assert not host_cuda.handles


def test_a_kernel_that_was_not_installed_costs_no_batch(load, host_cuda, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(digest_module, "DIGEST", tmp_path / "digest.cu")
    caplog.set_level(logging.INFO, "engines.trt")
    check(load(), times=4)
    assert "TensorRT queues every batch: a kernel cannot be read, install squall again" in caplog.text


@pytest.mark.parametrize(
    ("function", "before"),
    [("cudaGraphInstantiate", 1), ("cudaMemsetAsync", 1), ("cudaGraphLaunch", 1), ("cudaGraphLaunch", 3)],
)
def test_a_gpu_that_is_lost_is_no_graph_that_fails(load, surface, host_cuda, function, before):
    engine = load()
    check(engine, times=before)
    tried = enqueued(surface)
    host_cuda.fail[function] = "cudaErrorECCUncorrectable"
    with pytest.raises(DeviceLostError, match=function):
        check(engine)
    assert enqueued(surface) == tried + (2 if before == 1 else 0)  # nothing after the loss


def test_a_batch_that_tensorrt_refuses_is_an_error_and_switches_nothing_off(load, surface):
    engine = load()
    check(engine)
    surface.module.refuse[REFUSED] = False
    with pytest.raises(InferenceError, match="refuses execute_async_v3"):
        check(engine)
    surface.module.refuse.clear()
    check(engine, times=2)
    assert len(engine._replay) == 1


def test_tensorrt_for_rtx_which_replaces_its_kernels_while_it_runs_is_not_captured(surface, host_cuda, monkeypatch):
    if surface.can_be_captured:
        pytest.skip("not TensorRT for RTX")
    monkeypatch.setattr(engine_module, "load_surface", lambda name: surface)
    check(TensorRTEngine(b"engine file"), times=4)
    assert not host_cuda.called["cudaStreamBeginCapture"]


# The switch


def test_the_environment_switches_graphs_off(load, host_cuda, monkeypatch):
    monkeypatch.setenv("SQUALL_CUDA_GRAPHS", "0")
    check(load(), times=4)
    assert not host_cuda.called["cudaStreamBeginCapture"]


def test_graphs_are_wanted_unless_the_switch_is_0_and_it_is_0_or_1():
    assert is_wanted({})
    assert is_wanted({"SQUALL_CUDA_GRAPHS": "1"})
    assert not is_wanted({"SQUALL_CUDA_GRAPHS": "0"})
    with pytest.raises(EngineError, match="SQUALL_CUDA_GRAPHS is 'off'; expected 0 or 1"):
        is_wanted({"SQUALL_CUDA_GRAPHS": "off"})


# The keeper alone


@pytest.fixture
def stream(host_cuda):
    with cuda.Stream() as opened:
        yield opened


class Same:
    """An output that is always the same."""

    def digest(self):
        return 0

    def spoil(self):
        pass


def put(host_cuda, done, address):
    """Enqueues work that writes an address down."""
    return lambda stream: host_cuda.put(stream.handle, lambda: done.append(address))


def test_of_more_addresses_than_are_kept_the_ones_used_least_recently_are_forgotten(host_cuda, stream):
    replay, done, handles = Replay(most=3), [], set(host_cuda.handles)
    for address in (1, 1, 2, 2, 3, 3, 1, 4, 4):  # 4 comes when 2 was not used for the longest
        replay.queue((address, 0), stream, put(host_cuda, done, address), Same())
    assert done == [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 4, 4, 4]  # the proof of a capture does it once more
    assert len(replay) == len(host_cuda.handles - handles) == 3
    launches = host_cuda.called["cudaGraphLaunch"]
    for address in (1, 3, 4, 2):
        replay.queue((address, 0), stream, put(host_cuda, done, address), Same())
    assert host_cuda.called["cudaGraphLaunch"] == launches + 3
    replay.close()
    assert set(host_cuda.handles) == handles


def test_more_lanes_in_turn_than_are_kept_are_queued_and_never_captured(host_cuda, stream):
    replay, done = Replay(most=2), []
    for address in [1, 2, 3] * 5:
        replay.queue((address, 0), stream, put(host_cuda, done, address), Same())
    assert done == [1, 2, 3] * 5
    assert not host_cuda.called["cudaStreamBeginCapture"]


def test_shapes_that_take_turns_are_captured_in_vain_more_and_more_rarely(host_cuda, stream):
    replay, done, captures = Replay(), [], []
    for turn in range(40):  # two batches of one shape and one of another
        replay.queue((1, 0), stream, put(host_cuda, done, turn), Same())
        replay.queue((1, 0), stream, put(host_cuda, done, turn), Same())
        replay.forget()
        captures.append(host_cuda.called["cudaStreamBeginCapture"])
    assert captures == [1] * 40  # the next one would take three in a row
    for _ in range(4):
        replay.queue((1, 0), stream, put(host_cuda, done, 0), Same())
    assert len(replay) == 1
    assert host_cuda.called["cudaStreamBeginCapture"] == 2
    replay.forget()  # it was launched, so it was not in vain
    for _ in range(3):
        replay.queue((1, 0), stream, put(host_cuda, done, 0), Same())
    assert len(replay) == 1


def test_a_capture_without_work_is_no_graph(host_cuda, stream):
    handles = set(host_cuda.handles)
    with pytest.raises(InferenceError, match="no work was captured: cudaGraphGetNodes tells of 0 nodes"):
        cuda.capture(lambda stream: None)
    assert set(host_cuda.handles) == handles


def test_an_error_in_a_capture_is_raised_as_it_is_though_the_capture_fails_too(host_cuda):
    def fail(stream):
        host_cuda.fail["cudaStreamEndCapture"] = "cudaErrorStreamCaptureInvalidated"
        raise InferenceError("refused")

    with pytest.raises(InferenceError, match=r"^refused$"):
        cuda.capture(fail)
    assert not host_cuda.handles
