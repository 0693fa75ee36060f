"""Lanes that return codes, over a GPU that is host memory: what is asked of the kernel, what comes back, what fails."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest

from engines.base import DeviceLostError, EngineError, InferenceError, OutOfMemoryError, Packs
from engines.codes import CodeTable, ValueTable
from engines.trt import engine as engine_module
from engines.trt.border import Codes
from engines.trt.engine import TensorRTEngine
from engines.trt.lane import LaneSize

VALUES = 4 * 17 * 17 * 3  # of the largest output of the stand-in engine
LANE = LaneSize(4 * 17 * 17 * 2 * 4, 4 * VALUES)
INT16 = CodeTable(np.arange(-32766.5, 32767, dtype=np.float32) / 100, "int16", -32767, -32768, -3.0)
UINT8 = CodeTable(np.arange(0.5, 254, dtype=np.float32) / 50, "uint8", 0, 255)


@pytest.fixture
def load(surface, host_cuda, monkeypatch):
    """Loads the stand-in engine: channel 0 times 1, 2, 3; profiles up to (4, 2, 16, 16) and (4, 2, 17, 17)."""
    monkeypatch.setattr(engine_module, "load_surface", lambda name: surface)
    return lambda **named: TensorRTEngine(b"engine file", **named)


def noise(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def expected(batch, table):
    results = batch[:, :1] * np.arange(1, 4, dtype=batch.dtype).reshape(3, 1, 1)
    return table.search(results.astype(np.float32).ravel()).reshape(results.shape)


def run(open_lane, batch):
    with open_lane(batch.shape) as lane:
        lane.given[...] = batch
        return lane.run().copy()


@pytest.mark.parametrize("table", [INT16, UINT8], ids=["int16", "uint8"])
@pytest.mark.parametrize("ports", ["FLOAT", "HALF"])
def test_a_lane_that_packs_returns_codes_and_other_lanes_numbers(load, surface, table, ports):
    surface.module.ports = ports
    engine = load()
    assert isinstance(engine, Packs)
    open_lane = engine.packing(table)
    batch = noise(2, 2, 9, 13).astype(engine.specs[0].dtype)
    got = run(open_lane, batch)
    assert got.dtype == table.dtype
    np.testing.assert_array_equal(got, expected(batch, table))
    assert run(engine.lane, batch).dtype == engine.specs[1].dtype
    engine.close()


def test_the_kernel_is_given_the_addresses_of_the_lane_in_the_compute_stream(load, host_cuda):
    engine = load()
    open_lane = engine.packing(INT16)
    with open_lane((3, 2, 8, 8)) as lane:
        lane.given[...] = 0
        out = lane.run()
        buffers = lane.buffers
    name, grid, block, stream, values = host_cuda.launches[-1]
    assert (name, grid, block) == ("pack_float_16", (1, 1, 1), (256, 1, 1))
    assert stream == engine._memory.streams.compute.handle
    assert values[:3] == (buffers.returned.handle, buffers.codes.handle, 3 * 3 * 8 * 8)
    assert values[-3:] == (-32767, -32768, -3.0)
    assert out.ctypes.data == buffers.staged_out.handle
    assert out.nbytes == 2 * out.size


def test_a_large_batch_is_packed_by_as_many_blocks_as_it_needs(load, host_cuda):
    run(load().packing(INT16), noise(4, 2, 17, 17))
    assert host_cuda.launches[-1][1] == (-(-VALUES // 1024), 1, 1)


def test_only_codes_are_fetched(load, host_cuda):
    open_lane, copied, copy = load().packing(INT16), [], host_cuda._cudaMemcpyAsync
    host_cuda._cudaMemcpyAsync = lambda *given: (copied.append(given[2]), copy(*given))[1]
    run(open_lane, noise(1, 2, 8, 8))
    assert copied == [4 * 2 * 64, 2 * 3 * 64]


def test_batches_of_four_threads_are_those_of_one_by_one(load):
    open_lane, batches = load().packing(INT16), [noise(1 + n % 4, 2, 8 + n % 9, 8, seed=n) for n in range(32)]
    with ThreadPoolExecutor(4) as pool:
        for out, batch in zip(pool.map(lambda batch: run(open_lane, batch), batches), batches, strict=True):
            np.testing.assert_array_equal(out, expected(batch, INT16))


def test_memory_is_counted_and_given_back(load, host_cuda):
    engine = load()
    plain, pinned = engine.buffer_bytes, engine.pinned_bytes
    assert (plain, pinned) == (3 * sum(LANE), 3 * sum(LANE))
    open_lane = engine.packing(INT16)
    tables = 4 * len(INT16.thresholds) + 2 * 65537
    assert (engine.buffer_bytes, engine.pinned_bytes) == (plain + 3 * 2 * VALUES + tables, pinned)
    assert host_cuda.taken_bytes >= engine.buffer_bytes + engine.pinned_bytes
    assert engine.lanes == 3
    blocks = set(host_cuda.blocks)
    run(open_lane, noise(4, 2, 17, 17))
    assert set(host_cuda.blocks) == blocks
    del open_lane
    gc.collect()
    assert engine.buffer_bytes == plain + 3 * 2 * VALUES
    kept = engine.packing(UINT8)
    engine.close()
    assert not host_cuda.blocks
    assert not host_cuda.handles
    with pytest.raises(InferenceError, match="the engine is closed"), kept((1, 2, 8, 8)):
        pass


def test_memory_is_counted_while_another_thread_makes_lanes(load, monkeypatch):
    engine = load()
    kept, threads = [engine.packing(INT16), engine.packing(INT16)], []
    nbytes = Codes.nbytes.fget

    def counted_beside_another(codes):
        if not threads:
            threads.append(Thread(target=lambda: kept.append(engine.packing(UINT8))))
            threads[0].start()
            threads[0].join(0.2)  # long enough to get in between, if it can
        return nbytes(codes)

    before = engine.buffer_bytes
    monkeypatch.setattr(Codes, "nbytes", property(counted_beside_another))
    assert engine.buffer_bytes == before
    threads[0].join()
    assert len(kept) == 3
    assert engine.buffer_bytes > before
    engine.close()


def test_a_shape_that_does_not_fit_has_no_lane(load):
    with pytest.raises(InferenceError, match="no optimization profile"), load().packing(INT16)((5, 2, 8, 8)):
        pass


def test_a_closed_engine_does_not_pack(load):
    engine = load()
    engine.close()
    with pytest.raises(InferenceError, match="the engine is closed"):
        engine.packing(INT16)


@pytest.mark.parametrize(
    ("function", "status", "kind"),
    [
        ("cuLibraryLoadData", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", InferenceError),
        ("cuLibraryGetKernel", "CUDA_ERROR_NOT_FOUND", InferenceError),
        ("cuLaunchKernel", "CUDA_ERROR_ILLEGAL_ADDRESS", DeviceLostError),
        ("cuLaunchKernel", "CUDA_ERROR_OUT_OF_MEMORY", OutOfMemoryError),
        ("cudaMemcpyAsync", "cudaErrorInvalidValue", InferenceError),
    ],
)
def test_a_kernel_that_cannot_be_loaded_is_an_error_and_the_engine_goes_on(load, host_cuda, function, status, kind):
    engine = load()
    host_cuda.fail[function] = status
    with pytest.raises(kind, match=f"{function} failed: {status}"):
        engine.packing(INT16)
    host_cuda.fail.clear()
    batch = noise(1, 2, 8, 8)
    assert run(engine.lane, batch).dtype == np.float32
    np.testing.assert_array_equal(run(engine.packing(INT16), batch), expected(batch, INT16))
    engine.close()
    assert not host_cuda.blocks
    assert not host_cuda.handles


def test_a_launch_that_fails_is_an_error_of_the_batch(load, host_cuda):
    engine, batch = load(lanes=1), noise(1, 2, 8, 8)
    open_lane = engine.packing(INT16)
    host_cuda.fail["cuLaunchKernel"] = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
    for _ in range(2):
        with pytest.raises(InferenceError, match="cuLaunchKernel failed: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"):
            run(open_lane, batch)
    host_cuda.fail.clear()
    np.testing.assert_array_equal(run(open_lane, batch), expected(batch, INT16))


def test_a_kernel_that_gives_other_codes_is_not_used(load, host_cuda):
    pack = host_cuda._cuLaunchKernel

    def wrong(*given):
        pack(*given)
        codes = given[-2][0][1]
        host_cuda.blocks[codes][0] ^= 1
        return ()

    host_cuda._cuLaunchKernel = wrong
    with pytest.raises(EngineError, match=r"the GPU packs 1 of \d+ values into other codes than the table says"):
        load().packing(INT16)


def test_without_room_for_codes_numbers_are_still_returned(load, host_cuda):
    engine, batch = load(), noise(2, 2, 8, 8)
    before = engine.buffer_bytes
    host_cuda.limit_bytes = host_cuda.taken_bytes + 10
    with pytest.raises(OutOfMemoryError, match="cudaMalloc failed"):
        engine.packing(INT16)
    assert engine.buffer_bytes == before
    assert run(engine.lane, batch).dtype == np.float32


def test_results_that_are_no_floats_are_not_packed(load):
    engine = load()
    engine.specs = engine.specs[0], replace(engine.specs[1], dtype="uint8")
    with pytest.raises(EngineError, match="results are uint8; expected float32 or float16 to be packed on the GPU"):
        engine.packing(INT16)


# Lanes that take codes, too


def value_table(dtype="uint16", values="float32", masks=True, seed=0):
    """Any values; a third of the codes mean missing."""
    size = 2 ** (8 * np.dtype(dtype).itemsize)
    missing = np.random.default_rng(seed).random(size) < 1 / 3 if masks else None
    return ValueTable(noise(size, seed=seed).astype(values), dtype, missing)


def stored(table, *shape, seed=0):
    """Codes of frames, any of them."""
    bits = np.random.default_rng((seed, *shape)).integers(0, len(table.values), shape)
    return bits.astype(f"u{np.dtype(table.dtype).itemsize}").view(table.dtype)


def expected_of_codes(batch, values, codes):
    bits = batch.view(f"u{batch.itemsize}")
    made = expected(values.values[bits], codes)
    if values.missing is not None:
        np.copyto(made, codes.fill, where=values.missing[bits[:, -1:]])
    return made


@pytest.mark.parametrize("codes", [INT16, UINT8], ids=["int16", "uint8"])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "int8"])
@pytest.mark.parametrize("ports", ["FLOAT", "HALF"])
def test_a_lane_may_take_codes_and_masks_where_the_newest_frame_is_missing(load, surface, codes, dtype, ports):
    surface.module.ports = ports
    engine = load()
    values = value_table(dtype, engine.specs[0].dtype)
    batch = stored(values, 3, 2, 9, 13)
    got = run(engine.packing(codes, values), batch)
    assert got.dtype == codes.dtype
    np.testing.assert_array_equal(got, expected_of_codes(batch, values, codes))
    engine.close()


def test_without_a_mask_results_are_as_the_model_gives_them(load, host_cuda):
    values = value_table(masks=False)
    batch = stored(values, 2, 2, 8, 8)
    np.testing.assert_array_equal(run(load().packing(INT16, values), batch), expected_of_codes(batch, values, INT16))
    assert not any(name.startswith("mask") for name, *_ in host_cuda.launches)


def test_only_codes_go_either_way(load, host_cuda):
    values = value_table("uint8")
    open_lane, copied, copy = load().packing(INT16, values), [], host_cuda._cudaMemcpyAsync
    host_cuda._cudaMemcpyAsync = lambda *given: (copied.append(given[2]), copy(*given))[1]
    run(open_lane, stored(values, 1, 2, 8, 8))
    assert copied == [2 * 64, 2 * 3 * 64]


def test_kernels_are_given_the_buffers_of_the_lane_in_the_compute_stream(load, host_cuda):
    engine, values = load(), value_table()
    with engine.packing(INT16, values)((3, 2, 8, 8)) as lane:
        lane.given[...] = 0
        lane.run()
        buffers = lane.buffers
    (unpack, *_, unpacked), (pack, *_), (mask, *_, stream, masked) = host_cuda.launches[-3:]
    assert (unpack, pack, mask) == ("look_up_16_32", "pack_float_16", "mask_16_16")
    assert unpacked[:3] == (buffers.stored.handle, buffers.given.handle, 3 * 2 * 64)
    assert masked[:6] == (buffers.stored.handle, buffers.codes.handle, 64, 3, 2, 3)
    assert masked[-1] == INT16.fill
    assert stream == engine._memory.streams.compute.handle


def test_lanes_of_codes_and_of_numbers_of_one_engine_may_be_used_at_once(load):
    engine, values = load(), value_table()
    open_lane = engine.packing(INT16, values)
    batches = [stored(values, 1 + n % 4, 2, 8 + n % 9, 8, seed=n) for n in range(32)]
    numbers = [values.values[batch] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        coded = pool.map(lambda batch: run(open_lane, batch), batches)
        plain = pool.map(lambda batch: run(engine.lane, batch), numbers)
        for code, result, batch, number in zip(coded, plain, batches, numbers, strict=True):
            np.testing.assert_array_equal(code, expected_of_codes(batch, values, INT16))
            np.testing.assert_array_equal(result, number[:, :1] * np.float32([1, 2, 3]).reshape(3, 1, 1))


def test_memory_of_codes_that_are_taken_is_counted_and_given_back(load, host_cuda):
    engine, values = load(), value_table()
    plain, pinned = engine.buffer_bytes, engine.pinned_bytes
    open_lane = engine.packing(INT16, values)
    tables = 4 * len(INT16.thresholds) + 2 * 65537 + 4 * 65536 + 65536
    assert engine.buffer_bytes == plain + 3 * (LANE.given // 2 + 2 * VALUES) + tables
    assert engine.pinned_bytes == pinned
    del open_lane
    gc.collect()
    assert engine.buffer_bytes == plain + 3 * (LANE.given // 2 + 2 * VALUES)
    engine.close()
    assert not host_cuda.blocks
    assert not host_cuda.handles


def test_values_that_the_engine_does_not_take_are_refused(load):
    with pytest.raises(EngineError, match=r"codes stand for float16, and the engine takes .*float32"):
        load().packing(INT16, value_table(values="float16"))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("look_up", r"the GPU unpacks \d+ of 65536 codes into other values than the table says"),
        ("mask", r"the GPU masks 1 of \d+ codes otherwise than the newest frame says"),
    ],
)
def test_a_kernel_that_unpacks_or_masks_otherwise_is_not_used(load, host_cuda, kernel, message):
    launch = host_cuda._cuLaunchKernel

    def wrong(*given):
        launch(*given)
        if host_cuda.kernels[given[0]].startswith(kernel):
            host_cuda.blocks[given[-2][0][1]][0] ^= 1
        return ()

    host_cuda._cuLaunchKernel = wrong
    engine, batch = load(), noise(1, 2, 8, 8)
    with pytest.raises(EngineError, match=message):
        engine.packing(INT16, value_table())
    np.testing.assert_array_equal(run(engine.packing(INT16), batch), expected(batch, INT16))  # without that kernel
    host_cuda._cuLaunchKernel = launch
    assert run(engine.lane, batch).dtype == np.float32
