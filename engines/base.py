"""What an engine is, and what can go wrong with a model or an engine. Knows nothing of grids or Ray.

EngineError
├── ModelError              the model package is refused
│   └── RegistryError       the registry has no such version, or refuses to change
├── DiskFullError           there is no room for a file, see engines/room.py
└── InferenceError          the engine ran and failed
    ├── OutOfMemoryError    the batch does not fit; a smaller one may
    └── DeviceLostError     nothing will run on the GPU in this process any more
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engines.codes import CodeTable, ValueTable
from engines.spec import Shape, TensorSpec


class EngineError(Exception):
    """Base of every error that engines raises on purpose."""


class ModelError(EngineError):
    """The model package is refused: a file is damaged, unsafe or breaks its contract."""


class RegistryError(ModelError):
    """The registry has no such model, version or alias, holds a damaged one, or refuses to change as asked."""


class InferenceError(EngineError):
    """The engine ran and failed."""


class OutOfMemoryError(InferenceError, MemoryError):
    """The batch does not fit into memory; a smaller one may."""


class DeviceLostError(InferenceError):
    """An error after which every call of CUDA in this process fails; only another process may go on."""


class Lane(Protocol):
    """Room for one batch on its way through an engine; for one thread at a time.

    Attributes:
        given: (n, channel, h, w), dtype of the engine's input; to be filled by the caller before each `run`.
    """

    @property
    def given(self) -> NDArray[Any]: ...

    def run(self) -> NDArray[Any]:
        """The forecast (n, lead, h, w) of what was given, dtype of the engine's output.

        It may be a view of memory that the lane keeps: good until the next `run`, or until the lane is given back.

        Raises:
            InferenceError: the runtime refused or failed; names the shape.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """A loaded, ready-to-run model: tiles in, tiles out.

    Several threads may use one engine at once, each in a lane of its own and in no more than one.
    """

    @property
    def specs(self) -> tuple[TensorSpec, TensorSpec]:
        """The I/O tensors: input (n, channel, h, w), output (n, lead, h, w)."""
        ...

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The forecast (n, lead, h, w) of a batch (n, channel, h, w), both in model space.

        Half tensors are cast at the border; a lane shows them as they are.

        Raises:
            InferenceError: the runtime refused or failed; names the shape.
        """
        ...

    def lane(self, shape: Shape) -> AbstractContextManager[Lane]:
        """A lane for batches (n, channel, h, w) of this shape; waits while all lanes are taken.

        Raises:
            InferenceError: no batch of this shape fits, or the engine is closed.
        """
        ...

    def warm(self, shape: Shape) -> None:
        """Run once on zeros of this shape, so that the first real batch pays for nothing."""
        ...

    def close(self) -> None:
        """Release memory; the engine cannot be used afterwards."""
        ...


def as_given(batch: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """A batch in the dtype of an input; what half cannot hold is infinite, as a cast in the graph would make it."""
    with np.errstate(over="ignore"):
        return batch.astype(spec.dtype, copy=False)


@dataclass(frozen=True)
class Split:
    """Where the time of one batch goes, in the words of TensorRT's `trtexec`; one part begins when the last has ended.

    Attributes:
        h2d_seconds: H2D latency, the input from the host to the GPU.
        compute_seconds: GPU compute time.
        d2h_seconds: D2H latency, the output back to the host.
        enqueue_seconds: enqueue time, the host's own work to queue the inference; runs beside the GPU.

    Raises:
        ValueError: a part is negative or no number (names it).
    """

    h2d_seconds: float
    compute_seconds: float
    d2h_seconds: float
    enqueue_seconds: float

    def __post_init__(self) -> None:
        for name, seconds in vars(self).items():
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"{name} of {self} is {seconds}; expected 0 or more")

    @property
    def latency_seconds(self) -> float:
        """Host latency: the three parts on the GPU together; staging on the host is not in it."""
        return self.h2d_seconds + self.compute_seconds + self.d2h_seconds


@runtime_checkable
class Timed(Protocol):
    """An engine that can tell where the time of a batch goes."""

    def timed(self, batch: NDArray[Any]) -> Split:
        """Run a batch (n, channel, h, w) once and say how long each part took; the forecast is dropped.

        Raises:
            InferenceError: as of a call.
        """
        ...


@runtime_checkable
class Overlapping(Engine, Protocol):
    """An engine that has several batches on their way at once: one comes in, one is computed, one goes out."""

    @property
    def lanes(self) -> int:
        """How many: more threads than that wait for each other."""
        ...


@runtime_checkable
class Accounted(Protocol):
    """An engine that knows the memory that it takes on the GPU."""

    @property
    def activation_bytes(self) -> int:
        """What it computes in."""
        ...

    @property
    def buffer_bytes(self) -> int:
        """Inputs and outputs, and what packs them."""
        ...

    @property
    def pinned_bytes(self) -> int:
        """Inputs and outputs on the host, which no other process can have."""
        ...


OpenLane = Callable[[Shape], AbstractContextManager[Lane]]
"""Takes a lane for batches of a shape."""


@runtime_checkable
class Packs(Protocol):
    """An engine that can return, and take, the codes of a store instead of numbers."""

    def packing(self, codes: CodeTable, values: ValueTable | None = None) -> OpenLane:
        """Lanes like those of `lane`, whose results are codes (n, lead, h, w). What they need is made ready now.

        Args:
            values: of the codes that a lane is given instead of numbers (n, channel, h, w), oldest frame first; None =
                it is given numbers.

        Raises:
            EngineError: this engine cannot do so here; it goes on without.
        """
        ...
