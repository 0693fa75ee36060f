"""Codes on a real GPU: kernels do what their tables say, and lanes of codes give what lanes of numbers do.

    python -m pytest tests/gpu/test_pack_gpu.py -m gpu -s

The times that it measures are printed; there are no limits on them.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import pairwise

import numpy as np
import pytest

from engines import cuda, zoo
from engines.codes import ValueTable, to_keys
from engines.spec import BuildSpec, Profile
from engines.trt import TensorRTEngine, build
from engines.trt.mask import Mask
from engines.trt.packer import Packer
from engines.trt.unpacker import Unpacker
from jobs.outfit import code_table
from pipelines.model_space import make_space
from pipelines.product import Packing
from pipelines.thresholds import NEAR
from pipelines.transform import Encoder

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

LOG = {"name": "log10", "threshold": 0.1, "zero": -2.0}
ENCODERS = {
    "rain, int16": Encoder(Packing()),
    "log10, int16": Encoder(Packing(), make_space(LOG)),
    "log10, missing, uint16": Encoder(Packing(dtype="uint16", scale_factor=0.1), make_space(LOG, missing_below=-1.5)),
    "dB, fine, int16": Encoder(
        Packing(scale_factor=0.001, add_offset=30.0), make_space({"name": "db", "threshold": 0.1, "zero": -15.0})
    ),
    "clip, uint8": Encoder(
        Packing(dtype="uint8", scale_factor=0.5, add_offset=-32.0), make_space({"name": "clip", "maximum": 60.0})
    ),
    "standardised, missing, int16": Encoder(
        Packing(), make_space({"name": "standardise", "mean": 3.0, "std": 12.5}, missing_below=-0.5)
    ),
}
encoders = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
COUNT = 8_000_001  # no multiple of 4, and more than a grid of the most blocks makes at once


def trial_values(encoder, results):
    """Values of any bits, of rain, all thresholds with six neighbours on each side, and special ones, mixed."""
    random = np.random.default_rng(0)
    table = encoder.thresholds[~np.isnan(encoder.thresholds)]
    beside = [table]
    with np.errstate(all="ignore"):
        for end in (-np.inf, np.inf):
            moved = table
            for _ in range(6):
                moved = np.nextafter(moved, np.float32(end))
                beside.append(moved)
        special = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, -0.5, -1.5])
        rain = random.gamma(0.5, 8.0, 1_000_000).astype(np.float32)
        parts = np.concatenate([*beside, special, rain])
        bits = random.integers(0, 2**32, COUNT - parts.size, dtype=np.uint32).view(np.float32)
        return random.permutation(np.concatenate([parts, bits])).astype(results)


def encode(encoder, values):
    codes = np.empty((1, 1, values.size), encoder.dtype)
    encoder.encode(values.reshape(codes.shape), codes)
    return codes.ravel()


def pack(encoder, values):
    """The codes that the kernel makes of values, and milliseconds on the GPU."""
    with ExitStack() as owned:
        take = owned.enter_context
        stream, given = take(cuda.Stream()), take(cuda.DeviceBuffer(values.nbytes))
        made, staged = (
            take(cuda.DeviceBuffer(values.size * encoder.dtype.itemsize)),
            take(cuda.PinnedBuffer(values.nbytes)),
        )
        packer = take(closing(Packer(code_table(encoder), values.dtype.name, stream)))
        packer.prove(given, made, staged, stream)
        staged.array(values.shape, values.dtype)[...] = values
        cuda.copy(given, staged, values.nbytes, stream)
        marks = take(cuda.Event()), take(cuda.Event())
        marks[0].record(stream)
        packer.pack(given, made, values.size, stream)
        marks[1].record(stream)
        cuda.copy(staged, made, values.size * encoder.dtype.itemsize, stream)
        stream.synchronize()
        return staged.array(values.shape, encoder.dtype).copy(), marks[1].milliseconds_since(marks[0])


def assert_near(encoder, values, codes):
    """Codes are the encoder's, or one off beside a threshold."""
    differs = np.flatnonzero(codes != encode(encoder, values))
    values = values[differs].astype(np.float32)
    off = np.abs(codes[differs].astype(int) - encode(encoder, values).astype(int))
    print(f"  {differs.size} codes one off beside a threshold", end="")
    assert (off <= 1).all()
    edges = to_keys(encoder.thresholds)
    assert all(np.abs(edges - key).min() <= NEAR for key in to_keys(values))


