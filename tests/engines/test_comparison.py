"""The tiles by which a seam is measured, and rules that make no sense; what else is measured shows in test_gate.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.cases import CaseError
from engines.comparison import Rules, _cut


@settings(max_examples=80, deadline=None)
@given(count=st.integers(1, 60), stride=st.integers(1, 16), radius=st.integers(0, 200))
def test_tiles_lie_on_the_lattice_see_their_radius_and_decide_every_cell_once(count, stride, radius):
    length = count * stride
    cut = _cut(length, radius, stride)
    decided = [cell for _, span, _ in cut.spans for cell in range(length)[span]]
    assert decided == list(range(length))
    for seen, span, inside in cut.spans:
        assert seen.start % stride == 0
        assert (seen.stop - seen.start) == cut.size
        assert range(length)[seen][inside] == range(length)[span]
        assert seen.start == 0 or span.start >= span.stop or seen.start + radius <= span.start
        assert seen.stop == length or seen.stop >= span.stop + radius


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"window": 0}, {"stride": 0}, {"radius": -1}, {"scale": float("nan")}])
def test_rules_that_make_no_sense_are_refused(wrong):
    with pytest.raises(CaseError, match="expected a scale above 0"):
        Rules(**({"to_physical": np.copy, "scale": 0.1} | wrong))


def test_thresholds_must_rise():
    with pytest.raises(CaseError, match="rising values are expected"):
        Rules(np.copy, 0.1, thresholds=(1.0, 0.5))
