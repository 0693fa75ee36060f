"""The way of one batch to the GPU and back: pinned memory, device memory, and marks between three streams."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from engines.base import Split
from engines.cuda import DeviceBuffer, Event, Mark, PinnedBuffer, Stream, copy, fill
from engines.trt.digest import Digest


class LaneSize(NamedTuple):
    """Bytes of the largest input and output, and of the codes that they are unpacked from and packed to."""

    given: int
    returned: int
    stored: int = 0
    codes: int = 0

    def holds(self, other: "LaneSize") -> bool:
        """True if a batch of the other size fits."""
        return all(mine >= wanted for mine, wanted in zip(self, other, strict=True))

    def joined(self, other: "LaneSize") -> "LaneSize":
        """The smallest size that holds both."""
        return LaneSize(*map(max, self, other))

    @property
    def pinned(self) -> int:
        """Bytes on the host: codes have the place of what they stand for."""
        return self.given + self.returned


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
class Output:
    """The result of a batch as it lies on the GPU; whoever looks at it holds the lane and the queue.

    Attributes:
        nbytes: of the result.
        stream: that computes it.
        digester: that looks at it.
    """

    buffers: "Buffers"
    nbytes: int
    stream: Stream
    digester: Digest

    def digest(self) -> int:
        """Of its bytes, once all that was queued is done."""
        return self.digester.of(self.buffers.returned, self.nbytes, self.stream)

    def spoil(self) -> None:
        """Queue that it is overwritten."""
        fill(self.buffers.returned, self.nbytes, self.stream)


@dataclass(frozen=True, eq=False)
class Buffers:
    """The memory and the marks of one lane, of no engine in particular; one batch is in them at a time."""

    size: LaneSize
    staged_in: PinnedBuffer
    given: DeviceBuffer
    returned: DeviceBuffer
    staged_out: PinnedBuffer
    stored: DeviceBuffer
    codes: DeviceBuffer
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
            codes = take(DeviceBuffer(size.stored)), take(DeviceBuffer(size.codes))
            return cls(size, *given, *returned, *codes, take(Mark()), take(Mark()), take(Mark()), owned.pop_all())

    def close(self) -> None:
        """Give everything back; arrays over the pinned memory must not be used afterwards."""
        self._owned.close()

    @property
    def nbytes(self) -> int:
        """Memory that the lane takes on the GPU."""
        return sum(self.size)

    def send(self, target: DeviceBuffer, nbytes: int, streams: Streams) -> None:
        """Queue the way in, to the input or its codes; the compute stream will wait for it."""
        copy(target, self.staged_in, nbytes, streams.copy_in)
        self.arrived.record(streams.copy_in)
        streams.compute.wait(self.arrived)

    def fetch(self, source: DeviceBuffer, nbytes: int, streams: Streams) -> None:
        """Queue the way out of the output or its codes, after what the compute stream has been given so far."""
        self.computed.record(streams.compute)
        streams.copy_out.wait(self.computed)
        copy(self.staged_out, source, nbytes, streams.copy_out)
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