@encoders
@pytest.mark.parametrize("results", ["float32", "float16"])
def test_the_kernel_gives_the_codes_of_the_encoder(encoder, results):
    values = trial_values(encoder, results)
    codes, milliseconds = pack(encoder, values)
    assert_near(encoder, values, codes)
    np.testing.assert_array_equal(codes, code_table(encoder).search(values.astype(np.float32)))
    print(f", {milliseconds:.3f} ms for {values.size} values")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1023, 1024, 1025, 4_194_304, 4_194_309])
def test_any_number_of_values_is_packed_and_no_more(count):
    encoder = ENCODERS["log10, missing, uint16"]
    values = np.resize(trial_values(encoder, "float32"), count)
    with ExitStack() as owned:
        take = owned.enter_context
        stream, given = take(cuda.Stream()), take(cuda.DeviceBuffer(values.nbytes))
        made, staged = take(cuda.DeviceBuffer(2 * count + 8)), take(cuda.PinnedBuffer(values.nbytes + 8))
        packer = take(closing(Packer(code_table(encoder), "float32", stream)))
        staged.array((count + 4,), np.uint16)[...] = 4242
        cuda.copy(made, staged, 2 * count + 8, stream)
        stream.synchronize()
        staged.array(values.shape, values.dtype)[...] = values
        cuda.copy(given, staged, values.nbytes, stream)
        packer.pack(given, made, count, stream)
        cuda.copy(staged, made, 2 * count + 8, stream)
        stream.synchronize()
        codes = staged.array((count + 4,), np.uint16)
        np.testing.assert_array_equal(codes[:count], code_table(encoder).search(values))
        assert (codes[count:] == 4242).all()


def test_a_large_array_of_rain_is_packed_in_how_long():
    """The largest results of a batch: printed, beside what the host link would take for the numbers."""
    encoder, count = ENCODERS["log10, int16"], 100_000_000
    with ExitStack() as owned:
        take = owned.enter_context
        stream, given = take(cuda.Stream()), take(cuda.DeviceBuffer(4 * count))
        made, staged = take(cuda.DeviceBuffer(2 * count)), take(cuda.PinnedBuffer(4 * count))
        packer = take(closing(Packer(code_table(encoder), "float32", stream)))
        random = np.random.default_rng(0)
        rain = np.log10(np.maximum(random.gamma(0.5, 8.0, 1_000_000), 0.01)).astype(np.float32)
        for name, values in {"rain in no order": rain, "rain in order": np.sort(rain)}.items():
            staged.array((count,), np.float32)[...] = np.resize(values, count)
            cuda.copy(given, staged, 4 * count, stream)
            marks = [take(cuda.Event()) for _ in range(4)]
            packer.pack(given, made, count, stream)
            marks[0].record(stream)
            packer.pack(given, made, count, stream)
            marks[1].record(stream)
            cuda.copy(staged, made, 2 * count, stream)
            marks[2].record(stream)
            cuda.copy(staged, given, 4 * count, stream)
            marks[3].record(stream)
            stream.synchronize()
            kernel, codes, numbers = (b.milliseconds_since(a) for a, b in pairwise(marks))
            print(f"  {name}: packed in {kernel:.2f} ms; codes fetched in {codes:.2f}, numbers in {numbers:.2f} ms")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    unet = zoo.write_package(zoo.UnetSpec(width=16, depth=3), tmp_path_factory.mktemp("pack") / "unet") / "model.onnx"
    made = build(unet, BuildSpec((Profile((1, 4, 64, 64), (4, 4, 256, 256), (4, 4, 256, 256)),), level=1))
    opened = TensorRTEngine(made.engine)
    yield opened
    opened.close()


def run(open_lane, batch):
    with open_lane(batch.shape) as lane:
        lane.given[...] = batch
        return lane.run().copy()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@encoders
def test_a_lane_that_packs_gives_the_codes_of_one_that_does_not(engine, encoder):
    open_lane = engine.packing(code_table(encoder))
    for shape in [(4, 4, 256, 256), (1, 4, 64, 64), (3, 4, 128, 200)]:
        numbers, codes = run(engine.lane, noise(*shape)), run(open_lane, noise(*shape))
        assert (codes.shape, codes.dtype) == (numbers.shape, encoder.dtype)
        assert_near(encoder, numbers.ravel(), codes.ravel())
    print()


