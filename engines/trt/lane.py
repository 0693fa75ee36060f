"""The way of one batch to the GPU and back: pinned memory, device memory, and marks between three streams."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import Split
from engines.cuda import DeviceBuffer, Event, PinnedBuffer, Stream, copy


@dataclass(frozen=True)
class Streams:
    """Copies in, compute and copies out run beside each other, each in order."""

    copy_in: Stream
    compute: Stream
    copy_out: Stream

    @classmethod
    def open(cls, owned: ExitStack) -> "Streams":
        return cls(*(owned.enter_context(Stream()) for _ in range(3)))

    def synchronize(self) -> None:
        for stream in (self.copy_in, self.compute, self.copy_out):
            stream.synchronize()


@dataclass(frozen=True)
class Lane:
    """Buffers for the largest batch and its result, allocated once; one batch is in a lane at a time."""

    staged_in: PinnedBuffer
    given: DeviceBuffer
    returned: DeviceBuffer
    staged_out: PinnedBuffer
    arrived: Event
    computed: Event
    done: Event

    @classmethod
    def open(cls, given_bytes: int, returned_bytes: int, owned: ExitStack) -> "Lane":
        """A lane whose memory is given back when `owned` closes."""
        take = owned.enter_context
        given = take(PinnedBuffer(given_bytes)), take(DeviceBuffer(given_bytes))
        returned = take(DeviceBuffer(returned_bytes)), take(PinnedBuffer(returned_bytes))
        return cls(*given, *returned, take(Event()), take(Event()), take(Event()))

    @property
    def nbytes(self) -> int:
        """Memory that the lane takes on the GPU; as much again is pinned on the host."""
        return self.given.nbytes + self.returned.nbytes

    def send(self, batch: NDArray[Any], streams: Streams) -> None:
        """Queue the way in; the compute stream will wait for it. The batch may change afterwards."""
        np.copyto(self.staged_in.array(batch.shape, batch.dtype), batch)
        copy(self.given, self.staged_in, batch.nbytes, streams.copy_in)
        self.arrived.record(streams.copy_in)
        streams.compute.wait(self.arrived)

    def fetch(self, nbytes: int, streams: Streams) -> None:
        """Queue the way out, after what the compute stream has been given so far."""
        self.computed.record(streams.compute)
        streams.copy_out.wait(self.computed)
        copy(self.staged_out, self.returned, nbytes, streams.copy_out)
        self.done.record(streams.copy_out)

    def result(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """The result, once it is there: a view of the lane's memory, good until the next batch enters the lane."""
        self.done.synchronize()
        return self.staged_out.array(shape, dtype)

    def time(self, batch: NDArray[Any], queue: Callable[[], int], stream: Stream) -> Split:
        """How long each part of a batch's way takes on the GPU, one after the other in one stream.

        Args:
            queue: queues the inference in that stream; gives the bytes of the result.
        """
        np.copyto(self.staged_in.array(batch.shape, batch.dtype), batch)
        with ExitStack() as owned:
            marks = [owned.enter_context(Event()) for _ in range(4)]
            owned.callback(stream.synchronize)  # also after an error: the buffers are free again
            marks[0].record(stream)
            copy(self.given, self.staged_in, batch.nbytes, stream)
            marks[1].record(stream)
            started = time.perf_counter()
            nbytes = queue()
            enqueue_seconds = time.perf_counter() - started
            marks[2].record(stream)
            copy(self.staged_out, self.returned, nbytes, stream)
            marks[3].record(stream)
            marks[3].synchronize()
            h2d, compute, d2h = (later.milliseconds_since(earlier) / 1e3 for earlier, later in pairwise(marks))
            return Split(h2d, compute, d2h, enqueue_seconds)
