"""Owners of what the CUDA runtime hands out: streams, events, graphs, memory. Every status is checked.

Needs the package `cuda-bindings`, imported at the first call: the module itself imports anywhere.
"""

import ctypes
import importlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.base import DeviceLostError, EngineError, InferenceError, OutOfMemoryError

FATAL = frozenset(
    {
        "cudaErrorAssert", "cudaErrorECCUncorrectable", "cudaErrorHardwareStackError", "cudaErrorIllegalAddress",
        "cudaErrorIllegalInstruction", "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc", "cudaErrorLaunchFailure",
        "cudaErrorLaunchTimeout", "cudaErrorMisalignedAddress", "cudaErrorNvlinkUncorrectable",
        "CUDA_ERROR_ASSERT", "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_HARDWARE_STACK_ERROR",
        "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_LAUNCH_TIMEOUT",
        "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    }
)  # fmt: skip
"""What CUDA's documentation says leaves the process in an inconsistent state."""

SUCCESS = ("cudaSuccess", "CUDA_SUCCESS")
OUT_OF_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")


@cache
def runtime() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        EngineError: it is not installed, or does not load.
    """
    return _bindings("runtime")


@cache
def driver() -> Any:
    """The module `cuda.bindings.driver`: for what the runtime does not offer, such as launching a kernel.

    Raises:
        EngineError: it is not installed, or does not load.
    """
    return _bindings("driver")


def _bindings(part: str) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{part}")
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"CUDA cannot be used, install squall[tensorrt]: {error}") from error


def call(name: str, *args: Any) -> Any:
    """What a function of the CUDA runtime (cuda...) or driver (cu...) returns beside its status: one value, or None.

    Raises:
        InferenceError: the status is not success; names the function and CUDA's reason.
        OutOfMemoryError: the reason is memory.
        DeviceLostError: no later call can succeed.
    """
    values = _values(name, *args)
    return values[0] if values else None


def _values(name: str, *args: Any) -> tuple[Any, ...]:
    """As `call`, where a function returns several values."""
    returned: tuple[Any, ...] = _function(name)(*args)
    status = returned[0].name
    if status not in SUCCESS:
        raise _kind_of(status)(f"{name} failed: {status}")
    return returned[1:]


def _function(name: str) -> Any:
    return getattr(runtime() if name.startswith("cuda") else driver(), name)


def _kind_of(status: str) -> type[EngineError]:
    if status in FATAL:
        return DeviceLostError
    return OutOfMemoryError if status in OUT_OF_MEMORY else InferenceError


def device_count() -> int:
    """GPUs that this process may use; 0 without a driver or without `cuda-bindings`."""
    return _count_devices()[0]


def require_device(purpose: str) -> None:
    """Nothing, if there is a GPU. To be asked first: TensorRT 8.6 ends the process where there is none.

    Raises:
        EngineError: no GPU; names what it was for and why CUDA finds none.
    """
    count, reason = _count_devices()
    if not count:
        raise EngineError(f"{purpose} needs an NVIDIA GPU with its driver, and CUDA finds none here: {reason}")


def _count_devices() -> tuple[int, str]:
    try:
        status, count = runtime().cudaGetDeviceCount()
    except EngineError as error:
        return 0, str(error)
    return (int(count), "") if status.name == "cudaSuccess" else (0, status.name)


@dataclass(frozen=True)
class Gpu:
    """What of a GPU an engine file depends on; the parts of a divided (MIG) GPU differ from the whole."""

    name: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int


def describe_device(index: int = 0) -> Gpu:
    """The GPU with this number among those that this process may use.

    Raises:
        EngineError: there is no such GPU.
    """
    require_device("describing a GPU")
    found = call("cudaGetDeviceProperties", index)
    name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
    memory = int(found.totalGlobalMem)
    return Gpu(name.rstrip("\0"), f"{found.major}.{found.minor}", int(found.multiProcessorCount), memory)


def driver_version() -> str:
    """The newest CUDA that the driver knows, such as "12.4".

    Raises:
        EngineError: CUDA cannot be used here.
    """
    major, rest = divmod(int(call("cudaDriverGetVersion")), 1000)
    return f"{major}.{rest // 10}"


def free_bytes() -> int:
    """Memory that is free on the current GPU."""
    free, _ = _values("cudaMemGetInfo")
    return int(free)


class Owner:
    """Owns one handle of CUDA's runtime or driver; given back by `close`, at the end of `with`, or with the object."""

    def __init__(self, handle: int, release: str) -> None:
        self.handle = handle
        self._release = weakref.finalize(self, _give_back, _function(release), handle)

    def close(self) -> None:
        """Give it back; a second call does nothing."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _give_back(release: Callable[[int], Any], handle: int) -> None:
    if handle:
        release(handle)  # its status tells of errors of earlier work, reported there


class Stream(Owner):
    """A queue of work on the GPU; work of others in the default stream, such as loading an engine, does not halt it."""

    def __init__(self) -> None:
        super().__init__(int(call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking)), "cudaStreamDestroy")

    def synchronize(self) -> None:
        """Wait until the queue is empty."""
        call("cudaStreamSynchronize", self.handle)

    def wait(self, event: "Mark") -> None:
        """Let later work of this stream start only after the event."""
        call("cudaStreamWaitEvent", self.handle, event.handle, 0)


class Mark(Owner):
    """A mark in a stream to wait for. A thread that waits sleeps; it keeps no core busy."""

    def __init__(self) -> None:
        flags = runtime().cudaEventBlockingSync | runtime().cudaEventDisableTiming
        super().__init__(int(call("cudaEventCreateWithFlags", flags)), "cudaEventDestroy")

    def record(self, stream: Stream) -> None:
        call("cudaEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the stream has passed it; other threads of Python run meanwhile."""
        call("cudaEventSynchronize", self.handle)


class Event(Mark):
    """A mark to measure time by; a thread that waits keeps its core busy."""

    def __init__(self) -> None:
        Owner.__init__(self, int(call("cudaEventCreate")), "cudaEventDestroy")

    def milliseconds_since(self, earlier: "Event") -> float:
        """Time on the GPU between two recorded marks."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle))


class Graph(Owner):
    """Captured work, ready to be put into a stream as a whole; it may still run when it is closed.

    Args:
        captured: what CUDA captured; not needed afterwards.
    """

    def __init__(self, captured: int) -> None:
        super().__init__(int(call("cudaGraphInstantiate", captured, 0)), "cudaGraphExecDestroy")

    def launch(self, stream: Stream) -> None:
        """Queue the work, on the addresses that it was captured with."""
        call("cudaGraphLaunch", self.handle, stream.handle)


class _Captured(Owner):
    """What was put into a stream since its capture began; the capture ends, whether or not it failed."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(int(call("cudaStreamEndCapture", stream.handle)), "cudaGraphDestroy")

    def require_work(self) -> None:
        """An empty graph would leave what was in memory before as its result."""
        *_, count = _values("cudaGraphGetNodes", self.handle)
        if not count:
            raise InferenceError("no work was captured: cudaGraphGetNodes tells of 0 nodes")


def capture(queue: Callable[[Stream], object]) -> Graph:
    """The work that `queue` puts into a stream, which does not run.

    The stream is one of its own, so that nobody else puts work into it or waits for it meanwhile: either would spoil
    the capture, and fail. Other threads may use CUDA as they like.

    Raises:
        InferenceError: of `queue`, or some of the work cannot be captured; streams are as they were.
    """
    mode = runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    with _no_error_left(), Stream() as stream:
        call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            queue(stream)
        except BaseException:
            with suppress(InferenceError):  # that there was an error
                _Captured(stream).close()
            raise
        with _Captured(stream) as captured:
            captured.require_work()
            return Graph(captured.handle)


@contextmanager
def _no_error_left() -> Iterator[None]:
    """An error of the body is not reported again by a later call of this thread."""
    try:
        yield
    except BaseException:
        runtime().cudaGetLastError()
        raise


class DeviceBuffer(Owner):
    """Memory of the GPU; `handle` is its address, 0 if it has no bytes.

    Raises:
        OutOfMemoryError: it does not fit.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        super().__init__(int(call("cudaMalloc", nbytes)) if nbytes else 0, "cudaFree")


class PinnedBuffer(Owner):
    """Host memory that the GPU copies from and to at full speed, without the processor."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        super().__init__(int(call("cudaHostAlloc", nbytes, 0)) if nbytes else 0, "cudaFreeHost")

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """The first bytes as an array, without a copy; not to be used after `close`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > self.nbytes:
            raise ValueError(f"{size} bytes of shape {shape} do not fit a pinned buffer of {self.nbytes}")
        memory = memoryview((ctypes.c_byte * size).from_address(self.handle)).cast("B")
        return np.ndarray(shape, dtype, memory)


def finish_default_stream() -> None:
    """Wait for what was put into the default stream; streams of ours do not wait for it."""
    call("cudaStreamSynchronize", 0)


def copy(target: DeviceBuffer | PinnedBuffer, source: DeviceBuffer | PinnedBuffer, nbytes: int, stream: Stream) -> None:
    """Queue a copy of the first bytes; pinned memory must not change until the stream has passed it."""
    if nbytes > min(target.nbytes, source.nbytes):
        raise ValueError(f"{nbytes} bytes do not fit buffers of {source.nbytes} and {target.nbytes}")
    kind = runtime().cudaMemcpyKind.cudaMemcpyDefault
    call("cudaMemcpyAsync", target.handle, source.handle, nbytes, kind, stream.handle)


def upload(array: NDArray[Any], stream: Stream) -> DeviceBuffer:
    """A copy of an array on the GPU; the stream is empty afterwards.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    there = DeviceBuffer(array.nbytes)
    with PinnedBuffer(array.nbytes) as staged:
        staged.array(array.shape, array.dtype)[...] = array
        copy(there, staged, array.nbytes, stream)
        stream.synchronize()
    return there


def fill(target: DeviceBuffer, nbytes: int, stream: Stream) -> None:
    """Queue that the first bytes are all ones, which is NaN in floats."""
    if nbytes > target.nbytes:
        raise ValueError(f"{nbytes} bytes do not fit a buffer of {target.nbytes}")
    call("cudaMemsetAsync", target.handle, 0xFF, nbytes, stream.handle)


def select(device: int) -> None:
    """Make a GPU the current one of this thread.

    Raises:
        EngineError: there is no such GPU.
    """
    count = device_count()
    if not 0 <= device < count:
        raise EngineError(f"GPU {device} was asked for; this process may use {count}")
    call("cudaSetDevice", device)
