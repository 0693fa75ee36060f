"""ONNX Runtime engine: the default on a machine without a GPU, and the FP32 reference everywhere."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.base import InferenceError, ModelError, OutOfMemoryError
from engines.spec import TensorSpec

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OrtEngine:
    """An `Engine` over one ONNX Runtime session on the CPU.

    Args:
        model: path of the ONNX file.
        threads: threads of one inference; workers of one node share its cores, so give each its part.

    Raises:
        ModelError: ONNX Runtime cannot load the file (names the file and ONNX Runtime's reason).
    """

    def __init__(self, model: Path, threads: int = 1) -> None:
        try:
            self._session = ort.InferenceSession(str(model), _options(threads), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise ModelError(f"ONNX Runtime cannot load {model}: {_first_line(error)}") from error
        self.specs = _spec(self._session.get_inputs()[0]), _spec(self._session.get_outputs()[0])
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        given, returned = self.specs
        if not given.accepts(batch.shape):
            raise InferenceError(f"a batch of shape {batch.shape} does not fit the input {given}")
        try:
            (out,) = self._session.run([returned.name], {given.name: batch}, self._run_options)
        except Exception as error:
            kind = OutOfMemoryError if "alloc" in str(error).lower() else InferenceError
            raise kind(f"ONNX Runtime failed on a batch of shape {batch.shape}: {_first_line(error)}") from error
        return np.asarray(out)

    def warm(self, shape: tuple[int, int, int, int]) -> None:
        self(np.zeros(shape, np.float32))

    def close(self) -> None:
        del self._session


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return options


def _spec(node: ort.NodeArg) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
