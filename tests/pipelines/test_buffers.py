"""Borrowed memory: never shared while lent, used again afterwards."""

import threading
from contextlib import ExitStack

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.buffers import Buffers

shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@given(shapes=shapes, dtype=st.sampled_from(["int16", "float16", "float32"]))
def test_arrays_lent_at_the_same_time_share_no_memory(shapes, dtype):
    buffers = Buffers()
    for _ in range(2):
        with ExitStack() as lent:
            arrays = [lent.enter_context(buffers.borrow(shape, dtype)) for shape in shapes]
            assert [array.shape for array in arrays] == shapes
            assert all(array.dtype == dtype for array in arrays)
            for number, array in enumerate(arrays):
                array[...] = number
            assert all((array == number).all() for number, array in enumerate(arrays))


@given(laps=st.lists(shapes, min_size=1, max_size=5))
def test_no_more_pieces_are_kept_than_were_lent_at_once(laps):
    buffers = Buffers()
    for shapes in laps:
        with ExitStack() as lent:
            for shape in shapes:
                lent.enter_context(buffers.borrow(shape, "uint8"))
    most = max(len(shapes) for shapes in laps)
    assert buffers.idle_bytes <= most * 81


def test_the_same_memory_comes_back():
    buffers = Buffers()
    with buffers.borrow((3, 4), "int16") as first:
        address = first.ctypes.data
    with buffers.borrow((2, 3), "float32") as second:
        assert second.ctypes.data == address


def test_memory_comes_back_after_an_error():
    buffers = Buffers()
    try:
        with buffers.borrow((5,), "uint8"):
            raise ValueError
    except ValueError:
        pass
    assert buffers.idle_bytes == 5


def test_threads_never_hold_the_same_array():
    buffers, clashes = Buffers(), []

    def work(number: int) -> None:
        for _ in range(200):
            with buffers.borrow((64,), "int64") as array:
                array[...] = number
                clashes.extend(np.unique(array[array != number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
