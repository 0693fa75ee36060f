"""A worker in this process: how it opens its engine, says how far that is, and changes to another setup."""

from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from engines.base import ModelError
from jobs import outfit
from jobs.pool import Resources
from jobs.prepare import load, prepare
from jobs.worker import Worker
from pipelines.sink import make_draft
from pipelines.source import find_inputs

TIME = np.datetime64("2024-06-01T12:20", "ns")


@pytest.fixture
def prepared(product):
    return prepare(load(product, []), Resources(0, 1))


@pytest.fixture
def closed(monkeypatch):
    """Engines that were closed, and how many were open then."""
    opened, closed = [], []
    real = outfit.open_engine

    def opening(order, tell):
        supplied = real(order, tell)
        opened.append(supplied.engine)
        close = supplied.engine.close
        supplied.engine.close = lambda: (closed.append((supplied.engine, len(opened))), close())
        return supplied

    monkeypatch.setattr(outfit, "open_engine", opening)
    return closed


def make_block(worker, prepared):
    cycle = find_inputs(prepared.source, prepared.product, TIME)
    draft = make_draft(prepared.product.output.store, "tiny", TIME, prepared.layout, replace=True)
    return worker.run(prepared.plan.tiling.blocks()[0], cycle, draft, prepared.source)


def damaged(setup):
    model = replace(setup.order.model, path=Path("gone.onnx"), graph_sha256="0" * 64)
    return replace(setup, order=replace(setup.order, model=model))


def test_what_is_told_while_an_engine_is_opened_can_be_asked_for_meanwhile(prepared, monkeypatch):
    said, go, real = Event(), Event(), outfit.open_engine

    def opening(order, tell):
        tell("building, 40 %")
        said.set()
        assert go.wait(60)
        return real(order, tell)

    monkeypatch.setattr(outfit, "open_engine", opening)
    worker = Worker(prepared.setup)
    assert said.wait(60)
    assert (worker.status().news, worker.status().engine) == ("building, 40 %", "")
    go.set()
    assert make_block(worker, prepared).engine == worker.status().engine
    assert worker.status().news == ""


def test_an_equal_setup_changes_nothing(prepared, closed):
    worker = Worker(prepared.setup)
    before = worker._outfit.result()
    worker.adopt(replace(prepared.setup), None)
    assert worker._outfit.result() is before
    assert not closed


def test_the_engine_stays_if_only_the_tiling_changes(prepared, closed):
    worker = Worker(prepared.setup)
    engine = worker._outfit.result().engine
    worker.adopt(replace(prepared.setup, leads=(0, 1)), None)
    assert worker._outfit.result().engine is engine
    assert worker._outfit.result().forecaster.leads == 2
    assert not closed


def test_a_setup_for_a_store_that_was_written_anew_is_adopted_with_its_codes(prepared, product, rescale, closed):
    worker = Worker(prepared.setup)
    rescale(0.02)
    anew = prepare(load(product, []), Resources(0, 1))
    worker.adopt(anew.setup, None)
    decoder = worker._outfit.result().forecaster.decoder
    assert decoder.encoding.scale_factor == 0.02
    assert decoder.table[100] == 2.0
    assert make_block(worker, anew).tiles_run > 0
    assert not closed


def test_another_engine_is_open_before_the_old_one_is_closed(prepared, closed):
    worker = Worker(prepared.setup)
    old = worker._outfit.result().engine
    worker.adopt(replace(prepared.setup, order=replace(prepared.setup.order, threads=2)), None)
    assert worker._outfit.result().engine is not old
    assert closed == [(old, 2)]


def test_an_engine_that_cannot_be_opened_is_an_error_of_the_block_and_mended_by_the_next_setup(prepared):
    worker = Worker(prepared.setup)
    worker.adopt(damaged(prepared.setup), None)
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        make_block(worker, prepared)
    assert worker.status().engine == ""
    worker.adopt(prepared.setup, None)
    assert make_block(worker, prepared).tiles_run > 0


def test_a_block_says_what_its_worker_holds(prepared):
    worker = Worker(prepared.setup)
    without = make_block(worker, prepared).memory
    assert without.resident > 10**7
    assert (without.device, without.pinned) == (0, 0)
    engine = worker._outfit.result().engine
    engine.activation_bytes, engine.buffer_bytes, engine.pinned_bytes = 500, 30, 20
    on_gpu = make_block(worker, prepared).memory
    assert (on_gpu.device, on_gpu.pinned) == (530, 20)
    assert on_gpu.resident >= without.resident
