"""TensorRT on a real GPU: builds, equals ONNX Runtime, keeps its types, refits, gives memory back.

    python -m pytest tests/gpu/test_tensorrt_gpu.py -m gpu -s

The numbers that it measures are printed; limits are only on what must hold on any GPU.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import cuda, zoo
from engines.base import Engine, EngineError, InferenceError, OutOfMemoryError
from engines.ort import OrtEngine
from engines.precision import describe, to_half, to_half_ports, to_int8
from engines.slot import Candidate, Slot
from engines.spec import BuildSpec, Profile
from engines.trt import BuildCancelledError, Memory, TensorRTEngine, build
from engines.trt.refit import digest_weights

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

UNET = zoo.UnetSpec(width=16, depth=3)
PROFILE = Profile((1, 4, 64, 64), (4, 4, 256, 256), (4, 4, 256, 256))
SPEC = BuildSpec((PROFILE,), workspace_bytes=4 << 30)
QUICK = BuildSpec((PROFILE,), workspace_bytes=4 << 30, level=1)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def relative(got, want):
    """Root mean square of the difference, relative to the spread of what is wanted."""
    return rms(got - want) / float(np.std(want))


def milliseconds(function, times=30):
    """The median time of a call."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        taken.append((time.perf_counter() - started) * 1e3)
    return float(np.median(taken))


def run(engine, batch):
    """As a call, through a lane."""
    with engine.lane(batch.shape) as lane:
        lane.given[...] = batch
        return lane.run().copy()


def show(**numbers):
    print("  " + "  ".join(f"{name}={value}" for name, value in numbers.items()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def unet(folder):
    """Path of the float32 U-Net."""
    return zoo.write_package(UNET, folder / "unet") / "model.onnx"


@pytest.fixture(scope="module")
def built(unet):
    """The float32 U-Net, built with REFIT."""
    told = []
    made = build(unet, BuildSpec((PROFILE,), frozenset({"REFIT"}), 4 << 30), on_progress=told.append)
    show(float32=made.report)
    assert told
    assert any(progress.share is not None for progress in told) == made.report.has_progress
    return made


@pytest.fixture(scope="module")
def half(unet, folder):
    """The half U-Net: path and build."""
    model = to_half(onnx.load(unet))
    onnx.save(model, folder / "half.onnx")
    made = build(folder / "half.onnx", SPEC)
    show(half=made.report)
    return folder / "half.onnx", made


def test_float32_equals_onnx_runtime_over_the_shapes_of_the_profile(unet, built):
    reference = OrtEngine(unet, threads=8)
    engine = TensorRTEngine(built.engine)
    assert isinstance(engine, Engine)
    for shape in [(4, 4, 256, 256), (1, 4, 64, 64), (3, 4, 128, 200), (4, 4, 256, 256)]:
        error = relative(engine(noise(*shape)), reference(noise(*shape)))
        show(shape=shape, error=f"{error:.1e}")
        assert error < 1e-4
    engine.close()


def test_float32_is_float32_in_every_layer_that_computes(built):
    assert set(built.report.engine_layers) <= {"float32", "int32", "int64", "bool", "unknown"}
    assert built.report.engine_layers["float32"] > 0
    assert "TF32" not in built.report.flags


def test_the_same_batch_gives_the_same_bits(built):
    engine, batch = TensorRTEngine(built.engine), noise(4, 4, 256, 256)
    np.testing.assert_array_equal(engine(batch), engine(batch))
    engine.close()


def test_half_is_half_faster_and_near(unet, built, half):
    path, made = half
    assert describe(onnx.load(path)).half > 0
    assert made.report.engine_layers["float16"] > made.report.engine_layers.get("float32", 0)
    assert made.report.engine_bytes < built.report.engine_bytes
    batch, reference = noise(4, 4, 256, 256), OrtEngine(unet, threads=8)
    whole, halved = TensorRTEngine(built.engine), TensorRTEngine(made.engine)
    error = relative(halved(batch), reference(batch))
    slow, fast = (milliseconds(lambda engine=engine: run(engine, batch)) for engine in (whole, halved))
    show(error=f"{error:.1e}", float32_ms=f"{slow:.2f}", half_ms=f"{fast:.2f}")
    assert error < 2e-2
    whole.close()
    halved.close()


def test_half_input_and_output_give_the_same_bits_and_move_half_of_the_bytes(folder):
    """Convolutions from end to end, as the U-Net has a float32 path beside them; float32 and half ports are built."""
    kernel = np.random.default_rng(0).normal(scale=0.2, size=(8, 2, 3, 3)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "v"], ["y"], "last", pads=[1] * 4),
    ]
    path = save(folder / "plain.onnx", nodes, {"w": kernel, "v": np.swapaxes(kernel, 0, 1).copy()}, 2)
    whole = to_half(onnx.load(path))
    spec, engines = BuildSpec((Profile.up_to((4, 2, 256, 256)),)), []
    for name, model in (("whole", whole), ("narrow", to_half_ports(whole))):
        onnx.save(model, folder / f"{name}.onnx")
        made = build(folder / f"{name}.onnx", spec)
        assert made.report.engine_layers["float16"] > 0
        engines.append(TensorRTEngine(made.engine))
    wide, narrow = engines
    assert [spec.dtype for spec in narrow.specs] == ["float16", "float16"]
    assert narrow.buffer_bytes == wide.buffer_bytes / 2
    batch = noise(4, 2, 256, 256)
    got, want = narrow(batch), wide(batch)
    reference = OrtEngine(path, threads=8)(batch)
    show(differing=int((got != want).sum()), narrow=narrow.timed(batch), wide=wide.timed(batch))
    assert got.dtype == np.float32
    assert relative(got, reference) < 2e-2
    assert relative(got, want) < 1e-2  # the same bits where both builds choose the same kernels
    for engine in engines:
        engine.close()


