"""Profiles and build specs: what they refuse, and that they survive JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.spec import BuildSpec, Profile

sizes = st.lists(st.integers(1, 4096), min_size=3, max_size=3).map(sorted)
profiles = st.lists(sizes, min_size=4, max_size=4).map(lambda axes: Profile(*zip(*axes, strict=True)))
specs = st.builds(
    BuildSpec,
    st.lists(profiles, min_size=1, max_size=3).map(tuple),
    st.frozensets(st.sampled_from(["FP16", "REFIT", "TF32"])),
    st.none() | st.integers(1, 1 << 40),
    st.none() | st.integers(0, 5),
)


@given(specs)
def test_a_build_spec_survives_json(spec):
    assert BuildSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(profiles, st.data())
def test_a_profile_holds_what_lies_between_its_ends_and_nothing_else(profile, data):
    inside = [data.draw(st.integers(low, high)) for low, high in zip(profile.min, profile.max, strict=True)]
    assert profile.holds(tuple(inside))
    axis = data.draw(st.integers(0, 3))
    assert not profile.holds((*inside[:axis], profile.max[axis] + 1, *inside[axis + 1 :]))
    assert not profile.holds((*inside[:axis], profile.min[axis] - 1, *inside[axis + 1 :]))
    assert not profile.holds(tuple(inside[:3]))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 1, 8, 8), (1, 1, 8, 8), (4, 1, 8, 8)), r"axis 0 of .* has sizes \(2, 1, 4\); expected 1 <= min"),
        (((1, 1, 8, 8), (1, 1, 8, 9), (1, 1, 8, 8)), "axis 3"),
        (((0, 1, 8, 8), (1, 1, 8, 8), (1, 1, 8, 8)), "axis 0"),
        (((1, 8, 8), (1, 8, 8), (1, 8, 8)), "has 3 axes; expected 4"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        Profile(*shapes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profiles": ()}, "found none"),
        ({"workspace_bytes": 0}, "workspace of 0 bytes"),
        ({"level": 6}, "level 6; expected 0 to 5"),
    ],
)
def test_a_build_spec_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BuildSpec(**{"profiles": (Profile.up_to((1, 1, 8, 8)),), **values})
