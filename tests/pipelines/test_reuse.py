"""Tiles of one value: recognised by content, run once, whoever asks."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reuse import Reuse, constant_key


def test_the_first_to_ask_makes_it_and_the_others_wait():
    reuse, made, got = Reuse(), [], []

    def ask() -> None:
        future, is_mine = reuse.claim("dry")
        if is_mine:
            time.sleep(0.05)
            made.append(1)
            reuse.keep("dry", np.zeros(3))
        got.append(future.result())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(result is got[0] for result in got)


def test_who_waits_is_told_of_a_failure_and_the_next_may_try():
    reuse = Reuse()
    waiting, _ = reuse.claim("dry")
    reuse.fail("dry", ValueError("no memory"))
    with pytest.raises(ValueError, match="no memory"):
        waiting.result()
    assert reuse.claim("dry")[1]


def test_the_oldest_results_are_dropped_when_they_outgrow_the_limit():
    reuse = Reuse(limit_bytes=20)
    for key in "abc":
        reuse.claim(key)
        reuse.keep(key, np.zeros(8, np.uint8))
    assert [reuse.claim(key)[1] for key in "bca"] == [False, False, True]


def test_a_result_in_the_making_is_not_dropped():
    reuse = Reuse(limit_bytes=5)
    waiting, _ = reuse.claim("slow")
    reuse.claim("large")
    reuse.keep("large", np.zeros(100, np.uint8))
    assert not reuse.claim("slow")[1]
    reuse.keep("slow", np.ones(1))
    assert waiting.result()[0] == 1


@given(
    value=st.sampled_from([0, -32768, 7]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    data=st.data(),
)
def test_one_cell_makes_the_difference(value, shape, data):
    raw = np.full(shape, value, np.int16)
    key = constant_key(raw)
    assert key is not None
    assert key == constant_key(raw.copy())
    raw[tuple(data.draw(st.integers(0, n - 1)) for n in shape)] += 1
    assert (constant_key(raw) is None) == (raw.size > 1)


def test_not_a_number_equals_itself_and_zero_is_not_minus_zero():
    assert constant_key(np.full((2, 300, 300), np.nan, np.float32)) is not None
    zeros = np.zeros((1, 300, 300), np.float32)
    zeros[0, 299, 299] = -0.0
    assert constant_key(zeros) is None


def test_another_shape_or_value_is_another_tile():
    keys = {constant_key(np.full(shape, v, np.int16)) for shape in ((1, 4, 4), (1, 4, 8)) for v in (0, 1)}
    assert len(keys) == 4
