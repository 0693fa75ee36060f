"""Half input and output: the same bits, half of the bytes, and only where the graph does nothing but cast."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from engines.model import load_package
from engines.ort import OnnxRuntime, OrtEngine
from engines.precision import Precision, describe, emulate_half, record_conversion, to_half, to_half_ports
from engines.slot import Candidate, Slot
from engines.spec import BuildSpec, Profile
from engines.typed import type_model, write_emulated

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
SHAPE = (2, 2, 16, 24)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def run(model, batch):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def ports(model):
    return [port.type.tensor_type.elem_type for port in (*model.graph.input, *model.graph.output)]


@pytest.fixture
def net(net_type):
    return net_type(2)


def two_convolutions(net):
    return net.model(net.conv(net.relu(net.conv("x", 2, 4)), 4, 3), 3)


@pytest.fixture
def half(net, package, tmp_path):
    """A typed model with half input and output."""
    found = load_package(package(tmp_path / "package", two_convolutions(net)))
    return type_model(found, Precision("half"), tmp_path / "graphs")


def test_the_casts_at_the_border_are_gone_and_the_bits_are_the_same(net):
    whole = to_half(two_convolutions(net))
    narrow = to_half_ports(whole)
    assert (ports(whole), ports(narrow)) == ([FLOAT, FLOAT], [HALF, HALF])
    assert (describe(whole).casts, describe(narrow).casts) == (2, 0)
    assert [port.name for port in (*narrow.graph.input, *narrow.graph.output)] == ["x", "v2"]
    batch = noise(*SHAPE) * 100
    np.testing.assert_array_equal(run(emulate_half(narrow), batch), run(emulate_half(whole), batch))


def test_onnx_runtime_gives_the_same_half(net):
    whole, batch = to_half(two_convolutions(net)), noise(*SHAPE).astype(np.float16)
    want = run(whole, batch.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(run(to_half_ports(whole), batch), want)


def test_an_input_that_several_operators_cast_is_one_half_input(net):
    weights = net.constant(np.ones((3, 2, 1, 1)), "float16")
    branches = [net.op("Conv", net.op("Cast", "x", to=HALF), weights) for _ in range(2)]
    narrow = to_half_ports(net.model(net.op("Cast", net.op("Add", *branches), to=FLOAT), 3))
    assert (ports(narrow), describe(narrow).casts) == ([HALF, HALF], 0)
    assert np.isfinite(run(narrow, noise(*SHAPE).astype(np.float16))).all()


def test_it_changes_nothing_it_was_given_and_twice_is_once(net):
    whole = to_half(two_convolutions(net))
    before = whole.SerializeToString(deterministic=True)
    narrow = to_half_ports(whole)
    assert whole.SerializeToString(deterministic=True) == before
    assert to_half_ports(narrow) is narrow


def used_in_float32(net):
    newest = net.op("Slice", "x", net.constant([1], "int64"), net.constant([2], "int64"), net.constant([1], "int64"))
    return net.op("Add", net.conv("x", 2, 3), newest), 3


def used_by_a_branch(net):
    inner = [onnx.helper.make_node("ReduceMean", ["x"], ["inner"], keepdims=1)]
    other = [onnx.helper.make_node("ReduceMax", ["x"], ["other"], keepdims=1)]
    branches = [
        onnx.helper.make_graph(nodes, "b", [], [onnx.helper.make_tensor_value_info(nodes[0].output[0], FLOAT, None)])
        for nodes in (inner, other)
    ]
    chosen = net.op("If", net.constant(True, "bool"), then_branch=branches[0], else_branch=branches[1])
    y = net.conv("x", 2, 3)
    return net.conv(net.op("Mul", y, chosen), 3, 3), 3


def ends_in_float32(net):
    return net.op("Softmax", net.conv("x", 2, 3), axis=1), 3


def begins_in_float32(net):
    return net.conv(net.relu("x"), 2, 3), 3


def has_no_half(net):
    return net.relu("x"), 2


@pytest.mark.parametrize("build", [used_in_float32, used_by_a_branch, ends_in_float32, begins_in_float32, has_no_half])
def test_a_graph_that_needs_float32_at_a_border_keeps_it(net, build):
    whole = to_half(net.model(*build(net)))
    assert to_half_ports(whole) is whole
    assert ports(whole) == [FLOAT, FLOAT]


# As an engine


def test_half_is_typed_with_half_ports_and_honoured(half):
    assert ports(onnx.load(half.path)) == [HALF, HALF]
    assert half.conversion.is_honoured
    assert record_conversion(Precision("half"), onnx.load(half.path)).is_honoured


def test_a_call_is_float32_and_a_lane_is_half(half):
    engine, batch = OrtEngine(half.path), noise(*SHAPE)
    out = engine(batch)
    assert [spec.dtype for spec in engine.specs] == ["float16", "float16"]
    assert out.dtype == np.float32
    with engine.lane(SHAPE) as lane:
        lane.given[...] = batch
        made = lane.run()
    assert (lane.given.dtype, made.dtype) == (np.float16, np.float16)
    np.testing.assert_array_equal(made.astype(np.float32), out)


def test_what_half_cannot_hold_is_infinite_without_a_warning(half, recwarn):
    batch = noise(*SHAPE)
    batch[0] = 1e6
    out = OrtEngine(half.path)(batch)
    assert not np.isfinite(out[0]).all()
    assert np.isfinite(out[1]).all()
    assert not recwarn.list


def test_an_engine_file_of_onnx_runtime_gives_the_same(half):
    runtime = OnnxRuntime()
    built = runtime.build(half, BuildSpec((Profile.up_to(SHAPE),)), b"", lambda text: None)
    engine = runtime.load(built.data)
    assert engine.specs[0].dtype == "float16"
    engine.warm(SHAPE)
    np.testing.assert_array_equal(engine(noise(*SHAPE)), OrtEngine(half.path)(noise(*SHAPE)))


def test_the_gate_judges_it_rounded_as_a_device_does(half, tmp_path):
    emulated = OrtEngine(write_emulated(half, tmp_path / "emulated"))
    assert [spec.dtype for spec in emulated.specs] == ["float32", "float32"]
    np.testing.assert_allclose(emulated(noise(*SHAPE)), OrtEngine(half.path)(noise(*SHAPE)), atol=0.02)


def test_a_slot_changes_from_float32_to_half_since_calls_see_no_difference(half, tmp_path):
    slot = Slot(Candidate("float32", 0, lambda: OrtEngine(tmp_path / "package" / "model.onnx")))
    batch = noise(*SHAPE)
    before = slot(batch)
    slot.prepare(Candidate("half", 0, lambda: OrtEngine(half.path)), SHAPE)
    assert slot.swap() == "half"
    after = slot(batch)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before, atol=0.02)
    with slot.lane(SHAPE) as lane:
        assert (lane.version, lane.given.dtype) == ("half", np.float16)
