"""The slot: engines change places under load without a failed batch, and every result names its one engine."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.base import Engine, InferenceError
from engines.ort import OrtEngine
from engines.slot import Candidate, Slot, SlotError, Standby, State
from engines.spec import TensorSpec

SHAPE = (1, 2, 8, 8)
SWAPS = 100


@dataclass
class FakeLane:
    engine: "FakeEngine"
    given: np.ndarray

    def run(self):
        return self.engine(self.given)


class FakeEngine:
    """Adds its number to the first channel; knows whether it was closed, and refuses to run then."""

    def __init__(self, number: int, leads: int = 1, seconds: float = 0) -> None:
        self.number, self.seconds, self.is_closed, self.batches, self.running = number, seconds, False, 0, 0
        self.specs = TensorSpec("x", "float32", (None, 2, None, None)), TensorSpec("y", "float32", (None, leads, 8, 8))

    def __call__(self, batch):
        if self.is_closed:
            raise InferenceError(f"engine {self.number} is closed")
        self.batches, self.running = self.batches + 1, self.running + 1
        time.sleep(self.seconds)
        self.running -= 1
        return batch[:, :1] + np.float32(self.number)

    @contextmanager
    def lane(self, shape):
        yield FakeLane(self, np.empty(shape, np.float32))

    def warm(self, shape):
        self(np.zeros(shape, np.float32))

    def close(self):
        assert not self.running, "closed under a batch"
        assert not self.is_closed, "closed twice"
        self.is_closed = True


def candidate(engine: FakeEngine, memory_bytes: int = 10, **more) -> Candidate:
    return Candidate(str(engine.number), memory_bytes, lambda: engine, **more)


def ask(slot: Slot) -> tuple[str, float]:
    result = slot.infer(np.zeros(SHAPE, np.float32))
    return result.version, float(result.values.flat[0])


@pytest.fixture
def engines():
    return [FakeEngine(number) for number in range(5)]


@pytest.fixture
def slot(engines):
    """A slot in which engine 0 is active."""
    return Slot(candidate(engines[0]))


def test_a_slot_is_an_engine(slot, engines):
    assert isinstance(slot, Engine)
    assert slot.specs == engines[0].specs
    slot.warm(SHAPE)
    np.testing.assert_array_equal(slot(np.ones(SHAPE, np.float32)), np.ones((1, 1, 8, 8)))


def test_swap_and_undo_change_the_engine_at_once_and_load_nothing(slot, engines):
    slot.prepare(candidate(engines[1]), SHAPE)
    assert (ask(slot), engines[1].batches) == (("0", 0.0), 1)
    assert (slot.swap(), ask(slot)) == ("1", ("1", 1.0))
    assert (slot.undo(), ask(slot)) == ("0", ("0", 0.0))
    assert (slot.swap(), ask(slot)) == ("1", ("1", 1.0))


def test_the_active_engine_works_while_the_standby_loads(slot, engines):
    may_load = threading.Event()

    def load():
        assert may_load.wait(20)
        return engines[1]

    with ThreadPoolExecutor() as pool:
        done = pool.submit(slot.prepare, Candidate("1", 10, load), SHAPE)
        while slot.state.standby is not Standby.LOADING:
            time.sleep(0.001)
        assert ask(slot) == ("0", 0.0)
        for forbidden in (slot.swap, slot.undo, slot.discard, lambda: slot.prepare(candidate(engines[2]), SHAPE)):
            with pytest.raises(SlotError, match="loading"):
                forbidden()
        may_load.set()
        done.result()
    assert slot.swap() == "1"


def fails(*_):
    raise InferenceError("no kernel")


class ColdEngine(FakeEngine):
    warm = fails


REFUSALS = {
    "it does not load": (Candidate("9", 10, fails), None, "no kernel"),
    "it does not warm up": (Candidate("9", 10, lambda: ColdEngine(9)), None, "no kernel"),
    "its check fails": (candidate(FakeEngine(9)), lambda engine: "0.5 mm h-1 too wet", "too wet; .*0 stays"),
    "its check raises": (candidate(FakeEngine(9)), fails, "no kernel"),
    "it has other lead times": (
        candidate(FakeEngine(9, leads=3)),
        None,
        r"3, 8, 8\); expected .* into .*1, 8, 8\)",
    ),
    "it is the active one": (candidate(FakeEngine(0)), None, "version 0 is active already"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_standby_that_is_refused_leaves_the_active_engine_at_work(slot, refusal):
    bad, check, named = REFUSALS[refusal]
    with pytest.raises((SlotError, InferenceError), match=named):
        slot.prepare(bad, SHAPE, *([check] if check else []))
    assert slot.state == State("0")
    assert ask(slot) == ("0", 0.0)


def test_the_check_runs_the_standby_and_what_it_refuses_is_closed(slot, engines):
    def check(engine):
        return "refused" if engine(np.ones(SHAPE, np.float32)).mean() == 2 else None

    with pytest.raises(SlotError, match="refused"):
        slot.prepare(candidate(engines[1]), SHAPE, check)
    assert engines[1].is_closed
    slot.prepare(candidate(engines[2]), SHAPE, check)
    assert slot.swap() == "2"


def test_batches_that_the_standby_does_not_take_are_refused_before_the_swap(slot, engines):
    with pytest.raises(SlotError, match=r"take batches of \(1, 5, 8, 8\)"):
        slot.prepare(candidate(engines[1]), (1, 5, 8, 8))
    assert engines[1].is_closed


@pytest.mark.parametrize(("verb", "named"), [("swap", "nothing to swap to"), ("undo", "nothing to go back to")])
def test_a_change_to_nothing_is_refused_and_says_what_is_there(slot, verb, named):
    with pytest.raises(SlotError, match=f"{named}: active 0, no standby"):
        getattr(slot, verb)()


def test_memory_is_asked_for_before_loading_and_that_of_the_standby_counts(engines):
    asked, free = [], 25

    def fits(size):
        asked.append(size)
        return size <= free

    slot = Slot(candidate(engines[0]), fits)
    slot.prepare(candidate(engines[1], 20), SHAPE)
    slot.prepare(candidate(engines[2], 30), SHAPE)
    assert asked == [10, 20, 10]
    with pytest.raises(SlotError, match="needs 60 bytes, 30 more than are in use"):
        slot.prepare(Candidate("3", 60, fails), SHAPE)
    assert slot.swap() == "2"
    with pytest.raises(SlotError, match="cannot be had"):
        Slot(Candidate("4", 60, fails), fits)


def test_a_discarded_standby_is_closed_and_cannot_come_back(slot, engines):
    slot.prepare(candidate(engines[1]), SHAPE)
    slot.swap()
    slot.discard()
    assert engines[0].is_closed
    with pytest.raises(SlotError, match="nothing to go back to"):
        slot.undo()
    slot.discard()


def test_a_closed_slot_has_closed_both_engines_and_says_so(slot, engines):
    slot.prepare(candidate(engines[1]), SHAPE)
    slot.close()
    slot.close()
    assert [engine.is_closed for engine in engines[:2]] == [True, True]
    for action in (lambda: ask(slot), slot.swap, lambda: slot.prepare(candidate(engines[2]), SHAPE)):
        with pytest.raises((SlotError, InferenceError), match="closed"):
            action()


def test_a_standby_that_was_loading_when_the_slot_closed_is_closed_too(slot, engines):
    def load():
        slot.close()
        return engines[1]

    with pytest.raises(SlotError, match="closed while version 1"):
        slot.prepare(Candidate("1", 10, load), SHAPE)
    assert engines[1].is_closed


def test_a_swap_waits_for_the_batch_in_flight_but_not_for_ever(engines):
    slow = FakeEngine(7, seconds=0.3)
    slot = Slot(candidate(slow))
    slot.prepare(candidate(engines[1]), SHAPE)
    with ThreadPoolExecutor() as pool:
        done = pool.submit(ask, slot)
        while not slow.running:
            time.sleep(0.001)
        with pytest.raises(SlotError, match=r"a batch did not end within 0\.01 s; still active 7"):
            slot.swap(timeout_seconds=0.01)
        assert slot.swap(timeout_seconds=20) == "1"
        assert done.result() == ("7", 7.0)


def test_an_engine_that_shares_memory_never_runs_at_once_with_the_active_one():
    active, overlaps, stop = FakeEngine(0, seconds=0.001), [], threading.Event()
    slot, batch = Slot(candidate(active)), np.zeros(SHAPE, np.float32)

    class Watching(FakeEngine):
        def __call__(self, batch):
            before = active.batches, active.running
            out = super().__call__(batch)
            overlaps.append((active.batches, active.running) != before or active.running)
            return out

    def work():
        while not stop.is_set():
            ask(slot)

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(work) for _ in range(2)]
        try:
            sharing = candidate(Watching(1, seconds=0.005), shares_memory=True)
            slot.prepare(sharing, SHAPE, lambda engine: [engine(batch) for _ in range(5)] and None)
        finally:
            stop.set()
        for job in jobs:
            job.result()
    assert overlaps == [False] * 6


def test_a_lane_is_a_batch_in_flight_until_it_is_given_back(slot, engines):
    slot.prepare(candidate(engines[1]), SHAPE)
    with slot.lane(SHAPE) as lane:
        lane.given[:] = 1
        with pytest.raises(SlotError, match=r"a batch did not end within 0\.01 s; still active 0"):
            slot.swap(timeout_seconds=0.01)
        assert (lane.version, float(lane.run().flat[0])) == ("0", 1.0)
    assert slot.swap() == "1"
    with slot.lane(SHAPE) as lane:
        lane.given[:] = 1
        assert (lane.version, float(lane.run().flat[0])) == ("1", 2.0)


def test_a_closed_slot_has_no_lanes(slot):
    slot.close()
    with pytest.raises(InferenceError, match="closed"), slot.lane(SHAPE):
        pass


# Real engines under load


@pytest.fixture
def models(tmp_path, net_type):
    """Two ONNX files that differ in their weights only, and what each makes of a batch."""
    batch, paths = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), {}
    for version in ("1", "2"):
        net = net_type(2, seed=int(version))
        path = tmp_path / f"{version}.onnx"
        path.write_bytes(net.model(net.relu(net.conv("x", 2, 3)), 3).SerializeToString())
        paths[version] = path
    return batch, paths, {version: OrtEngine(path)(batch) for version, path in paths.items()}


def test_a_hundred_swaps_under_load_fail_no_batch_and_every_output_is_of_the_version_it_names(models):
    batch, paths, expected = models
    slot = Slot(Candidate("1", 0, lambda: OrtEngine(paths["1"])))
    stop, wrong, seen = threading.Event(), [], {"1": 0, "2": 0}

    def work():
        while not stop.is_set():
            result = slot.infer(batch)
            seen[result.version] += 1
            if not np.array_equal(result.values, expected[result.version]):
                wrong.append(result.version)

    def equals(version):
        return lambda engine: None if np.array_equal(engine(batch), expected[version]) else "other values"

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(work) for _ in range(2)]
        try:
            for swaps in range(SWAPS):
                version = "21"[swaps % 2]
                if swaps % 5 == 4:
                    slot.undo()
                    slot.swap()
                slot.prepare(Candidate(version, 0, lambda v=version: OrtEngine(paths[v])), SHAPE, equals(version))
                assert slot.swap() == version
        finally:
            stop.set()
        for job in jobs:
            job.result()
    assert wrong == []
    assert min(seen.values()) > 0
    print(f"{sum(seen.values())} batches during {SWAPS} swaps, 0 failed")


def test_after_a_swap_no_result_is_of_the_former_version(slot, engines):
    slot.prepare(candidate(engines[1]), SHAPE)
    stop, late = threading.Event(), []
    is_swapped = threading.Event()

    def work():
        while not stop.is_set():
            began_after = is_swapped.is_set()
            version, _ = ask(slot)
            if began_after and version != "1":
                late.append(version)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(work) for _ in range(3)]
        time.sleep(0.02)
        slot.swap()
        is_swapped.set()
        assert engines[0].running == 0
        time.sleep(0.02)
        stop.set()
        for job in jobs:
            job.result()
    assert late == []


# Every order of events


class SlotMachine(RuleBasedStateMachine):
    """The slot against a model of it: one active engine, at most one standby, nothing else open, memory never above."""

    LIMIT = 30

    def __init__(self):
        super().__init__()
        self.numbers, self.made = count(1), []
        self.active, self.standby, self.is_previous = self.engine(10), None, False
        self.slot = Slot(self.candidate(self.active), self.fits)

    def engine(self, memory):
        engine = FakeEngine(next(self.numbers))
        engine.memory = memory
        self.made.append(engine)
        return engine

    def candidate(self, engine):
        return candidate(engine, engine.memory)

    def fits(self, size):
        return self.memory() + size <= self.LIMIT

    def memory(self):
        held = getattr(self, "active", None), getattr(self, "standby", None)
        return 0 if not hasattr(self, "slot") else sum(engine.memory for engine in held if engine is not None)

    @rule(memory=st.sampled_from([5, 10, 15, 20, 25]), accident=st.sampled_from([None, None, "load", "check"]))
    def prepare(self, memory, accident):
        engine = self.engine(memory)
        given_up = self.standby.memory if self.standby else 0
        fitting = self.memory() + max(0, memory - given_up) <= self.LIMIT
        wanted = Candidate(str(engine.number), memory, fails if accident == "load" else lambda: engine)
        check = (lambda e: "refused") if accident == "check" else (lambda e: None)
        if fitting and accident is None:
            self.slot.prepare(wanted, SHAPE, check)
            self.standby, self.is_previous = engine, False
            return
        with pytest.raises((SlotError, InferenceError)):
            self.slot.prepare(wanted, SHAPE, check)
        if not fitting or accident == "load":
            self.made.remove(engine)
        if fitting:
            self.standby = None

    @rule()
    def swap(self):
        if self.standby is None or self.is_previous:
            with pytest.raises(SlotError):
                self.slot.swap()
            return
        assert self.slot.swap() == str(self.standby.number)
        self.active, self.standby, self.is_previous = self.standby, self.active, True

    @rule()
    def undo(self):
        if self.standby is None or not self.is_previous:
            with pytest.raises(SlotError):
                self.slot.undo()
            return
        assert self.slot.undo() == str(self.standby.number)
        self.active, self.standby, self.is_previous = self.standby, self.active, False

    @rule()
    def discard(self):
        self.slot.discard()
        self.standby = None

    @precondition(lambda self: self.standby is not None)
    @rule()
    def prepare_the_active_one(self):
        with pytest.raises(SlotError, match="active already"):
            self.slot.prepare(self.candidate(self.active), SHAPE)

    @invariant()
    def every_result_is_of_the_active_engine(self):
        assert ask(self.slot) == (str(self.active.number), float(self.active.number))

    @invariant()
    def nothing_else_is_open(self):
        still_open = {engine.number for engine in self.made if not engine.is_closed}
        assert still_open == {engine.number for engine in (self.active, self.standby) if engine is not None}
        assert self.memory() <= self.LIMIT

    @invariant()
    def the_state_says_so(self):
        role = Standby.EMPTY if not self.standby else Standby.PREVIOUS if self.is_previous else Standby.READY
        version = str(self.standby.number) if self.standby else None
        assert self.slot.state == State(str(self.active.number), version, role)

    def teardown(self):
        self.slot.close()
        assert all(engine.is_closed for engine in self.made)


TestEveryOrderOfEvents = SlotMachine.TestCase
TestEveryOrderOfEvents.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
