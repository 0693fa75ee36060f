import multiprocessing
import threading
from threading import Barrier, get_ident
from time import sleep

import pytest

from pipelines.threads import map_on, staying


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_what_was_given(threads):
    assert map_on(threads, pow, range(20), [2] * 20) == [n * n for n in range(20)]
    assert map_on(threads, pow, [], []) == []


def test_as_many_run_at_the_same_time_as_there_are_threads():
    meet = Barrier(3, timeout=60)
    assert sorted(map_on(3, lambda n: (meet.wait(), n)[1], range(3))) == [0, 1, 2]


def test_the_threads_stay_for_the_next_call():
    meet = Barrier(2, timeout=60)

    def who(_):
        meet.wait()
        return get_ident()

    first = set(map_on(2, who, range(2)))
    assert set(map_on(2, who, range(2))) == first
    assert get_ident() not in first


def test_two_callers_do_not_share_threads():
    meet, found = Barrier(4, timeout=60), []
    callers = [threading.Thread(target=lambda: found.append(map_on(2, lambda _: meet.wait(), range(2)))) for _ in "ab"]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(found) == 2


def test_after_an_error_nothing_runs_any_more_and_the_rest_is_left_out():
    begun = []

    def work(n):
        begun.append(n)
        if n == 1:
            raise KeyError("planted")
        sleep(0.02)

    with pytest.raises(KeyError, match="planted"):
        map_on(2, work, range(100))
    before = list(begun)
    assert len(before) < 100
    assert map_on(2, int, range(4)) == [0, 1, 2, 3]
    assert begun == before


@pytest.mark.parametrize("threads", [1, 2])
def test_lists_of_different_lengths_are_refused(threads):
    with pytest.raises(ValueError, match=r"longer|shorter"):
        map_on(threads, pow, [1, 2, 3], [1, 2])


def test_a_forked_process_has_threads_of_its_own():
    map_on(2, int, range(2))
    child = multiprocessing.get_context("fork").Process(target=map_on, args=(2, int, range(2)))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_threads_that_stay_are_the_same_at_every_call_and_a_forked_process_has_its_own():
    assert staying(2, "some") is staying(2, "some")
    assert staying(2, "some").submit(abs, -1).result(30) == 1
    fork = multiprocessing.get_context("fork")
    found = fork.Queue()
    child = fork.Process(target=lambda: found.put(staying(2, "some").submit(abs, -2).result(30)))
    child.start()
    try:
        assert found.get(timeout=60) == 2
    finally:
        child.kill()
        child.join()
