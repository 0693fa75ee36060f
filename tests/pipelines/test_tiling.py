"""What must hold for any grid, block, core, halo and stride."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.grid import Window
from pipelines.tiling import Tiling, cut, round_up

cells = st.integers(1, 90)
shapes = st.tuples(cells, cells)
tilings = st.builds(Tiling, shapes, shapes, shapes, st.integers(0, 25), st.integers(1, 16))


def _feather(grid, tile, halo, stride, block):
    core = tuple(max(1, round_up(edge, stride) - 2 * halo) for edge in tile)
    return Tiling(grid, block, core, halo, stride, "feather")


feathers = st.builds(_feather, shapes, st.tuples(st.integers(20, 60), st.integers(20, 60)), st.integers(0, 9),
                     st.integers(1, 8), shapes)  # fmt: skip


def frame_of(tiling: Tiling) -> Window:
    return Window(0, tiling.frame[0], 0, tiling.frame[1])


def all_tiles(tiling: Tiling):
    return [tile for block in tiling.blocks() for tile in tiling.tiles(block)]


def cover(tiling: Tiling, windows) -> np.ndarray:
    """How often each cell of the grid is covered."""
    counts = np.zeros(tiling.grid, int)
    for window in windows:
        counts[window.slices] += 1
    return counts


@settings(max_examples=60)
@given(tilings)
def test_blocks_are_whole_shards_and_every_cell_is_in_one(tiling):
    blocks = tiling.blocks()
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert (cover(tiling, [block.window for block in blocks]) == 1).all()
    assert all(b.window.y0 % tiling.block[0] == 0 and b.window.x0 % tiling.block[1] == 0 for b in blocks)


@settings(max_examples=60)
@given(tilings)
def test_every_cell_is_decided_by_one_tile_of_its_block(tiling):
    for block in tiling.blocks():
        assert all(block.window.contains(tile.core) for tile in tiling.tiles(block))
    assert (cover(tiling, [tile.core for tile in all_tiles(tiling)]) == 1).all()


@settings(max_examples=100)
@given(tilings)
def test_a_core_is_a_halo_away_from_every_border_that_is_not_the_frames_own(tiling):
    for tile in all_tiles(tiling):
        assert tile.window.contains(tile.core)
        for core, window, end in zip(_sides(tile.core), _sides(tile.window), tiling.frame, strict=True):
            assert window[0] == 0 or core[0] - window[0] >= tiling.halo
            assert window[1] == end or window[1] - core[1] >= tiling.halo


def _sides(window: Window):
    return (window.y0, window.y1), (window.x0, window.x1)


@settings(max_examples=100)
@given(st.one_of(tilings, feathers))
def test_all_tiles_have_one_shape_lie_in_the_frame_and_start_on_the_lattice(tiling):
    for tile in all_tiles(tiling):
        assert tile.window.shape == tiling.tile
        assert frame_of(tiling).contains(tile.window)
        assert tile.window.y0 % tiling.stride == tile.window.x0 % tiling.stride == 0
    assert all(edge % tiling.stride == 0 for edge in (*tiling.tile, *tiling.frame))


@given(tilings)
def test_the_frame_is_the_grid_and_less_than_a_stride_more(tiling):
    assert all(0 <= f - g < tiling.stride for f, g in zip(tiling.frame, tiling.grid, strict=True))


@settings(max_examples=60)
@given(st.one_of(tilings, feathers))
def test_the_tiles_counted_are_the_tiles_there_are(tiling):
    assert tiling.tile_count == len(all_tiles(tiling))
    work = tiling.tile_count * tiling.tile[0] * tiling.tile[1]
    assert tiling.padded_work == pytest.approx(work / (tiling.grid[0] * tiling.grid[1]))


@settings(max_examples=40)
@given(st.one_of(tilings, feathers))
def test_a_block_reads_all_that_its_tiles_see_and_no_more(tiling):
    for block in tiling.blocks():
        windows = [tile.window for tile in tiling.tiles(block)]
        assert all(tiling.reads(block).contains(window) for window in windows)
        assert tiling.reads(block).shape[0] <= max(w.y1 for w in windows) - min(w.y0 for w in windows)


@given(shapes, st.integers(0, 25), st.integers(1, 16))
def test_one_core_as_large_as_the_grid_is_one_tile_as_large_as_the_frame(grid, halo, stride):
    tiling = Tiling(grid, grid, grid, halo, stride)
    assert tiling.tile == tiling.frame
    assert tiling.tile_count == 1


def test_a_halo_on_the_lattice_costs_nothing_extra():
    assert Tiling((1226, 760), (1226, 760), (384, 384), 64, 16).tile == (512, 512)
    assert Tiling((4096, 4096), (1024, 1024), (384, 384), 64, 16).tile == (512, 512)


def test_blocks_that_start_between_two_lattice_points_need_a_larger_tile():
    assert Tiling((4096, 4096), (1000, 1024), (384, 384), 64, 16).tile == (528, 512)


# feather


@settings(max_examples=60)
@given(feathers)
def test_every_cell_of_a_block_is_seen_by_a_tile_of_that_block(tiling):
    for block in tiling.blocks():
        seen = cover(tiling, [tile.core for tile in tiling.tiles(block)])
        assert (seen[block.window.slices] >= 1).all()


@settings(max_examples=60)
@given(feathers, shapes)
def test_the_tiles_that_are_blended_do_not_depend_on_the_blocks(tiling, block):
    other = Tiling(tiling.grid, block, tiling.core, tiling.halo, tiling.stride, "feather")
    assert set(all_tiles(tiling)) == set(all_tiles(other))


@settings(max_examples=60)
@given(feathers)
def test_tiles_of_a_block_come_in_the_order_of_the_frames_lattice(tiling):
    for block in tiling.blocks():
        starts = [(tile.window.y0, tile.window.x0) for tile in tiling.tiles(block)]
        assert starts == sorted(set(starts))


@settings(max_examples=40)
@given(feathers)
def test_neighbouring_tiles_overlap_by_twice_the_halo_or_more(tiling):
    for axis in (0, 1):
        for first, second in zip(tiling.feather_starts(axis), tiling.feather_starts(axis)[1:], strict=False):
            assert first < second
            assert first + tiling.tile[axis] - second >= min(2 * tiling.halo, tiling.tile[axis] - tiling.stride)


# numbers


@pytest.mark.parametrize(
    "numbers",
    [
        {"grid": (0, 5)}, {"block": (5, 0)}, {"core": (-1, 5)}, {"stride": 0}, {"halo": -1},
    ],
)  # fmt: skip
def test_a_size_below_one_is_refused(numbers):
    sound = {"grid": (20, 20), "block": (10, 10), "core": (5, 5), "halo": 2, "stride": 1}
    with pytest.raises(ConfigError, match="a size below 1 or a negative halo"):
        Tiling(**(sound | numbers))


@given(st.integers(0, 500), st.integers(1, 100))
def test_rounding_up_gives_the_least_multiple(value, step):
    assert round_up(value, step) % step == 0
    assert 0 <= round_up(value, step) - value < step


@given(st.integers(-50, 50), st.integers(0, 200), st.integers(1, 60))
def test_spans_follow_each_other_without_a_gap(start, length, step):
    spans = cut(start, start + length, step)
    assert [value for span in spans for value in range(*span)] == list(range(start, start + length))
    assert all(end - begin == step for begin, end in spans[:-1])


def test_a_block_names_itself():
    blocks = Tiling((30, 20), (20, 20), (20, 20), 0).blocks()
    assert str(blocks[1]) == "block 1 (y 20:30, x 0:20)"
    assert all(a != b for a, b in combinations(blocks, 2))
