"""Reading what was published: one cycle, or all cycles of a product, as lazy float32 Datasets."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from pipelines.cf import INIT_TIME, LEAD_TIME, VALID_TIME, as_json, group_document, time_coordinates
from pipelines.cycles import PublishedCycle, find_cycle, latest_cycle, list_cycles
from pipelines.errors import InputError
from pipelines.shelf import Shelf
from pipelines.shelves import as_opened, find_store, open_shelf, zarr_at
from pipelines.threads import map_on

__all__ = ["PublishedCycle", "find_cycle", "latest_cycle", "list_cycles", "open_archive", "open_cycle"]


def open_cycle(
    path: str | Path, chunks: Mapping[str, int] | None = None, dtype: type[np.floating[Any]] = np.float32
) -> xr.Dataset:
    """One published cycle, lazy, float32 unless told otherwise; NaN = missing.

    `latest.zarr` is followed once, here: the Dataset keeps to the cycle it was then. On an object store so are
    `latest.json` and `HHMM.json`.

    Args:
        path: of the store, or its URL on an object store; one on a web server is for xarray.
        chunks: gives dask arrays of these chunks ({} = as stored).
        dtype: that codes are scaled in. In float32 0.1 may come out a last bit too small, and be below a threshold of
            0.1; in float64 values are those of plain xarray.

    Raises:
        InputError: there is no store at the path.
        ConfigError: it is a URL, and not of an object store.
    """
    try:
        store = as_opened(find_store(str(path)))
    except FileNotFoundError as error:
        raise InputError(f"no published cycle at {path}") from error
    return _open(store, chunks, dtype)


def open_archive(
    root: str,
    product: str,
    start: np.datetime64 | None = None,
    stop: np.datetime64 | None = None,
    chunks: Mapping[str, int] | None = None,
) -> xr.Dataset:
    """All published cycles of a product along init_time, lazy, float32; NaN = missing.

    Of each cycle the highest revision. Nothing is copied or written: chunks are read from the cycles' own
    shards. Attributes are those of the newest cycle, without its provenance.

    Args:
        start, stop: only cycles with start <= reference time < stop.
        chunks: gives dask arrays of these chunks ({} = as stored).

    Raises:
        InputError: no cycle is there, or one differs in grid, lead times, units or packing from the newest
            (names it, and the start from which all agree).
    """
    cycles = [
        c
        for c in list_cycles(root, product)
        if (start is None or c.reference_time >= start) and (stop is None or c.reference_time < stop)
    ]
    if not cycles:
        raise InputError(f"no cycle of {product} is published in {root} from {start or 'ever'} to {stop or 'now'}")
    return _open(CycleStore.over(open_shelf(root, product), cycles), chunks, np.float32)


def _open(store: Any, chunks: Mapping[str, int] | None, dtype: type[np.floating[Any]]) -> xr.Dataset:
    """xarray decodes packed integers to the type of scale_factor, which JSON cannot tell: make it `dtype`."""
    raw = xr.open_dataset(store, engine="zarr", chunks=chunks, decode_cf=False, cache=False, consolidated=True)
    for variable in raw.variables.values():
        for name in {"scale_factor", "add_offset"} & set(variable.attrs):
            variable.attrs[name] = dtype(variable.attrs[name])
    return xr.decode_cf(raw, decode_coords="all")


class CycleStore(Store):  # type: ignore[misc]
    """A read-only Zarr store in which many cycles stand as one array along init_time.

    `<variable>/c/<n>/...` is the shard of cycle n; documents and times are made on opening; everything else is
    read from the newest cycle.
    """

    supports_writes = supports_deletes = supports_listing = False
    supports_partial_writes = False

    def __init__(self, paths: tuple[str, ...], variable: str, made: Mapping[str, bytes]) -> None:
        super().__init__(read_only=True)
        self.paths, self.variable, self.made = paths, variable, made

    @classmethod
    def over(cls, shelf: Shelf, cycles: list[PublishedCycle]) -> "CycleStore":
        """The store of cycles that share a layout, oldest first."""
        newest = json.loads(_bytes_of(shelf, cycles[-1].path, "zarr.json"))
        arrays = newest["consolidated_metadata"]["metadata"]
        variable = next(name for name, document in arrays.items() if len(document["shape"]) == 4)
        _refuse_mixed(shelf, cycles, variable)
        leads = _lead_times(_bytes_of(shelf, cycles[-1].path, f"{LEAD_TIME}/c/0"), arrays[LEAD_TIME])
        times = time_coordinates(np.array([c.reference_time for c in cycles]), leads)
        made = {f"{name}/{times[name].chunk_key}": times[name].chunk for name in (INIT_TIME, VALID_TIME)}
        arrays |= {name: times[name].document for name in (INIT_TIME, VALID_TIME)}
        arrays[variable]["shape"][0] = len(cycles)
        made |= {f"{name}/zarr.json": as_json(document) for name, document in arrays.items()}
        shared = {k: v for k, v in newest["attributes"].items() if not k.startswith("squall_")}
        made["zarr.json"] = as_json(group_document(shared, arrays))
        return cls(tuple(c.path for c in cycles), variable, made)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CycleStore) and (self.paths, self.variable) == (other.paths, other.variable)

    __hash__ = None  # type: ignore[assignment]

    def file_of(self, key: str) -> str:
        """Path or URL of the file that holds a key that was not made on opening."""
        name, _, chunk = key.partition("/c/")
        if name != self.variable or not chunk:
            return f"{self.paths[-1]}/{key}"
        number, _, rest = chunk.partition("/")
        return f"{self.paths[int(number)]}/{self.variable}/c/0/{rest}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key in self.made:
            data = self.made[key]
            start, stop = _extent(byte_range, len(data))
            return prototype.buffer.from_bytes(data[start:stop])
        store, place = zarr_at(self.file_of(key))
        found: Buffer | None = await store.get(place, prototype, byte_range)
        if found is None and key.startswith(f"{self.variable}/c/"):
            raise InputError(f"shard {self.file_of(key)} is gone: its cycle was removed after the archive was opened")
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, extent) for key, extent in key_ranges)))

    async def exists(self, key: str) -> bool:
        if key in self.made:
            return True
        store, place = zarr_at(self.file_of(key))
        return bool(await store.exists(place))

    async def set(self, key: str, value: Buffer) -> None:
        raise PermissionError(f"published cycles are never changed (set {key})")

    async def delete(self, key: str) -> None:
        raise PermissionError(f"published cycles are never changed (delete {key})")

    async def list(self) -> AsyncIterator[str]:
        for key in self.made:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self.made:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        below = prefix.rstrip("/") + "/" if prefix else ""
        for name in sorted({k.removeprefix(below).split("/")[0] for k in self.made if k.startswith(below)}):
            yield name


def _extent(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest():
            return byte_range.start, byte_range.end
        case OffsetByteRequest():
            return byte_range.offset, size
        case SuffixByteRequest():
            return max(0, size - byte_range.suffix), size
    raise TypeError(f"{byte_range!r} is no byte range of Zarr")


def _lead_times(chunk: bytes, document: Mapping[str, Any]) -> list[timedelta]:
    values = np.frombuffer(chunk[:-4], dtype="<i8")
    return [timedelta(**{document["attributes"]["units"]: int(v)}) for v in values]


def _refuse_mixed(shelf: Shelf, cycles: list[PublishedCycle], variable: str) -> None:
    """Cycles with the same document of the variable agree; only others are looked at more closely."""
    documents = map_on(shelf.together, lambda cycle: _document(shelf, cycle, variable), cycles)
    expected = documents[-1]
    agreed = {expected}
    for following, cycle, document in zip(cycles[:0:-1], cycles[-2::-1], documents[-2::-1], strict=True):
        if document in agreed:
            continue
        differing = _differences(document, expected)
        if differing:
            raise InputError(
                f"cycle {cycle.path} differs from the newest {cycles[-1].path} in {', '.join(differing)}; "
                f"all agree from start={following.reference_time.astype('datetime64[s]')} on"
            )
        agreed.add(document)


def _document(shelf: Shelf, cycle: PublishedCycle, variable: str) -> bytes:
    try:
        return _bytes_of(shelf, cycle.path, f"{variable}/zarr.json")
    except FileNotFoundError:
        return b'{"attributes": {}}'


def _bytes_of(shelf: Shelf, store: str, key: str) -> bytes:
    with shelf.read(store, key) as file:
        return file.read()


def _differences(found: bytes, expected: bytes) -> list[str]:
    a, b = json.loads(found), json.loads(expected)
    keys = ("shape", "dimension_names", "data_type", "chunk_grid", "codecs", "fill_value")
    attributes = ("units", "scale_factor", "add_offset", "squall_grid")
    differing = [k for k in keys if a.get(k) != b.get(k)]
    return differing + [k for k in attributes if a["attributes"].get(k) != b["attributes"].get(k)]
