"""A bench is fair, exact and goes on: engines take turns on one clock, and one that fails takes no other down."""

import getpass
import socket
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import zoo
from engines.base import Accounted, EngineError, InferenceError, OutOfMemoryError, Overlapping, Split, Timed
from engines.bench import Effort, Subject, bench, noise
from engines.bench_report import (
    Difference,
    Laps,
    Measurement,
    Report,
    Result,
    cells,
    compare,
    differ,
    typical,
    warnings,
)
from engines.environment import Environment, describe_environment
from engines.meter import Meter
from engines.ort import OrtEngine
from engines.spec import TensorSpec

SHAPES = ((1, 2, 8, 8), (4, 2, 8, 8))
MACHINE = Environment("2025-07-01T12:00Z", "a processor", 2, 2, 8 << 30, "Linux", "3.11.7", {"numpy": "2.0"})
EFFORT = Effort(seconds=4.0, rounds=4, most=400)


class Desk(Meter):
    """A clock that only engines move, and memory that only they take; notes who was called."""

    def __init__(self, has_gpu=False):
        self.device, self.time, self.host, self.free = 0, 0.0, 1000, 10**9 if has_gpu else None
        self.calls, self.closed = [], []

    def now(self):
        return self.time

    def host_bytes(self):
        return self.host

    def free_device_bytes(self):
        return self.free


class FakeEngine:
    """Multiplies by `factor`, takes `seconds` a tile; `fails` says for a batch and a count of calls what to raise."""

    def __init__(self, desk, name, seconds=0.125, factor=1.0, fails=lambda batch, count: None, dtype="float32"):
        self.desk, self.name, self.seconds, self.factor, self.fails, self.count = desk, name, seconds, factor, fails, 0
        self.specs = (TensorSpec("x", dtype, (None,) * 4), TensorSpec("y", dtype, (None,) * 4))

    def __call__(self, batch):
        self.count += 1
        error = self.fails(batch, self.count)
        if error:
            raise error
        self.desk.calls.append(self.name)
        self.desk.time += self.seconds * len(batch)
        return (batch * self.factor).astype(batch.dtype)

    @contextmanager
    def lane(self, shape):
        given = np.empty(shape, self.specs[0].dtype)
        yield SimpleNamespace(given=given, run=lambda: self(given))

    def warm(self, shape):
        self(np.zeros(shape, self.specs[0].dtype))

    def close(self):
        self.desk.closed.append(self.name)


class FakeGpuEngine(FakeEngine):
    """Can do all that an engine may be able to."""

    activation_bytes, buffer_bytes, pinned_bytes, lanes = 300, 200, 150, 1

    @contextmanager
    def lane(self, shape):
        def run():
            self.desk.time += self.seconds * shape[0] / 2
            return given

        given = np.empty(shape, self.specs[0].dtype)
        yield SimpleNamespace(given=given, run=run)

    def timed(self, batch):
        return Split(1e-3, 3e-3, 2e-3, 1e-4)


@pytest.fixture
def desk():
    return Desk()


def subject(desk, name, kind=FakeEngine, load_seconds=2.0, taken=0, **about):
    def load():
        desk.time += load_seconds
        desk.host += 50
        desk.free = desk.free and desk.free - taken
        return kind(desk, name, **about)

    return Subject(name, load)


def run(desk, *subjects, shapes=SHAPES, effort=EFFORT, **more):
    return bench(subjects, shapes, effort, meter=desk, environment=MACHINE, **more)


def laps(*rounds):
    return Laps(tuple(tuple(map(float, one)) for one in rounds))


def test_what_engines_may_be_able_to_do_is_seen_by_what_they_have(desk):
    able, plain = FakeGpuEngine(desk, "a"), FakeEngine(desk, "b")
    for ability in (Timed, Overlapping, Accounted):
        assert isinstance(able, ability)
        assert not isinstance(plain, ability)


