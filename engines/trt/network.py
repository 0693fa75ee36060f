"""From an ONNX file to a TensorRT network that keeps the types of the graph; refusals name the node and a way out."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from engines.base import EngineError, ModelError
from engines.graph import weights_as_inputs
from engines.trt.surface import Surface

# Builder flags that let an engine use a type where the network itself does not carry types.
FLAG_OF_TYPE = {"float16": "FP16", "bfloat16": "BF16", "int8": "INT8", "float8": "FP8", "int4": "INT4"}
ONNX_TYPES = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT8E4M3FN: "float8",
    onnx.TensorProto.INT4: "int4",
}
FREE_LAYERS = frozenset(
    {"CONSTANT", "QUANTIZE", "DEQUANTIZE", "CAST", "SHAPE", "ASSERTION"}
    | {"TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT"}
)
INSTEAD = "or run this model with the ONNX Runtime engine"
WAYS_OUT = {
    "MODEL_DESERIALIZE_FAILED": "check that the file is ONNX and whole",
    "UNSUPPORTED_NODE": f"this TensorRT has no such operator: replace it and export again, {INSTEAD}",
    "UNSUPPORTED_NODE_ATTR": f"change that attribute and export again, {INSTEAD}",
    "UNSUPPORTED_NODE_INPUT": f"make that input a constant, export again, {INSTEAD}",
    "UNSUPPORTED_NODE_DATATYPE": f"cast its inputs to float32 or int32 before it, {INSTEAD}",
    "UNSUPPORTED_NODE_DYNAMIC": f"export with fixed sizes there, {INSTEAD}",
    "UNSUPPORTED_NODE_SHAPE": f"export with fixed sizes there, {INSTEAD}",
}
OTHER_WAY_OUT = f"export again with opset 17 or older and standard operators, {INSTEAD}"


@dataclass(frozen=True)
class Types:
    """What a graph says about its types: those beyond float32, and the names of nodes that compute in half."""

    found: frozenset[str]
    half_nodes: frozenset[str]
    fed_by_quantized: frozenset[str]


def read_types(path: Path) -> Types:
    """The types of an ONNX graph, its subgraphs included.

    Raises:
        ModelError: the file is no ONNX.
    """
    model = _load(path)
    values, nodes = _types_of_values(model), list(_nodes(model.graph))
    dequantized = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    found = {ONNX_TYPES[kind] for kind in values.values() if kind in ONNX_TYPES}
    found |= {"int8"} if dequantized and "float8" not in found else set()
    half = {node.name for node in nodes if {values.get(name) for name in node.output} & ONNX_TYPES.keys()}
    fed = {node.name for node in nodes if dequantized.intersection(node.input)}
    return Types(frozenset(found), frozenset(half), frozenset(fed))


def typing_flags(surface: Surface, types: Types, asked: frozenset[str]) -> frozenset[str]:
    """Names of the flags that this TensorRT needs to honour the types of a graph.

    Releases with a typed network take the types from the graph. Older ones take a flag for each type beyond float32,
    and constraints that hold the rest to float32. Whoever asks for a flag of `FLAG_OF_TYPE` gets neither a typed
    network nor constraints: the builder chooses.

    Raises:
        EngineError: this TensorRT cannot use a type of the graph.
    """
    by_flag = set(FLAG_OF_TYPE.values())
    if "STRONGLY_TYPED" in surface.members("NetworkDefinitionCreationFlag") and not asked & by_flag:
        return frozenset({"STRONGLY_TYPED"})
    needed = {FLAG_OF_TYPE[kind] for kind in types.found}
    lacking = needed - surface.members("BuilderFlag").keys()
    if lacking:
        raise EngineError(f"{_called(surface)} has no {', '.join(sorted(lacking))}, which types of this graph need")
    is_held = types.half_nodes and not asked & by_flag
    return frozenset(needed | ({"OBEY_PRECISION_CONSTRAINTS"} if is_held else set()))


def check_flags(surface: Surface, asked: frozenset[str]) -> None:
    """Refuse flags that this TensorRT does not have.

    Raises:
        EngineError: names the flag and those that there are.
    """
    known = surface.members("BuilderFlag").keys() | surface.members("NetworkDefinitionCreationFlag").keys()
    if asked - known:
        raise EngineError(
            f"{_called(surface)} has no flag {', '.join(sorted(asked - known))}; it has {', '.join(sorted(known))}"
        )


def parse(surface: Surface, network: Any, path: Path, logger: Any) -> None:
    """Fill an empty network from an ONNX file.

    Raises:
        ModelError: TensorRT refuses the graph; names every refused node, its operator and what can be done.
    """
    parser = surface.module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        graph = _load(path).graph
        refusals = [_refusal(error, graph) for error in errors] or ["it gives no reason"]
        raise ModelError(f"{_called(surface)} refuses {path.name}: " + "; ".join(dict.fromkeys(refusals)))
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise ModelError(
            f"{path.name} has {network.num_inputs} input(s) and {network.num_outputs} output(s); expected one of each"
        )


def type_ports(surface: Surface, network: Any, path: Path) -> None:
    """Give input and output of an untyped network the types of the graph; older parsers may leave half at float32."""
    half = surface.members("DataType")["HALF"]
    graph = _load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    (given,) = (value for value in graph.input if value.name not in weights)
    for port, tensor in ((given, network.get_input(0)), (graph.output[0], network.get_output(0))):
        if port.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 and tensor.dtype != half:
            tensor.dtype = half


def hold_to_float32(surface: Surface, network: Any, types: Types) -> int:
    """How many layers were held to float32: all of an untyped network that the graph does not compute in half.

    Without this the builder may compute coordinates in half, which puts a sample a cell away in a wide grid.
    Layers that take dequantized values are left alone: they are what the builder makes int8 of.
    """
    real, held = surface.module.DataType.FLOAT, 0
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        is_real = bool(outputs) and all(out.dtype == real and not out.is_shape_tensor for out in outputs)
        if is_real and not _belongs(layer, types.half_nodes | types.fed_by_quantized) and not _is_free(layer):
            layer.precision = real
            for index in range(layer.num_outputs):
                layer.set_output_type(index, real)
            held += 1
    return held


def count_types(surface: Surface, network: Any) -> dict[str, int]:
    """Layers of a network by the type of their first output."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return dict(Counter(surface.dtype(layer.get_output(0).dtype) for layer in layers if layer.num_outputs))


