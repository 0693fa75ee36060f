"""Verification: scores that can be worked out by hand, the treatment of missing cells, pooling, refusals."""

from datetime import timedelta

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import verify as module
from pipelines.errors import ConfigError, InputError
from pipelines.verify import Rules, as_table, pool, score_case, verify

START = np.datetime64("2016-09-28T15:00", "ns")
STEP = np.timedelta64(5, "m").astype("m8[ns]")
NAN = np.nan


def observations(fields) -> xr.DataArray:
    """(time, y, x) from START on, 5 minutes apart."""
    fields = np.asarray(fields, np.float32)
    sizes = fields.shape[1:]
    coords = {"time": START + STEP * np.arange(len(fields)), "y": np.arange(sizes[0])[::-1], "x": np.arange(sizes[1])}
    return xr.DataArray(fields, coords, dims=("time", "y", "x"))


def forecasts(fields, inits=(0,)) -> xr.DataArray:
    """(init_time, lead_time, y, x), starting `inits` steps after START."""
    fields = np.asarray(fields, np.float32)
    like = observations(fields[0])
    coords = {
        "init_time": START + STEP * np.array(inits),
        "lead_time": STEP * np.arange(1, fields.shape[1] + 1),
        "y": like.y,
        "x": like.x,
    }
    return xr.DataArray(fields, coords, dims=("init_time", "lead_time", "y", "x"))


def only(forecast, observed, **rules):
    """The one score of one field pair, threshold 1."""
    seen = observations([np.zeros_like(observed), observed])
    (score,) = verify(forecasts([[forecast]]), seen, Rules(thresholds=(1.0,), **rules))
    return score


def test_the_scores_are_those_worked_out_by_hand():
    score = only([[2, 2, 2, 0, 0, 0]], [[3, 1, 0, 4, 0, 0]])
    assert (score.csi, score.pod, score.far, score.frequency_bias) == (2 / 4, 2 / 3, 1 / 3, 1.0)
    assert score.mae == pytest.approx((1 + 1 + 2 + 4) / 6)
    assert (score.lead_time, score.threshold, score.cases) == (timedelta(minutes=5), 1.0, 1)


def test_a_value_at_the_threshold_is_an_event():
    assert only([[1.0, 0.0]], [[1.0, 0.0]]).csi == 1


def test_without_any_event_ratios_are_nan_and_not_zero():
    assert np.isnan(only([[0.0, 0.0]], [[0.0, 0.0]]).csi)


def test_cells_that_were_not_observed_do_not_count():
    assert only([[5, 5, 5]], [[5, NAN, NAN]]).csi == 1


def test_cells_that_only_the_forecast_misses_count_as_dry_or_are_skipped():
    assert only([[5, NAN]], [[5, 5]]).csi == 0.5
    assert only([[5, NAN]], [[5, 5]], missing_forecast="skip").csi == 1


def test_the_mean_absolute_error_takes_only_cells_known_to_both():
    assert only([[5, NAN, 1]], [[4, 3, NAN]]).mae == 1


def test_fractions_of_a_shifted_field_score_better_in_a_wider_window():
    forecast, observed = np.zeros((16, 16)), np.zeros((16, 16))
    forecast[6:9, 5:8] = observed[6:9, 7:10] = 3
    near, far = (only(forecast, observed, window=(size, size)).fss for size in (1, 7))
    assert 0 < near < far < 1
    assert np.isnan(only(forecast, observed).fss)


def test_pooling_adds_events_and_the_mean_of_cases_does_not():
    seen = observations([[[9, 9, 9, 9]], [[5, 5, 5, 5]], [[5, 0, 0, 0]]])
    made = forecasts([[[[5, 5, 5, 5]]], [[[0, 0, 5, 0]]]], inits=(0, 1))
    cases = [score_case(made.sel(init_time=init), seen, Rules((1.0,))) for init in made.init_time]
    assert pool(cases)[0].csi == 4 / 6
    assert pool(cases, "cases")[0].csi == (1 + 0) / 2
    assert pool(cases)[0].cases == 2


def test_every_lead_time_is_compared_with_its_own_valid_time():
    seen = observations([[[0.0]], [[5.0]], [[0.0]], [[5.0]]])
    rows = verify(forecasts([[[[5.0]], [[0.0]]], [[[0.0]], [[5.0]]]], inits=(0, 1)), seen, Rules((1.0,)))
    assert [(row.lead_time, row.csi) for row in rows] == [(timedelta(minutes=5), 1), (timedelta(minutes=10), 1)]


@settings(max_examples=20, deadline=None)
@given(strip=st.integers(1, 60), seed=st.integers(0, 9))
def test_counting_in_strips_changes_nothing(strip, seed):
    random = np.random.default_rng(seed)
    fields = random.choice([0, 0.5, 2, 8, NAN], (2, 9, 6)).astype(np.float32)
    whole = module._score_field(*fields, Rules())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP_CELLS", strip)
        xr.testing.assert_equal(module._score_field(*fields, Rules()), whole)


def test_the_table_has_a_row_for_each_lead_time_and_threshold():
    made, seen = forecasts(np.ones((1, 3, 2, 2))), observations(np.ones((4, 2, 2)))
    table = as_table(verify(made, seen, Rules((0.1, 1.0))))
    assert table["lead_minutes"].tolist() == [5, 5, 10, 10, 15, 15]
    assert table["threshold"].tolist() == [0.1, 1.0] * 3


class TestRefusals:
    def test_a_valid_time_that_was_not_observed(self):
        with pytest.raises(InputError, match=r"2 valid time.*2016-09-28T15:10"):
            verify(forecasts(np.ones((1, 3, 2, 2))), observations(np.ones((2, 2, 2))))

    def test_another_grid_size(self):
        with pytest.raises(InputError, match=r"\(2, 3\) cells, what was observed \(2, 2\)"):
            verify(forecasts(np.ones((1, 1, 2, 3))), observations(np.ones((2, 2, 2))))

    def test_the_same_size_elsewhere(self):
        seen = observations(np.ones((2, 2, 2)))
        with pytest.raises(InputError, match="'y' of the forecast differs"):
            verify(forecasts(np.ones((1, 1, 2, 2))), seen.assign_coords(y=seen.y + 7))

    def test_a_field_without_an_observed_cell(self):
        with pytest.raises(InputError, match="no observed cell"):
            only([[1.0]], [[NAN]])

    def test_no_forecast_at_all(self):
        with pytest.raises(InputError, match="no forecast to verify"):
            pool([])

    @pytest.mark.parametrize("rules", [{"thresholds": ()}, {"thresholds": (1.0, 0.1)}, {"window": (0, 3)}])
    def test_rules_without_sense(self, rules):
        with pytest.raises(ConfigError, match="expected"):
            Rules(**rules)