def test_durations_rates_and_ratios_are_those_of_the_clock(desk):
    report = run(desk, subject(desk, "slow", seconds=0.2), subject(desk, "fast", seconds=0.05))
    slow, fast = report.results
    assert [one.laps.p50 for one in slow.measurements] == pytest.approx([0.2, 0.8])
    assert [one.laps.p99 for one in fast.measurements] == pytest.approx([0.05, 0.2])
    assert fast.at(SHAPES[1]).tiles_per_second == pytest.approx(20)
    assert fast.at(SHAPES[1]).cells_per_second == pytest.approx(20 * 64)
    speed_up = report.speed_up(fast, SHAPES[1])
    assert (speed_up.value, speed_up.low, speed_up.high) == pytest.approx((4, 4, 4))
    assert report.reference is slow
    assert report.main_shape == SHAPES[1]


def test_loading_and_the_first_inference_are_timed_apart(desk):
    (result,) = run(desk, subject(desk, "one", load_seconds=3.0, seconds=0.1)).results
    assert result.load_seconds == pytest.approx(3.0)
    assert result.first_seconds == pytest.approx(0.4)
    assert result.tensors == ("x: float32 (?, ?, ?, ?)", "y: float32 (?, ?, ?, ?)")


def test_engines_take_turns_and_every_other_round_is_in_reverse_order(desk):
    subjects = subject(desk, "a", seconds=1.0), subject(desk, "b", seconds=1.0)
    run(desk, *subjects, shapes=SHAPES[:1], effort=Effort(4.0, 4, 400))
    assert "".join(desk.calls) == "ab" + "ab" + "aabb" + "bbaa" + "aabb" + "bbaa"


def test_an_engine_that_is_slower_than_its_turn_still_has_a_lap_in_each_round(desk):
    (result,) = run(desk, subject(desk, "slow", seconds=100.0)).results
    assert [len(one) for one in result.measurements[0].laps.rounds] == [1, 1, 1, 1]


def test_a_fast_engine_stops_at_the_most_laps(desk):
    (result,) = run(desk, subject(desk, "fast", seconds=1e-5)).results
    assert [one.laps.count for one in result.measurements] == [400, 400]


def test_a_clock_that_stands_still_is_no_division_by_zero(desk):
    report = run(desk, subject(desk, "a", seconds=0.0), subject(desk, "b", seconds=0.0))
    assert report.speed_up(report.results[1], SHAPES[0]).value == 1.0


def test_an_engine_that_can_tell_more_is_asked(desk):
    plain, able = run(desk, subject(desk, "plain"), subject(desk, "able", FakeGpuEngine)).results
    one = able.at(SHAPES[0])
    assert one.split == Split(1e-3, 3e-3, 2e-3, 1e-4)
    assert one.split.latency_seconds == pytest.approx(6e-3)
    assert one.split_laps == 4 * 8
    assert one.rows.p50 == pytest.approx(0.0625)
    assert len(one.rows.rounds) == 4
    assert one.tiles_per_second_in_a_row == pytest.approx(16)
    assert (plain.at(SHAPES[0]).split, plain.at(SHAPES[0]).rows) == (None, None)


def test_memory_is_what_grew_and_what_the_engine_tells():
    desk = Desk(has_gpu=True)
    plain, able = run(desk, subject(desk, "plain"), subject(desk, "able", FakeGpuEngine, taken=700)).results
    assert (plain.memory.host_bytes, plain.memory.device_bytes, plain.memory.activation_bytes) == (50, 0, None)
    assert (able.memory.activation_bytes, able.memory.buffer_bytes, able.memory.device_bytes) == (300, 200, 700)


def test_without_a_gpu_no_memory_of_it_is_reported(desk):
    assert run(desk, subject(desk, "plain")).results[0].memory.device_bytes is None


def test_sizes_and_notes_of_a_subject_are_reported_even_if_it_cannot_be_loaded(desk):
    bad = Subject("bad", lambda: 1 / 0, 7, 5, {"precision": "half"})
    good, failed = run(desk, subject(desk, "good"), bad).results
    assert (failed.memory.engine_bytes, failed.memory.weights_bytes, failed.notes) == (7, 5, {"precision": "half"})
    assert good.error is None


def test_outputs_are_compared_with_the_reference(desk):
    report = run(desk, subject(desk, "a"), subject(desk, "same"), subject(desk, "twice", factor=2.0))
    reference, same, twice = (result.at(SHAPES[0]).difference for result in report.results)
    assert reference is None
    assert same == Difference(0.0, 0.0, 0.0)
    assert twice.largest == pytest.approx(np.abs(noise(SHAPES[0], "float32")).max())
    assert 0.5 < twice.rms_over_std < 2


