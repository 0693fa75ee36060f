"""A module that has only the names of one TensorRT release, and a CUDA runtime in host memory, to run our calls on.

What a name does comes from `WORLD`, shared by all releases. Which names there are, how many arguments they take and
which may be assigned comes from the recorded surface of the release. A call that a release lacks fails here as it would
there: AttributeError for a name, TypeError for arguments.
"""

import ctypes
import enum
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import cuda
from engines.trt.surface import Surface

SURFACES = Path(__file__).parent / "surfaces"
RELEASES = sorted(path.stem for path in SURFACES.glob("*.json"))
SHAPES = {"x": (-1, 2, -1, -1), "y": (-1, 3, -1, -1)}
PROFILE = ((1, 2, 8, 8), (2, 2, 16, 16), (4, 2, 16, 16))


def load(release: str) -> ModuleType:
    """The stand-in of a release."""
    tree = json.loads((SURFACES / f"{release}.json").read_text())
    module = ModuleType("tensorrt_rtx" if release.startswith("rtx") else "tensorrt")
    module.__version__, module.calls, module.refuse = tree["version"], [], {}
    for name, members in tree["enums"].items():
        if "." not in name:
            setattr(module, name, enum.IntEnum(name, members, start=0, module=module.__name__))
    for name, surface in tree["classes"].items():
        setattr(module, name, _new_class(module, name, surface))
    module.ILogger.Severity = enum.IntEnum("Severity", tree["enums"]["ILogger.Severity"], start=0)
    return module


def _new_class(module: ModuleType, kind: str, surface: dict[str, Any]) -> type:
    writable = {name for name, mode in surface["properties"].items() if mode == "rw"}

    def refuse_unknown(self: Any, name: str, value: Any) -> None:
        inherits = type(self).__module__ != module.__name__  # our own subclass of a logger or a monitor
        if not name.startswith("_") and name not in writable and not inherits:
            raise AttributeError(f"{kind} has no attribute {name} that can be set")
        object.__setattr__(self, name, value)

    body: dict[str, Any] = {"__setattr__": refuse_unknown, "__module__": module.__name__}
    for name, signatures in surface["methods"].items():
        body[name] = _new_method(module, kind, name, signatures)
    for name in surface["properties"]:
        body.setdefault(name, _new_property(module, kind, name))
    if kind == "IHostMemory":
        body["__bytes__"] = lambda self: b"host memory"
    return type(kind, (), body)


def _new_method(module: ModuleType, kind: str, name: str, signatures: list[str]) -> Any:
    def method(self: Any, *given: Any) -> Any:
        returns = _check(module, f"{kind}.{name}", signatures, given)
        if name == "__init__":
            self._given = given
            return None
        module.calls.append((f"{kind}.{name}", given))
        if f"{kind}.{name}" in module.refuse:
            return module.refuse[f"{kind}.{name}"]
        act = WORLD.get(f"{kind}.{name}")
        return act(module, self, *given) if act else _default(module, returns)

    return method


def _check(module: ModuleType, name: str, signatures: list[str], given: tuple[Any, ...]) -> str:
    """The return type of the overload that takes these arguments."""
    for signature in signatures or ["() -> None"]:
        arguments, returns = re.fullmatch(r"\((.*)\) -> (.+)", signature).groups()
        wanted = [part.split(":", 1)[1].strip() for part in re.split(r", (?=\w+:)", arguments) if part]
        least = sum("=" not in text for text in wanted)
        if least <= len(given) <= len(wanted) and all(map(_fits, [module] * len(given), given, wanted)):
            return returns.split("::")[-1]
    raise TypeError(f"{name}{given} fits none of {signatures}")


def _fits(module: ModuleType, value: Any, wanted: str) -> bool:
    name = wanted.split("=")[0].strip().split("::")[-1]
    kind = getattr(module, name, None)
    plain = {"int": int, "SupportsInt": int, "bool": bool, "str": str, "Buffer": bytes, "buffer": bytes, "Dims": tuple}
    kind = kind if isinstance(kind, type) else plain.get(name)
    return kind is None or isinstance(value, kind)


def _default(module: ModuleType, returns: str) -> Any:
    plain = {"bool": True, "int": 0, "str": "", "None": None}
    return plain[returns] if returns in plain else getattr(module, returns)()


