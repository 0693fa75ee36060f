"""A TensorRT engine, loaded and bound once: tiles in, tiles out."""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import cuda
from engines.base import EngineError, InferenceError, Split
from engines.cuda import DeviceBuffer, Stream
from engines.spec import Profile, Shape, TensorSpec, to_shape
from engines.trt.builder import Journal
from engines.trt.lane import Lane, Streams
from engines.trt.refit import refit
from engines.trt.report import inspect_engine
from engines.trt.surface import Surface, load_surface, log_to

log = logging.getLogger("engines.trt")

NUMPY_TYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")


class TensorRTEngine:
    """An `Engine` over one TensorRT execution context on one GPU; for one thread at a time.

    All memory is taken when it is loaded, for the largest shapes of the engine's optimization profiles.

    Args:
        engine_file: a serialized engine, already verified: it is executable code.
        device: number of the GPU.
        module: the Python module of TensorRT, where several are installed.
        activation: gives the memory to compute in, of at least so many bytes, which stays the caller's: engines that
            never run at the same time may share it. None = the engine takes its own.

    Raises:
        EngineError: no GPU or no TensorRT here, or the engine is of another GPU or release; names TensorRT's reason.
        OutOfMemoryError: the engine does not fit the GPU.
    """

    def __init__(
        self,
        engine_file: bytes,
        *,
        device: int = 0,
        module: str | None = None,
        activation: Callable[[int], DeviceBuffer] | None = None,
    ) -> None:
        self._surface = load_surface(module)
        cuda.require_device(f"running an engine with {self._surface.flavour} {self._surface.version}")
        cuda.select(device)
        self._device, self._turn = device, threading.Lock()
        with ExitStack() as owned:  # gives everything back if loading fails half way
            self._journal = Journal(log_to(log))
            self._logger = self._surface.new_logger(self._journal)
            self._runtime = self._surface.module.Runtime(self._logger)
            self._engine = self._deserialize(engine_file)
            owned.callback(self._forget_engine)
            self.specs = _specs(self._surface, self._engine)
            self.profiles = _profiles(self._engine, self.specs[0].name)
            self._activation = self._take_activation(activation, owned)
            self._context = self._new_context()
            owned.callback(self._forget_context)
            self._streams = Streams.open(owned)
            self._active = 0
            self._bound: tuple[int, tuple[int, ...]] = (
                0,
                (),
            )  # optimization profile and shape of the input that are set
            self._addresses = (0, 0)
            self._sizes = self._largest_bytes()
            self._lanes = [Lane.open(*self._sizes, owned)]
            self._owned = owned.pop_all()

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The forecast (n, lead, h, w) of a batch (n, channel, h, w), an array of its own.

        Raises:
            InferenceError: no optimization profile holds the shape, another dtype, or the GPU failed; names which.
        """
        return self.lend(batch).copy()

    def lend(self, batch: NDArray[Any]) -> NDArray[Any]:
        """As a call, but a view of memory that the next inference of this engine overwrites."""
        lane = self._lanes[0]
        return lane.result(self._start(batch, lane), self.specs[1].dtype)

    def map(self, batches: Iterable[NDArray[Any]], lanes: int = 3) -> Iterator[NDArray[Any]]:
        """The forecasts of batches, in order; one is computed while the next comes in and the last goes out.

        Each is lent: good until the next one is asked for. Takes memory for `lanes` batches, kept afterwards.
        """
        while len(self._lanes) < lanes:
            self._lanes.append(Lane.open(*self._sizes, self._owned))
        waiting: list[tuple[Lane, tuple[int, ...]]] = []
        try:
            for number, batch in enumerate(batches):
                if len(waiting) == lanes:
                    yield self._finish(waiting)
                lane = self._lanes[number % lanes]
                waiting.append((lane, self._start(batch, lane)))
            while waiting:
                yield self._finish(waiting)
        finally:
            self._streams.synchronize()

    def timed(self, batch: NDArray[Any]) -> Split:
        """Run a batch once and say how long each part of its way took on the GPU; not while a `map` is under way.

        Raises:
            InferenceError: as of a call.
        """
        self._prepare(batch)
        lane, stream = self._lanes[0], self._streams.compute

        def queue() -> int:
            return self._returned_bytes(self.infer(batch.shape, lane.given.handle, lane.returned.handle, stream))

        return lane.time(batch, queue, stream)

    def infer(self, shape: tuple[int, ...], source: int, target: int, stream: Stream) -> tuple[int, ...]:
        """Queue one inference between two addresses on the GPU; returns at once, with the shape of the result.

        Raises:
            InferenceError: no optimization profile holds the shape, or TensorRT refuses; names its reason.
        """
        returned = self._bind(shape, stream)
        if self._addresses != (source, target):
            given_name, returned_name = (spec.name for spec in self.specs)
            self._must(self._context.set_tensor_address(given_name, source), "set_tensor_address of the input")
            self._must(self._context.set_tensor_address(returned_name, target), "set_tensor_address of the output")
            self._addresses = (source, target)
        self._must(self._context.execute_async_v3(stream.handle), "execute_async_v3")
        return returned

    @contextmanager
    def lane(self, shape: Shape) -> Iterator["_Single"]:
        """The engine's one lane, for batches of this shape; waits while it is taken."""
        with self._turn:
            yield _Single(self, np.zeros(shape, self.specs[0].dtype))

    def warm(self, shape: Shape) -> None:
        """Run once on zeros of this shape, so that the first real batch pays for nothing."""
        self.lend(np.zeros(shape, self.specs[0].dtype))

    def refit(self, model: Path, previous: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the weights in which an ONNX file differs from `previous`, now this engine's.

        For a standby engine that was built with REFIT; its results are then to be checked again.

        Args:
            previous: `engines.trt.refit.digest_weights` of the file that it was built from.

        Raises:
            EngineError: not refittable, or TensorRT cannot replace a weight that differs (names it): build again.
        """
        self._streams.synchronize()
        return refit(self._surface, self._engine, model, previous, self._logger, self._journal)

    def serialize(self) -> bytes:
        """The engine file, with the weights that it has now."""
        return bytes(self._engine.serialize())

    def close(self) -> None:
        """Release memory; the engine cannot be used afterwards."""
        self._owned.close()

    @property
    def activation_bytes(self) -> int:
        """Memory of the GPU that the engine computes in."""
        return self._surface.activation_bytes(self._engine)

    @property
    def buffer_bytes(self) -> int:
        """Memory of the GPU for inputs and outputs; as much again is pinned on the host."""
        return sum(lane.nbytes for lane in self._lanes)

    def inspect(self) -> str:
        """The engine inspector's JSON."""
        return inspect_engine(self._surface, self._engine)

    def _deserialize(self, engine_file: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(engine_file)
        if engine is None:
            called = f"{self._surface.flavour} {self._surface.version}"
            raise EngineError(f"{called} cannot load this engine: {self._journal.reason()}; build it again here")
        return engine

    def _take_activation(self, activation: Callable[[int], DeviceBuffer] | None, owned: ExitStack) -> DeviceBuffer:
        needed = self.activation_bytes
        memory = activation(needed) if activation else owned.enter_context(DeviceBuffer(needed))
        if memory.nbytes < needed:
            raise EngineError(f"the engine computes in {needed} bytes; it was given {memory.nbytes}")
        return memory

    def _new_context(self) -> Any:
        context = self._surface.new_context(self._engine)
        if context is None:
            raise EngineError(f"TensorRT makes no execution context: {self._journal.reason()}")
        self._surface.set_activation(context, self._activation.handle, self._activation.nbytes)
        return context

    def _largest_bytes(self) -> tuple[int, int]:
        """Bytes of the largest input and output over the optimization profiles."""
        given, returned = (np.dtype(spec.dtype).itemsize for spec in self.specs)
        stream = self._streams.compute
        outputs = [math.prod(self._bind(profile.max, stream)) * returned for profile in self.profiles]
        return max(math.prod(profile.max) * given for profile in self.profiles), max(outputs)

    def _start(self, batch: NDArray[Any], lane: Lane) -> tuple[int, ...]:
        """Send a batch into a lane and queue all of its way; the shape of the result."""
        self._prepare(batch)
        lane.send(batch, self._streams)
        shape = self.infer(batch.shape, lane.given.handle, lane.returned.handle, self._streams.compute)
        lane.fetch(self._returned_bytes(shape), self._streams)
        return shape

    def _prepare(self, batch: NDArray[Any]) -> None:
        """Refuse a batch that does not fit before anything is queued; make this engine's GPU the current one."""
        if self._context is None:
            raise InferenceError("the engine is closed")
        if batch.dtype != self.specs[0].dtype:
            raise InferenceError(f"a batch of {batch.dtype} does not fit the input {self.specs[0]}")
        self._choose(batch.shape)
        cuda.call("cudaSetDevice", self._device)

    def _returned_bytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * np.dtype(self.specs[1].dtype).itemsize

    def _finish(self, waiting: list[tuple[Lane, tuple[int, ...]]]) -> NDArray[Any]:
        lane, shape = waiting.pop(0)
        return lane.result(shape, self.specs[1].dtype)

    def _choose(self, shape: tuple[int, ...]) -> int:
        """The first optimization profile that holds a shape, the active one before all."""
        if self.profiles[self._active].holds(shape):
            return self._active
        for index, profile in enumerate(self.profiles):
            if profile.holds(shape):
                return index
        known = "; ".join(map(str, self.profiles))
        raise InferenceError(f"no optimization profile of the engine holds a batch of shape {shape}; it has {known}")

    def _bind(self, shape: tuple[int, ...], stream: Stream) -> tuple[int, ...]:
        """Make a shape the input's, unless it is; the shape of the output."""
        given, returned = self.specs
        index = self._choose(shape)
        if index != self._active:
            switched = self._context.set_optimization_profile_async(index, stream.handle)
            self._must(switched, f"set_optimization_profile_async to {index}")
            self._active = index
        if self._bound != (index, shape):
            self._bound = (index, ())
            self._must(self._context.set_input_shape(given.name, shape), f"set_input_shape to {shape}")
            self._bound = (index, shape)
        made = tuple(self._context.get_tensor_shape(returned.name))
        if min(made) < 0:
            raise InferenceError(f"the shape of {returned} depends on the values of the input; expected on its shape")
        return made

    def _must(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise InferenceError(f"TensorRT refuses {what}: {self._journal.reason()}")

    def _forget_context(self) -> None:
        self._context = None

    def _forget_engine(self) -> None:
        self._engine = None
        self._runtime = None


@dataclass(frozen=True)
class _Single:
    engine: TensorRTEngine
    given: NDArray[Any]

    def run(self) -> NDArray[Any]:
        return self.engine.lend(self.given)


def _specs(surface: Surface, engine: Any) -> tuple[TensorSpec, TensorSpec]:
    """The input and the output of an engine.

    Raises:
        EngineError: there is not one of each.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = {name: engine.get_tensor_mode(name).name for name in names}
    if sorted(modes.values()) != ["INPUT", "OUTPUT"]:
        raise EngineError(f"the engine has the I/O tensors {modes}; expected one INPUT and one OUTPUT")
    given, returned = (_spec(surface, engine, name) for name in sorted(names, key=modes.__getitem__))
    return given, returned


def _spec(surface: Surface, engine: Any, name: str) -> TensorSpec:
    shape = tuple(None if axis < 0 else int(axis) for axis in engine.get_tensor_shape(name))
    dtype = surface.dtype(engine.get_tensor_dtype(name))
    if dtype not in NUMPY_TYPES:
        raise EngineError(f"the I/O tensor {name} of the engine is {dtype}; expected one of {', '.join(NUMPY_TYPES)}")
    return TensorSpec(name, dtype, shape)


def _profiles(engine: Any, name: str) -> tuple[Profile, ...]:
    """The optimization profiles of an engine, for its input."""
    found = []
    for index in range(engine.num_optimization_profiles):
        found.append(Profile(*(to_shape(sizes) for sizes in engine.get_tensor_profile_shape(name, index))))
    return tuple(found)
