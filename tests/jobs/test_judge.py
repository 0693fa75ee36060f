"""The reference of the gate: asked once for each input, and in memory only while it has something to run; its rules."""

import numpy as np
import pytest

from engines.model import load_package
from engines.zoo import PersistenceSpec, write_package
from jobs.judge import SCALE, Remembered, rules_of
from jobs.setting import Purpose, find_setting
from pipelines.units import THRESHOLDS


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


@pytest.mark.parametrize(("units", "unit"), [("mm h-1", 1), ("m s-1", 1 / 3.6e6)])
def test_thresholds_and_codes_are_those_of_rain_in_the_units_of_the_model(tmp_path, units, unit):
    folder = write_package(PersistenceSpec(), tmp_path)
    contract = folder / "model.yaml"
    contract.write_text(contract.read_text().replace("mm h-1", units))
    setting = find_setting(load_package(folder), Purpose(tile=(1, 32, 32)))
    rules = rules_of(setting, setting.gather_cases(None, True), one_size=True)
    assert rules.thresholds == pytest.approx([unit * threshold for threshold in THRESHOLDS])
    assert rules.scale == pytest.approx(SCALE * unit)
