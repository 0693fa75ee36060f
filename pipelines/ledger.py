"""The ledger of a product: a Parquet record of its cycles, one row each, `<root>/<product>/ledger/*.parquet`.

Rows are written in parts, each put there whole, so that memory stays bounded and a kill loses the last part at most.
pandas and pyarrow read the folder as one table. A cycle that was made twice has two rows.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.shelves import open_shelf

FOLDER = "ledger"


@dataclass(frozen=True)
class Row:
    """What became of one cycle; times in UTC, stages in seconds.

    `reason` says why it was not published, or what is wrong with it. `missing_share` is that of the newest frame.
    """

    product: str
    reference_time: np.datetime64
    status: str
    reason: str
    path: str
    engine: str
    tiles_run: int
    tiles_reused: int
    bytes_written: int
    missing_share: float
    read_seconds: float
    infer_seconds: float
    write_seconds: float
    publish_seconds: float
    total_seconds: float
    recorded_at: datetime


_TYPES: dict[Any, Any] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    np.datetime64: pa.timestamp("ns", "UTC"),
    datetime: pa.timestamp("us", "UTC"),
}
SCHEMA = pa.schema([(column.name, _TYPES[column.type]) for column in fields(Row)])
ROWS_PER_PART = 4096


class Ledger:
    """Adds rows to the ledger of a product; they are safe after `flush`, or when a part is full.

    Names of parts begin with when and where they were written, so many writers may add at the same time.
    """

    def __init__(self, root: str, product: str, rows_per_part: int = ROWS_PER_PART) -> None:
        self._shelf, self.folder = open_shelf(root, product), ledger_folder(root, product)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self._name = f"{started}-{socket.gethostname()}-{os.getpid()}"
        self._rows: list[Row] = []
        self._parts, self._most = 0, rows_per_part

    def add(self, rows: Sequence[Row]) -> None:
        """Adds rows; writes a part once there are enough.

        Raises:
            OutputError: the part cannot be written.
        """
        self._rows.extend(rows)
        if len(self._rows) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are not written yet.

        Raises:
            OutputError: they cannot be written.
        """
        if not self._rows:
            return
        with self._shelf.errors():
            self._shelf.keep(f"{FOLDER}/{self._name}-{self._parts:06}.parquet", _as_parquet(self._rows))
        self._rows, self._parts = [], self._parts + 1


def ledger_folder(root: str, product: str) -> str:
    """Path or URL of the ledger of a product; its name is not that of a year, so no listing of cycles sees it."""
    return f"{open_shelf(root, product).home}/{FOLDER}"


def _as_parquet(rows: Sequence[Row]) -> bytes:
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    columns["reference_time"] = np.array(columns["reference_time"], "datetime64[ns]")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd")
    return bytes(sink.getvalue())
