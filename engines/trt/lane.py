"""The way of one batch to the GPU and back: pinned memory, device memory, and marks between three streams."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineError, OutOfMemoryError, Split
from engines.cuda import DeviceBuffer, Event, PinnedBuffer, Stream, copy

log = logging.getLogger("engines.trt")

COUNT = 3  # one on its way in, one computed, one on its way out


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


class Lane:
    """Buffers for one batch and its result, and the marks of its way; one batch is in a lane at a time.

    The memory grows to the largest batch that was asked for, and is kept.
    """

    def __init__(self, owned: ExitStack) -> None:
        self._memory = owned.enter_context(ExitStack())
        self.nbytes = (0, 0)
        marks = [owned.enter_context(Event(waits_asleep=True)) for _ in range(3)]
        self._arrived, self._computed, self._done = marks

    def grow(self, given_bytes: int, returned_bytes: int) -> None:
        """Make room for inputs and outputs of so many bytes; what is large enough stays as it is.

        Raises:
            OutOfMemoryError: the memory cannot be had; the lane is as it was.
        """
        if self.holds(given_bytes, returned_bytes):
            return
        wanted = max(self.nbytes[0], given_bytes), max(self.nbytes[1], returned_bytes)
        with ExitStack() as taken:
            take = taken.enter_context
            given = take(PinnedBuffer(wanted[0])), take(DeviceBuffer(wanted[0]))
            returned = take(DeviceBuffer(wanted[1])), take(PinnedBuffer(wanted[1]))
            self._memory.close()
            self._memory.push(taken.pop_all())
        self.staged_in, self.given = given
        self.returned, self.staged_out = returned
        self.nbytes = wanted

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        self.nbytes = (0, 0)

    def holds(self, given_bytes: int, returned_bytes: int) -> bool:
        """True if there is room for inputs and outputs of so many bytes."""
        return self.nbytes[0] >= given_bytes and self.nbytes[1] >= returned_bytes

    def send(self, nbytes: int, streams: Streams) -> None:
        """Queue the way in; the compute stream will wait for it."""
        copy(self.given, self.staged_in, nbytes, streams.copy_in)
        self._arrived.record(streams.copy_in)
        streams.compute.wait(self._arrived)

    def fetch(self, nbytes: int, streams: Streams) -> None:
        """Queue the way out, after what the compute stream has been given so far."""
        self._computed.record(streams.compute)
        streams.copy_out.wait(self._computed)
        copy(self.staged_out, self.returned, nbytes, streams.copy_out)
        self._done.record(streams.copy_out)

    def result(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """The result, once it is there: a view of the lane's memory, good until the next batch enters the lane."""
        self._done.synchronize()
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


class Lanes:
    """The lanes of one GPU and their streams, for several threads and for engines that follow each other.

    A new engine takes only what the engines before it did not need.

    Args:
        count: batches on their way at the same time.
    """

    def __init__(self, count: int = COUNT) -> None:
        if count < 1:
            raise EngineError(f"{count} lanes; expected 1 or more")
        with ExitStack() as owned:
            self.streams = Streams.open(owned)
            self._all = [Lane(owned) for _ in range(count)]
            owned.callback(self.streams.synchronize)  # before memory goes that a copy may still use
            self._owned = owned.pop_all()
        self._free, self._turn = list(self._all), threading.Condition()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def nbytes(self) -> int:
        """Memory on the GPU; as much again is pinned on the host."""
        return sum(sum(lane.nbytes) for lane in self._all)

    @contextmanager
    def take(self, lane: Lane | None = None) -> Iterator[Lane]:
        """A lane of the caller's own, that one if given; waits until it is free."""
        with self._turn:
            self._turn.wait_for(lambda: lane in self._free if lane else self._free)
            mine = lane or self._free[-1]
            self._free.remove(mine)
        try:
            yield mine
        finally:
            with self._turn:
                self._free += [mine] if mine in self._all else []
                self._turn.notify_all()

    def grow(self, given_bytes: int, returned_bytes: int) -> None:
        """Make room in every lane for inputs and outputs of so many bytes, one lane after the other as they are free.

        Where the memory is short, lanes that cannot grow are given up, with a warning.

        Raises:
            OutOfMemoryError: no lane can; they are as they were.
        """
        shortage = None
        for lane in list(self._all):
            try:
                with self.take(lane):
                    lane.grow(given_bytes, returned_bytes)
            except OutOfMemoryError as error:
                shortage = error
                break
        fit = [lane for lane in self._all if lane.holds(given_bytes, returned_bytes)]
        if shortage and not fit:
            raise shortage
        if shortage:
            log.warning("%d of %d lanes fit the memory: %s", len(fit), len(self._all), shortage)
            self._keep(fit)

    def close(self) -> None:
        """Give everything back; no lane may be taken then."""
        self._owned.close()

    def _keep(self, lanes: list[Lane]) -> None:
        for lane in [lane for lane in self._all if lane not in lanes]:
            with self.take(lane):
                self._all.remove(lane)
                lane.close()