def save(path, nodes, weights, planes, size=("h", "w"), dtype=TensorProto.FLOAT):
    given = helper.make_tensor_value_info("x", dtype, ["n", 2, "h", "w"])
    returned = helper.make_tensor_value_info("y", dtype, ["n", planes, *size])
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [given], [returned], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def node(kind, given, made, name=None, **attributes):
    return helper.make_node(kind, given, made, name or f"the_{kind}", **attributes)


def test_coordinates_stay_float32_beside_a_half_convolution(folder):
    """Half coordinates are off by more than a cell in a grid 4096 wide; the convolution beside them is half."""
    width = 4096
    weights = {"wh": np.float16(0.1) * np.ones((2, 2, 3, 3), np.float16), "none": np.float32(0)}
    weights |= {"along": np.linspace(-1, 1, width, dtype=np.float32).reshape(1, 1, width, 1)}
    weights |= {"across": np.zeros((1, 1, width, 1), np.float32), "shrink": np.float32(0.99)}
    nodes = [
        node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("Mul", ["top", "none"], ["zero"], "zero"),
        node("Add", ["along", "zero"], ["moved"], "moved"),
        node("Mul", ["moved", "shrink"], ["at_x"], "at_x"),
        node("Concat", ["at_x", "across"], ["at"], axis=3),
        node("GridSample", ["x", "at"], ["sampled"], mode="nearest", padding_mode="border"),
        node("Cast", ["x"], ["xh"], "to_half", to=TensorProto.FLOAT16),
        node("Conv", ["xh", "wh"], ["ch"], "half_conv", pads=[1] * 4),
        node("Cast", ["ch"], ["c"], "to_float", to=TensorProto.FLOAT),
        node("ReduceMean", ["c"], ["mean"], axes=[2, 3], keepdims=1),
        node("Mul", ["mean", "none"], ["still"], "still"),
        node("Add", ["sampled", "still"], ["y"], "sum"),
    ]
    path = save(folder / "coordinates.onnx", nodes, weights, 2, (1, width))
    shape = (1, 2, 1, width)
    made = build(path, BuildSpec((Profile.up_to(shape),), level=1))
    ramp = np.broadcast_to(np.arange(width, dtype=np.float32), shape).copy()
    engine = TensorRTEngine(made.engine)
    off = np.abs(engine(ramp) - OrtEngine(path)(ramp))
    show(layers=made.report.engine_layers, cells_off=int((off > 0.5).sum()), most=float(off.max()))
    assert (off > 0.5).mean() < 1e-3
    engine.close()


