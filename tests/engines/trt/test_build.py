"""Builds in a child process: with TensorRT for RTX for real, and with modules that die, hang or are not there."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from engines import zoo
from engines.base import EngineError, ModelError
from engines.precision import Packing, describe, pack_io, to_half, to_half_ports, to_int8
from engines.spec import BuildSpec, Profile
from engines.trt import BuildCancelledError, build, load_surface
from engines.trt.network import parse

SPEC = BuildSpec((Profile((1, 2, 8, 8), (2, 2, 64, 64), (4, 2, 64, 64)),))


@pytest.fixture
def rtx():
    """The name of the installed TensorRT for RTX."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    return "tensorrt_rtx_bindings"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A module in the place of TensorRT that does as told when it is imported."""

    def write(text):
        (tmp_path / "fake_tensorrt.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return "fake_tensorrt"

    return write


def node(kind, given, made, **attributes):
    return helper.make_node(kind, given, made, f"the_{kind}", **attributes)


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def body(nodes, given, made):
    return helper.make_graph(nodes, "body", given, made)


def conv_transpose(graph):
    weights = np.ones((2, 3, 2, 2), np.float32)
    return graph([node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])], {"w": weights}, size=("a", "b"))


def resize(graph):
    nodes = [node("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel")]
    return graph(nodes, {"s": np.float32([1, 1, 2, 2])}, planes=2, size=("a", "b"))


def grid_sample(graph):
    """Samples along the diagonal: as many points as there are rows, in every batch."""
    nodes = [
        node("Shape", ["x"], ["size"], end=1),
        node("Concat", ["size", "tail"], ["full"], axis=0),
        node("Expand", ["points", "full"], ["at"]),
        node("GridSample", ["x", "at"], ["y"], mode="nearest", padding_mode="border"),
    ]
    points = np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 4, 4, 2)
    return graph(nodes, {"points": points, "tail": np.int64([4, 4, 2])}, planes=2, size=(4, 4))


def loop(graph):
    inner = body(
        [node("Identity", ["go"], ["go_on"]), node("Add", ["a", "a"], ["twice"])],
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("a", TensorProto.FLOAT, None)],
        [value("go_on", TensorProto.BOOL, []), value("twice", TensorProto.FLOAT, None)],
    )
    return graph([node("Loop", ["k", "t", "x"], ["y"], body=inner)], {"k": np.int64(3), "t": np.bool_(True)}, planes=2)


def scan(graph):
    field = ["n", "h", "w"]
    inner = body(
        [node("Add", ["sum", "plane"], ["next"]), node("Identity", ["next"], ["seen"])],
        [value("sum", TensorProto.FLOAT, field), value("plane", TensorProto.FLOAT, field)],
        [value("next", TensorProto.FLOAT, field), value("seen", TensorProto.FLOAT, field)],
    )
    axes = {"scan_input_axes": [1], "scan_output_axes": [1]}
    nodes = [
        node("ReduceSum", ["x", "axis"], ["all"], keepdims=0),
        node("Sub", ["all", "all"], ["zero"]),
        node("Scan", ["zero", "x"], ["last", "y"], body=inner, num_scan_inputs=1, **axes),
    ]
    return graph(nodes, {"axis": np.int64([1])}, planes=2)


def quantized(graph):
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "weights", axis=0),
        node("Conv", ["xd", "wd"], ["y"], pads=[1] * 4),
    ]
    weights = {"s": np.float32(0.05), "z": np.int8(0), "ws": np.float32([0.01] * 3), "wz": np.zeros(3, np.int8)}
    return graph(nodes, {**weights, "wq": np.arange(54, dtype=np.int8).reshape(3, 2, 3, 3)})


