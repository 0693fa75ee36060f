"""What a runtime is: it builds engine files from typed graphs, and loads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engines.base import Engine
from engines.spec import BuildSpec, EngineKey
from engines.typed import TypedModel


@dataclass(frozen=True)
class BuiltFile:
    """What a build gave.

    Attributes:
        data: the engine file.
        notes: what is kept with it, such as the precision obtained.
        timings: the runtime's timing cache for the next build; empty if it keeps none.
    """

    data: bytes
    notes: Mapping[str, str] = field(default_factory=dict)
    timings: bytes = b""


class Runtime(Protocol):
    """ONNX Runtime on this machine's cores, or TensorRT on one of its GPUs."""

    @property
    def label(self) -> str:
        """For people and provenance, such as `tensorrt 8.6.1 on NVIDIA H200`."""
        ...

    def key(self, model: TypedModel, spec: BuildSpec) -> EngineKey:
        """What an engine file of this model, built here in this way, would depend on."""
        ...

    def build(self, model: TypedModel, spec: BuildSpec, timings: bytes, tell: Callable[[str], None]) -> BuiltFile:
        """An engine file; may take minutes, and tells how far it is.

        Raises:
            ModelError: the runtime refuses the graph (names the node).
            PrecisionError: the engine is not in the precision of the graph.
            EngineError: the build failed.
        """
        ...

    def merge(self, kept: bytes, fresh: bytes) -> bytes:
        """Two timing caches in one."""
        ...

    def refuse(self, data: bytes) -> str | None:
        """Why an engine file is not to be loaded, from its header alone; None if nothing speaks against it."""
        ...

    def load(self, data: bytes) -> Engine:
        """The engine in an engine file that was verified.

        Raises:
            EngineError: it cannot be loaded here.
        """
        ...

    def refit(self, engine: Engine, model: TypedModel, notes: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the weights that were replaced, so that a loaded engine computes `model`.

        Args:
            notes: kept with the engine file that it was loaded from.

        Raises:
            EngineError: a weight cannot be replaced; the engine is then of no use.
        """
        ...
