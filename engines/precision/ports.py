"""Half input and output of a graph: the host then moves half the bytes, and the bits stay the same."""

import onnx
from onnx import TensorProto, helper

from engines.precision.layers import fresh, graphs, names, replace_all, value_types


def narrow_ports(model: onnx.ModelProto) -> None:
    """Takes the casts to and from half at the border of a graph away, in place; its input and output become half.

    Only where every use of the input is such a cast, and the output is one and used by nobody else.
    """
    graph = model.graph
    if len(graph.input) == 1 and len(graph.output) == 1:
        types = value_types(model)
        _narrow_input(graph)
        _narrow_output(graph, types)


def widen_ports(model: onnx.ModelProto) -> None:
    """Puts the casts back, in place: half input and output become float32 under the same names."""
    graph, taken = model.graph, names(model.graph)
    for port in graph.input:
        if _kind(port) == TensorProto.FLOAT16:
            half = fresh(f"{port.name}.half", taken)
            _rename_uses(graph, port.name, half)
            graph.node.insert(0, _cast(port.name, half, TensorProto.FLOAT16, fresh(f"Cast_{half}", taken)))
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    for port in graph.output:
        if _kind(port) == TensorProto.FLOAT16:
            half = fresh(f"{port.name}.half", taken)
            _rename_uses(graph, port.name, half)
            for node in graph.node:
                node.output[:] = [half if name == port.name else name for name in node.output]
            graph.node.append(_cast(half, port.name, TensorProto.FLOAT, fresh(f"Cast_{port.name}", taken)))
            port.type.tensor_type.elem_type = TensorProto.FLOAT


def _narrow_input(graph: onnx.GraphProto) -> None:
    port = graph.input[0]
    uses = [node for one in graphs(graph) for node in one.node if port.name in node.input]
    casts = [node for node in graph.node if _is_cast(node, TensorProto.FLOAT16) and node.input[0] == port.name]
    kept = {port.name, graph.output[0].name}
    if not casts or len(casts) != len(uses) or kept.intersection(node.output[0] for node in casts):
        return
    for cast in casts:
        _rename_uses(graph, cast.output[0], port.name)
    dropped = {cast.output[0] for cast in casts}
    replace_all(graph.node, [node for node in graph.node if not dropped.intersection(node.output)])
    replace_all(graph.value_info, [value for value in graph.value_info if value.name not in dropped])
    port.type.tensor_type.elem_type = TensorProto.FLOAT16


def _narrow_output(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    port = graph.output[0]
    cast = next((node for node in graph.node if port.name in node.output), None)
    used = any(port.name in node.input for one in graphs(graph) for node in one.node)
    if cast is None or used or not _is_cast(cast, TensorProto.FLOAT):
        return
    half = cast.input[0]
    if types.get(half) != TensorProto.FLOAT16 or not any(
        half in node.output for node in graph.node
    ):  # an input or a weight goes straight out
        return
    replace_all(graph.node, [node for node in graph.node if node is not cast and node.name != cast.name])
    for node in graph.node:
        node.output[:] = [port.name if name == half else name for name in node.output]
    _rename_uses(graph, half, port.name)
    replace_all(graph.value_info, [value for value in graph.value_info if value.name != half])
    port.type.tensor_type.elem_type = TensorProto.FLOAT16


def _rename_uses(graph: onnx.GraphProto, old: str, new: str) -> None:
    for one in graphs(graph):
        for node in one.node:
            node.input[:] = [new if name == old else name for name in node.input]


def _cast(given: str, made: str, to: int, label: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [given], [made], name=label, to=to)


def _is_cast(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == to for a in node.attribute)


def _kind(port: onnx.ValueInfoProto) -> int:
    return int(port.type.tensor_type.elem_type)
