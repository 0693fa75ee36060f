"""Everything of a forecast store but its shards: CF names and attributes, coordinates, Zarr v3 documents.

Pure: the same cycle gives the same bytes, whatever the clock, the host or the installed zarr version.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.grid import Grid
from pipelines.layout import Layout
from pipelines.shard import shard_codecs

INIT_TIME, LEAD_TIME, VALID_TIME = "init_time", "lead_time", "valid_time"
CONVENTIONS = "CF-1.11"
_CONSOLIDATED = "consolidated_metadata"
_EPOCH = {
    "units": "seconds since 1970-01-01 00:00:00",
    "calendar": "standard",
    "units_metadata": "leap_seconds: none",
}
_ENCODING = (  # or names of variables that are not in the forecast store
    "_FillValue", "missing_value", "scale_factor", "add_offset", "coordinates", "grid_mapping", "dtype", "bounds",
)  # fmt: skip
_SMALL_CODECS: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]

Attribute = str | int | float


@dataclass(frozen=True)
class Provenance:
    """Where a forecast comes from; kept as `squall_...` attributes of its store.

    `product` is the resolved product file (YAML); `model` and `engine` name and identify what ran;
    `versions` are those of the packages that shape the numbers; `frame_times` are the input times used, `missing_times`
    those of frames that the model was given as missing.
    """

    product: str
    model: str
    engine: str
    versions: Mapping[str, str]
    input_store: str
    frame_times: Sequence[np.datetime64]
    missing_times: Sequence[np.datetime64] = ()

    def attributes(self) -> dict[str, Attribute]:
        missing = {"squall_missing_frame_times": _in_seconds(self.missing_times)} if self.missing_times else {}
        return {
            "source": f"model {self.model}; engine {self.engine}",
            "history": f"squall: forecast made from frames of {self.input_store}",
            "squall_product": self.product,
            "squall_model": self.model,
            "squall_engine": self.engine,
            "squall_versions": ", ".join(f"{name} {version}" for name, version in sorted(self.versions.items())),
            "squall_input_store": self.input_store,
            "squall_frame_times": _in_seconds(self.frame_times),
            **missing,
        }


def _in_seconds(times: Sequence[np.datetime64]) -> str:
    return " ".join(str(time.astype("datetime64[s]")) for time in times)


@dataclass(frozen=True, eq=False)
class Coordinate:
    """A small array of a store, kept in one chunk; `dims` are its axes in order."""

    dims: tuple[str, ...]
    values: NDArray[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """Its zarr.json."""
        return _array_document(self.dims, self.values.shape, self.values.shape, self.values.dtype.name, 0,
                               _SMALL_CODECS, self.attributes)  # fmt: skip

    @property
    def chunk(self) -> bytes:
        """Its one stored chunk."""
        data = self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()
        return data + int(google_crc32c.value(data)).to_bytes(4, "little")

    @property
    def chunk_key(self) -> str:
        return "/".join(["c", *("0" for _ in self.dims)])


@dataclass(frozen=True, eq=False)
class StoreTemplate:
    """What the stores of all cycles of a product share, as bytes: made once, filled in for each cycle.

    Attributes:
        fixed: files that are the same in every store, by key.
        head: attributes of the root, before those of the provenance.
        documents: zarr.json of every array, by name.
        lead_times: of the forecast.
    """

    fixed: Mapping[str, bytes]
    head: Mapping[str, Attribute]
    documents: Mapping[str, Any]
    lead_times: Sequence[timedelta]

    @cached_property
    def _tail(self) -> bytes:
        """The end of the root's zarr.json, the same in every store."""
        return b",\n" + as_json({_CONSOLIDATED: _consolidated(self.documents)})[2:]

    def files(self, reference_time: np.datetime64, provenance: Provenance) -> dict[str, bytes]:
        """The bytes of every file of a store but its shards, by key."""
        times = time_coordinates(np.array([reference_time]), self.lead_times)
        own = {f"{name}/{times[name].chunk_key}": times[name].chunk for name in (INIT_TIME, VALID_TIME)}
        root = as_json(_bare_group({**self.head, **provenance.attributes()}))
        return {**self.fixed, **own, "zarr.json": root.removesuffix(b"\n}") + self._tail}