def _new_property(module: ModuleType, kind: str, name: str) -> Any:
    def read(self: Any) -> Any:
        return self.__dict__[f"_{name}"] if f"_{name}" in self.__dict__ else VALUES[f"{kind}.{name}"](module, self)

    def write(self: Any, value: Any) -> None:
        module.calls.append((f"{kind}.{name}=", (value,)))
        self.__dict__[f"_{name}"] = value

    return property(read, write)


def _make(module: ModuleType, kind: str, **private: Any) -> Any:
    made = getattr(module, kind).__new__(getattr(module, kind))
    made.__dict__.update({f"_{name}": value for name, value in private.items()})
    return made


def _tensor(module: ModuleType, name: str) -> Any:
    return _make(module, "ITensor", name=name, shape=SHAPES[name], dtype=module.DataType.FLOAT, is_shape_tensor=False)


def _layers(module: ModuleType) -> list[Any]:
    names = [("conv", "CONVOLUTION"), ("half_conv", "CONVOLUTION"), ("scale (extra)", "SCALE"), ("weights", "CONSTANT")]
    kinds = module.LayerType
    return [_make(module, "ILayer", name=name, type=kinds[kind], num_outputs=1) for name, kind in names]


def _is_on(module: ModuleType, config: Any, flag: Any) -> bool:
    toggles = [
        call for call in module.calls if call[0].endswith("_flag") and call[1] == (flag,) and "get" not in call[0]
    ]
    return toggles[-1][0].endswith("set_flag") if toggles else flag.name == "TF32"


ALIGNMENT = 512  # of what CUDA gives, and of what TensorRT 8.6 asks for


class _Weights:
    """Memory that goes with the engine."""

    def __init__(self, module: ModuleType, allocator: Any) -> None:
        self.stream = () if hasattr(module.IGpuAllocator, "allocate") else (0,)
        suffix = "_async" * len(self.stream)
        take, self.give_back = (getattr(allocator, name + suffix) for name in ("allocate", "deallocate"))
        self.address = take(1000, ALIGNMENT, 0, *self.stream)
        assert self.address

    def __del__(self) -> None:
        assert self.give_back(self.address, *self.stream)


def _deserialize(module: ModuleType, runtime: Any, data: bytes) -> Any:
    allocator = runtime.__dict__.get("_gpu_allocator")
    return _make(module, "ICudaEngine", weights=_Weights(module, allocator) if allocator else None)


def _set_input_shape(module: ModuleType, context: Any, name: str, shape: tuple[int, ...]) -> bool:
    context.__dict__["_shape"] = shape
    return True


def _output_shape(module: ModuleType, context: Any, name: str) -> tuple[int, ...]:
    n, _, h, w = context._shape
    return (n, 3, h, w) if name == "y" else context._shape


def _set_tensor_address(module: ModuleType, context: Any, name: str, address: int) -> bool:
    context.__dict__.setdefault("_at", {})[name] = address
    return True


def _execute(module: ModuleType, context: Any, stream: int) -> bool:
    """Output channel k is input channel 0 times k + 1, now, or when the graph of its stream is launched."""
    kind = np.dtype({"FLOAT": "float32", "HALF": "float16"}[_port_type(module).name])
    places = [(context._at[name], _output_shape(module, context, name)) for name in ("x", "y")]

    def compute() -> None:
        given, returned = (_host_array(address, shape, kind) for address, shape in places)
        returned[:] = given[:, :1] * np.array([1, 2, 3], kind).reshape(3, 1, 1)

    cuda.runtime().put(stream, compute)
    return True


def _port_type(module: ModuleType) -> Any:
    """Of the engine's I/O tensors: FLOAT unless a test says otherwise."""
    return module.DataType[getattr(module, "ports", "FLOAT")]


def _host_array(address: int, shape: tuple[int, ...], kind: "np.dtype[Any]") -> Any:
    size = int(np.prod(shape)) * kind.itemsize
    return np.ndarray(shape, kind, memoryview((ctypes.c_byte * size).from_address(address)).cast("B"))


