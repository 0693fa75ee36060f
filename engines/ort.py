"""ONNX Runtime engine: the default on a machine without a GPU, and the FP32 reference everywhere."""

import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model

from engines.base import Engine, EngineError, InferenceError, ModelError, OutOfMemoryError, as_given
from engines.graph import external_files, first_line
from engines.runtime import BuiltFile
from engines.scratch import scratch_folder
from engines.spec import BuildSpec, EngineKey, Shape, TensorSpec
from engines.typed import TypedModel

_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}  # others are called alike
_SILENT = 4  # of ONNX Runtime's log levels; what goes wrong is raised


class OrtEngine:
    """An `Engine` over one ONNX Runtime session on the CPU, with one lane: an inference has all threads of the engine.

    The result of a tile has the same bits whatever the batch around it and the number of threads. Memory is kept
    between batches of one shape and given back when the shape changes; it does not pile up over shapes.

    Args:
        model: path of the ONNX file, or the bytes of an engine file that `OnnxRuntime` built and the cache verified.
        threads: threads of one inference; workers of one node share its cores, so give each its part.

    Raises:
        ModelError: ONNX Runtime cannot load the file (names the file and ONNX Runtime's reason).
    """

    def __init__(self, model: Path | bytes, threads: int = 1) -> None:
        self._model = "an engine file" if isinstance(model, bytes) else str(model)
        self._shape: tuple[int, ...] = ()
        self._session: ort.InferenceSession | None = _open(model, self._model, threads)
        self.specs = _spec(self._session.get_inputs()[0]), _spec(self._session.get_outputs()[0])
        self._given: NDArray[Any] = np.empty(0, self.specs[0].dtype)  # of the last lane
        self._lane = threading.Lock()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        given, returned = self.specs
        if batch.dtype != given.call_dtype:
            raise InferenceError(f"a batch of {batch.dtype} does not fit the input {given} of {self._model}")
        return self.run(as_given(batch, given)).astype(returned.call_dtype, copy=False)

    @contextmanager
    def lane(self, shape: Shape) -> Iterator["_Lane"]:
        self._open_session(shape)
        with self._lane:
            if self._given.shape != shape:
                self._given = np.empty(shape, self._given.dtype)
            yield _Lane(self, self._given)

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The output of a batch, both in the dtypes of `specs`.

        Raises:
            InferenceError: the shape or the dtype does not fit, or ONNX Runtime failed; names the shape.
        """
        session, (given, returned) = self._open_session(batch.shape), self.specs
        try:
            (out,) = session.run([returned.name], {given.name: batch}, self._options_of_run(batch.shape))
        except Exception as error:
            kind = OutOfMemoryError if "alloc" in str(error) else InferenceError
            raise kind(f"{self._model} failed on a batch of shape {batch.shape}: {first_line(error)}") from error
        if out.shape[:1] + out.shape[2:] != batch.shape[:1] + batch.shape[2:]:
            raise InferenceError(f"{self._model} turns a batch of shape {batch.shape} into {out.shape}")
        return np.asarray(out)

    def warm(self, shape: Shape) -> None:
        self.run(np.zeros(shape, self.specs[0].dtype))

    def close(self) -> None:
        self._session = None

    def _open_session(self, shape: tuple[int, ...]) -> ort.InferenceSession:
        """The session, for a batch of a shape that it takes."""
        if self._session is None:
            raise InferenceError(f"the engine of {self._model} is closed")
        if not self.specs[0].accepts(shape):
            raise InferenceError(f"a batch of shape {shape} does not fit the input {self.specs[0]} of {self._model}")
        return self._session

    def _options_of_run(self, shape: tuple[int, ...]) -> ort.RunOptions:
        """Gives memory back after the first run of a new shape: after every run it would cost a third of the time."""
        options = ort.RunOptions()
        before, self._shape = self._shape, shape
        if shape != before:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options


@dataclass(frozen=True)
class _Lane:
    """The input of one batch; its output is an array of its own."""

    engine: OrtEngine
    given: NDArray[Any]

    def run(self) -> NDArray[Any]:
        return self.engine.run(self.given)


class OnnxRuntime:
    """ONNX Runtime on the cores of this machine; its engine file is the graph as optimized for this processor.

    Args:
        threads: of one inference.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    @property
    def label(self) -> str:
        return f"onnxruntime {ort.__version__} on {_processor()[0]}"

    def key(self, model: TypedModel, spec: BuildSpec) -> EngineKey:
        """Shapes, flags, workspace and level make no difference here."""
        processor, extensions = _processor()
        return EngineKey(
            graph_sha256=model.graph_sha256,
            weights_sha256=model.weights_sha256,
            precision=str(model.precision),
            converter=model.conversion.converter_version,
            profiles=(),
            flags=frozenset(),
            workspace_bytes=None,
            level=None,
            flavour="onnxruntime",
            runtime_version=ort.__version__,
            gpu=processor,
            compute_capability=extensions,
            multiprocessors=0,
            memory_bytes=0,
        )

    def build(self, model: TypedModel, spec: BuildSpec, timings: bytes, tell: Callable[[str], None]) -> BuiltFile:
        tell(f"optimizing {model.path.name}")
        with scratch_folder("squall-scratch-build-") as folder:
            file = folder / "optimized.onnx"
            _open(model.path, str(model.path), 1, file)
            obtained = model.conversion.obtained.arithmetic
            computed = {"computed": "float32 on a CPU"} if obtained == "half" else {}
            return BuiltFile(_in_one_file(file, model.path.parent), {"obtained": obtained, **computed})

    def merge(self, kept: bytes, fresh: bytes) -> bytes:
        return fresh

    def refuse(self, data: bytes) -> str | None:
        return None if data else "it is empty"

    def load(self, data: bytes) -> Engine:
        return OrtEngine(data, self._threads)

    def refit(self, engine: Engine, model: TypedModel, notes: Mapping[str, str]) -> tuple[str, ...]:
        raise EngineError("engines of ONNX Runtime have their weights built in; build again")


def _open(model: Path | bytes, name: str, threads: int, keep: Path | None = None) -> ort.InferenceSession:
    """A session; an engine file is taken as it is, a model is optimized, and what comes of it written to `keep`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_reuse = False  # planning takes the square of the operators; the arena reuses what was given back
    options.enable_mem_pattern = False  # a plan a shape, which holds more memory and saves no time
    options.log_severity_level = _SILENT
    if isinstance(model, bytes):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ModelError(f"ONNX Runtime cannot load {name}: {first_line(error)}") from error


def _in_one_file(file: Path, home: Path) -> bytes:
    """An optimized graph with its weights, which ONNX Runtime leaves in the files of `home` if they were there."""
    model = onnx.load(file, load_external_data=False)
    if not external_files(model):
        return file.read_bytes()
    load_external_data_for_model(model, str(home))
    return bytes(model.SerializeToString(deterministic=True))


def _spec(node: ort.NodeArg) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type[len("tensor(") : -1]), shape)


@cache
def _processor() -> tuple[str, str]:
    """The processor's name, and which of the extensions it has that ONNX Runtime lays tensors out for."""
    facts: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    wide = [name for name in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_tile") if name in flags]
    return facts.get("model name", platform.machine()), " ".join(wide) or platform.machine()