def test_int8_is_int8_and_near(unet, folder):
    model = to_int8(onnx.load(unet), [noise(2, 4, 128, 128, seed=n) for n in range(4)])
    onnx.save(model, folder / "int8.onnx")
    made = build(folder / "int8.onnx", QUICK)
    engine, batch = TensorRTEngine(made.engine), noise(4, 4, 256, 256)
    error = relative(engine(batch), OrtEngine(unet, threads=8)(batch))
    show(int8=made.report, error=f"{error:.1e}", ms=f"{milliseconds(lambda: run(engine, batch)):.2f}")
    assert made.report.engine_layers["int8"] > 0
    assert error < 0.2
    engine.close()


def test_codes_go_in_and_come_out(folder):
    nodes = [
        node("Cast", ["x"], ["f"], "unpack", to=TensorProto.FLOAT),
        node("Mul", ["f", "half"], ["g"]),
        node("Floor", ["g"], ["c"]),
        node("Cast", ["c"], ["y"], "pack", to=TensorProto.UINT8),
    ]
    path = save(folder / "codes.onnx", nodes, {"half": np.float32(0.5)}, 2, dtype=TensorProto.UINT8)
    engine = TensorRTEngine(build(path, BuildSpec((Profile.up_to((2, 2, 64, 64)),), level=0)).engine)
    codes = np.random.default_rng(0).integers(0, 256, (2, 2, 64, 64)).astype(np.uint8)
    assert [spec.dtype for spec in engine.specs] == ["uint8", "uint8"]
    np.testing.assert_array_equal(engine(codes), codes // 2)
    engine.close()


def test_advection_equals_onnx_runtime_but_for_cells_on_the_edge_of_rounding(folder):
    spec = zoo.AdvectionSpec((2.0, 2.0), lead_minutes=(5, 30, 60))
    path = zoo.write_package(spec, folder / "advection") / "model.onnx"
    made = build(path, BuildSpec((Profile.up_to((1, 3, 512, 512)),), level=1))
    smooth = np.cumsum(np.cumsum(noise(1, 1, 520, 520), 2), 3)[:, 0] / 300
    frames = np.stack([np.maximum(smooth[0, k : 512 + k, 2 * k : 512 + 2 * k], 0) for k in (4, 2, 0)])[None]
    engine, frames = TensorRTEngine(made.engine), np.ascontiguousarray(frames, np.float32)
    off = np.abs(engine(frames) - OrtEngine(path, threads=8)(frames)) > 1e-2
    show(advection=made.report.seconds, layers=made.report.engine_layers, cells_off=f"{off.mean():.1e}")
    assert off.mean() < 1e-2
    engine.close()


def test_lanes_of_four_threads_equal_single_batches_and_overlap(built):
    engine, batches = TensorRTEngine(built.engine), [noise(1 + n % 4, 4, 256, 256, seed=n) for n in range(16)]
    alone = [engine(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda batch: run(engine, batch), batches), alone, strict=True):
                np.testing.assert_array_equal(got, want)
    with ThreadPoolExecutor(3) as pool:
        serial = milliseconds(lambda: [engine.warm(batch.shape) for batch in batches], 5)
        row = milliseconds(lambda: list(pool.map(lambda batch: engine.warm(batch.shape), batches)), 5)
    show(serial_ms=f"{serial / 16:.2f}", in_lanes_ms=f"{row / 16:.2f}")
    engine.close()


def test_queueing_a_batch_costs_little_of_the_host(built):
    engine, shape = TensorRTEngine(built.engine), (4, 4, 256, 256)
    engine.warm(shape)
    with engine.lane(shape) as one, engine.lane(shape) as other:
        lanes = [one, other] * 20
        for lane in lanes[:4]:  # queued, then captured
            lane.run()
        started = time.thread_time()
        for lane in lanes:
            lane.run()
        seconds = time.thread_time() - started
    split = engine.timed(noise(*shape))
    show(host_ms=f"{seconds / len(lanes) * 1e3:.3f}", compute_ms=f"{split.compute_seconds * 1e3:.2f}")
    context = engine._context
    addresses = [lane.buffers.given.handle for lane in (one, other)] * 500
    started = time.perf_counter()
    for address in addresses:
        context.set_tensor_address(engine.specs[0].name, address)
    show(set_tensor_address_us=f"{(time.perf_counter() - started) * 1e6 / len(addresses):.2f}")
    engine.close()


@pytest.fixture
def load_plain(monkeypatch):
    """Loads an engine whose batches TensorRT always queues itself."""

    def load(file):
        with monkeypatch.context() as patched:
            patched.setenv("SQUALL_CUDA_GRAPHS", "0")
            return TensorRTEngine(file)

    return load


def check_lanes(engine, plain, shape, rounds):
    """Other numbers in each lane and round, all lanes taken at once, their results compared bit by bit."""
    with ExitStack() as held:
        lanes = [held.enter_context(engine.lane(shape)) for _ in range(engine.lanes)]
        for turn in range(rounds):
            for number, lane in enumerate(lanes):
                lane.given[...] = batch = noise(*shape, seed=(turn, number))
                np.testing.assert_array_equal(lane.run(), run(plain, batch))


@pytest.mark.parametrize("kind", ["float32", "half"])
def test_replayed_batches_are_those_that_tensorrt_queues_to_the_bit(built, half, load_plain, kind):
    file = {"float32": built.engine, "half": half[1].engine}[kind]
    engine, plain = TensorRTEngine(file), load_plain(file)
    for shape in [(4, 4, 256, 256), (1, 4, 64, 64), (3, 4, 128, 200), (4, 4, 256, 256)]:
        check_lanes(engine, plain, shape, rounds=5)
        assert (len(engine._replay), len(plain._replay)) == (engine.lanes, 0)
    sizes = np.random.default_rng(0).integers(1, 5, 100)
    for seed, n in enumerate(np.repeat(sizes, np.tile([1, 2, 4, 8], 25))):  # forgotten again at each stage
        np.testing.assert_array_equal(
            run(engine, noise(n, 4, 96, 96, seed=seed)), plain(noise(n, 4, 96, 96, seed=seed))
        )
    engine.close()
    plain.close()


def test_replayed_advection_is_what_tensorrt_queues_or_it_is_not_captured(folder, load_plain):
    path = zoo.write_package(zoo.AdvectionSpec((2.0, 2.0), lead_minutes=(5, 30)), folder / "replayed") / "model.onnx"
    file = build(path, BuildSpec((Profile.up_to((2, 3, 256, 256)),), level=1)).engine
    engine, plain = TensorRTEngine(file), load_plain(file)
    for shape in [(1, 3, 256, 256), (2, 3, 256, 256)]:
        check_lanes(engine, plain, shape, rounds=5)
    show(graphs=len(engine._replay))
    engine.close()
    plain.close()


def test_a_refitted_engine_replays_its_new_weights(unet, built, load_plain, folder):
    model = onnx.load(unet)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.9), tensor.name))
    onnx.save(model, folder / "replayed_refit.onnx")
    engine, shape = TensorRTEngine(built.engine), (2, 4, 128, 128)
    before = [run(engine, noise(*shape)) for _ in range(4)][-1]
    engine.refit(folder / "replayed_refit.onnx", digest_weights(unet))
    assert not len(engine._replay)
    plain = load_plain(engine.serialize())
    check_lanes(engine, plain, shape, rounds=5)
    assert len(engine._replay) == engine.lanes
    assert relative(run(engine, noise(*shape)), before) > 1e-3
    engine.close()
    plain.close()


