"""Half precision as a rewrite: heavy operators and what lies between them, with casts at the borders."""

import logging
from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.precision.layers import (
    HEAVY,
    captured,
    checked,
    fresh,
    names,
    prepared,
    replace_all,
    steering,
    value_types,
)

# What may stay in half between heavy operators: none of it sums over many cells, divides or compares.
_CURVES = {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip"}
_ARITHMETIC = {"Add", "Sub", "Mul", "Max", "Min", "MaxPool", "AveragePool", "BatchNormalization", "Dropout", "Resize"}
_MOVES = {"Concat", "Slice", "Split", "Pad", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
LIGHT = frozenset(_CURVES | _ARITHMETIC | _MOVES | {"DepthToSpace", "SpaceToDepth"})
# Inputs that stay float32: scales of Resize, statistics of BatchNormalization.
_STAY = {"Resize": (1, 2), "BatchNormalization": (1, 2, 3, 4), "Dropout": (1,)}
_log = logging.getLogger(__name__)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its heavy operators, and what lies between them, in half precision; I/O as before.

    Float32 stay: everything that computes where data moves (the coordinates of GridSample), whatever enters a subgraph,
    subgraphs themselves, operators between Q/DQ, and operators with a constant that half cannot hold. A model that has
    nothing to change comes back unchanged and the log says so; doing it twice changes nothing.

    Raises:
        ModelError: weights were not loaded, or the result is not valid ONNX.

    Source: docs/decisions/010-precision-is-the-graph.md.
    """
    rewrite = prepared(model)
    types = value_types(rewrite)
    chosen = _choose(rewrite.graph, types)
    if not chosen:
        _log.info("graph %r has no operator to compute in half: it stays as it is", model.graph.name)
        return model
    _Halving(rewrite.graph, types, chosen).apply()
    return checked(rewrite, "the half precision rewrite")


def _choose(graph: onnx.GraphProto, types: dict[str, int]) -> set[str]:
    """Names of the nodes to halve: the heavy ones, and light ones that have heavy ones before and behind them."""
    able, weights = _able(graph, types), {tensor.name for tensor in graph.initializer}
    made: set[str] = set()
    for node in graph.node:
        floats = set(_floats(node, types)) - weights
        if node.name in able and (node.op_type in HEAVY or (floats and floats <= made)):
            made.update(node.output)
    wanted: set[str] = set()
    chosen = set()
    for node in reversed(graph.node):
        if made.intersection(node.output) and (node.op_type in HEAVY or wanted.intersection(node.output)):
            chosen.add(node.name)
            wanted.update(_floats(node, types))
    return chosen


def _able(graph: onnx.GraphProto, types: dict[str, int]) -> set[str]:
    """Names of the float32 nodes that half could compute."""
    steers, weights = steering(graph), {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    able = set()
    for node in graph.node:
        constants = [numpy_helper.to_array(weights[name]) for name in _floats(node, types) if name in weights]
        if (
            node.op_type in HEAVY | LIGHT
            and node.name not in steers
            and types.get(node.output[0]) == TensorProto.FLOAT
            and not dequantized.intersection(node.input)
            and all(_fits(array, node.op_type in HEAVY) for array in constants)
        ):
            able.add(node.name)
    return able


def _floats(node: onnx.NodeProto, types: dict[str, int]) -> list[str]:
    """The float32 inputs of a node that would be half."""
    stay = _STAY.get(node.op_type, ())
    return [name for k, name in enumerate(node.input) if k not in stay and types.get(name) == TensorProto.FLOAT]


def _fits(array: NDArray[np.float32], may_vanish: bool) -> bool:
    """True if half holds the constant: nothing overflows and, unless it may, nothing becomes zero."""
    half = _as_half(array)
    return bool(
        np.array_equal(np.isfinite(array), np.isfinite(half)) and (may_vanish or not np.any((half == 0) & (array != 0)))
    )


def _as_half(array: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


class _Halving:
    """One rewrite under way: the nodes in their new order, and the half twin of each value that has one."""

    def __init__(self, graph: onnx.GraphProto, types: dict[str, int], chosen: set[str]) -> None:
        self.graph, self.types, self.chosen = graph, types, chosen
        self.taken = names(graph)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.twins: dict[str, str] = {}
        self.only_half: set[str] = set()

    def apply(self) -> None:
        for node in self.graph.node:
            if node.name in self.chosen:
                self._halve(node)
            else:
                self._leave(node)
        self._widen(value.name for value in self.graph.output)
        replace_all(self.graph.node, self.nodes)
        used = {name for node in self.nodes for name in (*node.input, *captured(node))}
        used |= {value.name for value in self.graph.output}
        replace_all(self.graph.initializer, (tensor for tensor in self.graph.initializer if tensor.name in used))
        kept = (value for value in self.graph.value_info if value.name not in self.only_half)
        replace_all(self.graph.value_info, kept)

    def _halve(self, node: onnx.NodeProto) -> None:
        floats = set(_floats(node, self.types))
        stay = _STAY.get(node.op_type, ())
        for k, name in enumerate(node.input):
            if name in floats and k not in stay:
                node.input[k] = self._twin(name)
        for k, name in enumerate(node.output):
            if self.types.get(name) == TensorProto.FLOAT:
                self.only_half.add(name)
                node.output[k] = self.twins[name] = fresh(f"{name}.half", self.taken)
        self.nodes.append(node)

    def _leave(self, node: onnx.NodeProto) -> None:
        if node.op_type in ("Shape", "Size"):
            for k in [k for k, name in enumerate(node.input) if name in self.only_half]:
                node.input[k] = self.twins[node.input[k]]
        self._widen(node.input)
        self.nodes.append(node)

    def _twin(self, name: str) -> str:
        """The half twin of a float32 value: a weight stored anew, or a cast, made where it is first used."""
        if name not in self.twins:
            self.twins[name] = twin = fresh(f"{name}.half", self.taken)
            if name in self.weights:
                half = _as_half(numpy_helper.to_array(self.weights[name]))
                self.graph.initializer.append(numpy_helper.from_array(half, twin))
            else:
                self._cast(name, twin, TensorProto.FLOAT16)
        return self.twins[name]

    def _widen(self, values: Iterable[str]) -> None:
        """Give float32 back to those who want it, once a value, under its old name."""
        for name in dict.fromkeys(values):
            if name in self.only_half:
                self.only_half.discard(name)
                self._cast(self.twins[name], name, TensorProto.FLOAT)

    def _cast(self, given: str, made: str, to: int) -> None:
        label = fresh(f"Cast_{made}", self.taken)
        self.nodes.append(helper.make_node("Cast", [given], [made], name=label, to=to))
