"""Device memory for the weights of engines that come and go: what one gives back, the next one takes."""

import logging
import threading

from engines.base import OutOfMemoryError
from engines.cuda import DeviceBuffer, Mark, Stream

log = logging.getLogger("engines.trt")

SPARE = 2  # a block may be as many times as large as what is asked for


class Pool:
    """Blocks of device memory, given to TensorRT by address; what is given back is kept until memory is short.

    CUDA halts the GPU to free memory, and TensorRT frees with Python's lock held: nothing at all would run.

    Args:
        stream: in which engines compute. A block is not taken again before all that is queued there is done.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._taken: dict[int, DeviceBuffer] = {}
        self._free: list[DeviceBuffer] = []
        self._is_closed = False

    @property
    def nbytes(self) -> int:
        """Of all blocks, taken or free."""
        with self._lock:
            return sum(block.nbytes for block in (*self._taken.values(), *self._free))

    def take(self, nbytes: int, alignment: int = 0) -> int:
        """Address of so many bytes or more; 0 if there is no such memory, as TensorRT expects.

        Args:
            alignment: that the address must be a multiple of; 0 = any.
        """
        if not nbytes:
            return 0
        block = self._used(nbytes) or self._fresh(nbytes)
        if block is None:
            return 0
        with self._lock:
            self._taken[block.handle] = block
        if alignment and block.handle % alignment:
            log.warning("CUDA gives memory at %#x; an engine asks for multiples of %d", block.handle, alignment)
            self.give_back(block.handle)
            return 0
        return block.handle

    def give_back(self, address: int) -> bool:
        """False if the address is not that of a taken block."""
        with self._lock:
            block = self._taken.pop(address, None)
            if block is not None and not self._is_closed:
                self._free.append(block)
                return True
        if block is not None:
            block.close()
        return block is not None

    def close(self) -> None:
        """Give the free blocks back to CUDA, and those that are taken as soon as they come back."""
        with self._lock:
            blocks, self._free, self._is_closed = self._free, [], True
        for block in blocks:
            block.close()

    def _used(self, nbytes: int) -> DeviceBuffer | None:
        with self._lock:
            fitting = [block for block in self._free if nbytes <= block.nbytes <= SPARE * nbytes]
            if not fitting:
                return None
            block = min(fitting, key=lambda one: one.nbytes)
            self._free.remove(block)
        with Mark() as mark:
            mark.record(self._stream)
            mark.synchronize()
        return block

    def _fresh(self, nbytes: int) -> DeviceBuffer | None:
        try:
            return DeviceBuffer(nbytes)
        except OutOfMemoryError:
            with self._lock:
                unused, self._free = self._free, []
            for block in unused:
                block.close()
        try:
            return DeviceBuffer(nbytes)
        except OutOfMemoryError as error:
            log.warning("no memory for %d bytes of an engine: %s", nbytes, error)
            return None
