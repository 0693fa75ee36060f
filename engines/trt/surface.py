"""Which TensorRT is installed and what it can do, told by the names it has, never by its version number.

What 8.6, 10, 11 and TensorRT for RTX have in common is called directly. Where they differ, the difference is here.
"""

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from engines.base import EngineError

MODULES = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
LEVELS = {
    "INTERNAL_ERROR": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "VERBOSE": logging.DEBUG,
}
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "FP8": "float8",
    "INT4": "int4",
    "FP4": "float4",
}
LogSink = Callable[[int, str], None]


@dataclass(frozen=True)
class Surface:
    """An installed TensorRT: its Python module, asked by name for what it has."""

    module: Any

    @property
    def flavour(self) -> str:
        """`tensorrt` or `tensorrt_rtx`."""
        return str(self.module.__name__).removesuffix("_bindings")

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def builds_without_gpu(self) -> bool:
        """True if engines can be built for GPUs that are not here."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability")

    @property
    def reports_progress(self) -> bool:
        return hasattr(self.module, "IProgressMonitor")

    @property
    def can_be_captured(self) -> bool:
        """True if a CUDA graph of an inference stays the best there is: TensorRT for RTX finds faster kernels later."""
        return not hasattr(self.module, "CudaGraphStrategy")

    def members(self, enum: str) -> Mapping[str, Any]:
        """Members of an enum by name; none if the release has no such enum."""
        return dict(getattr(self.module, enum).__members__) if hasattr(self.module, enum) else {}

    def new_logger(self, sink: LogSink) -> Any:
        """A TensorRT logger that gives every message to `sink` with its level of `logging`; keep it alive."""
        levels = {member: LEVELS[name] for name, member in self.module.ILogger.Severity.__members__.items()}

        class Logger(self.module.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, msg: str) -> None:
                sink(levels[severity], msg)

        return Logger()

    def new_allocator(self, take: Callable[[int, int], int], give_back: Callable[[int], bool]) -> Any:
        """A TensorRT allocator of device memory; it must outlive the engines that use it.

        Args:
            take: (bytes, alignment) to an address, 0 if there is none.
            give_back: takes an address; False if it is unknown.
        """

        class Allocator(self.module.IGpuAllocator):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()

            def allocate(self, size: int, alignment: int, flags: int) -> int:
                return take(size, alignment)

            def deallocate(self, memory: int) -> bool:
                return give_back(memory)

            def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int:
                return take(size, alignment)

            def deallocate_async(self, memory: int, stream: int) -> bool:
                return give_back(memory)

            def reallocate(self, address: int, alignment: int, new_size: int) -> int:
                return 0

        return Allocator()

    def new_network(self, builder: Any, flags: frozenset[str]) -> Any:
        """An empty network with these flags; an explicit batch axis, which older releases must be asked for."""
        known = self.members("NetworkDefinitionCreationFlag")
        wanted = [known[name] for name in sorted((flags | {"EXPLICIT_BATCH"}) & known.keys())]
        return builder.create_network(sum(1 << int(flag) for flag in wanted))

    def dtype(self, member: Any) -> str:
        """The numpy name of a `DataType`."""
        return DTYPES.get(member.name, str(member.name).lower())

    def activation_bytes(self, engine: Any) -> int:
        """Memory of the GPU that an execution context of this engine works in."""
        newer = hasattr(engine, "device_memory_size_v2")
        return int(engine.device_memory_size_v2 if newer else engine.device_memory_size)

    def new_context(self, engine: Any) -> Any:
        """An execution context without working memory, to be given some by `set_activation`; None if refused."""
        if hasattr(self.module, "ExecutionContextAllocationStrategy"):
            return engine.create_execution_context(self.module.ExecutionContextAllocationStrategy.USER_MANAGED)
        return engine.create_execution_context_without_device_memory()

    def set_activation(self, context: Any, address: int, nbytes: int) -> None:
        """Let a context work in this memory; contexts that never run at the same time may share it."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, nbytes)
        else:
            context.device_memory = address


@cache
def load_surface(name: str | None = None) -> Surface:
    """The TensorRT that is installed: the module `name`, or the first of `MODULES` that can be imported.

    Raises:
        EngineError: none can; names each and why.
    """
    problems = []
    for module in MODULES if name is None else (name,):
        try:
            return Surface(importlib.import_module(module))
        except (ImportError, OSError) as error:
            problems.append(f"{module}: {error}")
    raise EngineError(f"TensorRT is not installed here, install squall[tensorrt] ({'; '.join(problems)})")


def log_to(logger: logging.Logger) -> LogSink:
    """A sink that writes to a logger of `logging`."""
    return lambda level, message: logger.log(level, "%s", message)
