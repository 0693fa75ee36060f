"""Reference times of an interval: which there are, and which intervals are refused."""

import pickle
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError, InputError
from pipelines.interval import EvenTimes, times_within
from pipelines.product import InputSpec

FRAMES = np.arange("2024-06-01T12:00", "2024-06-01T13:00", 5, dtype="datetime64[m]").astype("datetime64[ns]")
MINUTE = np.timedelta64(60_000_000_000, "ns")


def spec(**changes) -> InputSpec:
    return InputSpec(**({"store": "s", "variable": "v", "history": ("-10min", "0min")} | changes))


def minutes(*found: int) -> list[np.datetime64]:
    return [FRAMES[0] + minute * MINUTE for minute in found]


def at(minute: int) -> np.datetime64:
    return FRAMES[0] + minute * MINUTE


def within(start=None, stop=None, every=None, frames=FRAMES, **changes):
    step = None if every is None else every * MINUTE
    return times_within(frames, spec(**changes), start, stop, step, "'v' in s")


@given(st.integers(0, 60), st.slices(60))
def test_even_times_are_sliced_as_a_list_of_them_would_be(count, part):
    times = EvenTimes(FRAMES[0], 7 * MINUTE, count)
    listed = [times[position] for position in range(len(times))]
    assert list(times[part]) == listed[part]
    if count:
        assert times[-1] == listed[-1]
    with pytest.raises(IndexError):
        times[count]


def test_a_million_times_are_a_value_of_a_few_numbers():
    times = EvenTimes(FRAMES[0], MINUTE, 1_000_000)
    assert len(pickle.dumps(times)) < 1000
    assert len(times[999_990:]) == 10
    assert times[999_999] - times[0] == 999_999 * MINUTE


def test_both_ends_belong_to_the_interval():
    assert list(within(at(15), at(25))) == minutes(15, 20, 25)
    assert list(within(at(15), at(15))) == minutes(15)
    assert list(within(at(15), at(35), every=10)) == minutes(15, 25, 35)


@pytest.mark.parametrize("every", [None, 5])
def test_reference_times_are_whole_seconds_where_those_of_the_frames_are_not(every):
    """As scans are stamped when they end; `squall run` makes the newest frame's cycle at its whole second, too."""
    frames = np.sort(np.concatenate([FRAMES, FRAMES[5:6] + np.timedelta64(1, "ms")]) + np.timedelta64(400, "ms"))
    assert list(within(stop=at(20), every=every, frames=frames)) == minutes(10, 15, 20)
    assert list(within(at(20), at(31), frames=frames)) == minutes(20, 25, 30)


def test_no_cycle_starts_before_its_history_can_be_there():
    assert list(within(stop=at(20))) == minutes(10, 15, 20)
    assert list(within(at(0), at(20), every=10)) == minutes(10, 20)
    assert list(within(stop=at(10), missing_frame="use_available")) == minutes(0, 5, 10)


def test_even_times_keep_to_the_start_and_end_with_the_store():
    far = within(at(3) - np.timedelta64(365, "D"), at(0) + np.timedelta64(365, "D"), every=15, tolerance="3min")
    assert list(far) == minutes(18, 33, 48)


def test_frames_of_the_store_are_a_view_and_not_a_copy():
    assert np.shares_memory(within(at(20)), FRAMES)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"start": at(30), "stop": at(20)}, ConfigError, "12:30Z, after its end .*12:20Z; swap"),
        ({"start": at(21), "stop": at(24)}, InputError, r"holds 12 from 2024-06-01T12:00Z to 2024-06-01T12:55Z"),
        ({"start": at(100), "stop": at(200), "every": 5}, InputError, "no cycle from"),
        ({"start": at(0), "stop": at(9), "every": 5}, InputError, "no cycle from"),
        ({"frames": FRAMES[:1]}, InputError, r"holds 1 from 2024-06-01T12:00Z to 2024-06-01T12:00Z"),
        ({"start": at(100)}, InputError, "no cycle from 2024-06-01T13:40Z"),
        ({"stop": at(-100)}, InputError, "to 2024-06-01T10:20Z has its frames"),
        ({"stop": at(-100), "every": 5}, InputError, "to 2024-06-01T10:20Z has its frames"),
        ({"every": 7}, ConfigError, r"every 420 s, but frames of 'v' in s come every 300 s; .* such as 300s"),
        ({"every": 2}, ConfigError, "such as 300s"),
        ({"every": 0}, ConfigError, "at least 1"),
        ({"every": -5}, ConfigError, "at least 1"),
        ({"frames": FRAMES[::-1]}, InputError, "not sorted"),
        ({"frames": FRAMES[:0]}, InputError, "empty"),
    ],
)
def test_an_interval_without_cycles_is_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        within(**arguments)


def test_a_step_of_part_of_a_second_is_refused():
    with pytest.raises(ConfigError, match="whole seconds"):
        times_within(FRAMES, spec(), None, None, np.timedelta64(timedelta(seconds=300.5), "ns"), "'v' in s")


def test_a_step_that_drifts_within_the_tolerance_is_allowed():
    assert len(within(at(20), at(50), every=7, tolerance="2min")) == 5


def test_the_step_of_the_interval_counts_and_not_that_of_the_newest_frames():
    once = np.datetime64("2004-06-01", "ns") + np.arange(200) * np.timedelta64(15, "m")
    now = np.datetime64("2024-06-01", "ns") + np.arange(300) * np.timedelta64(2, "m")
    frames = np.concatenate([once, now])
    assert len(within(once[100], once[108], every=15, frames=frames)) == 9
    with pytest.raises(ConfigError, match="come every 900 s"):
        within(once[100], once[108], every=2, frames=frames)