def store_template(
    product: str, grid: Grid, lead_times: Sequence[timedelta], layout: Layout, attributes: Mapping[str, Attribute]
) -> StoreTemplate:
    """The template of the stores of a product.

    Args:
        attributes: CF attributes of the variable, such as standard_name, long_name and units.

    Raises:
        ConfigError: the grid or the lead times do not fit the layout, a name is used twice, or `units` is missing.
    """
    _check(grid, lead_times, layout, attributes)
    some_time = np.array(["1970-01-01"], "datetime64[ns]")
    coordinates = time_coordinates(some_time, lead_times) | _grid_coordinates(grid)
    documents = {name: c.document for name, c in coordinates.items()}
    documents[layout.variable] = _variable_document(grid, layout, attributes, _fingerprint(coordinates))
    title = f"{product}: forecast of {attributes.get('long_name', layout.variable)}"
    fixed = {f"{name}/zarr.json": as_json(document) for name, document in documents.items()}
    fixed |= {f"{name}/{c.chunk_key}": c.chunk for name, c in coordinates.items() if INIT_TIME not in c.dims}
    return StoreTemplate(fixed, {"Conventions": CONVENTIONS, "title": title}, documents, tuple(lead_times))


def store_files(
    product: str,
    reference_time: np.datetime64,
    grid: Grid,
    lead_times: Sequence[timedelta],
    layout: Layout,
    attributes: Mapping[str, Attribute],
    provenance: Provenance,
) -> dict[str, bytes]:
    """The bytes of every file of one store but its shards, by key.

    Args and errors: of `store_template`.
    """
    return store_template(product, grid, lead_times, layout, attributes).files(reference_time, provenance)


def add_attributes(root: bytes, attributes: Mapping[str, Attribute]) -> bytes:
    """The zarr.json of a store with more attributes; only its head is parsed, not the documents of its arrays.

    >>> add_attributes(as_json(group_document({"a": 1}, {})), {"b": 2}) == as_json(group_document({"a": 1, "b": 2}, {}))
    True
    """
    head, separator, tail = root.partition(b',\n "' + _CONSOLIDATED.encode() + b'": ')  # one space: the top level
    group = json.loads(head + b"\n}")
    group["attributes"] |= attributes
    return as_json(group).removesuffix(b"\n}") + separator + tail