def test_memory_that_grows_under_a_replaying_engine_leaves_its_results(built, load_plain):
    plain = load_plain(built.engine)
    with closing(Memory()) as memory:
        engine = TensorRTEngine(built.engine, memory=memory)
        check_lanes(engine, plain, (2, 4, 128, 128), rounds=4)
        memory.reserve_activation(2 * memory.activation.nbytes)
        check_lanes(engine, plain, (2, 4, 128, 128), rounds=4)
        assert len(engine._replay) == engine.lanes
        engine.close()
    plain.close()


def test_captures_and_loads_at_the_same_time_do_not_disturb_each_other(built):
    with closing(Memory()) as memory:
        active, stop = TensorRTEngine(built.engine, memory=memory), threading.Event()
        batches = [noise(n, 4, 128, 128, seed=n) for n in (1, 2, 3, 4)]
        wants = [active(batch) for batch in batches]

        def work():
            while not stop.is_set():
                for batch, want in zip(batches, wants, strict=True):
                    for _ in range(4):
                        np.testing.assert_array_equal(run(active, batch), want)

        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(work)
            try:
                for _ in range(10):
                    standby = TensorRTEngine(built.engine, memory=memory)
                    for _ in range(4):
                        np.testing.assert_array_equal(run(standby, batches[0]), wants[0])
                    standby.close()
            finally:
                stop.set()
            job.result()
        for _ in range(3):
            run(active, batches[0])
        assert len(active._replay) >= 1
        active.close()


