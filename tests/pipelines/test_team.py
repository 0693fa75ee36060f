import gc
import multiprocessing
import threading
import weakref
from threading import Barrier, Event, get_ident

import numpy as np
import pytest

from pipelines.team import ALONE, Team


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_what_was_given(threads):
    turn = Team(threads).turn()
    assert turn.map(pow, range(20), [2] * 20) == [n * n for n in range(20)]
    assert turn.map(pow, [], []) == []


def test_a_team_of_one_is_whoever_asks():
    assert set(ALONE.map(lambda _: get_ident(), range(3))) == {get_ident()}


def test_all_threads_work_for_one_turn_and_stay_for_the_next():
    meet, team = Barrier(3, timeout=60), Team(3)
    who = lambda _: (meet.wait(), get_ident())[1]  # noqa: E731
    first = set(team.turn().map(who, range(3)))
    assert len(first) == 3
    assert set(team.turn().map(who, range(3))) == first


def test_what_came_first_is_done_first_whoever_asks_first():
    team, done, held = Team(1), [], Event()
    first, second = team.turn().number, team.turn().number
    blocked = team.submit(-1, held.wait)  # the only thread has something to do meanwhile
    later = [team.submit(second, lambda: done.append("second")) for _ in range(2)]
    earlier = [team.submit(first, lambda: done.append("first")) for _ in range(2)]
    held.set()
    for future in [blocked, *later, *earlier]:
        future.result(60)
    assert done == ["first", "first", "second", "second"]


def test_what_is_ahead_is_done_before_all_that_waits():
    team, done, held = Team(1), [], Event()
    turn = team.turn()
    blocked = team.submit(turn.number, held.wait)
    waiting = team.submit(turn.number, lambda: done.append("waiting"))
    ahead = team.submit(team.turn().ahead.number, lambda: done.append("ahead"))
    held.set()
    for future in [blocked, waiting, ahead]:
        future.result(60)
    assert done == ["ahead", "waiting"]
    assert turn.ahead.threads == turn.threads


def test_after_an_error_nothing_runs_any_more_and_the_team_goes_on():
    team, begun = Team(2), []

    def work(n):
        begun.append(n)
        if n == 1:
            raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        team.turn().map(work, range(100))
    before = list(begun)
    assert team.turn().map(int, range(4)) == [0, 1, 2, 3]
    assert begun == before


def test_an_error_keeps_no_array_longer_than_whoever_catches_it():
    team, meet = Team(2), Barrier(2, timeout=60)

    def fail(array):
        raise KeyError("planted")

    def call():
        arrays = [np.zeros(3) for _ in range(20)]
        kept.extend(map(weakref.ref, arrays))
        with pytest.raises(KeyError, match="planted"):
            team.turn().map(fail, arrays)

    kept = []
    gc.disable()
    try:
        call()
        team.turn().map(lambda _: meet.wait(), range(2))  # each thread has let go of what it did before
        assert not any(array() is not None for array in kept)
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_a_team_of_its_own_and_leaves_out_what_its_parent_had_begun():
    team, held, done = Team(2), Event(), []
    before = [team.submit(0, call) for call in (held.wait, held.wait, lambda: done.append("by the parent"))]

    def child():
        assert team.turn().map(pow, [2, 3, 4], [2, 2, 2]) == [4, 9, 16]
        assert not done

    with team._lock:  # as if another thread were about to submit
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    process.join(60)
    process.kill()  # one that waits for ever
    process.join()
    assert process.exitcode == 0
    held.set()
    for future in before:
        future.result(60)
    assert done == ["by the parent"]


@pytest.mark.parametrize("threads", [1, 2])
def test_lists_of_different_lengths_are_refused(threads):
    with pytest.raises(ValueError, match=r"longer|shorter"):
        Team(threads).turn().map(pow, [1, 2, 3], [1, 2])


def test_the_threads_of_a_team_that_nobody_has_any_more_end():
    team = Team(2)
    meet = Barrier(2, timeout=60)
    found = team.turn().map(lambda _: (meet.wait(), threading.current_thread())[1], range(2))
    del team
    gc.collect()
    for thread in found:
        thread.join(60)
        assert not thread.is_alive()
