"""How much memory one inference needs, from the graph alone: shapes, and a walk over what is alive at each operator.

ONNX Runtime runs convolutions on the CPU in a blocked layout: channels are padded to whole blocks, and a tensor that
goes between a convolution and an operator without that layout is copied. For small networks that is half the memory.
"""

from collections import Counter
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from engines.base import ModelError
from engines.graph import first_line, weights_as_inputs
from engines.scratch import scratch_folder

BLOCK = 16  # channels; 8 on processors without AVX-512
BLOCKED = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "BatchNormalization", "Add", "Mul"}
BLOCKED |= {"Relu", "Sigmoid", "Tanh"}
# Operators that may write over an input which nothing else needs.
IN_PLACE = {"Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "Elu", "Tanh", "Sigmoid", "Clip", "Abs", "Neg", "Exp"}
IN_PLACE |= {"Log", "Sqrt", "Floor", "Ceil", "Erf", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
UNKNOWN = "does not follow from the input's, so the memory of a tile is not known; export the model with loops unrolled"
FRAGMENTS = 1.5  # measured: what ONNX Runtime takes for each byte alive

Shape = tuple[int, int]


def bytes_per_cell(model: Path, channels: int, size: int | Shape = 256) -> float:
    """Peak working memory of one inference, input and output included and weights not, per cell of a tile, bytes.

    Args:
        model: path of an ONNX file of one input (n, channel, h, w).
        channels: of the input.
        size: edge of the tile that is looked at, or its (h, w); a multiple of the model's stride.

    Raises:
        ModelError: the shape of a tensor does not follow from that of the input; names the tensor.

    Source: tests/engines/test_footprint.py; 0.85 to 1.5 times what ONNX Runtime 1.31 was seen to take.
    """
    tile = size if isinstance(size, tuple) else (size, size)
    graph = _with_shapes(model, (1, channels, *tile))
    return FRAGMENTS * _peak(graph, _tensors(graph)) / prod(tile)


def _with_shapes(path: Path, shape: tuple[int, ...]) -> onnx.GraphProto:
    """The graph with the shape of every tensor, for an input of this shape, and what follows from the shape folded."""
    with scratch_folder("squall-scratch-shapes-") as folder:
        _fold(_for_input(path, shape), path.parent, folder / "folded.onnx")
        folded = onnx.load(folder / "folded.onnx", load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(weights_as_inputs(folded), data_prop=True).graph
    for field in ("value_info", "output"):
        folded.graph.ClearField(field)
        getattr(folded.graph, field).extend(getattr(inferred, field))
    return folded.graph


def _for_input(path: Path, shape: tuple[int, ...]) -> bytes:
    """The model for an input of this shape, as ONNX Runtime reads it."""
    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in (value for value in model.graph.input if value.name not in weights):
        for axis, length in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            axis.dim_value = length
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def _fold(model: bytes, weights: Path, to: Path) -> None:
    """Write the model with its constant parts computed; all operators stay standard ones."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(to)
    options.enable_mem_reuse = False  # nothing is run
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.resolve()))
    try:
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ModelError(f"ONNX Runtime cannot load {weights / 'model.onnx'}: {first_line(error)}") from error


class _Tensor(NamedTuple):
    """Bytes of a tensor, of a copy of it in blocks of channels, and whether the convolutions' operators keep it so."""

    plain: int
    padded: int
    is_blocked: bool = False

    @property
    def held(self) -> int:
        return self.padded if self.is_blocked else self.plain


def _tensors(graph: onnx.GraphProto) -> dict[str, _Tensor]:
    """Every tensor that is given or computed."""
    weights = {tensor.name for tensor in graph.initializer}
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    found = {name: _tensor(value) for name, value in values.items() if name not in weights}
    for node in graph.node:
        for name in filter(None, node.output):
            if name not in found:
                raise ModelError(f"the shape of {name!r}, made by {node.op_type}, {UNKNOWN}")
        made, given = _made(node), [found[name] for name in node.input if name in found]
        is_blocked = node.op_type in BLOCKED and all(tensor.is_blocked for tensor in given)
        if node.op_type == "Conv":
            is_blocked = values[made].type.tensor_type.shape.dim[1].dim_value >= BLOCK // 2
        found[made] = found[made]._replace(is_blocked=is_blocked)
    return found


def _made(node: onnx.NodeProto) -> str:
    """The first result that an operator is asked for; a recurrent one may be asked for its last state alone."""
    return str(next(filter(None, node.output)))


def _tensor(value: onnx.ValueInfoProto) -> _Tensor:
    if not value.type.HasField("tensor_type"):
        found = value.type.WhichOneof("value")
        raise ModelError(f"{value.name!r} is a {found}; expected tensors only: index or slice the axis in place of it")
    kind = value.type.tensor_type
    shape = [axis.dim_value for axis in kind.shape.dim]
    if not kind.HasField("shape") or not all(axis.HasField("dim_value") for axis in kind.shape.dim):
        raise ModelError(f"the shape {shape or '(unknown)'} of {value.name!r} {UNKNOWN}")
    item = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize
    padded = [*shape[:1], -(-shape[1] // BLOCK) * BLOCK, *shape[2:]] if len(shape) == 4 else shape
    return _Tensor(prod(shape) * item, prod(padded) * item)


def _peak(graph: onnx.GraphProto, tensors: dict[str, _Tensor]) -> int:
    """The most bytes alive at any operator."""
    uses = Counter(name for node in graph.node for name in set(node.input))
    uses.update(value.name for value in (*graph.input, *graph.output))
    readers = [node for node in graph.node if node.op_type != "Conv" and not tensors[_made(node)].is_blocked]
    leaves_blocks = {name for node in readers for name in node.input}
    leaves_blocks.update(value.name for value in graph.output)
    kernels = {tensor.name: tensor.dims for tensor in graph.initializer}
    alive = {value.name: tensors[value.name].held for value in graph.input if value.name in tensors}
    most = sum(alive.values())
    for node in graph.node:
        given, made = tensors.get(node.input[0] if node.input else ""), _made(node)
        dying = [name for name in node.input if uses[name] == 1 and name in alive]
        if node.op_type in IN_PLACE and dying:
            del alive[dying[0]]
        alive |= {name: tensors[name].held for name in filter(None, node.output)}
        scratch = tensors[made].plain if tensors[made].is_blocked and made in leaves_blocks else 0
        if node.op_type == "Conv" and given and not given.is_blocked:
            scratch += given.plain
        if node.op_type == "ConvTranspose" and given and node.input[1] in kernels:
            scratch += given.plain // kernels[node.input[1]][0] * prod(kernels[node.input[1]][1:])
        most = max(most, sum(alive.values()) + scratch)
        uses.subtract(set(node.input))
        alive = {name: size for name, size in alive.items() if uses[name] > 0}
    return most
