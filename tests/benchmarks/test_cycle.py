"""The benchmark of a cycle compares like with like: the same forecast, cut and packed by each contender its own way."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cycle import Laps, chunk_edge, settle
from benchmarks.peers import Task as PeerTask
from benchmarks.peers import inner, pack, with_halo
from pipelines.model_space import make_space
from pipelines.product import Packing
from pipelines.transform import Encoder

LOG = {"name": "log10", "threshold": 0.1, "offset": 0.0, "zero": -2.0}


def task(**changes) -> PeerTask:
    numbers = {
        "store": "", "variable": "", "cycles": [], "fill": -32768, "table": "", "model": "", "leads": 2,
        "threshold": None, "missing_below": None, "grid": (50, 70), "core": (16, 24), "halo": 8, "stride": 8,
        "chunk": (16, 24), "cores": 2,
    }  # fmt: skip
    return PeerTask(**(numbers | changes))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), is_log=st.booleans())
def test_peers_pack_as_squall_does(seed, is_log):
    rng = np.random.default_rng(seed)
    values = rng.uniform(-3, 3, (2, 9, 11)).astype(np.float32)
    newest = np.where(rng.random((9, 11)) < 0.2, -32768, 0).astype(np.int16)
    space = make_space(LOG) if is_log else make_space({"name": "identity"}, missing_below=-0.5)
    expected = np.empty(values.shape, np.int16)
    encoder = Encoder(Packing(), space)
    encoder.encode(values, expected)
    if is_log:
        encoder.mask(expected, newest == -32768)
    ours = task(threshold=0.1) if is_log else task(missing_below=-0.5)
    np.testing.assert_array_equal(pack(values, newest, ours), expected)


def test_tiles_of_a_peer_cover_the_grid_once_and_stay_on_whole_strides():
    peer, seen = task(), np.zeros((50, 70), int)
    for rows, columns in peer.tiles():
        window = peer.window(rows, columns)
        assert all(edge % 8 == 0 for side in window for edge in (side.start, side.stop))
        frame = np.arange(peer.frame[0] * peer.frame[1]).reshape(peer.frame)
        core = frame[window][inner(window, rows, columns)]
        np.testing.assert_array_equal(core, frame[slice(*rows), slice(*columns)])
        seen[slice(*rows), slice(*columns)] += 1
    assert (seen == 1).all()


def test_no_chunk_of_a_peer_has_two_writers():
    assert chunk_edge(core=160, grid=1226, chunk=640) == 160
    assert chunk_edge(core=1792, grid=3500, chunk=448) == 448
    assert chunk_edge(core=1226, grid=1226, chunk=640) == 640


def test_chunks_are_announced_with_their_inner_halos():
    assert with_halo((160, 160, 40), 48) == (208, 256, 88)
    assert with_halo((100,), 48) == (100,)


def test_a_peer_whose_forecast_differs_in_one_cell_of_millions_is_refused(tmp_path):
    field, dims = np.zeros((2, 1500, 2000), np.int16), ("lead_time", "y", "x")
    published, theirs = tmp_path / "out/0000.zarr", tmp_path / "peers/plain/0"
    xr.Dataset({"rain": (("init_time", *dims), field[None])}).to_zarr(published, zarr_format=3)
    xr.Dataset({"rain": (dims, field)}).to_zarr(theirs, zarr_format=3)
    laps = {"squall": Laps(facts=[{"path": str(published)}]), "plain": Laps()}
    field[1, 2, 3] = 1
    xr.Dataset({"rain": (dims, field)}).to_zarr(theirs, zarr_format=3, mode="w")
    with pytest.raises(ValueError, match="plain differs from squall's in 1 of 6000000 cells"):
        settle(tmp_path, laps)
