"""The ledger: one row a cycle, parts that are there whole, readable by the usual tools."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest

from pipelines.cycles import list_cycles
from pipelines.errors import OutputError
from pipelines.ledger import SCHEMA, Ledger, Row, ledger_folder

ROW = Row(
    "rain", np.datetime64("2024-06-01T12:00", "ns"), "published", "", "/out/1200.zarr", "onnxruntime", 3, 4, 500, 0.25,
    0.1, 0.2, 0.3, 0.4, 1.0, datetime(2024, 6, 2, tzinfo=UTC),
)  # fmt: skip


def rows(count: int) -> list[Row]:
    return [replace(ROW, reference_time=ROW.reference_time + np.timedelta64(n, "m")) for n in range(count)]


def parts(root) -> list[str]:
    return sorted(p.name for p in Path(ledger_folder(str(root), "rain")).iterdir())


def test_rows_come_back_with_their_types(tmp_path):
    ledger = Ledger(str(tmp_path), "rain")
    ledger.add(rows(3))
    ledger.flush()
    table = pyarrow.dataset.dataset(ledger.folder).to_table()
    assert table.schema.equals(SCHEMA)
    frame = pd.read_parquet(ledger.folder)
    assert frame.reference_time.dt.tz is not None
    assert list(frame.reference_time) == [pd.Timestamp(f"2024-06-01T12:0{n}", tz="UTC") for n in range(3)]
    assert dict(frame.iloc[0][["status", "tiles_run", "missing_share"]]) == {
        "status": "published", "tiles_run": 3, "missing_share": 0.25,
    }  # fmt: skip


def test_a_part_is_written_once_it_is_full_and_nothing_twice(tmp_path):
    ledger = Ledger(str(tmp_path), "rain", rows_per_part=4)
    for row in rows(10):
        ledger.add([row])
    assert len(parts(tmp_path)) == 2
    ledger.flush()
    ledger.flush()
    assert len(parts(tmp_path)) == 3
    assert len(pd.read_parquet(ledger.folder)) == 10


def test_an_empty_ledger_writes_nothing(tmp_path):
    Ledger(str(tmp_path), "rain").flush()
    assert not Path(ledger_folder(str(tmp_path), "rain")).exists()


def test_many_writers_add_to_one_ledger_and_no_listing_of_cycles_sees_it(tmp_path):
    for _ in range(3):
        ledger = Ledger(str(tmp_path), "rain")
        ledger.add(rows(2))
        ledger.flush()
    assert len(parts(tmp_path)) == 3
    assert len(pd.read_parquet(ledger_folder(str(tmp_path), "rain"))) == 6
    assert list_cycles(str(tmp_path), "rain") == []


def test_a_part_that_a_kill_left_half_written_is_not_read(tmp_path):
    ledger = Ledger(str(tmp_path), "rain")
    ledger.add(rows(1))
    ledger.flush()
    Path(ledger.folder, ".torn.parquet").write_bytes(b"PAR1")
    assert len(pd.read_parquet(ledger.folder)) == 1
    assert pyarrow.dataset.dataset(ledger.folder).count_rows() == 1


def test_a_ledger_that_cannot_be_written_names_its_path(tmp_path):
    (tmp_path / "rain").write_text("in the way")
    ledger = Ledger(str(tmp_path), "rain")
    ledger.add(rows(1))
    with pytest.raises(OutputError, match="rain"):
        ledger.flush()