def time_coordinates(reference_times: NDArray[np.datetime64], lead_times: Sequence[timedelta]) -> dict[str, Coordinate]:
    """init_time (init_time,), lead_time (lead_time,) and valid_time (init_time, lead_time)."""
    seconds = reference_times.astype("datetime64[s]").astype(np.int64)
    leads = np.array([lead // timedelta(seconds=1) for lead in lead_times], dtype=np.int64)
    unit, length = ("minutes", 60) if not np.any(leads % 60) else ("seconds", 1)
    init = {"standard_name": "forecast_reference_time", "long_name": "start of the forecast (UTC)", "axis": "T"}
    lead = {"standard_name": "forecast_period", "long_name": "time since the start of the forecast", "units": unit}
    valid = {"standard_name": "time", "long_name": "time at which the forecast is valid (UTC)"}
    return {
        INIT_TIME: Coordinate((INIT_TIME,), seconds, init | _EPOCH),
        # xarray turns units of time into timedelta of its own accord only where `dtype` says so
        LEAD_TIME: Coordinate((LEAD_TIME,), leads // length, lead | {"dtype": "timedelta64[ns]"}),
        VALID_TIME: Coordinate((INIT_TIME, LEAD_TIME), seconds[:, None] + leads, valid | _EPOCH),
    }


def group_document(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The zarr.json of a group that carries the documents of its arrays (consolidated metadata)."""
    return _bare_group(attributes) | {_CONSOLIDATED: _consolidated(arrays)}


def _bare_group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def _consolidated(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": dict(sorted(arrays.items()))}


def as_json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, default=_plain).encode()


def _grid_coordinates(grid: Grid) -> dict[str, Coordinate]:
    axes = (
        (grid.y_name, grid.y, grid.y_attrs, {"axis": "Y"}),
        (grid.x_name, grid.x, grid.x_attrs, {"axis": "X"}),
    )
    found = {
        name: Coordinate((name,), np.asarray(values, np.float64), default | _without_encoding(attrs))
        for name, values, attrs, default in axes
    }
    if grid.crs_name is not None:
        found[grid.crs_name] = Coordinate((), np.zeros((), np.int32), _without_encoding(grid.crs_attrs))
    return found


def _variable_document(
    grid: Grid, layout: Layout, attributes: Mapping[str, Attribute], fingerprint: str
) -> dict[str, Any]:
    packing: dict[str, Any] = {"_FillValue": layout.fill_value, "scale_factor": layout.scale_factor}
    packing |= {"add_offset": layout.add_offset} if layout.add_offset else {}
    mapping = {"grid_mapping": grid.crs_name} if grid.crs_name is not None else {}
    comment = {"comment": "missing (NaN) = no forecast, for want of input there; zero was forecast"}
    described = comment | _without_encoding(attributes) | {"coordinates": VALID_TIME} | mapping | packing
    return _array_document(
        (INIT_TIME, LEAD_TIME, grid.y_name, grid.x_name),
        (1, *layout.shape),
        (1, *layout.shard),
        layout.dtype,
        layout.fill_value,
        shard_codecs(layout),
        described | {"squall_grid": fingerprint},
    )


def _array_document(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: str,
    fill_value: int,
    codecs: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": list(codecs),
        "dimension_names": list(dims),
        "attributes": dict(attributes),
        "storage_transformers": [],
    }


def _fingerprint(coordinates: Mapping[str, Coordinate]) -> str:
    """A digest of grid and lead times: cycles with equal ones can stand in one array."""
    parts = {n: c for n, c in coordinates.items() if INIT_TIME not in c.dims}
    text = b"".join(as_json(c.document) + c.chunk for _, c in sorted(parts.items()))
    return hashlib.sha256(text).hexdigest()[:16]


def check_names(grid: Grid, variable: str) -> None:
    """Raises ConfigError if a name would stand for two arrays of the forecast store (names it)."""
    names = [INIT_TIME, LEAD_TIME, VALID_TIME, grid.y_name, grid.x_name, grid.crs_name, variable]
    twice = sorted({str(n) for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)} would name two arrays of the forecast store; rename output.variable")


def check_leads(lead_times: Sequence[timedelta]) -> None:
    """Raises ConfigError if a lead time cannot be stored (names it)."""
    for lead in lead_times:
        if lead % timedelta(seconds=1):
            raise ConfigError(f"lead time {lead.total_seconds():g} s is not a whole number of seconds")


def _check(grid: Grid, lead_times: Sequence[timedelta], layout: Layout, attributes: Mapping[str, Attribute]) -> None:
    if layout.shape != (len(lead_times), *grid.shape):
        raise ConfigError(
            f"layout is for (lead, y, x) {layout.shape}; the forecast has {(len(lead_times), *grid.shape)}"
        )
    check_leads(lead_times)
    check_names(grid, layout.variable)
    if not attributes.get("units"):
        raise ConfigError(f"variable {layout.variable!r} has no units; add units to output.attributes")


def _without_encoding(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _ENCODING}


def _plain(value: Any) -> Any:
    """JSON of the numpy values that attributes of a source may hold."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r} cannot stand in an attribute")