# What the names do, for all releases alike: one network with an input x and an output y, one engine of it.
WORLD: dict[str, Any] = {
    "INetworkDefinition.get_input": lambda module, self, index: _tensor(module, "x"),
    "INetworkDefinition.get_output": lambda module, self, index: _tensor(module, "y"),
    "INetworkDefinition.get_layer": lambda module, self, index: self.__dict__.setdefault("_layers", _layers(module))[
        index
    ],
    "ILayer.get_output": lambda module, self, index: _tensor(module, "y"),
    "IBuilderConfig.get_flag": _is_on,
    "IBuilderConfig.get_timing_cache": lambda module, self: _make(module, "ITimingCache"),
    "ICudaEngine.get_tensor_name": lambda module, self, index: "yx"[index],
    "ICudaEngine.get_tensor_mode": lambda module, self, name: module.TensorIOMode[{"x": "INPUT", "y": "OUTPUT"}[name]],
    "ICudaEngine.get_tensor_shape": lambda module, self, name: SHAPES[name],
    "ICudaEngine.get_tensor_dtype": lambda module, self, name: _port_type(module),
    "ICudaEngine.get_tensor_profile_shape": lambda module, self, name, index: [
        tuple(n + index if axis > 1 else n for axis, n in enumerate(shape)) for shape in PROFILE
    ],
    "ICudaEngine.create_engine_inspector": lambda module, self: _make(module, "EngineInspector"),
    "EngineInspector.get_engine_information": lambda module, self, format: json.dumps(
        {"Layers": [{"Name": "conv", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]}]}
    ),
    "Runtime.deserialize_cuda_engine": _deserialize,
    "IExecutionContext.set_input_shape": _set_input_shape,
    "IExecutionContext.set_tensor_address": _set_tensor_address,
    "IExecutionContext.get_tensor_shape": _output_shape,
    "IExecutionContext.execute_async_v3": _execute,
    "Refitter.get_missing_weights": lambda module, self: [],
    "Refitter.get_all_weights": lambda module, self: ["w"],
    "OnnxParser.get_error": lambda module, self, index: _make(module, "ParserError"),
    "ParserError.code": lambda module, self: module.ErrorCode.UNSUPPORTED_NODE,
    "ParserError.node": lambda module, self: 1,
    "ParserError.node_name": lambda module, self: "half_conv",
    "ParserError.node_operator": lambda module, self: "Conv",
}
VALUES: dict[str, Any] = {
    "INetworkDefinition.num_inputs": lambda module, self: 1,
    "INetworkDefinition.num_outputs": lambda module, self: 1,
    "INetworkDefinition.num_layers": lambda module, self: 4,
    "OnnxParser.num_errors": lambda module, self: 1,
    "OnnxParserRefitter.num_errors": lambda module, self: 1,
    "ICudaEngine.num_io_tensors": lambda module, self: 2,
    "ICudaEngine.num_optimization_profiles": lambda module, self: 2,
    "ICudaEngine.device_memory_size": lambda module, self: 256,
    "ICudaEngine.device_memory_size_v2": lambda module, self: 256,
    "ICudaEngine.refittable": lambda module, self: True,
}


