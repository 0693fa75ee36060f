"""An outfit whose engine takes and returns codes: it is asked to where it may, and the forecast is the host's."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.base import DeviceLostError, EngineError, OutOfMemoryError
from engines.codes import CodeTable, ValueTable
from jobs import outfit
from jobs.outfit import code_table, open_outfit
from jobs.pool import Resources
from jobs.prepare import load, prepare
from jobs.worker import Worker
from pipelines.model_space import ModelSpace
from pipelines.product import Packing
from pipelines.sink import make_draft
from pipelines.source import find_inputs
from pipelines.transform import Encoder
from pipelines.units import Linear

TIME = np.datetime64("2024-06-01T12:20", "ns")


@pytest.fixture
def prepared(product):
    return prepare(load(product, []), Resources(0, 1))


@dataclass
class CodeLane:
    """A lane of ONNX Runtime, its frames unpacked and its results packed and masked as a GPU would."""

    whole: Any
    codes: CodeTable
    values: ValueTable | None

    @cached_property
    def given(self) -> NDArray[Any]:
        numbers = self.whole.given
        return numbers if self.values is None else np.empty(numbers.shape, self.values.dtype)

    def run(self) -> NDArray[Any]:
        if self.values is None:
            return self._packed(self.whole.run())
        stored = self.given.view(f"u{self.given.itemsize}")
        self.whole.given[...] = self.values.values[stored]
        packed = self._packed(self.whole.run())
        if self.values.missing is not None:
            np.copyto(packed, self.codes.fill, where=self.values.missing[stored[:, -1:]])
        return packed

    def _packed(self, results: NDArray[Any]) -> NDArray[Any]:
        return self.codes.search(results.ravel()).reshape(results.shape)


@pytest.fixture
def packing(monkeypatch):
    """Engines of ONNX Runtime that take codes, or fail to with `packing.error`; the tables that they were asked for.

    With `packing.only_to_take_them` they fail only if they are to take codes, too.
    """

    class Asked(list):
        error, only_to_take_them = None, False

    asked, real = Asked(), outfit.open_engine

    def opening(order, tell):
        supplied = real(order, tell)

        def packing(codes, values=None):
            asked.append((codes, values))
            if asked.error is not None and not (asked.only_to_take_them and values is None):
                raise asked.error

            @contextmanager
            def open_lane(shape):
                with supplied.engine.lane(shape) as lane:
                    yield CodeLane(lane, codes, values)

            return open_lane

        supplied.engine.packing = packing
        return supplied

    monkeypatch.setattr(outfit, "open_engine", opening)
    return asked


def write_shards(setup, prepared, name):
    """The bytes of all shards that a worker of this setup writes."""
    worker, cycle = Worker(setup), find_inputs(prepared.source, prepared.product, TIME)
    layout = replace(prepared.layout, shape=(len(setup.leads), *prepared.layout.shape[1:]))
    draft = make_draft(prepared.product.output.store, name, TIME, layout, replace=True)
    results = [worker.run(block, cycle, draft, prepared.source) for block in setup.tiling.blocks()]
    assert sum(result.tiles_reused for result in results) > 0
    store = Path(draft.store)
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


@pytest.mark.parametrize("leads", [(0, 1, 2), (0, 2)])
@pytest.mark.parametrize("masked", [True, False])
def test_a_forecast_of_codes_is_the_forecast_of_numbers(prepared, packing, monkeypatch, leads, masked):
    setup = replace(prepared.setup, leads=leads, mask_from_input=masked)
    packed = write_shards(setup, prepared, "packed")
    ((table, values),) = packing
    assert (table.dtype, table.lowest, table.fill, table.missing_below) == ("int16", -32767, -32768, None)
    assert values.dtype == "int16"
    assert np.flatnonzero(values.missing).tolist() == [32768] if masked else values.missing is None
    monkeypatch.undo()
    assert packed == write_shards(setup, prepared, "plain")
    assert packed


def test_frames_that_are_not_of_integer_codes_are_decoded_on_the_host(prepared, packing, caplog):
    caplog.set_level("INFO")
    decoder = prepared.setup.decoder
    floats = replace(decoder, encoding=replace(decoder.encoding, dtype="float32"))
    opened = open_outfit(replace(prepared.setup, decoder=floats))
    assert not opened.forecaster.takes_codes
    assert [values for _, values in packing] == [None]
    assert "frames are decoded on the host: no table holds all codes of float32" in caplog.text
    with opened.forecaster.lane((1, 2, 72, 72)) as lane:
        assert lane.given.dtype == np.float32


def test_an_engine_that_takes_codes_returns_codes(prepared, packing):
    opened = open_outfit(prepared.setup)
    assert opened.forecaster.takes_codes
    with opened.forecaster.lane((1, 2, 72, 72)) as lane:
        assert lane.given.dtype == np.int16
        lane.given[...] = 1
        assert lane.run().dtype == np.int16


def test_tiles_that_are_blended_stay_numbers(prepared, packing):
    tiling = replace(prepared.setup.tiling, mode="feather")
    opened = open_outfit(replace(prepared.setup, tiling=tiling))
    with opened.forecaster.lane((1, 2, 72, 72)) as lane:
        lane.given[...] = 1
        assert lane.run().dtype == np.float32
    assert not packing


def test_an_encoder_without_a_table_packs_on_the_host(prepared, packing):
    encoder = Encoder(Packing(), change=Linear(-1.0))
    assert code_table(encoder) is None
    assert open_outfit(replace(prepared.setup, encoder=encoder)).forecaster.encoder is encoder
    assert not packing


def test_where_a_gpu_cannot_pack_the_host_does_and_says_why(prepared, packing, caplog):
    packing.error = EngineError("no kernel for this GPU")
    opened = open_outfit(prepared.setup)
    with opened.forecaster.lane((1, 2, 72, 72)) as lane:
        lane.given[...] = 1
        assert lane.run().dtype == np.float32
    assert not opened.forecaster.takes_codes
    assert [values is None for _, values in packing] == [False, True]
    for told in ("frames are decoded on the host", "results are packed on the host"):
        assert f"{told}: no kernel for this GPU" in caplog.text


@pytest.mark.parametrize("masked", [True, False])
def test_where_a_gpu_only_cannot_take_codes_results_are_packed_there_all_the_same(
    prepared, packing, monkeypatch, caplog, masked
):
    packing.error, packing.only_to_take_them = OutOfMemoryError("no room for the table of values"), True
    setup = replace(prepared.setup, mask_from_input=masked)
    packed = write_shards(setup, prepared, "packed")
    assert [values is None for _, values in packing] == [False, True]
    assert "frames are decoded on the host: no room for the table of values" in caplog.text
    assert "results are packed on the host" not in caplog.text
    monkeypatch.undo()
    assert packed == write_shards(setup, prepared, "plain")


def test_a_lane_that_only_packs_is_given_numbers_and_returns_codes(prepared, packing):
    packing.error, packing.only_to_take_them = EngineError("no kernel"), True
    opened = open_outfit(prepared.setup)
    assert not opened.forecaster.takes_codes
    with opened.forecaster.lane((1, 2, 72, 72)) as lane:
        assert lane.given.dtype == np.float32
        lane.given[...] = 1
        assert lane.run().dtype == np.int16


def test_a_gpu_that_is_lost_meanwhile_is_no_reason_to_go_on(prepared, packing):
    packing.error = DeviceLostError("cuLaunchKernel failed: CUDA_ERROR_LAUNCH_FAILED")
    with pytest.raises(DeviceLostError):
        open_outfit(prepared.setup)


def test_the_table_of_an_encoder_gives_its_codes():
    encoder = Encoder(Packing(dtype="uint16", scale_factor=0.1), ModelSpace(missing_below=-0.5))
    values = np.float32([np.nan, -1, -0.5, -0.0, 0.04, 0.16, 12.3, 1e9, np.inf])
    codes = np.empty((1, 1, values.size), np.uint16)
    encoder.encode(values.reshape(codes.shape), codes)
    np.testing.assert_array_equal(code_table(encoder).search(values), codes.ravel())
