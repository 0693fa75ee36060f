"""TensorRT 8.6, 10, 11 and TensorRT for RTX behind one small surface: build an engine, load it, run it."""

from engines.trt.build import BuildCancelledError, build
from engines.trt.builder import Built
from engines.trt.engine import TensorRTEngine
from engines.trt.memory import Memory
from engines.trt.progress import Progress
from engines.trt.report import BuildReport
from engines.trt.surface import Surface, load_surface

__all__ = [
    "BuildCancelledError",
    "BuildReport",
    "Built",
    "Memory",
    "Progress",
    "Surface",
    "TensorRTEngine",
    "build",
    "load_surface",
]
