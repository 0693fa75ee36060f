"""Tiles into blocks: crops are the whole frame, blends do not depend on the blocks, missing stays missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.grid import Window
from pipelines.mosaic import Feather, crop
from pipelines.tiling import Tile, Tiling

LEADS = 2


def blend(tiling: Tiling, tile_result) -> np.ndarray:
    """The whole grid (lead, y, x), block by block; `tile_result` gives (lead, h, w) of a tile."""
    whole = np.zeros((LEADS, *tiling.grid), np.float32)
    for block in tiling.blocks():
        mosaic = Feather(tiling, block.window, LEADS)
        for tile in tiling.tiles(block):
            mosaic.add(tile_result(tile), tile)
        whole[:, *block.window.slices] = mosaic.result()
    return whole


def noisy(tile: Tile) -> np.ndarray:
    """Another result for every tile, with some missing cells."""
    random = np.random.default_rng([tile.window.y0, tile.window.x0])
    values = random.lognormal(size=(LEADS, *tile.window.shape)).astype(np.float32)
    values[random.random(values.shape) < 0.2] = np.nan
    return values


def constant(value: float):
    return lambda tile: np.full((LEADS, *tile.window.shape), value, np.float32)


sides = st.integers(1, 70)
shapes = st.tuples(sides, sides)
feathers = st.builds(
    lambda grid, core, halo, stride, block: Tiling(grid, block, core, halo * stride, stride, "feather"),
    shapes, st.tuples(st.integers(4, 30), st.integers(4, 30)), st.integers(0, 5), st.integers(1, 4), shapes,
)  # fmt: skip


def test_the_crop_is_the_core_and_a_view():
    out = np.arange(2 * 8 * 10, dtype=np.float32).reshape(2, 8, 10)
    core = crop(out, Tile(Window(22, 26, 33, 36), Window(20, 28, 30, 40)))
    np.testing.assert_array_equal(core, out[:, 2:6, 3:6])
    assert np.shares_memory(core, out)


@settings(max_examples=40, deadline=None)
@given(
    grid=shapes, block=shapes, core=shapes, halo=st.integers(3, 9), stride=st.integers(1, 8), seed=st.integers(0, 99)
)
def test_cropped_tiles_of_a_local_model_are_the_whole_frame(grid, block, core, halo, stride, seed):
    """The model: the largest of the 7 x 7 cells around, but only on a lattice of the stride, the border being zero."""

    def model(field):
        padded = np.pad(field, 3)
        around = np.lib.stride_tricks.sliding_window_view(padded, (7, 7)).max(axis=(-2, -1))
        rows, columns = np.indices(field.shape) % stride
        return (around * (rows + 2 * columns)).astype(np.float32)

    tiling = Tiling(grid, block, core, halo, stride)
    frame = np.zeros(tiling.frame, np.float32)
    frame[: grid[0], : grid[1]] = np.random.default_rng(seed).random(grid)
    whole = np.full(grid, np.nan, np.float32)
    for block_ in tiling.blocks():
        for tile in tiling.tiles(block_):
            whole[tile.core.slices] = crop(model(frame[tile.window.slices])[None], tile)[0]
    np.testing.assert_array_equal(whole, model(frame)[: grid[0], : grid[1]])


@settings(max_examples=50, deadline=None)
@given(tiling=feathers, block=shapes)
def test_a_blend_does_not_depend_on_how_the_grid_was_cut_into_blocks(tiling, block):
    other = Tiling(tiling.grid, block, tiling.core, tiling.halo, tiling.stride, "feather")
    np.testing.assert_array_equal(blend(tiling, noisy), blend(other, noisy))


@settings(max_examples=30, deadline=None)
@given(tiling=feathers, value=st.floats(-1e3, 1e3, width=32))
def test_tiles_that_agree_give_what_they_agree_on(tiling, value):
    tiny = np.finfo(np.float32).tiny  # below it float32 has fewer digits
    np.testing.assert_allclose(blend(tiling, constant(value)), np.float32(value), rtol=1e-6, atol=tiny)


@settings(max_examples=30, deadline=None)
@given(tiling=feathers)
def test_a_blend_lies_between_the_tiles(tiling):
    low, high = (np.full(tiling.grid, bound, np.float32) for bound in (np.inf, -np.inf))
    results = {tile: noisy(tile) for block in tiling.blocks() for tile in tiling.tiles(block)}
    for tile, out in results.items():
        inside = out[0, : tile.core.shape[0], : tile.core.shape[1]]
        low[tile.core.slices] = np.fmin(low[tile.core.slices], inside)
        high[tile.core.slices] = np.fmax(high[tile.core.slices], inside)
    mixed = blend(tiling, results.__getitem__)[0]
    present = ~np.isnan(mixed)
    assert (mixed[present] >= low[present] * (1 - 1e-6)).all()
    assert (mixed[present] <= high[present] * (1 + 1e-6)).all()


@settings(max_examples=20, deadline=None)
@given(tiling=feathers)
def test_what_all_tiles_miss_is_missing(tiling):
    assert np.isnan(blend(tiling, constant(np.nan))).all()


TWO = Tiling((8, 24), (8, 24), (8, 8), 4, 4, "feather")  # along x, tiles of 16 cells at 0 and 8


@pytest.mark.parametrize(("column", "is_missing"), [(9, False), (14, True)])
def test_a_cell_is_missing_if_the_tiles_that_have_it_carry_less_than_half_the_weight(column, is_missing):
    def right_tile_misses_all(tile):
        return constant(3.0 if tile.window.x0 == 0 else np.nan)(tile)

    mixed = blend(TWO, right_tile_misses_all)
    assert np.isnan(mixed[..., column]).all() == is_missing
    assert is_missing or (mixed[..., column] == 3).all()


def test_a_missing_cell_of_one_lead_time_leaves_the_others_alone():
    def first_lead_misses(tile):
        out = constant(2.0)(tile)
        out[0] = np.nan
        return out

    mixed = blend(TWO, first_lead_misses)
    assert np.isnan(mixed[0]).all()
    assert (mixed[1] == 2).all()


def test_a_blend_passes_smoothly_from_one_tile_to_the_next():
    mixed = blend(TWO, lambda tile: constant(float(tile.window.x0))(tile))[0, 0]
    assert mixed[0] == 0
    assert mixed[-1] == 8
    assert (np.diff(mixed) >= 0).all()
    assert np.diff(mixed).max() < 2


def test_adding_a_tile_does_not_change_its_result():
    out = noisy(Tile(Window(0, 8, 0, 16), Window(0, 8, 0, 16)))
    before = out.copy()
    Feather(TWO, Window(0, 8, 0, 24), LEADS).add(out, TWO.tiles(TWO.blocks()[0])[0])
    np.testing.assert_array_equal(out, before)