def explain(text: str, path: Path, workspace_bytes: int | None) -> str:
    """What TensorRT's log says about a build that failed, the ONNX node and a way out added where known."""
    at = _named_in(text, _load(path).graph)
    if "implementation" in text or "workspace" in text:
        have = "all of the GPU" if workspace_bytes is None else f"{workspace_bytes} bytes"
        return f"{text}{at}; give it more workspace (it had {have}), or smaller shapes in the profile"
    if re.search(r"out of memory|OutOfMemory|alloc", text, re.IGNORECASE):
        return f"{text}{at}; choose smaller shapes in the profile, or free the GPU"
    return f"{text}{at}; {OTHER_WAY_OUT}"


def _refusal(error: Any, graph: onnx.GraphProto) -> str:
    """One refusal of the parser: node, operator, reason, way out."""
    code, index = error.code().name, error.node()
    known = graph.node[index] if 0 <= index < len(graph.node) else onnx.NodeProto()
    has_names = hasattr(error, "node_name")
    name = (error.node_name() if has_names else "") or known.name
    kind = (error.node_operator() if has_names else "") or known.op_type
    reason = error.desc().strip()
    reason = code if reason in ("", "false") else f"{reason} ({code})"
    where = f"node {name or f'number {index}'} ({kind}): " if kind else ""
    return f"{where}{reason}; {WAYS_OUT.get(code, OTHER_WAY_OUT)}"


def _named_in(text: str, graph: onnx.GraphProto) -> str:
    """The first ONNX node that a text of TensorRT names after the word node, with its operator; empty if none."""
    after = text.partition("node")[2]
    found = [
        (match.start(), -len(node.name), f" (node {node.name}, {node.op_type})")
        for node in _nodes(graph)
        if node.name and (match := re.search(rf"(?<![\w/]){re.escape(node.name)}(?!\w)", after))
    ]
    return min(found)[2] if found else ""


def _belongs(layer: Any, nodes: frozenset[str]) -> bool:
    """True if a layer was made from one of these ONNX nodes; the parser may have added to its name."""
    return layer.name in nodes or layer.name.split(" ")[0] in nodes


def _is_free(layer: Any) -> bool:
    """True for layers whose type is not the builder's choice, or is what they are there to change."""
    return layer.type.name in FREE_LAYERS or layer.type.name.startswith(("PLUGIN", "CONDITION"))


def _types_of_values(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX type of every value of the top graph, as far as shape inference knows it."""
    try:
        graph = onnx.shape_inference.infer_shapes(weights_as_inputs(model)).graph
    except Exception:  # values of unknown type count as float32
        graph = model.graph
    known = {value.name: value.type.tensor_type.elem_type for value in _values(graph)}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has moved between releases
        raise ModelError(f"{path.name} is no ONNX file or is truncated: {error}") from error


def _called(surface: Surface) -> str:
    return f"{surface.flavour} {surface.version}"
