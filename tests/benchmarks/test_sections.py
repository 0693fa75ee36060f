"""Sections of the benchmark of throughput: what they decide from what they measured."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench import Bench
from benchmarks.cases import QUICK
from benchmarks.cluster import free_port, shared_environment, without_address
from benchmarks.codes import Apart, compare, open_published, open_rival
from benchmarks.contender import Contender
from benchmarks.sections.exact import forecast_plainly
from benchmarks.sections.leak import LEAST, Growth, Row, growth_of
from benchmarks.sections.warm_pool import Command
from jobs.outfit import open_outfit
from pipelines.run import infer_block
from pipelines.source import find_inputs
from pipelines.spans import Stopwatch

codes = st.lists(st.integers(-32768, 32767), min_size=6, max_size=6).map(
    lambda some: np.array(some, np.int16).reshape(2, 1, 3)
)


@given(codes, codes)
def test_codes_that_differ_are_counted_over_all_lead_times(ours, theirs) -> None:
    found, between = compare(ours, theirs), abs(ours.astype(int) - theirs)
    assert (found.cells, found.wet) == (6, (ours > 0).sum())
    assert (found.differing, found.most) == ((between > 0).sum(), between.max())
    assert compare(theirs, ours).most == found.most
    assert compare(ours, ours).verdict == "equal"


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(Apart(9, 3, 0, 0), "equal"), (Apart(9, 3, 4, 1), "within one code"), (Apart(9, 3, 1, 2), "MORE THAN ONE CODE")],
)
def test_one_code_is_the_most_that_is_let_pass(found: Apart, verdict: str) -> None:
    assert found.verdict == verdict


def test_forecasts_of_other_cells_or_lead_times_are_not_compared() -> None:
    with pytest.raises(ValueError, match="expected equal"):
        compare(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="zip"):
        compare(np.zeros((1, 2, 2)), np.zeros((2, 2, 2)))


def test_the_reference_is_what_squall_makes_with_reuse_and_without(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    prepared = Bench(tmp_path, None, QUICK, [1], False, {"tiling": {"tile": [128, 128]}}).case("fmi").prepared
    cycle, outfit = find_inputs(prepared.source, prepared.product), open_outfit(prepared.setup)
    tiling = prepared.plan.tiling
    plain = forecast_plainly(prepared, outfit.engine, tiling, cycle)
    for block in tiling.blocks():
        seen, ours = tiling.reads(block), np.empty((plain.shape[0], *block.window.shape), plain.dtype)
        raw = prepared.source.read(cycle, seen)
        infer_block(raw, seen, block, outfit.forecaster, ours, Stopwatch())
        outfit.forecaster.encoder.mask(
            ours, outfit.forecaster.decoder.is_missing(raw[-1][block.window.within(seen).slices])
        )
        np.testing.assert_array_equal(plain[:, *block.window.slices], ours)
    assert (plain > 0).any()


def test_memory_that_settles_and_then_stays_is_flat() -> None:
    growth = growth_of([100, 500, 900, 990, *[1000, 1004, 996] * 20])
    assert growth.verdict == "FLAT"
    assert growth.first == growth.last == 1000


@given(st.integers(LEAST, 300), st.integers(1, 50))
def test_memory_that_grows_with_every_cycle_grows(cycles: int, step: int) -> None:
    growth = growth_of([1000 + step * n for n in range(cycles)])
    assert growth.last > growth.first
    assert growth.verdict == ("GROWS" if growth.last > 1.01 * growth.first else "FLAT")


def test_memory_that_is_given_back_does_not_grow() -> None:
    assert Growth(1000.0, 900.0).verdict == "SHRINKS"
    assert Growth(1000.0, 1010.0).verdict == "FLAT"
    assert Growth(1000.0, 1011.0).verdict == "GROWS"


def test_a_few_cycles_tell_nothing_about_a_leak() -> None:
    with pytest.raises(ValueError, match=f"expected {LEAST} or more"):
        growth_of([1000] * (LEAST - 1))


def test_a_row_keeps_the_memory_after_each_cycle() -> None:
    row = Row()
    for nbytes in (5, 7):
        row.note({"driver RSS": nbytes, "workers RSS": 2 * nbytes})
    assert row.made == 2
    assert row.series == {"driver RSS": [5, 7], "workers RSS": [10, 14]}


def test_node_and_commands_have_one_token_and_no_settings_of_another_ray(monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    shown = shared_environment(4321)
    assert shown["RAY_ADDRESS"] == "127.0.0.1:4321"
    assert shown["RAY_AUTH_MODE"] == "token"
    assert len(shown["RAY_AUTH_TOKEN"]) >= 32
    assert "RAY_AUTH_TOKEN_PATH" not in shown
    assert shown["PATH"] == os.environ["PATH"]
    head = without_address(shown)
    assert set(shown) - set(head) == {"RAY_ADDRESS"}
    assert 0 < free_port() < 65536


def test_what_a_command_takes_beside_its_cycle_is_the_rest() -> None:
    assert Command(wall=2.5, product=0.5, workers=1).rest == 2.0


def test_a_contender_is_gone_when_its_context_ends_with_an_error(tmp_path: Path) -> None:
    contender = Contender("engine_nothing", tmp_path, tmp_path / "log")
    pid = contender.memory.tree()[0].pid
    contender.__exit__(KeyError)
    assert not psutil.pid_exists(pid)


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated metadata")
def test_published_and_rival_stores_are_read_as_codes(tmp_path: Path) -> None:
    rain = np.array([[[1, -32768, 3]]], np.int16)
    attributes = {"scale_factor": 0.01, "_FillValue": -32768}
    published = xr.Dataset({"rain": (("init_time", "lead_time", "y", "x"), rain[None], attributes)})
    published.to_zarr(tmp_path / "ours.zarr", zarr_format=3, consolidated=False)
    xr.Dataset({"rain": (("lead_time", "y", "x"), rain, attributes)}).to_zarr(
        tmp_path / "theirs.zarr", zarr_format=3, consolidated=False
    )
    ours, theirs = open_published(str(tmp_path / "ours.zarr")), open_rival(tmp_path / "theirs.zarr")
    np.testing.assert_array_equal(ours, rain)
    assert compare(ours, theirs) == Apart(3, 2, 0, 0)