def test_outputs_of_another_type_are_not_compared(desk):
    report = run(desk, subject(desk, "float"), subject(desk, "codes", dtype="uint8"))
    assert report.results[1].at(SHAPES[0]).difference is None
    assert report.results[1].at(SHAPES[0]).laps


def broken():
    raise EngineError("no such engine in /home/somebody/models/unet.onnx: bad")


def test_an_engine_that_cannot_be_loaded_is_reported_and_the_others_go_on(desk):
    report = run(desk, subject(desk, "good"), Subject("bad", broken), subject(desk, "fine"))
    assert report.errors == {"bad": "EngineError: no such engine in unet.onnx: bad"}
    assert [len(result.measurements) for result in report.results] == [2, 0, 2]
    assert report.speed_up(report.results[1], SHAPES[0]) is None
    assert sorted(desk.closed) == ["fine", "good"]


def test_an_engine_of_a_type_that_numpy_does_not_know_is_reported(desk):
    report = run(desk, subject(desk, "good"), subject(desk, "odd", dtype="tensor(string)"))
    assert "tensor(string)" in report.errors["odd"]
    assert sorted(desk.closed) == ["good", "odd"]


def too_large(batch, count):
    return OutOfMemoryError("it does not fit") if len(batch) > 1 else None


def test_a_batch_that_does_not_fit_costs_that_shape_alone(desk):
    report = run(desk, subject(desk, "good"), subject(desk, "small", fails=too_large))
    small = report.results[1]
    assert report.errors == {"small at 4x2x8x8": "OutOfMemoryError: it does not fit"}
    assert small.at(SHAPES[0]).laps
    assert small.at(SHAPES[1]) is None
    assert small.first_seconds is None
    assert report.main_shape == SHAPES[0]


def test_an_engine_that_breaks_in_a_late_round_gives_no_figures_of_that_shape(desk):
    late = subject(desk, "late", fails=lambda batch, count: InferenceError("gone") if count > 20 else None)
    report = run(desk, subject(desk, "good"), late)
    assert report.results[1].measurements[0].laps is None
    assert report.results[1].measurements[0].error == "InferenceError: gone"
    assert [len(one) for one in report.results[0].at(SHAPES[0]).laps.rounds] == [8, 8, 8, 8]


def test_without_its_reference_a_report_has_no_ratios(desk):
    report = run(desk, Subject("reference", broken), subject(desk, "good"))
    assert report.speed_up(report.results[1], SHAPES[0]) is None
    assert report.results[1].at(SHAPES[0]).difference is None
    assert report.results[1].at(SHAPES[0]).laps


def interrupted(batch, count):
    return KeyboardInterrupt() if count > 3 else None


def test_an_interrupt_ends_the_bench_and_closes_the_engines(desk):
    with pytest.raises(KeyboardInterrupt):
        run(desk, subject(desk, "a"), subject(desk, "b", fails=interrupted))
    assert sorted(desk.closed) == ["a", "b"]


def test_progress_counts_every_step_to_the_end(desk):
    told = []
    run(desk, subject(desk, "a"), subject(desk, "b"), on_progress=told.append)
    assert [one.done for one in told] == list(range(2 + 2 * 4 + 1))
    assert {one.steps for one in told} == {10}
    assert told[0].doing == "loading a"
    assert told[2].doing == "1x2x8x8, round 1 of 4"


