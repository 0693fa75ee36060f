"""Streams, events and buffers over a GPU that is host memory."""

import numpy as np
import pytest

from engines import cuda
from engines.base import DeviceLostError


def test_memory_comes_back_with_the_block_and_with_the_object(host_cuda):
    with cuda.DeviceBuffer(16), cuda.PinnedBuffer(16), cuda.Stream(), cuda.Event():
        assert len(host_cuda.blocks) == len(host_cuda.handles) == 2
    assert not host_cuda.blocks
    assert not host_cuda.handles
    buffer = cuda.DeviceBuffer(16)
    del buffer
    assert not host_cuda.blocks


def test_a_buffer_without_bytes_takes_no_memory(host_cuda):
    assert cuda.DeviceBuffer(0).handle == 0
    assert not host_cuda.blocks


def test_pinned_memory_is_an_array_without_a_copy(host_cuda):
    buffer, stream = cuda.PinnedBuffer(32), cuda.Stream()
    buffer.array((2, 2), "float32")[:] = [[1, 2], [3, 4]]
    other = cuda.PinnedBuffer(16)
    cuda.copy(other, buffer, 16, stream)
    np.testing.assert_array_equal(other.array((4,), np.float32), [1, 2, 3, 4])


def test_what_does_not_fit_a_buffer_is_refused(host_cuda):
    buffer, stream = cuda.PinnedBuffer(16), cuda.Stream()
    with pytest.raises(ValueError, match=r"20 bytes of shape \(5,\) do not fit a pinned buffer of 16"):
        buffer.array((5,), np.float32)
    with pytest.raises(ValueError, match="17 bytes do not fit buffers of 16 and 16"):
        cuda.copy(cuda.DeviceBuffer(16), buffer, 17, stream)


def test_a_gpu_is_described_by_what_an_engine_file_depends_on(host_cuda):
    assert cuda.describe_device() == cuda.Gpu("Stand-in", "9.0", 132, 2 << 30)
    assert cuda.free_bytes() == 1 << 30


def test_a_lost_gpu_is_known_as_such_whoever_asks(host_cuda):
    host_cuda.fail["cudaMemGetInfo"] = "cudaErrorIllegalAddress"
    with pytest.raises(DeviceLostError, match="cudaMemGetInfo failed: cudaErrorIllegalAddress"):
        cuda.free_bytes()


def test_time_between_marks_is_measured(host_cuda):
    assert cuda.Event().milliseconds_since(cuda.Event()) == 1.5
