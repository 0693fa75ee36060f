"""One shard as bytes: the public Zarr v3 sharding format, encoded whole and checked without decoding.

Chunks are little endian bytes -> blosc (shuffle, LZ4) -> crc32c, in C order. The index stands at the end: offset and
length (uint64) of every chunk, all ones for a chunk of nothing but fill, then the crc32c of the index.
"""

from collections.abc import Iterator
from functools import partial
from io import SEEK_END
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numcodecs import Blosc, blosc
from numpy.typing import NDArray

from pipelines.layout import Layout
from pipelines.team import ALONE, Turn

_BLOSC = Blosc("lz4", clevel=9, shuffle=Blosc.SHUFFLE)  # docs/decisions/020-blosc.md
blosc.use_threads = False  # each call in the thread that asks, as zarr has it too; else calls wait for one another
_ABSENT = 2**64 - 1
_CRC_BYTES = 4


def shard_codecs(layout: Layout) -> list[dict[str, Any]]:
    """The codecs of the (init_time, lead_time, y, x) array, as its zarr.json names them."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    crc = {"name": "crc32c"}
    typesize = np.dtype(layout.dtype).itemsize
    compressor = {"cname": "lz4", "clevel": 9, "shuffle": "shuffle", "typesize": typesize, "blocksize": 0}
    configuration = {
        "chunk_shape": [1, *layout.chunk],
        "codecs": [little, {"name": "blosc", "configuration": compressor}, crc],
        "index_codecs": [little, crc],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


def encode_shard(codes: NDArray[Any], layout: Layout, turn: Turn = ALONE) -> list[bytes]:
    """The stored object of one shard, in pieces to be written one after the other.

    Args:
        codes: (lead, y, x) packed codes; smaller than the shard at the far edges of the grid, where the
            rest is filled. Chunks of nothing but fill take no room.
        turn: with the team that encodes the fields.
    """
    fields = np.asarray(codes, dtype=np.dtype(layout.dtype).newbyteorder("<"))
    encoded = turn.map(partial(_encode_field, layout=layout), fields)
    return _assemble([chunk for chunks in encoded for chunk in chunks])


def shard_fault(file: BinaryIO, layout: Layout) -> str | None:
    """What is wrong with a stored shard, or None if its index and all its chunks match their crc32c.

    Only one chunk of it is in memory at a time.
    """
    count = int(np.prod(layout.chunks_per_shard))
    index_bytes = 16 * count
    end = file.seek(0, SEEK_END) - index_bytes - _CRC_BYTES
    if end < 0:
        return f"{file.tell()} bytes, fewer than the {index_bytes + _CRC_BYTES} of its index"
    tail = _read(file, end, index_bytes + _CRC_BYTES)
    if not _crc_matches(tail):
        return "the crc32c of its index does not match"
    index = np.frombuffer(tail[:-_CRC_BYTES], dtype="<u8").reshape(count, 2)
    for number, (offset, length) in enumerate(index.tolist()):
        if offset == length == _ABSENT:
            continue
        if offset + length > end or length < _CRC_BYTES:
            return f"chunk {number} at {offset}+{length} lies outside its {end} bytes"
        if not _crc_matches(_read(file, offset, length)):
            return f"the crc32c of chunk {number} does not match"
    return None


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _encode_field(field: NDArray[Any], layout: Layout) -> list[bytes | None]:
    """The encoded chunks of one field (y, x) of a shard; None = nothing but fill."""
    return [_encode_chunk(chunk, layout.fill_value) for chunk in _chunks(field, layout)]


def _chunks(field: NDArray[Any], layout: Layout) -> Iterator[NDArray[Any] | None]:
    """The chunks of a field in C order, each contiguous and of full size; None = wholly off the grid."""
    _, height, width = layout.chunk
    _, rows, columns = layout.chunks_per_shard
    for row in range(rows):
        for column in range(columns):
            part = field[row * height : (row + 1) * height, column * width : (column + 1) * width]
            yield _padded(part, (height, width), layout.fill_value)


def _padded(part: NDArray[Any], shape: tuple[int, int], fill: int) -> NDArray[Any] | None:
    if part.shape == shape:
        return np.ascontiguousarray(part)
    if not part.size:
        return None
    chunk = np.full(shape, fill, dtype=part.dtype)
    chunk[: part.shape[0], : part.shape[1]] = part
    return chunk


def _encode_chunk(chunk: NDArray[Any] | None, fill: int) -> bytes | None:
    if chunk is None or (chunk[0, 0] == fill and bool((chunk == fill).all())):
        return None
    data: bytes = _BLOSC.encode(chunk)
    return data + _crc(data)


def _assemble(chunks: list[bytes | None]) -> list[bytes]:
    index = np.full((len(chunks), 2), _ABSENT, dtype="<u8")
    offset = 0
    for number, chunk in enumerate(chunks):
        if chunk is not None:
            index[number] = offset, len(chunk)
            offset += len(chunk)
    tail = index.tobytes()
    return [*(chunk for chunk in chunks if chunk is not None), tail, _crc(tail)]


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CRC_BYTES, "little")


def _crc_matches(data: bytes) -> bool:
    return _crc(data[:-_CRC_BYTES]) == data[-_CRC_BYTES:]
