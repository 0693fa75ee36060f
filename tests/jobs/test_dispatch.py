"""The dispatcher without a cluster: every story is events in, decisions out."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs.dispatch import AHEAD, ATTEMPTS, REMEMBERED, Assign, Dispatcher, GiveUp, Numbers


def test_every_worker_gets_a_block_before_any_gets_two():
    assert Dispatcher(range(9)).joined(["a", "b"], 0) == [
        Assign("a", 0), Assign("b", 1), Assign("a", 2), Assign("b", 3),
    ]  # fmt: skip


def test_no_block_waits_behind_another_at_the_tail():
    assert Dispatcher(range(2)).joined(["a", "b"], 0) == [Assign("a", 0), Assign("b", 1)]


def test_the_block_of_a_lost_worker_goes_to_the_next_free_one():
    d = Dispatcher(range(2))
    d.joined(["a", "b"], 0)
    assert d.lost("a", 1) == []
    assert d.finished("b", 1, 2) == [Assign("b", 0)]


def test_a_block_that_kills_two_workers_is_given_up_by_name():
    d = Dispatcher([7])
    d.joined(["a"], 0)
    d.lost("a", 1)
    assert d.joined(["b"], 2) == [Assign("b", 7)]
    assert d.lost("b", 3) == [GiveUp(7, "worker a died; worker b died")]
    assert d.is_settled


def test_only_the_running_block_is_blamed_for_a_death():
    d = Dispatcher(range(4))
    d.joined(["a"], 0)
    d.lost("a", 1)
    d.joined(["b"], 2)
    assert d.lost("b", 3) == [GiveUp(0, "worker a died; worker b died")]
    assert d.joined(["c"], 4)[0] == Assign("c", 1)


def test_a_worker_that_makes_several_at_once_gets_them_before_any_waits():
    d = Dispatcher(range(9), at_once=3)
    given = d.joined(["a", "b"], 0)
    assert [(g.worker, g.block) for g in given] == [
        ("a", 0),
        ("b", 1),
        ("a", 2),
        ("b", 3),
        ("a", 4),
        ("b", 5),
        ("a", 6),
    ]


def test_of_several_made_at_once_only_the_guilty_one_is_given_up():
    d = Dispatcher(range(4), at_once=3)
    assert [g.block for g in d.joined(["a"], 0)] == [0, 1, 2]
    d.lost("a", 1)
    workers, done, given_up = iter("bcdefg"), set(), []
    flying = d.joined([next(workers)], 2)
    while not d.is_settled:
        running = flying
        assert len(running) == 1 or not {0, 1, 2} & {g.block for g in running}
        if any(g.block == 1 for g in running):
            decisions = d.lost(running[0].worker, 3)
            given_up += [g.block for g in decisions if isinstance(g, GiveUp)]
            flying = [g for g in decisions if isinstance(g, Assign)] + d.joined([next(workers)], 3)
        else:
            done |= {g.block for g in running}
            flying = [a for g in running for a in d.finished(g.worker, g.block, 4)]
    assert done == {0, 2, 3}
    assert given_up == [1]


def test_a_straggler_is_copied_to_an_idle_worker_once_and_the_first_result_counts():
    d = Dispatcher(range(2))
    d.joined(["a", "b"], 0)
    assert d.finished("a", 0, 1) == []
    assert d.tick(4) == []
    assert d.tick(20) == [Assign("a", 1)]
    assert d.tick(60) == []
    d.finished("a", 1, 61)
    assert d.is_settled
    assert d.finished("b", 1, 70) == []
    assert len(d.settled) == 2


def test_the_loss_of_a_straggler_whose_copy_flies_does_not_queue_it_again():
    d = Dispatcher(range(2))
    d.joined(["a", "b"], 0)
    d.finished("a", 0, 1)
    d.tick(20)
    d.joined(["c"], 20)
    assert d.lost("b", 21) == []


def test_stopping_gives_up_what_is_not_done():
    d = Dispatcher(range(3))
    d.joined(["a"], 0)
    d.finished("a", 0, 1)
    assert d.stop("deadline") == [GiveUp(1, "deadline"), GiveUp(2, "deadline")]
    assert d.is_settled


def test_stopping_gives_up_the_rest_of_the_stream_too():
    d = Dispatcher(iter(range(100)))
    d.joined(["a"], 0)
    assert [decision.block for decision in d.stop("deadline")] == list(range(100))
    assert d.is_settled


def test_an_empty_stream_is_settled_from_the_start():
    assert Dispatcher(iter(())).is_settled


def test_blocks_are_pulled_from_their_stream_only_as_workers_have_room():
    pulled = []
    stream = (pulled.append(n) or n for n in range(10**9))
    d = Dispatcher(stream)
    assert pulled == [0]
    d.joined(["a", "b"], 0)
    assert len(pulled) <= 4 + 3
    d.finished("a", 0, 1)
    assert len(pulled) <= 5 + 3
    assert not d.is_settled


def test_the_state_does_not_grow_with_the_number_of_blocks():
    d = Dispatcher(iter(range(20_000)))
    flying = deque(d.joined(["a", "b", "c"], 0))
    now = 0.0
    while flying:
        flight = flying.popleft()
        if flight.block % 1000 == 500:
            decisions = d.failed(flight.worker, flight.block, "bad luck", now)
        else:
            decisions = d.finished(flight.worker, flight.block, now)
        flying.extend(d for d in decisions if isinstance(d, Assign))
        now += 0.1
        assert len(d.settled.above) + len(d._queue) + len(d._mishaps) < 20
        assert len(d._durations) <= REMEMBERED
    assert d.is_settled
    assert d.settled.watermark == 20_000


@given(st.permutations(range(30)))
def test_numbers_are_a_set_whatever_the_order(order):
    numbers = Numbers()
    for count, number in enumerate(order, 1):
        assert number not in numbers
        numbers.add(number)
        numbers.add(number)
        assert number in numbers
        assert len(numbers) == count
    assert (numbers.watermark, numbers.above) == (30, set())


class Cluster(RuleBasedStateMachine):
    """Any order of joins, losses, failures, results and delays settles every block exactly once."""

    @initialize(blocks=st.integers(1, 12), at_once=st.integers(1, 4))
    def begin(self, blocks, at_once):
        self.total, self.now, self.names = blocks, 0.0, 0
        self.d = Dispatcher(iter(range(blocks)), at_once)
        self.flying: list[Assign] = []
        self.alive: set[str] = set()
        self.mishaps: dict[int, int] = {}
        self.settled: list[int] = []
        self.done: set[int] = set()

    def obey(self, decisions):
        for decision in decisions:
            if isinstance(decision, Assign):
                assert decision.worker in self.alive
                assert decision.block not in self.d.settled
                self.flying.append(decision)
            else:
                self.settled.append(decision.block)

    def land(self, flight):
        self.done |= {flight.block} - set(self.settled)
        self.obey(self.d.finished(flight.worker, flight.block, self.now))

    @rule()
    def join(self):
        self.names += 1
        self.alive.add(f"w{self.names}")
        self.obey(self.d.joined([f"w{self.names}"], self.now))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), seconds=st.floats(0, 30))
    def finish(self, data, seconds):
        flight = data.draw(st.sampled_from(self.flying))
        self.now += seconds
        self.flying.remove(flight)
        self.land(flight)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def fail(self, data):
        flight = data.draw(st.sampled_from(self.flying))
        self.flying.remove(flight)
        self.obey(self.d.failed(flight.worker, flight.block, "bad luck", self.now))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def lose(self, data):
        worker = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.discard(worker)
        self.flying = [f for f in self.flying if f.worker != worker]
        self.obey(self.d.lost(worker, self.now))

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds):
        self.now += seconds
        self.obey(self.d.tick(self.now))

    @invariant()
    def window_is_kept_and_nothing_is_copied_twice(self):
        for worker in self.alive:
            assert sum(f.worker == worker for f in self.flying) <= self.d.at_once + AHEAD
        for block in range(self.total):
            assert sum(f.block == block for f in self.flying) <= 2
        assert len(self.settled) == len(set(self.settled))
        assert all(block in self.d.settled for block in self.settled)
        assert not set(self.done) & set(self.settled)
        assert len(self.d.settled) == len({*self.done, *self.settled})

    def teardown(self):
        if not hasattr(self, "d"):
            return
        for _ in range(10 * self.total * ATTEMPTS):
            if self.d.is_settled:
                break
            if not self.alive:
                self.join()
            if self.flying:
                self.land(self.flying.pop(0))
        assert self.d.is_settled
        assert self.done | set(self.settled) == set(range(self.total))
        assert self.d.settled.watermark == self.total


TestCluster = pytest.mark.filterwarnings("ignore")(Cluster.TestCase)
TestCluster.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
