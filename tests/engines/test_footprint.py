"""The estimate of an inference's memory against what ONNX Runtime really takes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from engines.base import ModelError
from engines.footprint import bytes_per_cell

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process from /proc")

ROOT = Path(__file__).parents[2]
MEASURE = """
import sys
from pathlib import Path
import numpy as np
from engines.ort import OrtEngine

def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

path, channels, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
engine = OrtEngine(path)
engine(np.ones((1, channels, 64, 64), np.float32))
before = memory("VmRSS")
tile = np.random.default_rng(0).random((1, channels, size, size), dtype=np.float32)
for _ in range(2):
    out = None
    out = engine(tile)
print((memory("VmHWM") - before) / size**2)
"""


def measured(path, channels: int, size: int = 768) -> float:
    """Growth of a fresh process while it runs one tile, bytes per cell."""
    command = [sys.executable, "-c", MEASURE, str(path), str(channels), str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


@pytest.fixture
def save(tmp_path):
    def write(model):
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model.onnx"

    return write


def wide(net):
    """Three convolutions of many channels."""
    return net.conv(net.relu(net.conv("x", 4, 64)), 64, 4)


def elementwise(net):
    return net.op("Mul", net.op("Add", "x", net.op("Tanh", "x")), net.op("Sigmoid", "x"))


@pytest.mark.parametrize("build", [wide, elementwise])
def test_the_estimate_is_near_the_memory_that_is_taken(save, net_type, build):
    net = net_type(4)
    path = save(net.model(build(net), 4))
    assert 0.7 < bytes_per_cell(path, 4) / measured(path, 4) < 2


@pytest.mark.parametrize("width", [8, 32])
def test_the_estimate_holds_for_a_unet(save, unet, width):
    path = save(unet(width=width))
    assert 0.7 < bytes_per_cell(path, 4) / measured(path, 4) < 2


@pytest.mark.parametrize("kind", ["advection", "unet", "persistence"])
def test_the_estimate_holds_for_the_models_that_squall_writes(tmp_path, kind):
    zoo = pytest.importorskip("engines.zoo.package")
    spec = {
        "advection": lambda: zoo.AdvectionSpec((1.0, 1.0)),
        "unet": zoo.UnetSpec,
        "persistence": zoo.PersistenceSpec,
    }[kind]()
    path = zoo.write_package(spec, tmp_path) / "model.onnx"
    channels = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    assert 0.7 < bytes_per_cell(path, channels, 512) / measured(path, channels) < 2


def test_the_estimate_per_cell_hardly_depends_on_the_tile(save, unet):
    path = save(unet())
    assert bytes_per_cell(path, 4, 256) == pytest.approx(bytes_per_cell(path, 4, (512, 1024)), rel=0.1)


def test_a_model_of_one_operator_needs_its_input_and_its_output(save, net_type):
    net = net_type(2)
    path = save(net.model(net.op("Identity", "x"), 2))
    assert 16 <= bytes_per_cell(path, 2) <= 32


def test_a_tensor_that_is_needed_later_counts_until_then(save, net_type):
    def needs(keeps_first: bool) -> float:
        net = net_type(1)
        first = net.op("Concat", *["x"] * 32, axis=1)
        last = net.op("ReduceMax", first, axes=[1])
        for _ in range(2):
            last = net.op("ReduceMax", net.op("Concat", *[last] * 32, axis=1), axes=[1])
        return bytes_per_cell(save(net.model(net.op("Sub", first, last) if keeps_first else last, 1)), 1)

    assert needs(True) - needs(False) > 32 * 4


def test_weights_in_another_file_are_found_beside_the_model(save, unet, tmp_path):
    model = unet()
    expected = bytes_per_cell(save(model), 4)
    tensor = model.graph.initializer[0]
    (tmp_path / "w.bin").write_bytes(tensor.raw_data)
    external_data_helper.set_external_data(tensor, "w.bin")
    tensor.ClearField("raw_data")
    assert bytes_per_cell(save(model), 4) == expected


def test_a_shape_that_depends_on_values_is_refused_by_name(save, net_type):
    net = net_type(1)
    count = net.op("Cast", net.op("ReduceMax", "x", keepdims=0), to=onnx.TensorProto.INT64)
    places = net.op("Range", net.constant(0, "int64"), count, net.constant(1, "int64"))
    total = net.op("ReduceSum", net.op("Cast", places, to=onnx.TensorProto.FLOAT), keepdims=0)
    with pytest.raises(ModelError, match=r"shape .* of 'v2' does not follow from the input's"):
        bytes_per_cell(save(net.model(net.op("Add", "x", total), 1)), 1)


def test_a_tensor_of_unknown_rank_is_refused_by_name(save, net_type):
    net = net_type(1)
    branch = onnx.helper.make_tensor_value_info("any", onnx.TensorProto.FLOAT, None)
    bodies = [
        onnx.helper.make_graph([onnx.helper.make_node(kind, ["x"], ["any"], **how)], kind, [], [branch])
        for kind, how in (("Identity", {}), ("Flatten", {"axis": 1}))
    ]
    is_wet = net.op("Greater", net.op("ReduceMax", "x", keepdims=0), net.constant(0))
    either = net.op("If", is_wet, then_branch=bodies[0], else_branch=bodies[1])
    y = net.op("Reshape", either, net.op("Shape", "x"))
    with pytest.raises(ModelError, match=r"of 'v2' does not follow"):
        bytes_per_cell(save(net.model(y, 1)), 1)


def test_a_sequence_is_refused_by_name(save, net_type):
    net = net_type(2)
    y = net.op("SequenceAt", net.op("SplitToSequence", "x", axis=1), net.constant(1, "int64"))
    with pytest.raises(ModelError, match="'v0' is a sequence_type; expected tensors only"):
        bytes_per_cell(save(net.model(y, 1)), 2)


def test_a_recurrent_operator_may_be_asked_for_its_last_state_alone(save, net_type):
    net = net_type(2)
    steps = net.op("Reshape", net.op("Transpose", "x", perm=[1, 0, 2, 3]), net.constant([2, -1, 1], "int64"))
    weights = [net.constant(np.ones((1, 4 * 3, size))) for size in (1, 3)]
    net.nodes.append(onnx.helper.make_node("LSTM", [steps, *weights], ["", "last"], hidden_size=3))
    planes = net.op("Transpose", net.op("Squeeze", "last", net.constant([0], "int64")), perm=[1, 0])
    y = net.op("Reshape", planes, net.constant([1, 3, 256, 256], "int64"))
    assert bytes_per_cell(save(net.model(y, 3)), 2) > 4 * (2 + 3)


def test_a_tile_that_the_model_cannot_take_is_refused(save, unet):
    with pytest.raises(ModelError, match="cannot load"):
        bytes_per_cell(save(unet()), 4, 100)


def test_the_channels_are_taken_from_the_caller(save, net_type):
    net = net_type("c")
    path = save(net.model(net.op("Identity", "x"), "c"))
    assert bytes_per_cell(path, 8) == pytest.approx(2 * bytes_per_cell(path, 4))
    assert np.isfinite(bytes_per_cell(path, 1))
