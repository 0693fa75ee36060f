from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError, OutputError
from pipelines.grid import Window
from pipelines.layout import Layout, choose_layout
from pipelines.product import OutputSpec, Packing

edges = st.integers(1, 9000)


def output(**changes: object) -> OutputSpec:
    return OutputSpec.model_validate({"store": "out", "variable": "rain_rate"} | changes)


@pytest.mark.parametrize(
    ("grid", "shard", "chunk", "shards"),
    [
        ((3500, 7000), (896, 1024), (448, 512), (4, 7)),
        ((1226, 760), (640, 768), (640, 384), (2, 1)),
        ((50, 40), (128, 128), (128, 128), (1, 1)),
    ],
)
def test_auto_splits_known_grids_evenly(grid, shard, chunk, shards):
    layout = choose_layout(grid, 18, output())
    assert (layout.shard, layout.chunk, layout.shard_grid) == ((18, *shard), (1, *chunk), shards)


@given(edges, edges)
def test_shards_cover_every_grid_once(height, width):
    layout = choose_layout((height, width), 3, output())
    windows = [layout.shard_window(*shard) for shard in layout.shards]
    assert sum(window.cells for window in windows) == height * width
    assert all(window.cells for window in windows)
    assert all(max(layout.shard[1:]) <= 1024 and edge % 128 == 0 for edge in layout.shard[1:])
    assert all(a < b for a, b in pairwise(windows))


@given(edges, edges, st.data())
def test_a_block_of_whole_shards_names_exactly_its_shards(height, width, data):
    layout = choose_layout((height, width), 1, output())
    first, last = sorted(data.draw(st.tuples(*[st.sampled_from(layout.shards)] * 2)))
    low, high = min(first[1], last[1]), max(first[1], last[1])
    a, b = layout.shard_window(first[0], low), layout.shard_window(last[0], high)
    found = layout.shards_of(Window(a.y0, b.y1, a.x0, b.x1))
    assert found == [(r, c) for r in range(first[0], last[0] + 1) for c in range(low, high + 1)]


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window(0, 900, 0, 1024), r"0:900 along y cuts a shard: offset 900 .* shard 896 .* use 896 or 1792"),
        (Window(0, 896, 512, 1024), r"512:1024 along x cuts a shard: offset 512 .* use 0 or 1024"),
        (Window(3000, 3500, 0, 1024), r"offset 3000 .* use 2688 or 3500"),
        (Window(2688, 3584, 0, 1024), r"leaves the grid 0:3500"),
        (Window(0, 0, 0, 1024), r"is empty"),
    ],
)
def test_a_block_that_cuts_a_shard_is_refused(window, message):
    with pytest.raises(OutputError, match=message):
        choose_layout((3500, 7000), 18, output()).shards_of(window)


def test_chunks_of_the_product_file_shape_the_automatic_shards():
    layout = choose_layout((1000, 1000), 1, output(chunks=(300, 100)))
    assert (layout.shard, layout.chunk) == ((1, 1200, 1000), (1, 300, 100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": (1024, 1024), "chunks": (300, 256)}, "chunk 300 along y .* shard 1024 .* use 256 or 512"),
        ({"shards": (512, 512), "chunks": (512, 600)}, "chunk 600 along x does not divide the shard 512 .* use 512"),
        ({"variable": "rain/rate"}, "'rain/rate' must be letters"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        choose_layout((3500, 7000), 18, output(**changes))


def test_a_forecast_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="holds nothing"):
        choose_layout((10, 10), 0, output())


@pytest.mark.parametrize(("dtype", "fill"), [("int16", -32768), ("uint16", 65535), ("uint8", 255)])
def test_every_packing_has_a_fill_value(dtype, fill):
    layout: Layout = choose_layout((10, 10), 1, output(packing=Packing(dtype=dtype)))
    assert layout.fill_value == fill
