"""Shards are compared with zarr-python, the reference reader and writer of the format."""

import json
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.layout import FILL_VALUES, Layout
from pipelines.shard import encode_shard, shard_codecs, shard_fault


@st.composite
def layouts(draw):
    dtype = draw(st.sampled_from(sorted(FILL_VALUES)))
    small = st.integers(1, 4)
    lead, chunk, counts = draw(small), draw(st.tuples(small, small)), draw(st.tuples(small, small))
    shard = (lead, chunk[0] * counts[0], chunk[1] * counts[1])
    shape = (lead, draw(st.integers(1, 2 * shard[1])), draw(st.integers(1, 2 * shard[2])))
    return Layout("rain", shape, shard, (1, *chunk), dtype, 0.01, 0.0, FILL_VALUES[dtype])


@st.composite
def forecasts(draw):
    """A layout and codes (lead, y, x) in which fill and dry are common."""
    layout = draw(layouts())
    information = np.iinfo(layout.dtype)
    codes = st.sampled_from([layout.fill_value, 0, 1]) | st.integers(information.min, information.max)
    return layout, draw(hnp.arrays(layout.dtype, layout.shape, elements=codes, fill=st.just(layout.fill_value)))


def zarr_array(folder: Path, layout: Layout) -> zarr.Array:
    """An array of zarr-python with the metadata of ours and no shards."""
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [1, *layout.shape],
        "data_type": layout.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *layout.shard]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": layout.fill_value,
        "codecs": shard_codecs(layout),
        "attributes": {},
    }
    (folder / layout.variable).mkdir(parents=True)
    (folder / layout.variable / "zarr.json").write_text(json.dumps(document))
    return zarr.open_array(folder / layout.variable, mode="r+")


def write_shards(folder: Path, layout: Layout, codes: np.ndarray) -> None:
    for shard in layout.shards:
        path = folder / layout.shard_key(*shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(encode_shard(codes[:, *layout.shard_window(*shard).slices], layout)))


@settings(max_examples=60, deadline=None)
@given(forecasts())
def test_zarr_reads_back_every_code_of_our_shards(forecast):
    layout, codes = forecast
    with TemporaryDirectory() as folder:
        array = zarr_array(Path(folder), layout)
        write_shards(Path(folder), layout, codes)
        assert array[0].tobytes() == codes.tobytes()


@settings(max_examples=60, deadline=None)
@given(forecasts())
def test_shards_of_zarr_and_ours_hold_the_same_chunks_and_are_whole(forecast):
    """Only the order of the chunks inside a shard may differ; the format leaves it free."""
    layout, codes = forecast
    with TemporaryDirectory() as ours, TemporaryDirectory() as theirs:
        write_shards(Path(ours), layout, codes)
        zarr_array(Path(theirs), layout)[0] = codes
        for shard in layout.shards:
            assert fault_of((Path(ours) / layout.shard_key(*shard)).read_bytes(), layout) is None
            path = Path(theirs) / layout.shard_key(*shard)
            if path.exists():  # zarr leaves out a shard of nothing but fill
                assert fault_of(path.read_bytes(), layout) is None
                assert stored_chunks(path.read_bytes(), layout) == stored_chunks(
                    (Path(ours) / layout.shard_key(*shard)).read_bytes(), layout
                )


def fault_of(data: bytes, layout: Layout) -> str | None:
    return shard_fault(BytesIO(data), layout)


def stored_chunks(data: bytes, layout: Layout) -> list[bytes | None]:
    count = int(np.prod(layout.chunks_per_shard))
    index = np.frombuffer(data[-16 * count - 4 : -4], "<u8").reshape(count, 2)
    return [None if offset == 2**64 - 1 else data[offset : offset + size] for offset, size in index.tolist()]


LAYOUT = Layout("rain", (2, 12, 12), (2, 8, 8), (1, 4, 4), "int16", 0.01, 0.0, -32768)


def shard() -> bytes:
    return b"".join(encode_shard(np.arange(2 * 8 * 8, dtype="int16").reshape(2, 8, 8), LAYOUT))


def test_a_shard_of_nothing_but_fill_is_an_index_alone():
    data = b"".join(encode_shard(np.full((2, 8, 8), -32768, "int16"), LAYOUT))
    assert len(data) == 8 * 16 + 4
    assert fault_of(data, LAYOUT) is None


def test_codes_beyond_the_grid_do_not_matter_to_the_bytes():
    codes = np.arange(2 * 8 * 8, dtype="int16").reshape(2, 8, 8)
    padded = codes.copy()
    padded[:, :, 5:] = -32768
    assert encode_shard(codes[:, :, :5], LAYOUT) == encode_shard(padded, LAYOUT)


@given(st.integers(0, len(shard()) - 1), st.integers(1, 255))
def test_every_changed_byte_is_found(position, change):
    data = bytearray(shard())
    data[position] ^= change
    assert "crc32c" in str(fault_of(bytes(data), LAYOUT))


@given(st.integers(0, len(shard()) - 1))
def test_every_truncation_is_found(length):
    assert fault_of(shard()[:length], LAYOUT) is not None


def test_a_shard_of_another_layout_is_found():
    other = Layout("rain", (2, 12, 12), (2, 8, 8), (1, 8, 8), "int16", 0.01, 0.0, -32768)
    assert fault_of(shard(), other) == "the crc32c of its index does not match"


def test_an_index_that_points_outside_is_found():
    import google_crc32c

    data = shard()[: -8 * 16 - 4]
    index = np.full((8, 2), 2**64 - 1, "<u8")
    index[3] = len(data) - 2, 10
    tail = index.tobytes()
    forged = data + tail + google_crc32c.value(tail).to_bytes(4, "little")
    assert "chunk 3 at" in str(fault_of(forged, LAYOUT))


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_memory_order_of_the_codes_does_not_matter(order):
    codes = np.asarray(np.arange(2 * 8 * 8, dtype="int16").reshape(2, 8, 8), order=order)
    assert b"".join(encode_shard(codes, LAYOUT)) == shard()
