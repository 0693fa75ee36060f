"""ONNX Runtime engine: the default on a machine without a GPU, and the FP32 reference everywhere."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.base import InferenceError, ModelError, OutOfMemoryError
from engines.graph import first_line
from engines.spec import TensorSpec

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_SILENT = 4  # of ONNX Runtime's log levels; what goes wrong is raised


class OrtEngine:
    """An `Engine` over one ONNX Runtime session on the CPU.

    The result of a tile has the same bits whatever the batch around it and the number of threads. Memory is kept
    between batches of one shape and given back when the shape changes; it does not pile up over shapes.

    Args:
        model: path of the ONNX file.
        threads: threads of one inference; workers of one node share its cores, so give each its part.

    Raises:
        ModelError: ONNX Runtime cannot load the file (names the file and ONNX Runtime's reason).
    """

    def __init__(self, model: Path, threads: int = 1) -> None:
        self._model = model
        self._shape: tuple[int, ...] = ()
        self._session: ort.InferenceSession | None = _open(model, threads)
        self.specs = _spec(self._session.get_inputs()[0]), _spec(self._session.get_outputs()[0])

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        session, (given, returned) = self._session, self.specs
        if session is None:
            raise InferenceError(f"the engine of {self._model} is closed")
        if not given.accepts(batch.shape):
            raise InferenceError(f"a batch of shape {batch.shape} does not fit the input {given} of {self._model}")
        try:
            (out,) = session.run([returned.name], {given.name: batch}, self._options_of_run(batch.shape))
        except Exception as error:
            kind = OutOfMemoryError if "alloc" in str(error) else InferenceError
            raise kind(f"{self._model} failed on a batch of shape {batch.shape}: {first_line(error)}") from error
        if out.shape[:1] + out.shape[2:] != batch.shape[:1] + batch.shape[2:]:
            raise InferenceError(f"{self._model} turns a batch of shape {batch.shape} into {out.shape}")
        return np.asarray(out)

    def warm(self, shape: tuple[int, int, int, int]) -> None:
        self(np.zeros(shape, np.float32))

    def close(self) -> None:
        self._session = None

    def _options_of_run(self, shape: tuple[int, ...]) -> ort.RunOptions:
        """Gives memory back after the first run of a new shape: after every run it would cost a third of the time."""
        options = ort.RunOptions()
        if shape != self._shape:
            self._shape = shape
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options


def _open(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _SILENT
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ModelError(f"ONNX Runtime cannot load {model}: {first_line(error)}") from error


def _spec(node: ort.NodeArg) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)
