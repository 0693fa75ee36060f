"""Forecast and observation are scored in the same units, at the same times."""

import shutil
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import xarray as xr
import yaml

from jobs.scores import verify_product
from pipelines.cf import Provenance
from pipelines.errors import ConfigError
from pipelines.layout import choose_layout
from pipelines.product import load_product
from pipelines.sink import open_draft, publish, write_block
from pipelines.source import open_source

START = np.datetime64("2024-06-01T12:00", "ns")
RATE = {"standard_name": "lwe_precipitation_rate", "long_name": "rain rate", "units": "mm h-1"}


def rates(frames=4):
    """Rain of 0 to 20 mm h-1, (frame, y, x), multiples of 0.01; every frame is the one before, a column on."""
    first = np.random.default_rng(5).integers(0, 2000, (20, 30)) / 100 * (np.arange(30) % 7 > 2)
    return np.stack([np.roll(first, frame, axis=1) for frame in range(frames)])


@pytest.fixture
def verified(tmp_path):
    """Scores of persistence forecasts of the first frames, from a store with these units and seconds of jitter."""

    def verify(
        units, factor, jitter=(0, 0, 0, 0), attributes=RATE, unwritten=(), blank=(), cycles=1, thresholds=(0.1, 1.0),
        step=0.01,
    ):  # fmt: skip
        times = START + np.arange(4) * np.timedelta64(5, "m") + np.array(jitter).astype("timedelta64[s]")
        coordinates = {"time": times, "y": np.arange(20) * 1000.0, "x": np.arange(30) * 1000.0}
        seen = rates()
        seen[list(blank)] = np.nan
        rain = xr.DataArray(seen * factor, coordinates, ("time", "y", "x"), attrs={"units": units})
        rain.to_dataset(name="rain").to_zarr(
            tmp_path / "radar.zarr",
            mode="w",
            consolidated=False,
            encoding={"rain": {"chunks": (1, 20, 30)}},
            write_empty_chunks=True,
        )
        for frame in unwritten:
            shutil.rmtree(tmp_path / "radar.zarr" / "rain" / "c" / str(frame))
        tree = {
            "name": "rain",
            "input": {"store": "radar.zarr", "variable": "rain", "history": ["0min"]},
            "model": {"package": "builtin:persistence"},
            "lead_times": {"step": "5min", "until": "15min"},
            "output": {"store": "forecasts", "variable": "rate", "packing": {"scale_factor": step}},
        }
        file = tmp_path / "rain.yaml"
        file.write_text(yaml.safe_dump(tree))
        product = load_product(file)
        grid = open_source(product.input).grid
        layout = choose_layout(grid.shape, 3, product.output)
        provenance = Provenance("", "persistence 1.0", "", {}, "", ())
        for time, frame in zip(times[:cycles], rates(cycles), strict=True):
            draft = open_draft(
                product.output.store, "rain", time, grid, product.leads, layout, attributes, provenance, True
            )
            codes = np.repeat(np.rint(frame[None] * 100).astype(np.int16), 3, axis=0)
            for shard in layout.shards:
                window = layout.shard_window(*shard)
                write_block(draft, window, codes[:, *window.slices])
            publish(draft, replace=True)
        return verify_product(file, (), thresholds)

    return verify


@pytest.mark.parametrize(("units", "factor"), [("mm/h", 1), ("kg m-2 s-1", 1 / 3600), ("mm/(5 min)", 1 / 12)])
def test_what_was_observed_is_scored_in_the_units_of_the_forecast(verified, units, factor):
    scores = verified(units, factor)
    assert len(scores.forecast) == 6
    for forecast, persistence in zip(scores.forecast, scores.persistence, strict=True):
        assert 0 < forecast.csi < 1
        assert forecast.csi == pytest.approx(persistence.csi, abs=0.02)


def test_thresholds_are_those_of_rain_in_the_units_of_the_forecast_unless_they_are_given(verified):
    usual = verified("mm h-1", 1, thresholds=())
    assert sorted({score.threshold for score in usual.forecast}) == [0.1, 1, 5]
    per_second = verified("mm h-1", 1, thresholds=(), attributes=RATE | {"units": "m s-1"}, step=0.01 / 3.6e6)
    assert sorted({score.threshold * 3.6e6 for score in per_second.forecast}) == pytest.approx([0.1, 1, 5])
    assert [score.csi for score in per_second.forecast] == pytest.approx(
        [score.csi for score in usual.forecast], abs=0.01
    )


def test_frames_within_the_tolerance_count_as_observed(verified):
    scores = verified("mm h-1", 1, jitter=(3, -4, 7, 90))
    assert sorted({score.lead_time.total_seconds() for score in scores.forecast}) == [300, 600]


def test_a_forecast_at_a_threshold_is_an_event_as_what_was_observed_there_is(verified):
    thresholds = tuple(np.unique(rates(1))[1:60].tolist())
    scores = verified("mm h-1", 1, thresholds=thresholds)
    assert [score.csi for score in scores.forecast] == [score.csi for score in scores.persistence]


def test_units_that_do_not_fit_the_forecast_are_refused(verified):
    with pytest.raises(ConfigError, match="found no standard_name in K; expected lwe_precipitation_rate in mm h-1"):
        verified("K", 1)


def test_a_time_of_which_nothing_is_stored_is_not_observed(verified):
    """As where the time axis is laid out ahead: Zarr would give the fill value, here 0, no rain."""
    known = [score for score in verified("mm h-1", 1).forecast if score.lead_time == timedelta(minutes=5)]
    found = verified("mm h-1", 1, unwritten=(2, 3)).forecast
    assert [replace(score, fss=0) for score in found] == [replace(score, fss=0) for score in known]


def test_each_lead_time_is_scored_over_the_cycles_for_which_it_was_observed(verified):
    """The newest cycle has been seen for a step or two only, and must not take the other lead times from the table."""
    scores = verified("mm h-1", 1, cycles=3)
    found = {(score.lead_time / timedelta(minutes=1), score.cases) for score in scores.forecast}
    assert found == {(5, 3), (10, 2), (15, 1)}
    assert [score.cases for score in scores.persistence] == [score.cases for score in scores.forecast]


def test_a_frame_of_which_every_cell_is_missing_is_not_observed(verified):
    leads = {score.lead_time / timedelta(minutes=1) for score in verified("mm h-1", 1, blank=(2,)).forecast}
    assert leads == {5, 15}
