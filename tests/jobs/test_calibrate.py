"""The pace: measured on real blocks, kept, and what the planner goes by; nothing is published."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from engines.model import load_package
from jobs.calibrate import measure_pace, pace_of
from jobs.cli import main
from jobs.pace import keep_pace, known_pace
from jobs.pool import Resources
from jobs.prepare import load, plan_of, prepare
from pipelines.errors import InputError
from pipelines.planner import Pace
from pipelines.run import BlockResult, Seconds
from pipelines.spans import Span
from pipelines.tiling import Tiling

TILING = Tiling((100, 100), (50, 100), (50, 100), 5, 1)


def result(block: int, run: int, **stages: float) -> BlockResult:
    spans = tuple(Span(stage, 10.0, 10.0 + seconds, "thread") for stage, seconds in stages.items())
    return BlockResult(block, run, 0, (), 0, Seconds(), spans=spans)


def test_waiting_and_decoding_are_no_inference():
    results = [result(0, 1, infer=5.0, lane=1.0, decode=1.0), result(1, 1, read=2.0, infer=3.0, pack=4.0, write=5.0)]
    pace = pace_of(results, TILING)
    assert pace.infer == pytest.approx((4.0 - 1.0 + 3.0) / (2 * 60 * 100))
    assert pace.host == pytest.approx((1.0 + 2.0 + 4.0 + 5.0) / 10_000)


def test_blocks_without_inference_measure_nothing():
    with pytest.raises(InputError, match="dry or missing"):
        pace_of([result(0, 0, read=1.0)], TILING)


def test_a_pace_is_kept_and_a_damaged_one_is_as_none(tmp_path, monkeypatch, product):
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    package = load_package(load(product, []).package.folder)
    assert known_pace(package) is None
    kept = keep_pace(package, Pace(1e-9, 2e-9))
    assert known_pace(package) == Pace(1e-9, 2e-9)
    kept.write_text("{")
    assert known_pace(package) is None
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]


def test_measuring_publishes_nothing(product):
    prepared = prepare(load(product, []), Resources(0, 2))
    pace = measure_pace(prepared)
    assert pace.infer > 0
    assert pace.host > 0
    assert not (product.parent / "out").exists()


def test_frames_that_are_laid_out_ahead_are_not_measured(product, monkeypatch):
    shutil.rmtree(product.parent / "radar.zarr" / "precip_rate" / "c" / "5")
    monkeypatch.setattr("jobs.clock.now", lambda: np.datetime64("2024-06-01T12:21", "ns"))
    assert measure_pace(prepare(load(product, []), Resources(0, 2))).infer > 0


def test_beside_a_gpu_the_plan_says_whose_pace_it_goes_by(tmp_path, monkeypatch, product):
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    planned = plan_of(product, ())
    assert "pace" not in dict(replace(planned, gpu=False).rows())
    assert "of one H200" in dict(replace(planned, gpu=True).rows())["pace"]


def test_the_plan_shows_what_was_measured(tmp_path, monkeypatch, product):
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    ran = CliRunner().invoke(main, ["plan", str(product), "--calibrate", "--format", "json"])
    assert ran.exit_code == 0, ran.output
    shown = json.loads(ran.output)["pace"]
    assert min(shown.values()) > 0
    after = CliRunner().invoke(main, ["plan", str(product)])
    assert "measured here" in " ".join(after.output.split())
    again = CliRunner().invoke(main, ["plan", str(product), "--format", "json"])
    assert json.loads(again.output)["pace"] == shown
