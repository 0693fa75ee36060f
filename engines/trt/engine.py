"""A TensorRT engine, loaded and bound once: tiles in, tiles out."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from engines import cuda
from engines.base import DeviceLostError, EngineError, InferenceError, OpenLane, Split, as_given
from engines.codes import CodeTable, ValueTable
from engines.cuda import Stream
from engines.spec import Profile, Shape, TensorSpec, to_shape
from engines.trt.border import Border, Codes, Numbers
from engines.trt.builder import Journal
from engines.trt.lane import Buffers, LaneSize, Output, Streams
from engines.trt.memory import LANES, Memory
from engines.trt.refit import refit
from engines.trt.replay import Replay, is_wanted
from engines.trt.report import inspect_engine
from engines.trt.surface import Surface, load_surface, log_to

log = logging.getLogger("engines.trt")

NUMPY_TYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")


class TensorRTEngine:
    """An `Engine` over one TensorRT execution context on one GPU, for as many threads at once as it has lanes.

    All memory is taken when it is loaded, for the largest shapes of the engine's optimization profiles.

    Args:
        engine_file: a serialized engine, already verified: it is executable code.
        device: number of the GPU.
        module: the Python module of TensorRT, where several are installed.
        memory: to compute in and to send batches through, which stays the caller's and may be shared by engines on
            one GPU; its own device and lanes count. None = the engine takes its own.
        lanes: how many batches may be on their way at once in memory of its own.

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
        memory: Memory | None = None,
        lanes: int = LANES,
    ) -> None:
        self._surface = load_surface(module)
        cuda.require_device(f"running an engine with {self._surface.flavour} {self._surface.version}")
        cuda.select(device if memory is None else memory.device)
        self._is_closed = False
        self._codes: WeakSet[Codes] = WeakSet()  # each is its users'; added to by who holds the queue
        with ExitStack() as owned:  # gives everything back if loading fails half way
            self._memory = owned.enter_context(closing(Memory(lanes, device))) if memory is None else memory
            self._journal = Journal(log_to(log))
            self._logger = self._surface.new_logger(self._journal)
            self._runtime = self._surface.module.Runtime(self._logger)
            if memory is not None:
                weights = memory.weights
                self._allocator = self._surface.new_allocator(weights.take, weights.give_back)
                self._runtime.gpu_allocator = self._allocator
            self._engine = self._deserialize(engine_file)
            owned.callback(self._forget_engine)
            self.specs = _specs(self._surface, self._engine)
            self.profiles = _profiles(self._engine, self.specs[0].name)
            self._context = self._new_context()
            owned.callback(self._forget_context)
            self._replay = owned.enter_context(closing(Replay(self._surface.can_be_captured and is_wanted())))
            self._bound = _Bound()
            self._memory.reserve_activation(self.activation_bytes)
            with self._memory.queue:
                self._size = self._largest()
            self._memory.reserve_lanes(self._size)
            cuda.finish_default_stream()
            self._owned = owned.pop_all()

    @property
    def lanes(self) -> int:
        """How many batches may be on their way at once."""
        return self._memory.lanes_of(self._size)

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The forecast (n, lead, h, w) of a batch (n, channel, h, w), an array of its own.

        Raises:
            InferenceError: no optimization profile holds the shape, another dtype, or the GPU failed; names which.
        """
        self._refuse_misfit(batch.shape, batch.dtype)
        with self.lane(batch.shape) as lane:
            np.copyto(lane.given, as_given(batch, self.specs[0]))
            return lane.run().astype(self.specs[1].call_dtype)  # a copy

    def lane(self, shape: tuple[int, ...]) -> AbstractContextManager["TensorRTLane"]:
        """A lane for batches (n, channel, h, w) of this shape; `given` is pinned memory. Waits while all are taken.

        Raises:
            InferenceError: no optimization profile holds the shape, or the engine is closed.
        """
        return self._lane(Numbers(*(np.dtype(spec.dtype) for spec in self.specs)), self._size, shape)

    def packing(self, codes: CodeTable, values: ValueTable | None = None) -> OpenLane:
        """Lanes whose results are codes, made on the GPU: fewer bytes to fetch, and nothing left to pack on the host.

        With `values` they take codes, too. Kernels and their tables are loaded and tried now, and lanes get room for
        codes; the tables last as long as the function that is returned, or as the engine.

        Raises:
            EngineError: results are no floats, values are not what the engine takes, the driver cannot load a kernel,
                or one gives other numbers than its table says.
            OutOfMemoryError: there is no room for codes.
        """
        if values is not None and values.values.dtype != self.specs[0].dtype:
            raise EngineError(f"codes stand for {values.values.dtype}, and the engine takes {self.specs[0]}")
        with ExitStack() as owned:  # gives everything back if there is no room, or the numbers are not right
            with self._queue() as streams:
                border = owned.enter_context(closing(Codes(self.specs, codes, values, streams.compute)))
            size = border.size(self._size)
            self._memory.reserve_lanes(size)
            with self._memory.take(size) as buffers, self._queue() as streams:
                border.prove(buffers, streams.compute)
                self._codes.add(border)
            owned.pop_all()
        return partial(self._lane, border, size)

    @contextmanager
    def _lane(self, border: Border, size: LaneSize, shape: tuple[int, ...]) -> Iterator["TensorRTLane"]:
        self._refuse_misfit(shape)
        with self._memory.take(size) as buffers:
            yield TensorRTLane(self, buffers, buffers.staged_in.array(shape, border.given), border)

    def run(self, buffers: Buffers, shape: tuple[int, ...], border: Border) -> NDArray[Any]:
        """The forecast of what is staged in these buffers, or its codes, a view of them; what a lane calls.

        Queueing is one thread's at a time, waiting for the result is not: so the batches of several lanes overlap.

        Raises:
            InferenceError: TensorRT refuses, or the GPU failed; names its reason.
        """
        with self._queue() as streams:
            border.enter(buffers, shape, streams)
            made = self._infer(shape, buffers, streams.compute)
            border.leave(buffers, shape, made, streams)
        buffers.done.synchronize()
        return buffers.staged_out.array(made, border.returned)

    def timed(self, batch: NDArray[Any]) -> Split:
        """Run a batch once, alone, and say how long each part of its way took on the GPU.

        Raises:
            InferenceError: as of a call.
        """
        self._refuse_misfit(batch.shape, batch.dtype)
        with self.lane(batch.shape) as lane, self._queue() as streams:
            np.copyto(lane.given, as_given(batch, self.specs[0]))
            streams.synchronize()

            def queue() -> int:
                made = self._infer(batch.shape, lane.buffers, streams.compute)
                return math.prod(made) * np.dtype(self.specs[1].dtype).itemsize

            return lane.buffers.time(lane.given.nbytes, queue, streams.compute)

    def warm(self, shape: Shape) -> None:
        """Run once on zeros of this shape, so that the first real batch pays for nothing."""
        with self.lane(shape) as lane:
            lane.given[...] = 0
            lane.run()

    def refit(self, model: Path, previous: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the weights in which an ONNX file differs from `previous`, now this engine's.

        For a standby engine that was built with REFIT; its results are then to be checked again.

        Args:
            previous: `engines.trt.refit.digest_weights` of the file that it was built from.

        Raises:
            EngineError: not refittable, or TensorRT cannot replace a weight that differs (names it): build again.
        """
        self._finish()
        with self._memory.queue:
            self._replay.forget()
        replaced = refit(self._surface, self._engine, model, previous, self._logger, self._journal)
        cuda.finish_default_stream()
        return replaced

    def serialize(self) -> bytes:
        """The engine file, with the weights that it has now."""
        return bytes(self._engine.serialize())

    def close(self) -> None:
        """Release memory; the engine cannot be used afterwards. Waits for batches that are on their way."""
        with self._memory.queue:
            if self._is_closed:
                return
            self._is_closed = True
        with suppress(InferenceError):  # of earlier work, reported there
            self._finish()
        for codes in list(self._codes):
            codes.close()
        self._owned.close()

    @property
    def activation_bytes(self) -> int:
        """Memory of the GPU that the engine computes in."""
        return self._surface.activation_bytes(self._engine)

    @property
    def buffer_bytes(self) -> int:
        """Memory of the GPU for inputs, outputs and their codes, of all lanes, and for the tables of codes."""
        with self._memory.queue:  # nobody adds to them meanwhile
            return self._memory.lane_bytes + sum(codes.nbytes for codes in self._codes)

    @property
    def pinned_bytes(self) -> int:
        """Memory of the host for inputs and outputs, of all lanes."""
        return self._memory.pinned_bytes

    def inspect(self) -> str:
        """The engine inspector's JSON."""
        return inspect_engine(self._surface, self._engine)

    def _deserialize(self, engine_file: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(engine_file)
        if engine is None:
            called = f"{self._surface.flavour} {self._surface.version}"
            raise EngineError(f"{called} cannot load this engine: {self._journal.reason()}; build it again here")
        return engine

    def _new_context(self) -> Any:
        context = self._surface.new_context(self._engine)
        if context is None:
            raise EngineError(f"TensorRT makes no execution context: {self._journal.reason()}")
        return context

    def _largest(self) -> LaneSize:
        """Bytes of the largest input and output over the optimization profiles."""
        given, returned = (np.dtype(spec.dtype).itemsize for spec in self.specs)
        shapes = [profile.max for profile in self.profiles]
        outputs = [self._bind(shape, self._memory.streams.compute) for shape in shapes]
        return LaneSize(max(map(math.prod, shapes)) * given, max(map(math.prod, outputs)) * returned)

    @contextmanager
    def _queue(self) -> Iterator[Streams]:
        """The streams, to this thread alone; after an error they are empty, so that buffers are free again.

        Raises:
            DeviceLostError: the GPU is lost, whatever the error was that told of it first.
        """
        with self._memory.queue:
            if self._is_closed:
                raise InferenceError("the engine is closed")
            cuda.call("cudaSetDevice", self._memory.device)
            try:
                yield self._memory.streams
            except BaseException as error:
                try:
                    self._memory.streams.synchronize()
                except DeviceLostError as lost:
                    raise lost from error
                except InferenceError:
                    pass
                raise

    def _finish(self) -> None:
        """Wait until all that was queued so far is computed; others may queue meanwhile."""
        with cuda.Mark() as mark:
            with self._memory.queue:
                mark.record(self._memory.streams.copy_out)
            mark.synchronize()

    def _refuse_misfit(self, shape: tuple[int, ...], dtype: Any = None) -> None:
        """Before anything is queued."""
        if self._is_closed:
            raise InferenceError("the engine is closed")
        if dtype is not None and dtype != self.specs[0].call_dtype:
            raise InferenceError(f"a batch of {dtype} does not fit the input {self.specs[0]}")
        self._choose(shape)

    def _choose(self, shape: tuple[int, ...]) -> int:
        """The first optimization profile that holds a shape, the active one before all."""
        active = self._bound.profile
        if self.profiles[active].holds(shape):
            return active
        for index, profile in enumerate(self.profiles):
            if profile.holds(shape):
                return index
        known = "; ".join(map(str, self.profiles))
        raise InferenceError(f"no optimization profile of the engine holds a batch of shape {shape}; it has {known}")

    def _infer(self, shape: tuple[int, ...], buffers: Buffers, stream: Stream) -> tuple[int, ...]:
        """Queue one inference between two addresses on the GPU; the shape of the result."""
        made = self._bind(shape, stream)
        addresses = buffers.given.handle, buffers.returned.handle
        nbytes = math.prod(made) * np.dtype(self.specs[1].dtype).itemsize
        output = Output(buffers, nbytes, stream, self._memory.digest)
        self._replay.queue(addresses, stream, lambda stream: self._enqueue(addresses, stream), output)
        return made

    def _enqueue(self, addresses: tuple[int, int], stream: Stream) -> None:
        """Let TensorRT queue what is bound, between two addresses."""
        if self._bound.addresses != addresses:
            self._bound.addresses = (0, 0)
            for spec, address in zip(self.specs, addresses, strict=True):
                self._must(self._context.set_tensor_address(spec.name, address), f"set_tensor_address of {spec.name}")
            self._bound.addresses = addresses
        self._must(self._context.execute_async_v3(stream.handle), "execute_async_v3")

    def _bind(self, shape: tuple[int, ...], stream: Stream) -> tuple[int, ...]:
        """Make a shape the input's, unless it is; the shape of the output."""
        given, returned = self.specs
        bound, activation = self._bound, self._memory.activation
        if bound.activation != activation.handle:
            self._replay.forget()
            self._surface.set_activation(self._context, activation.handle, activation.nbytes)
            bound.activation = activation.handle
        index = self._choose(shape)
        if index != bound.profile:
            switched = self._context.set_optimization_profile_async(index, stream.handle)
            self._must(switched, f"set_optimization_profile_async to {index}")
            bound.profile, bound.shape = index, ()
        if bound.shape != shape:
            self._replay.forget()
            bound.shape = ()
            self._must(self._context.set_input_shape(given.name, shape), f"set_input_shape to {shape}")
            bound.made = tuple(self._context.get_tensor_shape(returned.name))
            bound.shape = shape
        if min(bound.made) < 0:
            raise InferenceError(f"the shape of {returned} depends on the values of the input; expected on its shape")
        return bound.made

    def _must(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise InferenceError(f"TensorRT refuses {what}: {self._journal.reason()}")

    def _forget_context(self) -> None:
        self._context = None

    def _forget_engine(self) -> None:
        self._engine = None
        self._runtime = None


@dataclass(frozen=True)
class TensorRTLane:
    """One batch's way through an engine; `given` is pinned memory that the GPU copies from."""

    engine: TensorRTEngine
    buffers: Buffers
    given: NDArray[Any]
    border: Border

    def run(self) -> NDArray[Any]:
        """The forecast of what was given, a view of pinned memory: good until the next `run` or the end of the lane."""
        return self.engine.run(self.buffers, self.given.shape, self.border)


@dataclass
class _Bound:
    """What is set in an execution context: optimization profile, shapes of input and output, addresses."""

    profile: int = 0
    shape: tuple[int, ...] = ()
    made: tuple[int, ...] = ()
    addresses: tuple[int, int] = (0, 0)
    activation: int = -1


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
