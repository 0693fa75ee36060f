"""Who may use a worker, without a cluster and without waiting."""

import pytest

from jobs.holder import name_this_run
from jobs.kept import Fate, judge, news_of
from jobs.lease import LAPSE_SECONDS, Lease
from jobs.outfit import Place
from jobs.worker import Status


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_one_run_at_a_time_has_a_worker(clock):
    lease = Lease(clock=clock)
    assert lease.take("a")
    assert lease.take("a")
    assert not lease.take("b")
    lease.release("b")
    assert lease.holder == "a"
    lease.release("a")
    assert lease.take("b")


def test_a_silent_holder_lapses_and_a_heard_one_does_not(clock):
    lease = Lease("a", clock)
    clock.now = LAPSE_SECONDS
    lease.hear("b")
    assert not lease.is_lapsed
    lease.hear("a")
    clock.now += LAPSE_SECONDS + 1
    assert lease.is_lapsed
    assert not lease.take("b")


def test_a_free_worker_whose_block_still_runs_is_not_given(clock):
    lease = Lease(clock=clock)
    with lease.running():
        assert not lease.take("a")
        clock.now = 1000
        assert lease.idle_seconds == 0
    assert lease.take("a")


def test_only_a_worker_that_nothing_called_for_long_ends(clock):
    lease, ended = Lease(clock=clock), []
    clock.now = 9
    lease.end_if_idle(10, lambda: ended.append(clock.now))
    with lease.running():
        clock.now = 50
        lease.end_if_idle(10, lambda: ended.append(clock.now))
    lease.end_if_idle(10, lambda: ended.append(clock.now))
    clock.now = 61
    lease.end_if_idle(10, lambda: ended.append(clock.now))
    assert ended == [61]


HERE = Place(0, 1, 1)
ENDED = "~".join([*name_this_run().split("~")[:3], "999999999", "0", "0"])  # a run of a process that is not there


def status(version="1", place=HERE, holder="me", is_lapsed=False):
    return Status(version, 1, "node", place, "engine", "", holder, is_lapsed, 0.0, 0)


@pytest.mark.parametrize(
    ("said", "fate"),
    [
        (status(), Fate.USE),
        (status(holder="another"), Fate.LEAVE),
        (status(holder="another", version="0"), Fate.LEAVE),
        (status(holder="another", is_lapsed=True), Fate.END),
        (status(holder=ENDED), Fate.END),
        (status(version="0"), Fate.END),
        (status(place=Place(0, 2, 1)), Fate.END),
        (status(place=Place(0.5, 0, 4)), Fate.END),
        (None, Fate.END),
    ],
)
def test_the_fate_of_a_worker_that_was_found(said, fate):
    assert judge(said, "me", HERE, "1") is fate


def test_workers_that_open_engines_are_summed_up_in_a_line():
    assert news_of({}) == news_of({"a": ""}) == ""
    assert news_of({"a": "", "b": "building"}) == "b: building"
    assert news_of({"a": "x", "b": "y", "c": "z"}) == "a: x, and 2 more"
