"""Memory of one GPU that outlives engines: what they compute in, and the lanes that their batches go through.

Taking and freeing memory halts the GPU for everybody. An engine that is loaded beside another into the same `Memory`
finds all that it needs there, so the other one's batches go on undisturbed.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from engines import cuda
from engines.base import InferenceError, OutOfMemoryError
from engines.cuda import DeviceBuffer
from engines.trt.digest import Digest
from engines.trt.lane import Buffers, LaneSize, Streams
from engines.trt.pool import Pool

log = logging.getLogger("engines.trt")

LANES = 3  # one batch comes in, one is computed, one goes out


class Memory:
    """An activation block, lanes, weights and three streams; they belong to its owner, not to the engines that use it.

    Engines that share it never compute at the same time, whoever calls them, for they share one compute stream. It
    grows when an engine needs more than there is, and gives nothing back before `close`.

    Args:
        lanes: how many batches may be on their way at once.
        device: number of the GPU.

    Attributes:
        queue: held by whoever puts work into the streams.
        activation: what engines compute in; may be another block each time the queue is held.
        weights: what else engines take; kept for the next one.
        digest: of results, while the queue is held.

    Raises:
        EngineError: there is no such GPU.
        ValueError: no lanes.
    """

    def __init__(self, lanes: int = LANES, device: int = 0) -> None:
        if lanes < 1:
            raise ValueError(f"{lanes} lanes were asked for; expected 1 or more")
        cuda.select(device)
        self.device, self.queue, self._growing = device, threading.RLock(), threading.Lock()
        self._wanted, self._change, self._is_closed = lanes, threading.Condition(), False
        self._lanes: list[Buffers] = []
        self._free: list[Buffers] = []
        self._waiting: list[object] = []  # who wants a lane, in the order of coming
        with ExitStack() as owned:
            self.streams = Streams.open(owned)
            self._streams_owned = owned.pop_all()
        self.activation, self.weights, self.digest = DeviceBuffer(0), Pool(self.streams.compute), Digest()

    def lanes_of(self, size: LaneSize) -> int:
        """How many batches of this size may be on their way at once."""
        with self._change:
            return sum(lane.size.holds(size) for lane in self._lanes)

    @property
    def lane_bytes(self) -> int:
        """Of all lanes on the GPU."""
        return sum(lane.nbytes for lane in self._lanes)

    @property
    def pinned_bytes(self) -> int:
        """Of all lanes on the host."""
        return sum(lane.size.pinned for lane in self._lanes)

    def reserve_activation(self, nbytes: int) -> None:
        """An activation block of so many bytes or more.

        Raises:
            OutOfMemoryError: it does not fit; the former one stays.
        """
        with self._growing:
            if self.activation.nbytes >= nbytes:
                return
            fresh = DeviceBuffer(nbytes)
            with self.queue:
                self.streams.compute.synchronize()
                former, self.activation = self.activation, fresh
            former.close()

    def reserve_lanes(self, size: LaneSize) -> None:
        """Lanes of this size or larger; those that there is no memory for are left out, with a warning.

        Raises:
            OutOfMemoryError: not even one fits; the former ones stay.
        """
        with self._growing:
            while (there := self.lanes_of(size)) < self._wanted:
                try:
                    self._add(Buffers.open(self._largest(size)))
                except OutOfMemoryError as error:
                    if not there:
                        raise
                    short = "there is memory for %d of %d lanes of %s bytes: %s"
                    log.warning(short, there, self._wanted, sum(size), error)
                    return

    @contextmanager
    def take(self, size: LaneSize) -> Iterator[Buffers]:
        """A free lane that holds this size; waits while there is none, first come, first served.

        Raises:
            InferenceError: the memory is closed.
        """
        with self._change, self._next_in_turn(size):
            if self._is_closed:
                raise InferenceError("the memory of the engine is closed")
            lane = self._fitting(size)[-1]  # the one used last: an engine has its addresses still set
            self._free.remove(lane)
        try:
            yield lane
        finally:
            self._give_back(lane)

    def close(self) -> None:
        """Give everything back; a lane that is taken, when it comes back. Engines that use it must be closed before."""
        with self.queue, self._change:
            if self._is_closed:
                return
            self._is_closed = True
            with suppress(InferenceError):  # of earlier work, reported there
                self.streams.synchronize()
            for lane in self._free:
                lane.close()
            self._lanes, self._free = [], []
            self.activation.close()
            self.weights.close()
            self.digest.close()
            self._streams_owned.close()
            self._change.notify_all()

    @contextmanager
    def _next_in_turn(self, size: LaneSize) -> Iterator[None]:
        ticket = object()
        self._waiting.append(ticket)
        try:
            self._change.wait_for(lambda: self._is_closed or (self._waiting[0] is ticket and self._fitting(size)))
            yield
        finally:
            self._waiting.remove(ticket)
            self._change.notify_all()

    def _fitting(self, size: LaneSize) -> list[Buffers]:
        return [lane for lane in self._free if lane.size.holds(size)]

    def _largest(self, size: LaneSize) -> LaneSize:
        with self._change:
            for lane in self._lanes:
                size = size.joined(lane.size)
        return size

    def _add(self, lane: Buffers) -> None:
        """One more lane, or one in place of a smaller one, which is closed now or when it comes back."""
        unused: list[Buffers] = []
        with self._change:
            if len(self._lanes) == self._wanted:
                small = [one for one in self._lanes if not one.size.holds(lane.size)]
                former = min(small, key=lambda one: one not in self._free)
                self._lanes.remove(former)
                if former in self._free:
                    self._free.remove(former)
                    unused.append(former)
            self._lanes.append(lane)
            self._free.append(lane)
            self._change.notify_all()
        for former in unused:
            former.close()

    def _give_back(self, lane: Buffers) -> None:
        with self._change:
            if lane in self._lanes:
                self._free.append(lane)
                self._change.notify_all()
                return
        lane.close()
