"""Half precision on a runtime that computes half operators in float32: every rounding written out in the graph."""

import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.precision.layers import checked, fresh, names, prepared, replace_all, value_types
from engines.precision.ports import widen_ports


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 model, I/O included, that rounds to half wherever `model` holds half, and overflows where it would.

    ONNX Runtime on the CPU runs most half operators in float32 and drops the rounding between them, so there a half
    graph looks better than it is. This one gives what a device gives that adds up in float32 and stores half. A model
    without half values comes back unchanged.

    Raises:
        ModelError: half values in a subgraph, or an operator that makes half on its own.
    """
    rewrite = prepared(model)
    widen_ports(rewrite)
    types = value_types(rewrite)
    half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    if not half:
        return model
    graph, taken, nodes = rewrite.graph, names(rewrite.graph), []
    for tensor in graph.initializer:
        if tensor.name in half:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    for node in graph.node:
        rounding = []
        for k, name in enumerate(node.output):
            if name in half:
                node.output[k] = exact = fresh(f"{name}.exact", taken)
                rounded = fresh(f"{name}.rounded", taken)
                for start, end, to in ((exact, rounded, TensorProto.FLOAT16), (rounded, name, TensorProto.FLOAT)):
                    label = fresh(f"Cast_{end}", taken)
                    rounding.append(helper.make_node("Cast", [start], [end], name=label, to=to))
        _to_float(node)
        nodes += [node, *rounding]
    replace_all(graph.node, nodes)
    replace_all(graph.value_info, [value for value in graph.value_info if value.name not in half])
    return checked(rewrite, "the emulation of half precision")


def _to_float(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
