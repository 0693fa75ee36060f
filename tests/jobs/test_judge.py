"""The reference of the gate: asked once for each input, and in memory only while it has something to run."""

import numpy as np
import pytest

from jobs.judge import Remembered


class FakeEngine:
    """Gives what it was given, and counts."""

    opened = closed = ran = 0

    def open(self):
        self.opened += 1
        return self

    def __call__(self, batch):
        self.ran += 1
        return batch

    def close(self):
        self.closed += 1


@pytest.fixture
def engine():
    return FakeEngine()


def batch(value):
    return np.full((1, 2, 3, 3), value, np.float32)


def test_the_reference_is_opened_when_it_is_first_asked_and_runs_each_input_once(engine):
    reference = Remembered(engine.open)
    assert engine.opened == 0
    for value in (1, 2, 1):
        np.testing.assert_array_equal(reference(batch(value)), batch(value))
    assert (engine.opened, engine.ran) == (1, 2)


def test_a_closed_reference_still_knows_its_results_and_opens_again_for_others(engine):
    reference = Remembered(engine.open)
    reference.close()
    reference(batch(1))
    reference.close()
    reference.close()
    assert engine.closed == 1
    np.testing.assert_array_equal(reference(batch(1)), batch(1))
    assert (engine.opened, engine.ran) == (1, 1)
    np.testing.assert_array_equal(reference(batch(2)), batch(2))
    assert (engine.opened, engine.ran) == (2, 2)