def test_an_engine_that_waits_for_the_gpu_within_an_inference_is_not_captured_and_runs(built, load_plain, caplog):
    caplog.set_level("INFO", "engines.trt")
    with pytest.raises(InferenceError, match="cudaErrorStreamCapture"):
        cuda.capture(lambda stream: stream.synchronize())
    engine, plain = TensorRTEngine(built.engine), load_plain(built.engine)
    queue = engine._enqueue
    engine._enqueue = lambda addresses, stream: (queue(addresses, stream), stream.synchronize())
    check_lanes(engine, plain, (2, 4, 128, 128), rounds=4)
    assert not len(engine._replay)
    assert caplog.text.count("no CUDA graphs for this engine") == 1
    engine.close()
    plain.close()


def test_several_profiles_of_one_engine_are_switched_between_batches(unet):
    spec = BuildSpec((Profile.up_to((4, 4, 64, 64)), Profile.up_to((1, 4, 256, 256))), level=0)
    engine, reference = TensorRTEngine(build(unet, spec).engine), OrtEngine(unet, threads=8)
    for shape in [(4, 4, 64, 64), (1, 4, 256, 256), (2, 4, 64, 64)]:
        assert relative(engine(noise(*shape)), reference(noise(*shape))) < 1e-4
    with pytest.raises(InferenceError, match="no optimization profile"):
        engine(noise(2, 4, 256, 256))
    engine.close()


def test_refit_equals_a_rebuild_within_rounding(unet, built, folder):
    model = onnx.load(unet)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.01), tensor.name))
    onnx.save(model, folder / "retrained.onnx")
    engine, batch = TensorRTEngine(built.engine), noise(2, 4, 128, 128)
    before = engine(batch)
    started = time.perf_counter()
    replaced = engine.refit(folder / "retrained.onnx", digest_weights(unet))
    seconds = time.perf_counter() - started
    want = OrtEngine(folder / "retrained.onnx", threads=8)(batch)
    again = TensorRTEngine(engine.serialize())
    show(replaced=len(replaced), seconds=f"{seconds:.3f}", error=f"{relative(engine(batch), want):.1e}")
    assert relative(before, want) > 1e-3
    assert relative(engine(batch), want) < 1e-4
    np.testing.assert_array_equal(again(batch), engine(batch))
    again.close()
    engine.close()


def test_a_timing_cache_makes_the_second_build_shorter(unet):
    first = build(unet, QUICK)
    second = build(unet, QUICK, timing_cache=first.timing_cache)
    same = first.engine == second.engine
    show(first=f"{first.report.seconds:.1f}", second=f"{second.report.seconds:.1f}", same_bytes=same)
    assert second.report.seconds < first.report.seconds
    assert not any("of another GPU or TensorRT" in warning for warning in second.report.warnings)