class HostCuda:
    """The part of `cuda.bindings.runtime` that engines use, over host memory; `fail` names a function and its error.

    What does not fit `limit_bytes` is refused. A stream that is captured takes work and nothing else.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking, cudaEventBlockingSync, cudaEventDisableTiming = 1, 1, 2

    def __init__(self, devices: int = 1) -> None:
        self.devices, self.fail, self.blocks, self.handles, self.created = devices, {}, {}, set(), 1000
        self.limit_bytes = 1 << 40
        self.libraries, self.kernels, self.launches = {}, {}, []
        self.captures, self.graphs, self.called = {}, {}, Counter()

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Do it now, or take it into the capture of the stream."""
        if stream in self.captures:
            self.captures[stream].append(work)
        else:
            work()

    def __getattr__(self, name: str) -> Any:
        def function(*given: Any) -> tuple[Any, ...]:
            self.called[name] += 1
            is_full = name in ("cudaMalloc", "cudaHostAlloc") and self.taken_bytes + given[0] > self.limit_bytes
            wrong = "cudaErrorMemoryAllocation" if is_full else "cudaSuccess"
            status = SimpleNamespace(name=self.fail.get(name, wrong))
            if status.name != "cudaSuccess":
                return (status, None)
            values = getattr(self, f"_{name}")(*given)
            return (status, *(values if isinstance(values, tuple) else (values,)))

        if not name.startswith("cu"):
            raise AttributeError(name)
        return function

    @property
    def taken_bytes(self) -> int:
        """Device and pinned memory together."""
        return sum(map(len, self.blocks.values()))

    def _cudaGetDeviceCount(self) -> int:
        return self.devices

    def _cudaMalloc(self, nbytes: int) -> int:
        room = (ctypes.c_byte * (nbytes + ALIGNMENT))()
        block = (ctypes.c_byte * nbytes).from_buffer(room, -ctypes.addressof(room) % ALIGNMENT)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _cudaHostAlloc(self, nbytes: int, flags: int) -> int:
        return self._cudaMalloc(nbytes)

    def _cudaFree(self, address: int) -> tuple[()]:
        del self.blocks[address]
        return ()

    _cudaFreeHost = _cudaFree

    def _cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[()]:
        assert stream not in self.captures
        ctypes.memmove(target, source, nbytes)
        return ()

    def _cudaMemsetAsync(self, target: int, value: int, nbytes: int, stream: int) -> tuple[()]:
        assert stream not in self.captures
        ctypes.memset(target, value, nbytes)
        return ()

    def _new_handle(self) -> int:
        self.created += 1
        self.handles.add(self.created)
        return self.created

    def _new_flagged_handle(self, flags: int) -> int:
        return self._new_handle()

    _cudaEventCreate = _new_handle
    _cudaStreamCreateWithFlags = _cudaEventCreateWithFlags = _new_flagged_handle

    def _drop_handle(self, handle: int) -> tuple[()]:
        self.handles.discard(handle)
        return ()

    _cudaStreamDestroy = _cudaEventDestroy = _drop_handle

    def _nothing(self, *given: Any) -> tuple[()]:
        return ()

    _cudaSetDevice = _cudaEventSynchronize = _cudaGetLastError = _nothing

    def _cudaEventRecord(self, event: int, stream: int) -> tuple[()]:
        return self._cudaStreamSynchronize(stream)

    def _cudaStreamSynchronize(self, stream: int) -> tuple[()]:
        assert stream not in self.captures
        return ()

    def _cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[()]:
        return self._cudaStreamSynchronize(stream)

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[()]:
        assert stream in self.handles
        self.captures[stream] = []
        return ()

    def _cudaStreamEndCapture(self, stream: int) -> int:
        return self._new_graph(self.captures.pop(stream))

    def _new_graph(self, work: list[Callable[[], None]]) -> int:
        handle = self._new_handle()
        self.graphs[handle] = work
        return handle

    def _cudaGraphGetNodes(self, graph: int) -> tuple[list[Any], int]:
        return [], len(self.graphs[graph])

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        return self._new_graph(self.graphs[graph])

    def _cudaGraphLaunch(self, graph: int, stream: int) -> tuple[()]:
        assert {graph, stream} <= self.handles
        for work in self.graphs[graph]:
            self.put(stream, work)
        return ()

    _cudaGraphDestroy = _cudaGraphExecDestroy = _drop_handle

    def _cudaEventElapsedTime(self, start: int, end: int) -> float:
        return 1.5

    def _cuLibraryLoadData(self, ptx: bytes, *none: Any) -> int:
        assert ptx.endswith(b"\0")
        self.libraries[handle := self._new_handle()] = ptx.decode()
        return handle

    def _cuLibraryGetKernel(self, library: int, name: bytes) -> int:
        assert f".visible .entry {name.decode()}(" in self.libraries[library]
        self.kernels[self.created] = name.decode()  # as the library: it is no handle to be given back
        return self.created

    _cuLibraryUnload = _drop_handle

    def _cuLaunchKernel(self, kernel: int, *given: Any) -> tuple[()]:
        (values, types), extra = given[-2:]
        self.launches.append((self.kernels[kernel], given[:3], given[3:6], given[7], values))
        assert extra == 0
        what, *bits = self.kernels[kernel].removeprefix("look_").split("_")
        assert list(types) == [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong, *_MORE_ARGUMENTS[what]]
        _ON_HOST[what](*bits, *values)
        return ()

    def _cudaDriverGetVersion(self) -> int:
        return 12040

    def _cudaMemGetInfo(self) -> tuple[int, int]:
        return 1 << 30, 2 << 30

    def _cudaGetDeviceProperties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name=b"Stand-in", major=9, minor=0, multiProcessorCount=132, totalGlobalMem=2 << 30)


def _bits(number: str) -> np.dtype[Any]:
    return np.dtype(f"u{int(number) // 8}")


