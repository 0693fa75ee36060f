"""Half precision as a rewrite: what is halved, what never is, and that runtimes agree on it."""

import hashlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.base import ModelError
from engines.precision import (
    CONVERTER_VERSION,
    Conversion,
    LayerCounts,
    Precision,
    describe,
    emulate_half,
    record_conversion,
    to_half,
)
from engines.zoo import AdvectionSpec, PersistenceSpec, UnetSpec
from engines.zoo.advection import write_graph as write_advection
from engines.zoo.persistence import write_graph as write_persistence
from engines.zoo.unet import write_graph as write_unet

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
UNET = UnetSpec(width=4, depth=2, leads=6)
ADVECTION = AdvectionSpec(spacing_km=(1, 1), lead_minutes=(15, 30))


def run(model, batch, outputs=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, {session.get_inputs()[0].name: batch})


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def rain(*shape):
    """A smooth field that moves by two cells a frame, mm h-1."""
    y, x = np.mgrid[: shape[2], : shape[3]] / 9
    fields = [np.sin(x - 2 * k / 9) * np.cos(y) * 4 for k in range(shape[1])]
    return np.maximum(0, np.stack(fields)[None]).astype(np.float32)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def as_bytes(model):
    return model.SerializeToString(deterministic=True)


@pytest.fixture
def net(net_type):
    return net_type(2)


# What is halved


def test_heavy_operators_and_what_lies_between_them_are_half():
    half = to_half(write_unet(UNET))
    assert describe(half) == LayerCounts(half=13, casts=2)
    assert {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) == 4} == {HALF}


def test_inputs_and_outputs_keep_names_types_and_shapes():
    model = write_unet(UNET)
    half = to_half(model)
    assert [*half.graph.input, *half.graph.output] == [*model.graph.input, *model.graph.output]


def test_the_model_that_was_given_is_not_changed():
    model = write_unet(UNET)
    before = as_bytes(model)
    to_half(model)
    assert as_bytes(model) == before


@pytest.mark.parametrize(("write", "spec"), [(write_unet, UNET), (write_advection, ADVECTION)])
def test_twice_is_once(write, spec):
    once = to_half(write(spec))
    assert as_bytes(to_half(once)) == as_bytes(once)
    assert as_bytes(to_half(write(spec))) == as_bytes(once)


def test_weights_take_half_the_bytes():
    model = write_unet(UnetSpec(width=8, depth=3))
    assert to_half(model).ByteSize() < 0.55 * model.ByteSize()


@pytest.mark.parametrize(("write", "spec"), [(write_persistence, PersistenceSpec()), (write_advection, ADVECTION)])
def test_a_model_without_heavy_operators_comes_back_unchanged_and_the_log_says_so(write, spec, caplog):
    model = write(spec)
    with caplog.at_level("INFO", logger="engines.precision"):
        assert to_half(model) is model
    assert f"'{model.graph.name}' has no operator to compute in half" in caplog.text


def test_light_operators_at_the_ends_stay_float32(net):
    before, behind = net.relu("x"), net.constant(2.0)
    y = net.op("Sigmoid", net.op("Mul", net.conv(net.relu(net.conv(before, 2, 3)), 3, 3), behind))
    half = to_half(net.model(y, 3))
    assert kinds(half) == ["Relu", "Cast", "Conv", "Relu", "Conv", "Cast", "Mul", "Sigmoid"]


def test_what_sums_or_divides_between_heavy_operators_stays_float32(net):
    first = net.conv("x", 2, 3)
    mean = net.op("ReduceMean", first, axes=[2, 3])
    half = to_half(net.model(net.conv(net.op("Div", first, mean), 3, 3), 3))
    assert kinds(half) == ["Cast", "Conv", "Cast", "ReduceMean", "Div", "Cast", "Conv", "Cast"]


def test_a_value_is_cast_once_for_all_who_want_it(net):
    branches = [net.conv("x", 2, 3) for _ in range(3)]
    half = to_half(net.model(net.op("Sum", *branches), 3))
    assert describe(half) == LayerCounts(half=3, casts=1 + 3)


def test_scales_of_a_resize_stay_float32(net):
    y = net.conv(net.grow(net.pool(net.conv("x", 2, 3)), mode="linear"), 3, 3)
    half = to_half(net.model(y, 3))
    resize = next(node for node in half.graph.node if node.op_type == "Resize")
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert resize.input[0].endswith(".half")
    assert types[resize.input[2]] == FLOAT


def test_a_shape_is_read_from_the_half_value_without_a_cast(net):
    first = net.relu(net.conv("x", 2, 3))
    size = net.op("Shape", first)
    y = net.conv(net.op("Resize", first, "", "", size, mode="nearest"), 3, 3)
    half = to_half(net.model(y, 3))
    assert describe(half) == LayerCounts(half=2, casts=2)
    np.testing.assert_allclose(run(half, noise(1, 2, 8, 8))[0], run(net.model(y, 3), noise(1, 2, 8, 8))[0], atol=0.01)


