"""A canvas takes results as numbers and as codes."""

import numpy as np
import pytest

from pipelines.canvas import CropCanvas
from pipelines.product import Packing
from pipelines.tiling import Tiling
from pipelines.transform import Encoder

TILING = Tiling((16, 16), (16, 16), (8, 8), 2)
ENCODER = Encoder(Packing(scale_factor=0.1))


def painted(results, is_ready):
    """The codes (lead, y, x) of a grid of one block, of results of its tiles."""
    (block,) = TILING.blocks()
    codes = np.zeros((2, 16, 16), np.int16)
    canvas = CropCanvas(block, ENCODER, codes)
    for out, tile in zip(results, TILING.tiles(block), strict=True):
        canvas.add(canvas.ready(out) if is_ready else out, tile)
    canvas.finish()
    return codes


@pytest.mark.parametrize("is_ready", [False, True])
def test_codes_are_copied_and_numbers_packed_to_the_same_codes(is_ready):
    shape = (2, *TILING.tiles(TILING.blocks()[0])[0].window.shape)
    results = [np.random.default_rng(n).uniform(0, 99, shape).astype(np.float32) for n in range(4)]
    packed = [np.empty(shape, np.int16) for _ in results]
    for numbers, codes in zip(results, packed, strict=True):
        ENCODER.encode(numbers, codes)
    np.testing.assert_array_equal(painted(packed, is_ready), painted(results, False))


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_what_is_made_ready_is_a_copy(dtype):
    out = np.ones((2, 12, 12), dtype)
    ready = CropCanvas(TILING.blocks()[0], ENCODER, np.zeros((2, 16, 16), np.int16)).ready(out)
    out[...] = 3
    assert (ready == (10 if dtype == np.float32 else 1)).all()
