"""The way of one batch to the GPU and back: pinned memory, device memory, and marks between three streams."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from engines.base import Split
from engines.cuda import DeviceBuffer, Event, Mark, PinnedBuffer, Stream, copy


class LaneSize(NamedTuple):
    """Bytes of the largest input and of the largest output."""

    given: int
    returned: int

    def holds(self, other: "LaneSize") -> bool:
        """True if a batch of the other size fits."""
        return self.given >= other.given and self.returned >= other.returned

    def joined(self, other: "LaneSize") -> "LaneSize":
        """The smallest size that holds both."""
        return LaneSize(max(self.given, other.given), max(self.returned, other.returned))


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


@dataclass(frozen=True, eq=False)
class Buffers:
    """The memory and the marks of one lane, of no engine in particular; one batch is in them at a time."""

    size: LaneSize
    staged_in: PinnedBuffer
    given: DeviceBuffer
    returned: DeviceBuffer
    staged_out: PinnedBuffer
    arrived: Mark
    computed: Mark
    done: Mark
    _owned: ExitStack

    @classmethod
    def open(cls, size: LaneSize) -> "Buffers":
        """Buffers of this size.

        Raises:
            OutOfMemoryError: they do not fit the GPU, or cannot be pinned; nothing is kept.
        """
        with ExitStack() as owned:
            take = owned.enter_context
            given = take(PinnedBuffer(size.given)), take(DeviceBuffer(size.given))
            returned = take(DeviceBuffer(size.returned)), take(PinnedBuffer(size.returned))
            return cls(size, *given, *returned, take(Mark()), take(Mark()), take(Mark()), owned.pop_all())

    def close(self) -> None:
        """Give everything back; arrays over the pinned memory must not be used afterwards."""
        self._owned.close()

    @property
    def nbytes(self) -> int:
        """Memory that the lane takes on the GPU; as much again is pinned on the host."""
        return sum(self.size)

    def send(self, nbytes: int, streams: Streams) -> None:
        """Queue the way in; the compute stream will wait for it."""
        copy(self.given, self.staged_in, nbytes, streams.copy_in)
        self.arrived.record(streams.copy_in)
        streams.compute.wait(self.arrived)

    def fetch(self, nbytes: int, streams: Streams) -> None:
        """Queue the way out, after what the compute stream has been given so far."""
        self.computed.record(streams.compute)
        streams.copy_out.wait(self.computed)
        copy(self.staged_out, self.returned, nbytes, streams.copy_out)
        self.done.record(streams.copy_out)

    def time(self, nbytes: int, queue: Callable[[], int], stream: Stream) -> Split:
        """How long each part of a batch's way takes on the GPU, one after the other in one stream.

        Args:
            nbytes: of the input.
            queue: queues the inference in that stream; gives the bytes of the result.
        """
        with ExitStack() as owned:
            marks = [owned.enter_context(Event()) for _ in range(4)]
            owned.callback(stream.synchronize)  # also after an error: the buffers are free again
            marks[0].record(stream)
            copy(self.given, self.staged_in, nbytes, stream)
            marks[1].record(stream)
            started = time.perf_counter()
            returned = queue()
            enqueue_seconds = time.perf_counter() - started
            marks[2].record(stream)
            copy(self.staged_out, self.returned, returned, stream)
            marks[3].record(stream)
            marks[3].synchronize()
            h2d, compute, d2h = (later.milliseconds_since(earlier) / 1e3 for earlier, later in pairwise(marks))
            return Split(h2d, compute, d2h, enqueue_seconds)
