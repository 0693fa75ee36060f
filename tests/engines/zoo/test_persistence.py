"""Persistence: the newest field, whole, at every lead time."""

import numpy as np
import pytest

from engines.zoo import PersistenceSpec
from engines.zoo.persistence import write_graph


@pytest.mark.parametrize("history", [(0,), (-10, -5, 0)])
def test_every_lead_time_is_the_newest_field_with_its_missing_cells(history, load):
    frames = np.random.default_rng(0).uniform(-1, 20, (2, len(history), 5, 7)).astype(np.float32)
    frames[:, :, 2:4] = -1
    forecast = load(write_graph(PersistenceSpec(history, (5, 10, 30))))(frames)
    np.testing.assert_array_equal(forecast, np.repeat(frames[:, -1:], 3, axis=1))


@pytest.mark.parametrize(
    ("history", "leads", "found"),
    [
        ((), (5,), r"history_minutes is \(\)"),
        ((-10, -5, -1), (5,), "even steps"),
        ((0, -5), (5,), "even steps"),
        ((0,), (), r"lead_minutes is \(\)"),
        ((0,), (10, 5), "rising"),
    ],
)
def test_a_spec_without_sense_is_refused(history, leads, found):
    with pytest.raises(ValueError, match=found):
        PersistenceSpec(history, leads)
