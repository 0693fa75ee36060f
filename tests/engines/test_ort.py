"""The ONNX Runtime engine: equal bits, bounded memory, clear errors."""

from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import psutil
import pytest

from engines.base import Engine, InferenceError, ModelError, OutOfMemoryError
from engines.ort import OrtEngine


@pytest.fixture
def save(tmp_path):
    def write(model):
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model.onnx"

    return write


@pytest.fixture
def small(save, unet):
    """Path of a small U-Net, 4 channels, 18 leads, stride 8."""
    return save(unet())


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_it_is_an_engine_that_knows_its_tensors(small):
    engine = OrtEngine(small)
    assert isinstance(engine, Engine)
    assert [spec.shape for spec in engine.specs] == [(None, 4, None, None), (None, 18, None, None)]
    assert [spec.dtype for spec in engine.specs] == ["float32", "float32"]


def test_a_tile_does_not_depend_on_the_batch_around_it(small):
    engine, batch = OrtEngine(small), noise(5, 4, 64, 72)
    whole = engine(batch)
    for index in range(5):
        np.testing.assert_array_equal(engine(batch[index : index + 1]), whole[index : index + 1])


@pytest.mark.parametrize("shape", [(1, 4, 256, 256), (3, 4, 40, 104)])
def test_a_tile_does_not_depend_on_the_number_of_threads(small, shape):
    batch = noise(*shape)
    one, two = (OrtEngine(small, threads)(batch) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_a_tile_does_not_depend_on_the_shapes_run_before(small):
    engine, tile = OrtEngine(small), noise(1, 4, 64, 64)
    before = engine(tile)
    engine(noise(2, 4, 128, 32))
    np.testing.assert_array_equal(engine(tile), before)


def test_the_core_of_a_tile_is_the_whole_frame_cut_out(small):
    engine, frame = OrtEngine(small), noise(1, 4, 256, 320)
    tile = engine(frame[..., 64:224, 80:272])
    np.testing.assert_array_equal(tile[..., 48:-48, 48:-48], engine(frame)[..., 112:176, 128:224])


def test_an_input_that_is_a_view_is_read_as_it_looks(small):
    engine, frame = OrtEngine(small), noise(1, 4, 128, 128)
    view = frame[..., ::2, 64:]
    np.testing.assert_array_equal(engine(view), engine(np.ascontiguousarray(view)))


def test_engines_in_threads_do_not_disturb_each_other(small):
    tiles = [noise(1, 4, 64, 64) * scale for scale in (1, 2)]
    expected = [OrtEngine(small)(tile) for tile in tiles]
    engines = [OrtEngine(small) for _ in tiles]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for out, want in zip(pool.map(lambda e, t: e(t), engines, tiles), expected, strict=True):
                np.testing.assert_array_equal(out, want)


def test_memory_is_given_back_when_the_shape_changes(small):
    engine, process = OrtEngine(small), psutil.Process()
    engine(noise(1, 4, 64, 64))
    before = process.memory_info().rss
    for _ in range(2):
        engine(np.zeros((1, 4, 1024, 1024), np.float32))
    large = process.memory_info().rss - before
    for size in (128, 64, 72, 64):
        engine(np.zeros((1, 4, size, size), np.float32))
    assert process.memory_info().rss - before < large / 2


def test_threads_in_lanes_of_one_engine_get_what_one_by_one_gives(small):
    engine, tiles = OrtEngine(small), [noise(1 + n % 2, 4, 64, 64) * (n + 1) for n in range(8)]
    expected = [engine(tile) for tile in tiles]

    def run(tile):
        with engine.lane(tile.shape) as lane:
            lane.given[...] = tile
            return lane.run()

    with ThreadPoolExecutor(4) as pool:
        for out, want in zip(pool.map(run, tiles), expected, strict=True):
            np.testing.assert_array_equal(out, want)


def test_one_batch_is_under_way_at_a_time(small):
    engine, shape = OrtEngine(small), (1, 4, 64, 64)

    def run():
        with engine.lane(shape) as lane:
            return lane.run().shape

    with ThreadPoolExecutor(1) as pool:
        with engine.lane(shape):
            waiting = pool.submit(run)
            assert wait([waiting], timeout=0.2).not_done
        assert waiting.result(60) == (1, 18, 64, 64)


def test_a_lane_is_used_again_for_the_same_shape(small):
    engine, given = OrtEngine(small), []
    for shape in [(1, 4, 64, 64), (1, 4, 64, 64), (2, 4, 64, 64)]:
        with engine.lane(shape) as lane:
            assert (lane.given.shape, lane.given.dtype) == (shape, np.float32)
            given.append(lane.given)
    assert given[0] is given[1]
    with pytest.raises(InferenceError, match="does not fit the input"), engine.lane((1, 3, 64, 64)):
        pass
    engine.close()
    with pytest.raises(InferenceError, match="is closed"), engine.lane((1, 4, 64, 64)):
        pass


def test_warming_up_changes_nothing(small):
    engine, tile = OrtEngine(small), noise(1, 4, 64, 64)
    engine.warm((1, 4, 64, 64))
    np.testing.assert_array_equal(engine(tile), OrtEngine(small)(tile))


# accidents


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (4, 64, 64), (1, 4, 64, 64, 1)])
def test_a_batch_of_a_wrong_shape_is_refused(small, shape):
    with pytest.raises(InferenceError, match=r"does not fit the input x: float32 \(\?, 4, \?, \?\)"):
        OrtEngine(small)(noise(*shape))


def test_a_tile_that_is_no_multiple_of_the_stride_is_an_inference_error(small, capfd):
    with pytest.raises(InferenceError, match=r"model.onnx failed on a batch of shape \(1, 4, 60, 64\)") as caught:
        OrtEngine(small)(noise(1, 4, 60, 64))
    assert not isinstance(caught.value, OutOfMemoryError)
    assert capfd.readouterr().err == ""


def test_a_batch_of_a_wrong_type_is_an_inference_error(small):
    with pytest.raises(InferenceError, match="a batch of float64 does not fit the input x: float32"):
        OrtEngine(small)(np.zeros((1, 4, 64, 64)))  # type: ignore[arg-type]


def test_a_model_that_changes_the_size_is_an_inference_error(save, net_type):
    net = net_type(1)
    engine = OrtEngine(save(net.model(net.pool("x"), 1)))
    with pytest.raises(InferenceError, match=r"turns a batch of shape \(1, 1, 8, 8\) into \(1, 1, 4, 4\)"):
        engine(noise(1, 1, 8, 8))


def test_a_batch_that_does_not_fit_into_memory_is_told_apart_and_a_smaller_one_still_runs(save, net_type):
    net = net_type(1)
    engine = OrtEngine(save(net.model(net.pool(net.grow("x", 4096), factor=4096), 1)))
    with pytest.raises(OutOfMemoryError, match=r"shape \(1, 1, 4096, 4096\)"):
        engine(np.zeros((1, 1, 4096, 4096), np.float32))  # 10**15 bytes
    assert engine(np.full((1, 1, 1, 1), 3, np.float32)) == 3


def test_a_closed_engine_says_so(small):
    engine = OrtEngine(small)
    engine.close()
    engine.close()
    with pytest.raises(InferenceError, match="is closed"):
        engine(noise(1, 4, 64, 64))


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*model.onnx"):
        OrtEngine(tmp_path / "model.onnx")


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot load"):
        OrtEngine(tmp_path / "model.onnx")
