"""What of a graph decides how it is built, and what is said when it cannot be."""

import enum
import re
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engines.base import EngineError, ModelError
from engines.trt.network import FLAG_OF_TYPE, Types, explain, read_types, type_ports, typing_flags
from engines.trt.surface import Surface


def release(builder_flags, network_flags):
    """A surface of which only the flags are known."""
    module = ModuleType("tensorrt")
    module.__version__ = "1.2.3"
    module.BuilderFlag = enum.IntEnum("BuilderFlag", sorted(builder_flags))
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkFlag", sorted(network_flags))
    return Surface(module)


def types(*found):
    return Types(frozenset(found), frozenset({"a"} if "float16" in found else ()), frozenset())


def test_the_types_of_a_graph_are_read_from_its_tensors(mixed):
    found = read_types(mixed)
    assert found.found == {"float16"}
    assert found.half_nodes == {"to_half", "half_conv"}


def test_a_float32_graph_needs_no_flags(conv):
    assert read_types(conv) == Types(frozenset(), frozenset(), frozenset())
    assert typing_flags(release({"FP16"}, set()), read_types(conv), frozenset()) == frozenset()


def test_input_and_output_of_an_untyped_network_get_the_half_of_the_graph_and_float32_is_left(surface, graph, conv):
    if "FP16" not in surface.members("BuilderFlag"):
        pytest.skip("all networks of this release are typed")
    network = surface.module.INetworkDefinition()
    type_ports(surface, network, conv)
    assert not [name for name, _ in surface.module.calls if name == "ITensor.dtype="]
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1] * 4)]
    half = graph(nodes, {"w": np.ones((3, 2, 3, 3), np.float16)}, dtype=TensorProto.FLOAT16)
    type_ports(surface, network, half)
    given = [args for name, args in surface.module.calls if name == "ITensor.dtype="]
    assert given == [(surface.module.DataType.HALF,)] * 2


kinds = st.sets(st.sampled_from(sorted(FLAG_OF_TYPE))).map(lambda found: types(*found))


@given(kinds)
def test_a_typed_network_needs_no_other_flag_whatever_the_graph(found):
    typed = release(set(FLAG_OF_TYPE.values()), {"STRONGLY_TYPED"})
    assert typing_flags(typed, found, frozenset()) == {"STRONGLY_TYPED"}


@given(kinds)
def test_an_untyped_network_gets_the_flag_of_every_type_of_the_graph(found):
    untyped = release({*FLAG_OF_TYPE.values(), "OBEY_PRECISION_CONSTRAINTS"}, set())
    flags = typing_flags(untyped, found, frozenset())
    assert {FLAG_OF_TYPE[kind] for kind in found.found} == flags - {"OBEY_PRECISION_CONSTRAINTS"}
    assert ("OBEY_PRECISION_CONSTRAINTS" in flags) == ("float16" in found.found)


def test_a_type_that_a_release_cannot_compute_in_is_refused():
    with pytest.raises(EngineError, match=r"tensorrt 1\.2\.3 has no BF16, which types of this graph need"):
        typing_flags(release({"FP16"}, set()), types("bfloat16"), frozenset())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Could not find any implementation for node conv.", r"\(node conv, Conv\); give it more workspace \(it had 7"),
        ("Could not find any implementation for node {ForeignNode[conv...sum]}.", r"\(node conv, Conv\); give it more"),
        ("Cuda Runtime (out of memory)", "choose smaller shapes in the profile"),
        ("Network must have at least one output", "export again with opset 17"),
    ],
)
def test_a_failed_build_names_the_onnx_node_and_a_way_out(conv, text, message):
    assert re.search(message, explain(text, conv, 7))


def test_a_truncated_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\x12\xff")
    with pytest.raises(ModelError, match=r"model\.onnx is no ONNX file or is truncated"):
        read_types(tmp_path / "model.onnx")
