"""What every rewrite asks of a graph: its heavy operators, what says where data moves, the types of its values."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from engines.base import ModelError
from engines.graph import MOVERS, first_line, weights_as_inputs

CONVERTER_VERSION = "3"  # raise it with every change of what a rewrite gives: engines are kept by it
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
OPSETS = range(13, 18)  # from per-channel Q/DQ to the newest that TensorRT 8.6 reads


@dataclass(frozen=True)
class LayerCounts:
    """Heavy operators (Conv, ConvTranspose, Gemm, MatMul) by the type that they compute in, and the casts of a graph.

    `other` counts types that squall does not write, such as bfloat16, and operators of unknown type.
    """

    float32: int = 0
    half: int = 0
    int8: int = 0
    other: int = 0
    casts: int = 0

    def __str__(self) -> str:
        named = {"float32": self.float32, "half": self.half, "int8": self.int8, "other": self.other}
        heavy = ", ".join(f"{count} {name}" for name, count in named.items() if count) or "none"
        return f"heavy operators: {heavy}; casts: {self.casts}"


def describe(model: onnx.ModelProto) -> LayerCounts:
    """Heavy operators of a graph and its subgraphs by type: int8 where data and weights both come from Q/DQ."""
    types, found = value_types(model), dict.fromkeys(("float32", "half", "int8", "other", "casts"), 0)
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    names = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "half"}
    for node in nodes:
        if node.op_type in HEAVY:
            is_int8 = dequantized.issuperset(node.input[:2])
            found["int8" if is_int8 else names.get(types.get(node.output[0]), "other")] += 1
        found["casts"] += node.op_type == "Cast"
    return LayerCounts(**found)


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy fit for rewriting: every node has a name of its own, every constant is an initializer and no input.

    Raises:
        ModelError: weights lie in files that were not read.
    """
    outside = [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise ModelError(f"weight {outside[0]!r} lies in an external file that was not read; load the model with it")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _name_nodes(copy.graph)
    _lift_constants(copy.graph)
    weights = {tensor.name for tensor in copy.graph.initializer}
    replace_all(copy.graph.input, [value for value in copy.graph.input if value.name not in weights])
    copy.ir_version = max(copy.ir_version, 4)  # before it every initializer had to be an input, too
    return copy


def checked(model: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """The model, after ONNX's full check and strict shape inference; the values of large weights are not looked at.

    Raises:
        ModelError: ONNX refuses it; says `what` it is.
    """
    try:
        onnx.checker.check_model(weights_as_inputs(model), full_check=True)
    except Exception as error:  # checker and shape inference raise unrelated types
        raise ModelError(f"{what} of graph {model.graph.name!r} fails the ONNX checker: {first_line(error)}") from error
    value_types(model)
    return model


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of every value, subgraphs included, by strict shape inference.

    Raises:
        ModelError: a type or shape does not fit.
    """
    try:
        light = weights_as_inputs(model)
        inferred = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # protobuf and shape inference raise unrelated types
        raise ModelError(f"shape inference of graph {model.graph.name!r} fails: {first_line(error)}") from error
    types: dict[str, int] = {}
    for graph in graphs(inferred.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            types[value.name] = value.type.tensor_type.elem_type
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types


def steering(graph: onnx.GraphProto) -> set[str]:
    """Names of nodes whose results say where data moves (coordinates, indices, bounds) or enter a subgraph.

    A shape depends on no value, so the search ends at Shape and Size.
    """
    wanted: set[str] = set()
    found = set()
    for node in reversed(graph.node):
        at = MOVERS.get(node.op_type, ())
        wanted.update(name for k, name in enumerate(node.input) if at is None or k in at)
        wanted.update(captured(node))
        if wanted.intersection(node.output):
            found.add(node.name)
            wanted.update(() if node.op_type in ("Shape", "Size") else node.input)
    return found


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of a node use; those that they make themselves are among them."""
    inner = [graph for attribute in node.attribute for graph in _subgraphs(attribute)]
    used = {name for graph in inner for other in graph.node for name in other.input}
    return used | {value.name for graph in inner for value in graph.output}


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            yield from _subgraphs(attribute)


def fresh(name: str, taken: set[str]) -> str:
    """`name`, or with a number if it is taken; taken from then on.

    >>> fresh("x.half", {"x.half"})
    'x.half_1'
    """
    given, k = name, 0
    while given in taken:
        k += 1
        given = f"{name}_{k}"
    taken.add(given)
    return given


def replace_all(field: Any, kept: Iterable[Any]) -> None:
    """The repeated field of a message then holds `kept`, which may be parts of it."""
    kept = list(kept)
    del field[:]
    field.extend(kept)


def names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a value or a node in a graph and its subgraphs."""
    found: set[str] = set()
    for one in graphs(graph):
        found |= {value.name for value in (*one.input, *one.output, *one.value_info, *one.initializer)}
        found |= {name for node in one.node for name in (node.name, *node.input, *node.output)}
    return found


def _subgraphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from graphs(graph)


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken = {node.name for node in graph.node}
    seen = {""}
    for k, node in enumerate(graph.node):
        if node.name in seen:
            node.name = fresh(f"{node.op_type}_{k}", taken)
        seen.add(node.name)


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Constant nodes become initializers, save those that are an output of the graph."""
    outputs, kept = {value.name for value in graph.output}, []
    for node in graph.node:
        held = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
        if held and node.output[0] not in outputs:
            graph.initializer.add().CopyFrom(held[0])
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    replace_all(graph.node, kept)
