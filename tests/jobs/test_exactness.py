"""The forecast does not depend on how the grid was cut, bit for bit: tiles, halos, blocks, batches; real models."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import OutOfMemoryError
from engines.model import load_package
from engines.ort import OrtEngine
from engines.zoo import AdvectionSpec, UnetSpec, write_package
from jobs.contract import model_needs
from pipelines.buffers import Buffers
from pipelines.encoding import Encoding
from pipelines.grid import Window
from pipelines.product import Packing
from pipelines.reuse import Reuse
from pipelines.run import Forecaster, infer_block
from pipelines.source import Part, cut
from pipelines.spans import Stopwatch
from pipelines.team import Team
from pipelines.tiling import Tiling, round_up
from pipelines.transform import Decoder, Encoder

MISSING = -32768
ENCODING = Encoding("int16", MISSING, (MISSING,), 0.01, units="mm h-1")
SPECS = {
    "unet": UnetSpec(width=2, depth=2, frames=2, leads=2),
    "advection": AdvectionSpec((8.0, 8.0), (-10, 0), (10, 20), max_speed_km_h=60.0),
}


@pytest.fixture(scope="module", params=sorted(SPECS))
def whole(request, tmp_path_factory):
    """A forecaster that runs whole frames, and the radius and stride of its model."""
    package = load_package(write_package(SPECS[request.param], tmp_path_factory.mktemp(request.param)))
    needs, tile = model_needs(package.contract), package.contract.tile
    forecaster = Forecaster(
        tiling=Tiling((1, 1), (1, 1), (1, 1), 0, 1),
        decoder=Decoder(ENCODING, needs.space),
        encoder=Encoder(Packing(), needs.output_space),
        lane=OrtEngine(package.onnx_path).lane,
        leads=len(needs.leads),
        mask_from_input=needs.coverage == "input",
    )
    return forecaster, tile.radius, tile.stride


def frames_of(shape, seed: int) -> np.ndarray:
    """Rain with a dry part and a missing part, (frame, y, x)."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 3000, (2, *shape)).astype(np.int16)
    frames[:, : shape[0] // 3] = 0
    frames[:, -(shape[0] // 4) :, : shape[1] // 2] = MISSING
    return frames


def forecast(frames, forecaster: Forecaster, tiling: Tiling, batch: int = 1) -> np.ndarray:
    """Packed codes (lead, y, x) of the whole grid, block by block."""
    forecaster = replace(forecaster, tiling=tiling, batch=batch, reuse=Reuse())
    codes = np.empty((forecaster.leads, *tiling.grid), np.int16)
    whole = Part(Window(0, tiling.grid[0], 0, tiling.grid[1]), frames)
    for block in tiling.blocks():
        seen = tiling.reads(block)
        raw = cut([whole], seen, MISSING)
        infer_block(raw, seen, block, forecaster, codes[:, *block.window.slices], Stopwatch(), forecaster.team.turn())
    return codes


def whole_frame(grid, stride) -> Tiling:
    return Tiling(grid, (round_up(grid[0], stride), round_up(grid[1], stride)), grid, 0, stride)


@settings(max_examples=25)
@given(data=st.data())
def test_a_forecast_does_not_depend_on_how_the_grid_was_cut(whole, data):
    forecaster, radius, stride = whole
    edge = st.integers(3 * stride, 2 * radius + 12 * stride)
    grid = data.draw(edge, "height"), data.draw(edge, "width")
    core = tuple(data.draw(st.integers(1, 12), "core") * stride for _ in grid)
    block = tuple(core[axis] * data.draw(st.integers(1, 4), "cores a block") for axis in (0, 1))
    halo = round_up(radius, stride) + stride * data.draw(st.integers(0, 2), "more halo")
    frames = frames_of(grid, data.draw(st.integers(0, 3), "seed"))
    expected = forecast(frames, forecaster, whole_frame(grid, stride))
    tiling = Tiling(grid, block, core, halo, stride)
    found = forecast(frames, forecaster, tiling, data.draw(st.integers(1, 5), "batch"))
    np.testing.assert_array_equal(found, expected)


def test_a_halo_below_the_radius_leaves_seams(whole):
    forecaster, radius, stride = whole
    grid = (3 * radius // stride * stride, 3 * radius // stride * stride)
    frames = frames_of(grid, 0)
    expected = forecast(frames, forecaster, whole_frame(grid, stride))
    block = round_up(grid[0] // 2, stride)
    found = forecast(frames, forecaster, Tiling(grid, (block, block), (block, block), 0, stride))
    assert (found != expected).any()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_that_pack_do_not_change_a_bit(whole, threads):
    forecaster, radius, stride = whole
    grid = (6 * stride + radius, 5 * stride + radius)
    frames, tiling = frames_of(grid, 1), whole_frame(grid, stride)
    several = forecast(frames, replace(forecaster, team=Team(threads)), tiling)
    np.testing.assert_array_equal(several, forecast(frames, forecaster, tiling))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_run_in_smaller_ones(whole, most, caplog):
    forecaster, radius, stride = whole
    grid, core = (6 * stride + radius, 8 * stride), (2 * stride, 2 * stride)
    frames, tiling = frames_of(grid, 1), Tiling(grid, grid, core, round_up(radius, stride), stride)

    @contextmanager
    def narrow(shape):
        if shape[0] > most:
            raise OutOfMemoryError(f"no memory for {shape[0]}")
        with forecaster.lane(shape) as lane:
            yield lane

    found = forecast(frames, replace(forecaster, lane=narrow), tiling, batch=7)
    np.testing.assert_array_equal(found, forecast(frames, forecaster, tiling))
    assert "tiles at once are too many" in caplog.text


def test_a_tile_that_does_not_fit_alone_is_an_error(whole):
    forecaster, _, stride = whole
    grid = (3 * stride, 3 * stride)

    def none(shape):
        raise OutOfMemoryError("no memory at all")

    with pytest.raises(OutOfMemoryError, match="no memory at all"):
        forecast(frames_of(grid, 1), replace(forecaster, lane=none), whole_frame(grid, stride), batch=4)


def test_blocks_made_at_the_same_time_do_not_change_a_bit(whole):
    forecaster, radius, stride = whole
    grid, block = (radius + 9 * stride, 10 * stride), (3 * stride, 5 * stride)
    tiling = Tiling(grid, block, block, round_up(radius, stride), stride)
    frames, codes = frames_of(grid, 2), np.empty((forecaster.leads, *grid), np.int16)
    whole_part = Part(Window(0, grid[0], 0, grid[1]), frames)
    shared = replace(forecaster, tiling=tiling, reuse=Reuse(), buffers=Buffers())

    def make(block):
        seen = tiling.reads(block)
        target = codes[:, *block.window.slices]
        infer_block(cut([whole_part], seen, MISSING), seen, block, shared, target, Stopwatch())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make, tiling.blocks()))
    np.testing.assert_array_equal(codes, forecast(frames, forecaster, tiling))


def test_threads_of_an_inference_do_not_change_a_bit(whole, tmp_path):
    forecaster, radius, stride = whole
    model = next(spec for name, spec in SPECS.items() if spec.radius == radius and spec.stride == stride)
    two = replace(forecaster, lane=OrtEngine(write_package(model, tmp_path) / "model.onnx", threads=2).lane)
    grid = (6 * stride + radius, 5 * stride + radius)
    frames, tiling = frames_of(grid, 1), whole_frame(grid, stride)
    np.testing.assert_array_equal(forecast(frames, forecaster, tiling), forecast(frames, two, tiling))


def test_feathered_forecasts_do_not_depend_on_blocks(whole):
    forecaster, _, stride = whole
    grid, core, halo = (11 * stride, 14 * stride), (4 * stride, 4 * stride), stride
    one = Tiling(grid, grid, core, halo, stride, "feather")
    many = Tiling(grid, (3 * stride, 5 * stride), core, halo, stride, "feather")
    frames = frames_of(grid, 2)
    np.testing.assert_array_equal(forecast(frames, forecaster, one), forecast(frames, forecaster, many))