def _look_up_on_host(from_: str, to: str, given: int, found: int, count: int, table: int) -> None:
    """What our kernels do, by other means."""
    values = _host_array(table, (2 ** int(from_),), _bits(to))
    _host_array(found, (count,), _bits(to))[...] = values[_host_array(given, (count,), _bits(from_))]


def _mask_on_host(
    from_: str, to: str, stored: int, codes: int, cells: int, tiles: int, frames: int, leads: int, table: int, fill: int
) -> None:
    newest = _host_array(stored, (tiles, frames, cells), _bits(from_))[:, -1:]
    missing = _host_array(table, (2 ** int(from_),), np.dtype("u1"))[newest] != 0
    made = _host_array(codes, (tiles, leads, cells), _bits(to))
    made[...] = np.where(missing, np.array(fill).astype(made.dtype), made)


def _pack_on_host(_: str, bits: str, values: int, codes: int, count: int, table: int, *rest: Any) -> None:
    starts, lowest, fill, below = rest
    made = _host_array(codes, (count,), _bits(bits))
    number = int(_host_array(starts, (65537,), np.dtype("u2"))[-1])
    keys, floats = _host_array(table, (number,), np.dtype("i4")), _host_array(values, (count,), np.dtype("f4"))
    order = floats.view("i4") ^ (floats.view("i4") >> 31 & 0x7FFFFFFF)
    found = lowest + np.searchsorted(keys, order, side="right")
    made[...] = np.where(np.isnan(floats) | (floats < np.float32(below)), fill, found).astype(made.dtype)


def _digest_on_host(bytes_: int, total: int, count: int) -> None:
    made = _host_array(total, (1,), np.dtype("u8"))
    made += np.uint64(zlib.crc32(_host_array(bytes_, (count,), np.dtype("u1"))))


_ON_HOST = {"digest": _digest_on_host, "up": _look_up_on_host, "mask": _mask_on_host, "pack": _pack_on_host}
_MORE_ARGUMENTS = {
    "digest": [],
    "up": [ctypes.c_void_p],
    "mask": [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int],
    "pack": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_float],
}


@pytest.fixture(params=RELEASES)
def surface(request: pytest.FixtureRequest) -> Surface:
    """The surface of each recorded release in turn."""
    return Surface(load(request.param))


@pytest.fixture
def host_cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """One GPU that is host memory."""
    there = HostCuda()
    monkeypatch.setattr(cuda, "runtime", lambda: there)
    monkeypatch.setattr(cuda, "driver", lambda: there)
    return there


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that finds no GPU."""
    nowhere = HostCuda()
    nowhere.fail["cudaGetDeviceCount"] = "cudaErrorNoDevice"
    monkeypatch.setattr(cuda, "runtime", lambda: nowhere)


Operators = list[onnx.NodeProto]
Weights = dict[str, np.ndarray[Any, Any]]


def save_graph(
    path: Path, nodes: Operators, weights: Weights, planes: int = 3, size: tuple[Any, Any] = ("h", "w"), dtype: int = 1
) -> Path:
    """An ONNX file from (n, 2, h, w) x to (n, planes, *size) y."""
    given = helper.make_tensor_value_info("x", dtype, ["n", 2, "h", "w"])
    returned = helper.make_tensor_value_info("y", dtype, ["n", planes, *size])
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [given], [returned], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def conv_weights(dtype: str = "float32") -> np.ndarray[Any, Any]:
    """(3, 2, 3, 3), near 1."""
    return np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(dtype)


@pytest.fixture
def graph(tmp_path: Path) -> Any:
    """Writes an ONNX file: graph(nodes, weights, ...)."""
    return lambda *given, **named: save_graph(tmp_path / "model.onnx", *given, **named)


@pytest.fixture
def conv(graph: Any) -> Path:
    """One float32 convolution, the node `conv`."""
    return graph([helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1] * 4)], {"w": conv_weights()})


@pytest.fixture
def mixed(graph: Any) -> Path:
    """A convolution in half, the node `half_conv`, and one in float32, the node `conv`."""
    nodes = [
        helper.make_node("Cast", ["x"], ["xh"], "to_half", to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["xh", "wh"], ["ch"], "half_conv", pads=[1] * 4),
        helper.make_node("Cast", ["ch"], ["c"], "to_float", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["d"], "conv", pads=[1] * 4),
        helper.make_node("Add", ["c", "d"], ["y"], "sum"),
    ]
    return graph(nodes, {"w": conv_weights(), "wh": conv_weights("float16")})