def test_constants_of_nodes_are_halved_like_weights(net):
    weights = numpy_helper.from_array(np.ones((3, 2, 1, 1), np.float32))
    y = net.op("Conv", "x", net.op("Constant", value=weights))
    half = to_half(net.model(y, 3))
    assert kinds(half) == ["Cast", "Conv", "Cast"]
    assert [tensor.data_type for tensor in half.graph.initializer] == [HALF]


def test_weights_that_are_listed_as_inputs_are_inputs_no_more(net):
    model = net.model(net.conv("x", 2, 3), 3)
    model.graph.input.append(helper.make_tensor_value_info("w0", FLOAT, [3, 2, 3, 3]))
    assert [value.name for value in to_half(model).graph.input] == ["x"]


def test_nodes_without_a_name_or_with_a_name_twice_get_their_own(net):
    model = net.model(net.relu(net.conv(net.relu(net.conv("x", 2, 3)), 3, 3)), 3)
    for node, name in zip(model.graph.node, ["", "a", "a", ""], strict=True):
        node.name = name
    found = [node.name for node in to_half(model).graph.node]
    assert "a" in found
    assert len(set(found)) == len(found)
    assert all(found)


def test_names_that_a_model_uses_already_are_not_taken(net):
    model = net.model(net.conv("x", 2, 3), 3)
    model.graph.node.insert(0, helper.make_node("Identity", ["x"], ["x.half"], name="Cast_x.half_1"))
    model.graph.node[1].input[0] = "x.half"
    assert np.isfinite(run(to_half(model), noise(1, 2, 8, 8))[0]).all()


def test_weights_beyond_half_keep_their_operator_in_float32(net):
    y = net.op("Conv", "x", net.constant(np.full((3, 2, 1, 1), 70_000)))
    model = net.model(net.conv(y, 3, 3), 3)
    assert describe(to_half(model)) == LayerCounts(float32=1, half=1, casts=2)


def test_a_small_constant_that_half_would_lose_keeps_its_operator_in_float32(net):
    first, small = net.conv("x", 2, 3), net.constant(1e-9)
    model = net.model(net.conv(net.op("Add", first, small), 3, 3), 3)
    assert kinds(to_half(model)) == ["Cast", "Conv", "Cast", "Add", "Cast", "Conv", "Cast"]


def test_weights_that_were_not_read_are_an_error(net):
    model = net.model(net.conv("x", 2, 3), 3)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match="'w0' lies in an external file that was not read"):
        to_half(model)


def test_a_graph_that_onnx_refuses_is_an_error(net):
    model = net.model(net.conv("x", 2, 3), 3)
    model.graph.node.append(helper.make_node("Relu", ["nowhere"], ["z"], name="z"))
    with pytest.raises(ModelError, match="'g'"):
        to_half(model)


# What never is


