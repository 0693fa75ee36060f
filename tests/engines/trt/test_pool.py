"""Memory of engines that come and go: taken again, never while it may be in use, and freed when it is short."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.cuda import Stream
from engines.trt.pool import Pool


@pytest.fixture
def pool(host_cuda):
    with Stream() as stream:
        made = Pool(stream)
        yield made
        made.close()
        for address in list(made._taken):
            assert made.give_back(address)
    assert not host_cuda.blocks


def test_what_is_given_back_is_taken_again_if_it_is_not_far_too_large(pool):
    first = pool.take(1000)
    assert pool.give_back(first)
    assert pool.take(499) != first
    assert pool.take(501) == first
    assert pool.take(1000) != first
    assert pool.nbytes == 1000 + 499 + 1000


def test_the_smallest_block_that_holds_it_is_taken(pool):
    large, small = pool.take(1000), pool.take(700)
    for address in (large, small):
        pool.give_back(address)
    assert pool.take(600) == small


def test_a_block_is_taken_again_only_when_the_stream_has_passed(pool, host_cuda):
    waited = []
    host_cuda._cudaEventSynchronize = lambda event: waited.append(event) or ()
    address = pool.take(1000)
    pool.give_back(address)
    assert not waited
    assert pool.take(1000) == address
    assert len(waited) == 1


def test_free_blocks_make_room_when_memory_is_short(pool, host_cuda):
    host_cuda.limit_bytes = 3000
    pool.give_back(pool.take(2000))
    assert pool.take(2900)
    assert pool.nbytes == 2900


def test_memory_that_is_not_there_is_address_0_and_said(pool, host_cuda, caplog):
    host_cuda.limit_bytes = 100
    assert pool.take(101) == 0
    assert "no memory for 101 bytes of an engine: cudaMalloc failed" in caplog.text
    assert pool.take(0) == 0


def test_an_address_is_a_multiple_of_the_alignment_or_0(pool, caplog):
    address = pool.take(10)
    assert pool.give_back(address)
    best = address & -address
    assert pool.take(10, alignment=best) == address
    assert pool.give_back(address)
    assert pool.take(10, alignment=2 * best) == 0
    assert f"CUDA gives memory at {address:#x}; an engine asks for multiples of {2 * best}" in caplog.text
    assert pool.take(10) == address


def test_an_address_that_is_not_taken_is_not_given_back(pool):
    address = pool.take(10)
    assert pool.give_back(address)
    assert not pool.give_back(address)
    assert not pool.give_back(12345)


@given(st.lists(st.integers(1, 5000), max_size=40), st.data())
def test_no_two_takers_have_the_same_block(sizes, data):
    numbers, stream = count(1), object.__new__(Stream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.trt.pool.DeviceBuffer", lambda nbytes: Block(nbytes, next(numbers)))
        patch.setattr("engines.trt.pool.Mark", Passed)
        pool, taken = Pool(stream), {}
        for size in sizes:
            if taken and data.draw(st.booleans()):
                address = data.draw(st.sampled_from(sorted(taken)))
                assert pool.give_back(address)
                del taken[address]
            address = pool.take(size)
            assert address not in taken
            taken[address] = size
            assert pool._taken[address].nbytes >= size


class Block:
    def __init__(self, nbytes, number):
        self.nbytes, self.handle = nbytes, number


class Passed:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def record(self, stream):
        pass

    synchronize = __enter__
