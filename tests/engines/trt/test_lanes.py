"""Lanes of engines and the memory they share, over a GPU that is host memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.base import InferenceError, OutOfMemoryError
from engines.slot import Candidate, Slot
from engines.trt import engine as engine_module
from engines.trt.engine import TensorRTEngine
from engines.trt.lane import LaneSize
from engines.trt.memory import Memory

LANE = LaneSize(4 * 17 * 17 * 2 * 4, 4 * 17 * 17 * 3 * 4)  # of the stand-in engine


@pytest.fixture
def load(surface, host_cuda, monkeypatch):
    """Loads the stand-in engine: channel 0 times 1, 2, 3; profiles up to (4, 2, 16, 16) and (4, 2, 17, 17)."""
    monkeypatch.setattr(engine_module, "load_surface", lambda name: surface)
    opened = []

    def open_engine(**named):
        opened.append(TensorRTEngine(b"engine file", **named))
        return opened[-1]

    open_engine.opened = opened
    return open_engine


def noise(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def expected(batch):
    return batch[:, :1] * np.float32([1, 2, 3]).reshape(3, 1, 1)


def run(engine, batch):
    with engine.lane(batch.shape) as lane:
        lane.given[...] = batch
        return lane.run().copy()


def count(surface, name):
    return sum(called == name for called, _ in surface.module.calls)


# Lanes of one engine


def test_what_is_given_and_returned_is_pinned_memory_without_a_copy(load, host_cuda):
    with load().lane((2, 2, 8, 8)) as lane:
        lane.given[...] = noise(2, 2, 8, 8)
        out = lane.run()
        assert {array.ctypes.data for array in (lane.given, out)} <= host_cuda.blocks.keys()
        np.testing.assert_array_equal(out, expected(noise(2, 2, 8, 8)))
        lane.given[...] = 1
        np.testing.assert_array_equal(lane.run()[:, 2], np.full((2, 8, 8), 3))


def test_batches_of_four_threads_in_three_lanes_are_those_of_one_by_one(load):
    engine, batches = load(), [noise(1 + n % 4, 2, 8 + n % 9, 8, seed=n) for n in range(64)]
    with ThreadPoolExecutor(4) as pool:
        for out, batch in zip(pool.map(lambda batch: run(engine, batch), batches), batches, strict=True):
            np.testing.assert_array_equal(out, expected(batch))
    engine.close()


def test_waiting_for_a_result_keeps_no_other_thread_from_queueing(load, host_cuda):
    engine, together = load(), threading.Barrier(3, timeout=20)
    host_cuda._cudaEventSynchronize = lambda event: (together.wait(), ())[1]
    with ThreadPoolExecutor(3) as pool:
        outs = list(pool.map(lambda n: run(engine, noise(1, 2, 8, 8, seed=n)), range(3)))
    for n, out in enumerate(outs):
        np.testing.assert_array_equal(out, expected(noise(1, 2, 8, 8, seed=n)))


def test_a_lane_is_waited_for_while_all_are_taken(load):
    engine, batch = load(lanes=1), noise(1, 2, 8, 8)
    with ThreadPoolExecutor(1) as pool:
        with engine.lane(batch.shape) as lane:
            later = pool.submit(run, engine, batch)
            lane.given[...] = 0
            assert not lane.run().any()
            assert not later.done()
        np.testing.assert_array_equal(later.result(20), expected(batch))


def test_a_lane_is_free_again_after_an_error(load, surface):
    engine = load(lanes=1)
    surface.module.refuse["IExecutionContext.execute_async_v3"] = False
    for _ in range(3):
        with pytest.raises(InferenceError, match="refuses execute_async_v3"):
            run(engine, noise(1, 2, 8, 8))
    surface.module.refuse.clear()
    np.testing.assert_array_equal(run(engine, noise(1, 2, 8, 8)), expected(noise(1, 2, 8, 8)))


def test_addresses_are_set_when_the_lane_changes_and_only_then(load, surface):
    engine, shape = load(lanes=2), (1, 2, 8, 8)
    for _ in range(3):
        engine.warm(shape)
    assert count(surface, "IExecutionContext.set_tensor_address") == 2
    with engine.lane(shape):
        for _ in range(3):
            engine.warm(shape)
    assert count(surface, "IExecutionContext.set_tensor_address") == 4


@pytest.mark.parametrize("shape", [(5, 2, 8, 8), (1, 3, 8, 8), (2, 8, 8)])
def test_a_shape_that_no_profile_holds_has_no_lane(load, shape):
    with pytest.raises(InferenceError, match="no optimization profile"), load().lane(shape):
        pass


def test_a_lane_that_is_taken_when_its_engine_closes_fails_and_is_freed_when_it_comes_back(load, host_cuda):
    engine = load()
    with engine.lane((1, 2, 8, 8)) as lane:
        engine.close()
        lane.given[...] = 1
        with pytest.raises(InferenceError, match="the engine is closed"):
            lane.run()
        assert host_cuda.blocks
    assert not host_cuda.blocks
    with pytest.raises(InferenceError, match="closed"), engine.lane((1, 2, 8, 8)):
        pass


def test_a_lane_of_an_engine_with_half_tensors_is_half_and_a_call_is_float32(load, surface):
    surface.module.ports = "HALF"
    engine, batch = load(), noise(2, 2, 8, 8)
    assert engine.buffer_bytes == 3 * sum(LANE) // 2
    want = batch.astype(np.float16)[:, :1] * np.float16([1, 2, 3]).reshape(3, 1, 1)
    with engine.lane(batch.shape) as lane:
        lane.given[...] = batch
        assert (lane.given.dtype, lane.run().dtype) == (np.float16, np.float16)
        np.testing.assert_array_equal(lane.run(), want)
    assert engine(batch).dtype == np.float32
    np.testing.assert_array_equal(engine(batch), want.astype(np.float32))
    engine.timed(batch)
    with pytest.raises(InferenceError, match="a batch of float16 does not fit the input x: float16"):
        engine(batch.astype(np.float16))


# Memory that is short


def test_lanes_that_memory_has_no_room_for_are_left_out_with_a_warning(load, host_cuda, caplog):
    host_cuda.limit_bytes = 256 + 5 * sum(LANE)  # each lane is there twice, on the GPU and pinned
    engine = load(lanes=4)
    assert engine.lanes == 2
    assert "there is memory for 2 of 4 lanes of 23120 bytes: cuda" in caplog.text
    np.testing.assert_array_equal(run(engine, noise(4, 2, 17, 17)), expected(noise(4, 2, 17, 17)))
    engine.close()
    assert not host_cuda.blocks


def test_without_room_for_one_lane_an_engine_is_out_of_memory(load, host_cuda):
    host_cuda.limit_bytes = 256 + sum(LANE)
    with pytest.raises(OutOfMemoryError, match="failed: cudaErrorMemoryAllocation"):
        load()
    assert not host_cuda.blocks
    assert not host_cuda.handles


def test_memory_without_lanes_is_refused(host_cuda):
    with pytest.raises(ValueError, match="0 lanes were asked for; expected 1 or more"):
        Memory(lanes=0)


# Memory of several engines


@pytest.fixture
def memory(load, host_cuda):
    made = Memory(lanes=2)
    yield made
    for engine in load.opened:
        engine.close()
    made.close()
    assert not host_cuda.blocks
    assert not host_cuda.handles


def test_a_second_engine_takes_no_memory_and_gives_none_back(load, surface, host_cuda, memory):
    first, batch = load(memory=memory), noise(1, 2, 8, 8)
    blocks, handles, weights = set(host_cuda.blocks), set(host_cuda.handles), memory.weights.nbytes
    second = load(memory=memory)
    assert host_cuda.blocks.keys() - blocks == memory.weights._taken.keys() - blocks  # only its weights
    np.testing.assert_array_equal(run(second, batch), run(first, batch))
    first.close()
    third = load(memory=memory)
    assert memory.weights.nbytes == 2 * weights
    np.testing.assert_array_equal(run(third, batch), expected(batch))
    blocks = set(host_cuda.blocks)
    second.close()
    third.close()
    assert (set(host_cuda.blocks), set(host_cuda.handles)) == (blocks, handles)
    given = [args for name, args in surface.module.calls if "device_memory" in name and "create" not in name]
    assert {args[0] for args in given} == {memory.activation.handle}


def test_memory_grows_under_an_engine_that_goes_on_in_the_new_block(load, memory):
    engine, batch = load(memory=memory), noise(4, 2, 17, 17)
    before = memory.activation.handle
    memory.reserve_activation(1000)
    memory.reserve_activation(500)
    memory.reserve_lanes(LaneSize(100_000, 1))
    assert (memory.activation.nbytes, memory.lanes_of(LANE)) == (1000, 2)
    assert memory.lane_bytes == 2 * (100_000 + LANE.returned)
    assert memory.activation.handle != before
    np.testing.assert_array_equal(run(engine, batch), expected(batch))
    assert engine._bound.activation == memory.activation.handle


def test_engines_that_are_loaded_at_once_grow_one_memory(load, memory):
    sizes = [LaneSize(1000 * n, 9000 - 1000 * n) for n in range(1, 9)]

    def grow(number):
        memory.reserve_activation(1000 * number)
        memory.reserve_lanes(sizes[number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(grow, range(8)))
    assert memory.activation.nbytes == 7000
    assert [memory.lanes_of(size) for size in sizes] == [2] * 8


def test_a_lane_in_use_is_replaced_when_it_comes_back(load, host_cuda, memory):
    engine, shape = load(memory=memory), (1, 2, 8, 8)
    with engine.lane(shape) as lane:
        memory.reserve_lanes(LaneSize(100_000, 100_000))
        lane.given[...] = 2
        np.testing.assert_array_equal(lane.run()[0, 0], np.full((8, 8), 2))
    assert (memory.lanes_of(LANE), memory.lane_bytes) == (2, 400_000)
    assert host_cuda.taken_bytes == 2 * 400_000 + memory.activation.nbytes + memory.weights.nbytes


def test_growing_that_does_not_fit_leaves_the_other_engine_its_lanes(load, host_cuda, memory):
    engine, batch = load(memory=memory), noise(2, 2, 8, 8)
    host_cuda.limit_bytes = host_cuda.taken_bytes + 1000
    with pytest.raises(OutOfMemoryError):
        memory.reserve_lanes(LaneSize(100_000, 100_000))
    with pytest.raises(OutOfMemoryError):
        memory.reserve_activation(100_000)
    assert memory.lanes_of(LANE) == engine.lanes == 2
    np.testing.assert_array_equal(run(engine, batch), expected(batch))


def test_an_engine_takes_only_lanes_that_hold_its_batches(host_cuda, memory):
    small, large = LaneSize(10, 20), LaneSize(1000, 10)
    memory.reserve_lanes(small)
    host_cuda.limit_bytes = host_cuda.taken_bytes + 2100
    memory.reserve_lanes(large)  # one of two is replaced
    assert (memory.lanes_of(large), memory.lanes_of(small)) == (1, 2)
    with memory.take(large) as lane, memory.take(small) as other:
        assert (lane.size, other.size) == (LaneSize(1000, 20), small)


def test_a_failed_load_leaves_shared_memory_to_the_others(load, surface, memory):
    engine = load(memory=memory)
    surface.module.refuse["IExecutionContext.set_input_shape"] = False
    with pytest.raises(InferenceError, match="refuses set_input_shape"):
        load(memory=memory)
    surface.module.refuse.clear()
    np.testing.assert_array_equal(run(engine, noise(1, 2, 8, 8)), expected(noise(1, 2, 8, 8)))


def test_engines_in_shared_memory_change_places_under_load(load, host_cuda, memory):
    slot, stop = Slot(Candidate("0", 0, lambda: load(memory=memory))), threading.Event()
    shape, failures = (2, 2, 8, 8), []

    def work(seed):
        batch = noise(*shape, seed=seed)
        while not stop.is_set():
            if not np.array_equal(run(slot, batch), expected(batch)):
                failures.append(slot.version)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(work, seed) for seed in range(3)]
        try:
            for version in range(1, 20):
                if version == 3:
                    blocks = set(host_cuda.blocks)
                slot.prepare(Candidate(str(version), 0, lambda: load(memory=memory)), shape)
                assert slot.swap() == str(version)
            assert set(host_cuda.blocks) == blocks
        finally:
            stop.set()
        for job in jobs:
            job.result()
    assert not failures
    slot.close()