def test_lanes_of_codes_and_of_numbers_at_once_disturb_each_other_in_nothing(engine):
    encoder = ENCODERS["rain, int16"]
    open_lane, batches = engine.packing(code_table(encoder)), [noise(1 + n % 4, 4, 128, 128, seed=n) for n in range(16)]
    numbers, codes = [run(engine.lane, batch) for batch in batches], [run(open_lane, batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            jobs = [(pool.submit(run, engine.lane, batch), pool.submit(run, open_lane, batch)) for batch in batches]
            for (plain, packed), number, code in zip(jobs, numbers, codes, strict=True):
                np.testing.assert_array_equal(plain.result(), number)
                np.testing.assert_array_equal(packed.result(), code)


def test_tables_are_given_back_with_what_packs_by_them(engine):
    table = code_table(ENCODERS["rain, int16"])
    engine.packing(table)
    before = cuda.free_bytes(), engine.buffer_bytes
    for _ in range(20):
        engine.packing(table)
    assert before[0] - cuda.free_bytes() < 4 << 20
    assert engine.buffer_bytes == before[1]


def test_the_compute_stream_packs_before_the_next_batch_overwrites_the_results(engine):
    """One lane, batch after batch: each gets the codes of its own results."""
    encoder = ENCODERS["rain, int16"]
    with engine.packing(code_table(encoder))((4, 4, 256, 256)) as lane:
        for seed in range(20):
            lane.given[...] = noise(4, 4, 256, 256, seed=seed)
            got = lane.run().copy()
            assert_near(encoder, run(engine.lane, lane.given.copy()).ravel(), got.ravel())
    print()


def value_table(dtype, values="float32"):
    """Any values of moderate size; a third of the codes mean missing."""
    size, random = 2 ** (8 * np.dtype(dtype).itemsize), np.random.default_rng(1)
    return ValueTable(random.normal(size=size).astype(values), dtype, random.random(size) < 1 / 3)


def frames_of(table, *shape, seed=0):
    bits = np.random.default_rng(seed).integers(0, len(table.values), shape)
    return bits.astype(f"u{np.dtype(table.dtype).itemsize}").view(table.dtype)


@encoders
@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_a_lane_that_takes_codes_gives_those_of_one_that_takes_numbers_masked(engine, encoder, dtype):
    """Bitwise: the values are the same, so are the results."""
    codes, table = code_table(encoder), value_table(dtype)
    coded, plain = engine.packing(codes, table), engine.packing(codes)
    for shape in [(4, 4, 256, 256), (1, 4, 64, 64), (3, 4, 128, 200)]:
        frames = frames_of(table, *shape)
        bits = frames.view(f"u{frames.itemsize}")
        expected = run(plain, table.values[bits])
        np.copyto(expected, codes.fill, where=table.missing[bits[:, -1:]])
        np.testing.assert_array_equal(run(coded, frames), expected)


def test_batches_of_codes_of_six_threads_are_those_of_one_by_one(engine):
    table = value_table("int16")
    open_lane = engine.packing(code_table(ENCODERS["rain, int16"]), table)
    batches = [frames_of(table, 1 + n % 4, 4, 128, 128, seed=n) for n in range(16)]
    alone = [run(open_lane, batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(lambda batch: run(open_lane, batch), batches), alone, strict=True):
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("values", ["float32", "float16"])
@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_codes_of_four_large_frames_are_unpacked_and_masked_in_how_long(dtype, values):
    """A tile of 1088 x 1216 cells after four frames, 18 lead times: printed, there is no limit."""
    table, shape, made = value_table(dtype, values), (1, 4, 1088, 1216), (1, 18, 1088, 1216)
    with ExitStack() as owned:
        take = owned.enter_context
        stream, frames = take(cuda.Stream()), frames_of(table, *shape)
        stored, given = take(cuda.upload(frames, stream)), take(cuda.DeviceBuffer(frames.size * table.values.itemsize))
        codes = take(cuda.upload(np.zeros(made, np.int16), stream))
        unpacker = take(closing(Unpacker(table, stream)))
        mask = take(closing(Mask(frames.dtype, table.missing, np.dtype("int16"), -32768, stream)))
        marks = [take(cuda.Event()) for _ in range(3)]
        for _ in range(2):
            marks[0].record(stream)
            unpacker.unpack(stored, given, frames.size, stream)
            marks[1].record(stream)
            mask.apply(stored, codes, shape, made, stream)
            marks[2].record(stream)
            stream.synchronize()
        unpacked, masked = (b.milliseconds_since(a) for a, b in pairwise(marks))
        print(f"  unpacked in {unpacked:.3f} ms, a third masked in {masked:.3f} ms", end="")