def test_a_timing_cache_that_is_none_is_left_aside(unet):
    made = build(unet, BuildSpec((PROFILE,), level=0), timing_cache=b"of no GPU at all")
    assert any("of another GPU or TensorRT" in warning for warning in made.report.warnings)


def test_two_engines_share_memory_and_give_the_bits_of_engines_alone(built, half):
    files = built.engine, half[1].engine
    with closing(Memory()) as memory:
        engines, alone = [TensorRTEngine(file, memory=memory) for file in files], list(map(TensorRTEngine, files))
        batches = [noise(1 + n % 4, 4, 128, 128, seed=n) for n in range(8)]
        want = [[engine(batch) for batch in batches] for engine in alone]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                jobs = [[pool.submit(run, engine, batch) for batch in batches] for engine in engines]
                for row, rights in zip(jobs, want, strict=True):
                    for job, right in zip(row, rights, strict=True):
                        np.testing.assert_array_equal(job.result(), right)
        for engine in (*engines, *alone):
            engine.close()


def test_standbys_in_shared_memory_take_none_from_the_third_on(built):
    with closing(Memory()) as memory:
        active, free = TensorRTEngine(built.engine, memory=memory), []
        batch = noise(2, 4, 128, 128)
        want = active(batch)
        for _ in range(10):
            standby = TensorRTEngine(built.engine, memory=memory)
            np.testing.assert_array_equal(standby(batch), want)
            active.close()
            active = standby
            free.append(cuda.free_bytes())
        np.testing.assert_array_equal(active(batch), want)
        show(weights_bytes=memory.weights.nbytes, free=free)
        assert free[2] - free[-1] < 4 << 20
        active.close()


def test_memory_grows_for_an_engine_of_larger_output_under_the_one_at_work(built, folder):
    wide = zoo.write_package(zoo.UnetSpec(width=16, depth=3, leads=40), folder / "wide") / "model.onnx"
    larger = build(wide, QUICK).engine
    with closing(Memory()) as memory:
        slot = Slot(Candidate("0", 0, lambda: TensorRTEngine(built.engine, memory=memory)))
        batch, stop = noise(4, 4, 256, 256), threading.Event()
        want, before = slot(batch), memory.lane_bytes

        def work():
            while not stop.is_set():
                np.testing.assert_array_equal(run(slot, batch), want)

        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(work) for _ in range(3)]
            try:
                engine = TensorRTEngine(larger, memory=memory)
                assert engine(batch).shape[1] == 40
                assert memory.lane_bytes > before
                time.sleep(0.1)
            finally:
                stop.set()
            for job in jobs:
                job.result()
        show(lane_bytes=memory.lane_bytes, activation_bytes=memory.activation.nbytes)
        engine.close()
        slot.close()


def test_loading_and_closing_gives_memory_back(built):
    def cycle():
        engine = TensorRTEngine(built.engine)
        for _ in range(3):
            engine.warm((1, 4, 64, 64))
        engine.close()

    cycle()
    before = cuda.free_bytes()
    for _ in range(10):
        cycle()
    lost = before - cuda.free_bytes()
    show(lost_bytes=lost)
    assert lost < 32 << 20


def test_a_build_under_way_can_be_cancelled(unet):
    cancel = threading.Event()
    timer = threading.Timer(4, cancel.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(BuildCancelledError):
        build(unet, BuildSpec((PROFILE,), level=5), cancel=cancel)
    assert time.monotonic() - started < 20


def test_what_is_no_engine_is_refused():
    with pytest.raises(EngineError, match="cannot load this engine"):
        TensorRTEngine(b"no engine at all" * 100)


def test_memory_that_is_not_there_is_an_error():
    with pytest.raises(OutOfMemoryError, match="cudaMalloc failed"):
        cuda.DeviceBuffer(1 << 46)


def test_the_gpu_is_described():
    gpu = cuda.describe_device()
    show(gpu=gpu)
    assert gpu.name
    assert gpu.multiprocessors > 0
    assert gpu.memory_bytes > 1 << 30