def with_places(model):
    """The model with the coordinates of every GridSample as further outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    places = [node.input[1] for node in model.graph.node if node.op_type == "GridSample"]
    shown.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in places)
    return shown


def test_coordinates_between_half_convolutions_are_the_same_bits(net):
    flow = net.op("Transpose", net.conv(net.relu(net.conv("x", 2, 4)), 4, 2), perm=[0, 2, 3, 1])
    moved = net.op("GridSample", net.conv("x", 2, 3), flow, mode="nearest")
    model, batch = net.model(net.conv(moved, 3, 3), 3), noise(1, 2, 96, 96)
    half = to_half(model)
    assert describe(half).half == 2
    want, got = (run(with_places(one), batch) for one in (model, emulate_half(half)))
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_allclose(got[0], want[0], rtol=3e-3, atol=1e-2)
    assert not np.array_equal(got[0], want[0])


def test_a_network_that_computes_coordinates_stays_float32_to_the_input(net):
    flow = net.op("Transpose", net.conv(net.relu(net.conv("x", 2, 4)), 4, 2), perm=[0, 2, 3, 1])
    moved = net.op("GridSample", net.conv("x", 2, 3), flow, mode="bilinear")
    half = to_half(net.model(net.conv(moved, 3, 3), 3))
    assert describe(half) == LayerCounts(float32=2, half=2, casts=4)


def test_what_a_loop_reads_and_what_is_in_it_stays_float32(net):
    first = net.conv("x", 2, 2)
    weights = net.constant(np.ones((2, 2, 1, 1)))
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["state", weights], ["next"]),
            helper.make_node("Identity", ["go_on"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("k", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    steps, go = net.constant(2, "int64"), net.constant(True, "bool")
    looped = net.op("Loop", steps, go, first, body=body)
    model = net.model(net.conv(looped, 2, 3), 3)
    half = to_half(model)
    assert describe(half) == LayerCounts(float32=2, half=1, casts=2)
    np.testing.assert_allclose(run(half, noise(1, 2, 8, 8))[0], run(model, noise(1, 2, 8, 8))[0], atol=0.02)


def test_a_value_that_a_branch_captures_stays_float32(net):
    first = net.conv("x", 2, 3)
    branch = helper.make_graph(
        [helper.make_node("Neg", [first], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Abs", [first], ["other"])],
        "other",
        [],
        [helper.make_tensor_value_info("other", FLOAT, None)],
    )
    chosen = net.op("If", net.constant(True, "bool"), then_branch=branch, else_branch=other)
    model = net.model(net.conv(chosen, 3, 3), 3)
    half = to_half(model)
    assert describe(half) == LayerCounts(float32=1, half=1, casts=2)
    assert np.isfinite(run(half, noise(1, 2, 8, 8))[0]).all()


# What a runtime makes of it


def test_half_is_near_float32_in_onnx_runtime():
    model, batch = write_unet(UNET), noise(1, 4, 64, 64)
    want = run(model, batch)[0]
    for half in (to_half(model), emulate_half(to_half(model))):
        assert np.abs(run(half, batch)[0] - want).max() < 0.01 * np.std(want)


def test_the_emulation_rounds_as_numpy_does(net):
    third = net.constant(np.full((2, 2, 1, 1), [[[[1 / 3]], [[0]]], [[[0]], [[1 / 3]]]]))
    y = net.op("Conv", net.relu(net.op("Conv", "x", third)), third)
    batch, weight = noise(1, 2, 8, 8), np.float16(1 / 3)
    want = np.maximum(batch.astype(np.float16) * weight, np.float16(0)) * weight
    got = run(emulate_half(to_half(net.model(y, 2))), batch)[0]
    np.testing.assert_array_equal(got, want.astype(np.float32))


def test_the_emulation_overflows_where_half_does(net):
    large = net.constant(np.full((2, 2, 1, 1), 300))
    small = net.constant(np.full((3, 2, 1, 1), 1 / 300))
    model = net.model(net.op("Conv", net.relu(net.op("Conv", "x", large)), small), 3)
    batch = np.full((1, 2, 8, 8), 200, np.float32)
    assert np.isinf(run(emulate_half(to_half(model)), batch)[0]).all()
    assert np.isfinite(run(model, batch)[0]).all()


def test_the_emulation_of_a_model_without_half_is_the_model():
    model = write_unet(UNET)
    assert emulate_half(model) is model


def test_half_input_and_output_are_emulated_by_rounding(net):
    weights = net.constant(np.full((2, 2, 1, 1), [[[[1 / 3]], [[0]]], [[[0]], [[1 / 3]]]]), "float16")
    model = net.model(net.op("Conv", "x", weights), 2)
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = HALF
    batch = noise(1, 2, 8, 8)
    got = run(emulate_half(model), batch)[0]
    np.testing.assert_array_equal(got, (batch.astype(np.float16) * np.float16(1 / 3)).astype(np.float32))


# What is said of it


def test_a_record_says_what_was_asked_for_and_what_the_graph_has():
    half = to_half(write_unet(UNET))
    record = record_conversion(Precision("half"), half)
    assert record == Conversion(Precision("half"), Precision("half"), LayerCounts(half=13, casts=2), CONVERTER_VERSION)
    assert record.is_honoured
    assert not record_conversion(Precision("half"), write_unet(UNET)).is_honoured
    assert not record_conversion(Precision("half", is_packed=True), half).is_honoured


@pytest.mark.parametrize("text", ["float32", "half", "int8", "half+packed", "int8+packed"])
def test_a_precision_is_read_as_it_is_written(text):
    assert str(Precision.parse(text)) == text


@pytest.mark.parametrize("text", ["fp16", "half+", "half+fast", "", "+packed"])
def test_an_unknown_precision_is_refused(text):
    with pytest.raises(ValueError, match=r"expected one of|only '\+packed'"):
        Precision.parse(text)


def test_counts_are_said_in_words():
    assert str(LayerCounts(float32=1, half=2, casts=3)) == "heavy operators: 1 float32, 2 half; casts: 3"
    assert str(LayerCounts()) == "heavy operators: none; casts: 0"


def test_heavy_operators_of_other_types_are_counted_apart(net):
    weights = net.constant(np.ones((3, 2, 1, 1)), "float64")
    y = net.op("Cast", net.op("Conv", net.op("Cast", "x", to=TensorProto.DOUBLE), weights), to=FLOAT)
    model = net.model(y, 3)
    assert describe(model) == LayerCounts(other=1, casts=2)
    assert to_half(model) is model


def test_the_converter_version_changes_with_what_it_makes():
    """If this fails, the rewrite of a model changed: raise CONVERTER_VERSION, then renew the digest."""
    graph = to_half(write_unet(UnetSpec(width=1, depth=1, frames=1, leads=1))).graph
    lines = [f"{node.name} {node.op_type} {[*node.input]} {[*node.output]}" for node in graph.node]
    lines += [f"{tensor.name} {tensor.data_type} {[*tensor.dims]}" for tensor in graph.initializer]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (CONVERTER_VERSION, digest) == ("3", "e169a55f1981b1a0")