def codes(graph):
    """uint8 in and out."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], "unpack", to=TensorProto.FLOAT),
        node("Mul", ["f", "half"], ["g"]),
        node("Clip", ["g", "low", "high"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], "pack", to=TensorProto.UINT8),
    ]
    weights = {"half": np.float32(0.5), "low": np.float32(0), "high": np.float32(255)}
    return graph(nodes, weights, planes=2, dtype=TensorProto.UINT8)


KINDS = [
    (conv_transpose, "float32"),
    (resize, "float32"),
    (grid_sample, "float32"),
    (loop, "float32"),
    (scan, "float32"),
    (quantized, "int8"),
    (codes, "uint8"),
]


@pytest.mark.parametrize(("kind", "dtype"), KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_tensorrt_takes_the_operators_that_models_of_weather_use(rtx, graph, kind, dtype):
    built = build(kind(graph), SPEC, module=rtx)
    assert len(built.engine) == built.report.engine_bytes > 10_000
    assert dtype in built.report.network_layers
    assert built.report.flags == ("STRONGLY_TYPED",)


def test_a_half_convolution_stays_half_and_the_other_one_does_not(rtx, mixed):
    layers = build(mixed, SPEC, module=rtx).report.network_layers
    assert layers["float16"] >= 2  # the cast and the convolution
    assert layers["float32"] >= 3


MODELS = {
    "persistence": zoo.PersistenceSpec(),
    "unet": zoo.UnetSpec(width=4, depth=2),
    "advection": zoo.AdvectionSpec((2.0, 2.0), lead_minutes=(5, 10)),
}


def test_every_kind_of_the_zoo_is_built_here():
    assert MODELS.keys() == zoo.KINDS.keys()


@pytest.mark.parametrize("kind", MODELS)
def test_tensorrt_takes_every_model_of_the_zoo(rtx, kind, tmp_path):
    spec = MODELS[kind]
    folder = zoo.write_package(spec, tmp_path / "package")
    planes = spec.frames if kind == "unet" else len(spec.history_minutes)
    profile = Profile((1, planes, 128, 128), (2, planes, 256, 256), (2, planes, 512, 512))
    told = []
    built = build(folder / "model.onnx", BuildSpec((profile,)), module=rtx, on_progress=told.append)
    shares = [progress.share for progress in told if progress.share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert built.report.seconds <= told[-1].seconds
    assert not [warning for warning in built.report.warnings if "timing cache" in warning]


def test_half_input_and_output_reach_tensorrt_as_half(rtx, graph, tmp_path):
    weights = {"w": np.ones((3, 2, 3, 3), np.float32)}
    path = graph([node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], weights)
    path.write_bytes(to_half_ports(to_half(onnx.load(path))).SerializeToString())
    surface, log = load_surface(rtx), []
    logger = surface.new_logger(lambda level, message: log.append(message))
    builder = surface.module.Builder(logger)
    network = surface.new_network(builder, frozenset({"STRONGLY_TYPED"}))
    parse(surface, network, path, logger)
    assert [surface.dtype(one.dtype) for one in (network.get_input(0), network.get_output(0))] == ["float16"] * 2
    report = build(path, SPEC, module=rtx).report
    assert set(report.network_layers) == {"float16"}


CASES = [np.random.default_rng(seed).normal(size=(1, 4, 64, 64)).astype(np.float32) for seed in range(2)]
CODES = Packing.spanning(-2.0, 2.5)
REWRITES = {
    "half": (to_half, "float16"),
    "int8": (lambda model: to_int8(model, CASES), "int8"),
    "int8, the rest half": (lambda model: to_half(to_int8(model, CASES)), "int8"),
    "packed": (lambda model: pack_io(model, CODES, CODES, missing=-2.0), "uint8"),
    "half, packed": (lambda model: pack_io(to_half(model), CODES, CODES, missing=-2.0), "float16"),
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_tensorrt_takes_the_graphs_that_we_rewrite_as_they_are_typed(rtx, tmp_path, rewrite):
    write, dtype = REWRITES[rewrite]
    folder = zoo.write_package(MODELS["unet"], tmp_path / "package")
    graph = write(onnx.load(folder / "model.onnx"))
    report = build(graph.SerializeToString(), BuildSpec((Profile.up_to((2, 4, 64, 64)),)), module=rtx).report
    heavy = describe(graph)
    assert report.flags == ("STRONGLY_TYPED",)
    assert report.network_layers[dtype] >= max(1, heavy.half, heavy.int8)


def test_bytes_and_a_file_are_built_alike(rtx, conv):
    from_file, from_bytes = build(conv, SPEC, module=rtx), build(conv.read_bytes(), SPEC, module=rtx)
    assert from_file.report.network_layers == from_bytes.report.network_layers


def test_several_profiles_go_into_one_engine(rtx, conv):
    profiles = (Profile.up_to((8, 2, 64, 64)), Profile.up_to((1, 2, 512, 512)))
    assert build(conv, BuildSpec(profiles), module=rtx).report.engine_bytes


def test_weights_beside_the_file_are_found(rtx, conv, tmp_path):
    (tmp_path / "package").mkdir()
    model = onnx.load(conv)
    path = tmp_path / "package" / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert build(path, SPEC, module=rtx).report.engine_bytes


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(rtx, graph):
    nodes = [
        node("Unique", ["x"], ["u"]),
        node("ReduceMax", ["u"], ["m"], keepdims=0),
        node("Add", ["x", "m"], ["y"]),
    ]
    with pytest.raises(ModelError, match=r"refuses model\.onnx: node the_Unique \(Unique\): .*ONNX Runtime engine"):
        build(graph(nodes, {}, planes=2), SPEC, module=rtx)


@pytest.mark.parametrize("model", [b"", b"no ONNX at all"])
def test_what_is_no_onnx_is_refused(rtx, model):
    with pytest.raises(ModelError, match=r"model\.onnx"):
        build(model, SPEC, module=rtx)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="there is no ONNX file"):
        build(tmp_path / "no.onnx", SPEC)


def test_the_log_of_the_child_goes_to_logging(rtx, conv, caplog):
    caplog.set_level(logging.INFO, "engines.trt")
    build(conv, SPEC, module=rtx)
    assert any("Engine generation completed" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("os.kill(os.getpid(), 11)", "the builder died by SIGSEGV while it built model.onnx; its last words: about to"),
        ("os.abort()", "the builder died by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "the builder died by SIGKILL .*; was it short of host memory"),
        ("os._exit(3)", "the builder died with exit code 3"),
        ("raise RuntimeError('odd')", "the builder died with exit code 1 .*RuntimeError: odd"),
        ("os._exit(0)", "the builder ended without an engine"),
    ],
)
def test_a_builder_that_dies_is_an_error_and_not_the_end_of_us(fake, conv, death, message):
    module = fake(f"import os\nprint('about to die', flush=True)\n{death}")
    with pytest.raises(EngineError, match=f"(?s){message}"):
        build(conv, SPEC, module=module)


def test_without_tensorrt_a_build_says_so(conv):
    with pytest.raises(EngineError, match=r"TensorRT is not installed here, install squall\[tensorrt\] \(no_such_trt"):
        build(conv, SPEC, module="no_such_trt")


def test_a_build_can_be_cancelled_and_leaves_no_process(fake, conv, tmp_path):
    module = fake(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    cancel, told = threading.Event(), []

    def watch(progress):
        told.append(progress)
        if (tmp_path / "pid").exists():
            cancel.set()

    started = time.monotonic()
    with pytest.raises(BuildCancelledError, match="cancelled after"):
        build(conv, SPEC, module=module, cancel=cancel, on_progress=watch)
    assert time.monotonic() - started < 20
    assert told[0].share is None
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_an_error_in_the_progress_display_ends_the_build(fake, conv, tmp_path):
    module = fake(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")

    def fail(progress):
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(conv, SPEC, module=module, on_progress=fail)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_build_does_not_outlive_a_parent_that_is_killed(fake, conv, tmp_path):
    fake(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    program = (
        "import json, pathlib, sys; from engines.spec import BuildSpec; from engines.trt import build; "
        "build(pathlib.Path(sys.argv[1]), BuildSpec.from_json(json.loads(sys.argv[2])), module='fake_tensorrt')"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", program, str(conv), json.dumps(SPEC.to_json())], env=env)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def wait_until(is_so, seconds=30.0):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_the_surface_of_the_installed_release_is_one_that_is_recorded(rtx):
    surface = load_surface(rtx)
    assert surface.builds_without_gpu
    assert surface.reports_progress