@pytest.mark.parametrize(
    ("names", "shapes", "message"),
    [
        ([], SHAPES, "no subjects were given"),
        (["a"], [], "no shapes were given"),
        (["a", "a"], SHAPES, "subjects have 'a' twice"),
        (["a"], [SHAPES[0], SHAPES[0]], r"shapes have \(1, 2, 8, 8\) twice"),
        (["a"], [(1, 2, 8)], r"\(1, 2, 8\) was asked for; expected \(n, channel, h, w\)"),
        (["a"], [(1, 2, 0, 8)], "all 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(desk, names, shapes, message):
    with pytest.raises(ValueError, match=message):
        run(desk, *(subject(desk, name) for name in names), shapes=shapes)
    assert not desk.calls


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subject(" ", broken), "the name of a subject is ' '"),
        (lambda: Effort(seconds=0), "seconds of the effort is 0"),
        (lambda: Effort(seconds=float("nan")), "seconds of the effort is nan"),
        (lambda: Effort(rounds=0), "rounds of the effort is 0"),
        (lambda: Effort(most=5), "at most 5 laps in 10 rounds"),
        (lambda: laps(), "rounds have"),
        (lambda: laps([1], []), r"rounds have \[1, 0\] laps"),
        (lambda: laps([1, 0]), "a lap took 0.0 seconds"),
        (lambda: laps([float("inf")]), "a lap took inf seconds"),
        (lambda: Split(1, -1, 1, 1), "compute_seconds of .* is -1"),
        (lambda: Split(1, 1, 1, float("nan")), "enqueue_seconds of .* is nan"),
        (lambda: Report(MACHINE, EFFORT, (), (Result("a"),)), "1 results at 0 shapes"),
        (lambda: Report(MACHINE, EFFORT, SHAPES, ()), "0 results at 2 shapes"),
        (lambda: Report(MACHINE, EFFORT, SHAPES, (Result("a"), Result("a"))), "results are named .* each once"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "wrong", [lambda shape, dtype: np.zeros((1, 2, 8, 9), dtype), lambda shape, dtype: np.zeros(shape, "float64")]
)
def test_inputs_of_another_shape_or_type_are_refused(desk, wrong):
    with pytest.raises(ValueError, match=r"inputs gave .*; expected \(4, 2, 8, 8\) of float32"):
        run(desk, subject(desk, "a"), inputs=wrong)
    assert desk.closed == ["a"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int32", "int64", "bool"])
def test_noise_is_the_same_each_time_and_of_every_type(dtype):
    first, second = noise(SHAPES[1], dtype), noise(SHAPES[1], dtype)
    np.testing.assert_array_equal(first, second)
    assert (first.shape, first.dtype) == (SHAPES[1], dtype)
    assert len(np.unique(first)) > 1


def test_too_few_laps_for_a_p99_are_said(desk):
    report = run(desk, subject(desk, "slow", seconds=0.5), subject(desk, "fast", seconds=1e-5))
    (said,) = warnings(report)
    assert "p99 of slow rests on fewer than 100 laps (8 at 1x2x8x8, 4 at 4x2x8x8)" in said


def one_report(measurement, name="b"):
    steady = Measurement(SHAPES[0], laps([1] * 100))
    results = (Result("a", measurements=(steady,)), Result(name, measurements=(measurement,)))
    return Report(MACHINE, EFFORT, SHAPES[:1], results)


@pytest.mark.parametrize(
    ("measurement", "message"),
    [
        (Measurement(SHAPES[0], laps([1] * 60, [2] * 60)), "b at 1x2x8x8 are 67% apart"),
        (Measurement(SHAPES[0], laps([1] * 100), difference=Difference(9, 4, 0.5)), "is 0.5 of its spread away"),
        (Measurement(SHAPES[0], laps([1] * 100), difference=Difference(None, None, None)), "NaN or infinite"),
        (Measurement(SHAPES[0], laps([1] * 100), difference=Difference(9, 4, None)), "the same in every cell"),
    ],
)
def test_what_a_reader_should_know_is_said(measurement, message):
    (said,) = warnings(one_report(measurement))
    assert message in said


def test_a_steady_report_of_equal_outputs_warns_of_nothing():
    fine = Measurement(SHAPES[0], laps([1] * 100), difference=Difference(1e-5, 1e-6, 1e-6))
    assert not warnings(one_report(fine))


DURATIONS = st.lists(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20).map(tuple), min_size=1, max_size=6).map(
    lambda rounds: Laps(tuple(rounds))
)


@given(DURATIONS)
def test_percentiles_are_in_order_and_between_the_fastest_and_the_slowest_lap(found):
    figures = [min(found.seconds), found.p50, found.p90, found.p99, max(found.seconds)]
    assert all(low <= high * (1 + 1e-9) for low, high in pairwise(figures))
    assert found.count == sum(map(len, found.rounds))


@given(DURATIONS, DURATIONS)
def test_a_ratio_turned_round_is_its_inverse(one, other):
    there, back = compare(one, other), compare(other, one)
    assert there.value * back.value == pytest.approx(1)
    assert there.low <= there.high
    assert there.low * back.high == pytest.approx(1)


@given(DURATIONS, st.floats(0.1, 10))
def test_an_engine_that_takes_k_times_as_long_is_a_kth_as_fast(found, k):
    slower = Laps(tuple(tuple(lap * k for lap in one) for one in found.rounds))
    speed_up = compare(found, slower)
    assert (speed_up.value, speed_up.low, speed_up.high) == pytest.approx((1 / k,) * 3)


@given(st.integers(0, 99), st.floats(0.01, 100))
def test_a_difference_is_found_wherever_it_is(cell, size):
    wanted = np.random.default_rng(0).normal(size=(2, 1, 5, 10))
    found = wanted.copy()
    found.flat[cell] += size
    assert differ(wanted, wanted) == Difference(0.0, 0.0, 0.0)
    assert differ(found, wanted).largest == pytest.approx(size)
    assert differ(found, wanted).rms == pytest.approx(size / 10)


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ([np.nan, 1], [np.nan, 1], Difference(0.0, 0.0, 0.0)),
        ([np.inf, 1], [np.inf, 1], Difference(0.0, 0.0, 0.0)),
        ([np.nan, 1], [0, 1], Difference(None, None, None)),
        ([np.inf, 1], [0, 1], Difference(None, None, None)),
        ([3, 3], [1, 1], Difference(2.0, 2.0, None)),
        ([np.nan, np.nan], [np.nan, np.nan], Difference(0.0, 0.0, 0.0)),
    ],
)
def test_values_that_are_no_numbers_differ_unless_they_are_the_same(found, wanted, expected):
    one, other = (np.float32(values).reshape(1, 1, 1, 2) for values in (found, wanted))
    assert differ(one, other) == expected


