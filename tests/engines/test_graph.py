"""A graph is looked at without the values of its large weights, and what is found does not depend on them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.graph import STRUCTURAL, weights_as_inputs
from engines.precision import emulate_half, to_half
from engines.precision.layers import value_types
from engines.zoo import AdvectionSpec, UnetSpec, write_package


@pytest.fixture(params=["unet", "wide unet", "advection", "half", "emulated half", "old"])
def model(request, unet, tmp_path):
    """Graphs of several makers, some with weights beyond what is kept."""
    wide = onnx.load(write_package(UnetSpec(width=16, depth=2, frames=4), tmp_path / "u") / "model.onnx")
    match request.param:
        case "unet":
            return unet()
        case "advection":
            return onnx.load(
                write_package(AdvectionSpec((1.0, 1.0), (-5.0, 0.0), (5.0, 10.0)), tmp_path / "a") / "model.onnx"
            )
        case "half":
            return to_half(wide)
        case "emulated half":
            return emulate_half(to_half(wide))
        case "old":  # every initializer is an input, too
            for tensor in wide.graph.initializer:
                wide.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            return wide
    return wide


def inferred(model):
    """Type and shape of every value that is not a constant."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    return {value.name: value.type for value in (*graph.value_info, *graph.output)}


def test_types_and_shapes_follow_without_the_values(model):
    light, before = weights_as_inputs(model), model.SerializeToString(deterministic=True)
    assert inferred(light) == inferred(model)
    onnx.checker.check_model(light, full_check=True)
    assert model.SerializeToString(deterministic=True) == before
    assert all(tensor.name in value_types(model) for tensor in model.graph.initializer)


def test_only_small_constants_keep_their_values(model):
    light = weights_as_inputs(model)
    assert all(np.prod(tensor.dims) <= STRUCTURAL for tensor in light.graph.initializer)
    names = [value.name for value in (*light.graph.input, *light.graph.initializer)]
    constants = {tensor.name for tensor in model.graph.initializer}
    assert constants <= set(names)
    assert len({value.name for value in light.graph.input} - constants) == 1


def test_a_model_of_many_weights_becomes_light():
    weight = numpy_helper.from_array(np.zeros((1000, 4, 30, 30), np.float32), "w")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, "h", "w"])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1000, "a", "b"])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert model.ByteSize() > 14_000_000
    assert weights_as_inputs(model).ByteSize() < 1000
    assert value_types(model)["w"] == TensorProto.FLOAT
