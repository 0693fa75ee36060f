"""What an engine is, and what can go wrong with a model or an engine. Knows nothing of grids or Ray.

EngineError
├── ModelError              the model package is refused
└── InferenceError          the engine ran and failed
    └── OutOfMemoryError    the batch does not fit; a smaller one may
"""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engines.spec import TensorSpec


class EngineError(Exception):
    """Base of every error that engines raises on purpose."""


class ModelError(EngineError):
    """The model package is refused: a file is damaged, unsafe or breaks its contract."""


class InferenceError(EngineError):
    """The engine ran and failed."""


class OutOfMemoryError(InferenceError):
    """The batch does not fit into memory; a smaller one may."""


@runtime_checkable
class Engine(Protocol):
    """A loaded, ready-to-run model: tiles in, tiles out."""

    @property
    def specs(self) -> tuple[TensorSpec, TensorSpec]:
        """The I/O tensors: input (n, channel, h, w), output (n, lead, h, w)."""
        ...

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The forecast (n, lead, h, w) of a batch (n, channel, h, w), both in model space.

        Raises:
            InferenceError: the runtime refused or failed; names the shape.
        """
        ...

    def warm(self, shape: tuple[int, int, int, int]) -> None:
        """Run once on zeros of this shape, so that the first real batch pays for nothing."""
        ...

    def close(self) -> None:
        """Release memory; the engine cannot be used afterwards."""
        ...