def test_a_typical_split_is_the_median_of_each_part():
    splits = [Split(1, 9, 2, 0), Split(2, 1, 4, 0), Split(3, 5, 3, 0)]
    assert typical(splits) == Split(2, 5, 3, 0)


def test_cells_are_counted_without_channels():
    assert cells((2, 4, 16, 8)) == 256


def test_the_environment_names_the_machine_but_no_host_and_no_person():
    found = describe_environment()
    text = " ".join(found.describe().values())
    assert found.cpu
    assert found.threads > 0
    assert found.memory_bytes > 0
    assert found.releases["numpy"] == np.__version__
    assert found.releases["onnxruntime"]
    assert socket.gethostname() not in text
    assert getpass.getuser() not in text.split()


@pytest.mark.usefixtures("machine_without_tables")
def test_an_environment_that_tells_little_is_still_described():
    found = describe_environment()
    assert found.cpu
    assert found.system.startswith("Linux 6.1.0")
    assert "builder" not in found.system


@pytest.fixture
def machine_without_tables(monkeypatch):
    """No /proc, no os-release, and a kernel that names whoever built it."""

    def nothing(*given):
        raise OSError("not here")

    monkeypatch.setattr("engines.environment.Path.read_text", nothing)
    monkeypatch.setattr("platform.freedesktop_os_release", nothing)
    monkeypatch.setattr("platform.release", lambda: "6.1.0-builder@home")


def test_two_engines_of_onnx_runtime_are_measured_from_end_to_end(tmp_path):
    model = zoo.write_package(zoo.UnetSpec(width=2, depth=1), tmp_path / "unet") / "model.onnx"
    threads = {"one thread": 1, "two threads": 2}
    subjects = [Subject(name, lambda n=n: OrtEngine(model, n), model.stat().st_size) for name, n in threads.items()]
    shapes = [(1, 4, 16, 16), (2, 4, 16, 16)]
    report = bench(subjects, shapes, Effort(0.04, 2, 20), about={"model": "unet"})
    assert not report.errors
    assert report.about == {"model": "unet"}
    for result in report.results:
        assert result.load_seconds > 0
        assert result.first_seconds > 0
        assert result.memory.engine_bytes == model.stat().st_size
        assert [one.shape for one in result.measurements] == shapes
        assert all(1 <= one.laps.count <= 20 for one in result.measurements)
    assert report.results[1].at(shapes[0]).difference == Difference(0.0, 0.0, 0.0)
    assert report.speed_up(report.results[1], shapes[1]).value > 0
