"""Half input and output, so that the host moves half of the bytes."""

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from engines.precision.layers import captured, checked, graphs, prepared, replace_all, value_types


def to_half_ports(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with half input and output in place of float32 ones that are only cast to and from half.

    Whoever runs it casts instead, so every value stays the same to the bit. A model whose input is used in float32,
    too, or whose output is not cast from half, comes back unchanged.

    Raises:
        ModelError: weights were not loaded, or the result is not valid ONNX.
    """
    rewrite = prepared(model)
    graph = rewrite.graph
    entries, exit_ = _entries(graph), _exit(graph, value_types(rewrite))
    if not entries or exit_ is None or exit_.input[0] in {node.output[0] for node in entries}:
        return model
    given, returned = graph.input[0], graph.output[0]
    new_names = {node.output[0]: given.name for node in entries} | {exit_.input[0]: returned.name}
    replace_all(graph.node, [node for node in graph.node if node not in (*entries, exit_)])
    for one in graphs(graph):
        for node in one.node:
            for field in (node.input, node.output):
                field[:] = [new_names.get(name, name) for name in field]
    replace_all(graph.value_info, [value for value in graph.value_info if value.name not in new_names])
    for port in (given, returned):
        port.type.tensor_type.elem_type = TensorProto.FLOAT16
    return checked(rewrite, "the model with half input and output")


def _entries(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The casts of the input to half; none if anything else reads it."""
    name = graph.input[0].name
    readers = [node for node in graph.node if name in node.input or name in captured(node)]
    are_casts = all(_is_cast(node, TensorProto.FLOAT16) for node in readers)
    is_one = len(graph.input) == 1 and graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    made = {node.output[0] for node in readers} & {value.name for value in graph.output}
    return readers if is_one and are_casts and not made else []


def _exit(graph: onnx.GraphProto, types: Mapping[str, int]) -> onnx.NodeProto | None:
    """The cast of half values, which a node has made, to the output, if nothing else reads that."""
    name = graph.output[0].name
    makers = [node for node in graph.node if name in node.output]
    is_read = any(name in node.input or name in captured(node) for node in graph.node)
    if len(graph.output) != 1 or is_read or not makers or not _is_cast(makers[0], TensorProto.FLOAT):
        return None
    source = makers[0].input[0]
    is_made = any(source in node.output for node in graph.node)
    return makers[0] if is_made and types.get(source) == TensorProto.FLOAT16 else None


def _is_cast(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(one.name == "to" and one.i == to for one in node.attribute)
