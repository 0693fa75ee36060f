"""Half precision on a runtime that computes half operators in float32: every rounding written out in the graph."""

import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.precision.layers import checked, fresh, graphs, names, prepared, replace_all, value_types


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 model that rounds to half wherever `model` holds half, and overflows where it would.

    ONNX Runtime on the CPU runs most half operators in float32 and drops the rounding between them, so there a half
    graph looks better than it is. This one gives what a device gives that adds up in float32 and stores half. Half
    input and output become float32 ones that are rounded. A model without half values comes back unchanged.

    Raises:
        ModelError: half values in a subgraph, or an operator that makes half on its own.
    """
    rewrite = prepared(model)
    types = value_types(rewrite)
    half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    if not half:
        return model
    graph, taken, nodes = rewrite.graph, names(rewrite.graph), list[onnx.NodeProto]()
    for port in graph.input:
        if port.name in half:
            _rename(graph, port.name, entered := fresh(f"{port.name}.entered", taken))
            nodes += _rounding(port.name, entered, taken)
    for port in (*graph.input, *graph.output):
        if port.name in half:
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        if tensor.name in half:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    for node in graph.node:
        rounding = list[onnx.NodeProto]()
        for k, name in enumerate(node.output):
            if name in half:
                node.output[k] = exact = fresh(f"{name}.exact", taken)
                rounding += _rounding(exact, name, taken)
        _to_float(node)
        nodes += [node, *rounding]
    replace_all(graph.node, nodes)
    replace_all(graph.value_info, [value for value in graph.value_info if value.name not in half])
    return checked(rewrite, "the emulation of half precision")


def _rounding(exact: str, name: str, taken: set[str]) -> list[onnx.NodeProto]:
    """Two casts from a float32 value to what half makes of it, in float32."""
    rounded = fresh(f"{name}.rounded", taken)
    steps = (exact, rounded, TensorProto.FLOAT16), (rounded, name, TensorProto.FLOAT)
    return [helper.make_node("Cast", [a], [b], name=fresh(f"Cast_{b}", taken), to=to) for a, b, to in steps]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let all who read a value read another."""
    for one in graphs(graph):
        for node in one.node:
            node.input[:] = [new if name == old else name for name in node.input]


def _to_float(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
