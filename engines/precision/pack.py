"""Integer codes in and out of the graph, so that the host moves a quarter of the bytes."""

import math
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from engines.base import ModelError
from engines.precision.layers import checked, fresh, graphs, names, prepared

_TINY = 1e-30  # of scales: below it float32 has fewer digits
_EXACT = 2**20  # beyond it the rounding of float32 may move a code by more than one
_DTYPES = {"uint8": (TensorProto.UINT8, 0, 255), "int32": (TensorProto.INT32, -_EXACT, _EXACT)}


@dataclass(frozen=True)
class Packing:
    """Integer codes of values in model space: value = code * scale + offset, and one code for missing.

    Args:
        scale: model space a code, more than 0.
        offset: value of code 0.
        lowest, highest: the codes that stand for values; a value beyond them is given the nearest.
        missing_code: the code of a missing cell, outside lowest to highest.
        dtype: TensorRT has no 16-bit integers.

    Raises:
        ValueError: a packing that cannot hold, with what was found and expected.
    """

    scale: float
    offset: float
    lowest: int = 0
    highest: int = 254
    missing_code: int = 255
    dtype: Literal["uint8", "int32"] = "uint8"

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"dtype is {self.dtype!r}; expected one of {sorted(_DTYPES)}: TensorRT has no 16-bit integers"
            )
        if not (_TINY <= self.scale <= 1 / _TINY and math.isfinite(self.offset)):
            raise ValueError(
                f"scale is {self.scale} and offset {self.offset}; expected finite numbers, the scale above 0"
            )
        if abs(self.offset) > _EXACT * self.scale:
            raise ValueError(
                f"offset is {self.offset}, more than {_EXACT} scales of {self.scale}; float32 loses codes there"
            )
        _, low, high = _DTYPES[self.dtype]
        if not low <= self.lowest < self.highest <= high:
            raise ValueError(f"codes run from {self.lowest} to {self.highest}; {self.dtype} has {low} to {high}")
        if not low <= self.missing_code <= high or self.lowest <= self.missing_code <= self.highest:
            raise ValueError(
                f"missing_code is {self.missing_code}; expected a {self.dtype} outside {self.lowest} to {self.highest}"
            )

    @classmethod
    def spanning(cls, low: float, high: float) -> "Packing":
        """The finest uint8 packing of low to high: codes 0 and 254.

        >>> Packing.spanning(-32.0, 95.0).scale
        0.5
        """
        return cls(scale=(high - low) / 254, offset=low)


def pack_io(
    model: onnx.ModelProto,
    input_packing: Packing | None,
    output_packing: Packing | None,
    *,
    missing: float,
    missing_below: float | None = None,
) -> onnx.ModelProto:
    """The model with codes for input and output, under the same names; None leaves a side as float32.

    Input: the missing code becomes `missing`. Output: NaN, -inf and what is below `missing_below` become the missing
    code; the rest is rounded half to even and held to lowest..highest. The codes equal those of the same packing
    computed on the host in float64, save where rounding falls the other way: then they are one apart.

    Args:
        missing: what the model is given for a missing cell, in model space, as its contract says.
        missing_below: output below it is missing, as the contract says; None: only NaN is.

    Raises:
        ModelError: not one float32 input and one float32 output (or packed already), or the result is not valid ONNX.
    """
    rewrite = prepared(model)
    graph = rewrite.graph
    _check_float(graph)
    if input_packing is not None:
        _decode(graph, input_packing, missing)
    if output_packing is not None:
        _encode(graph, output_packing, missing_below)
    return checked(rewrite, "the packed model")


class _Chain:
    """Operators in a row at one border of a graph; every method returns the name of what it adds."""

    def __init__(self, graph: onnx.GraphProto, label: str) -> None:
        self._graph, self._label = graph, label
        self._taken = names(graph)
        self.nodes: list[onnx.NodeProto] = []

    def name(self, kind: str) -> str:
        return fresh(f"{self._label}.{kind}", self._taken)

    def op(self, kind: str, *inputs: str, **attributes: int) -> str:
        made = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [made], name=made, **attributes))
        return made

    def number(self, value: ArrayLike) -> str:
        made = self.name("constant")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), made))
        return made


def _decode(graph: onnx.GraphProto, packing: Packing, missing: float) -> None:
    """Codes to values, before everything else; whoever read the input reads the values."""
    given = graph.input[0]
    chain = _Chain(graph, given.name)
    codes = chain.op("Cast", given.name, to=TensorProto.FLOAT)
    scaled = chain.op("Mul", codes, chain.number(packing.scale))
    values = chain.op("Add", scaled, chain.number(packing.offset))
    is_missing = chain.op("Equal", codes, chain.number(packing.missing_code))
    values = chain.op("Where", is_missing, chain.number(missing), values)
    for one in graphs(graph):
        for node in one.node:
            _rename(node.input, given.name, values)
    for k, node in enumerate(chain.nodes):
        graph.node.insert(k, node)
    given.type.tensor_type.elem_type = _DTYPES[packing.dtype][0]


def _encode(graph: onnx.GraphProto, packing: Packing, missing_below: float | None) -> None:
    """Values to codes, after everything else."""
    returned = graph.output[0]
    chain = _Chain(graph, returned.name)
    values = chain.name("values")
    for one in graphs(graph):
        for node in one.node:
            _rename(node.input, returned.name, values)
            _rename(node.output, returned.name, values)
    shifted = chain.op("Add", values, chain.number(-packing.offset))
    steps = chain.op("Mul", shifted, chain.number(1 / packing.scale))
    steps = chain.op("Clip", steps, chain.number(packing.lowest), chain.number(packing.highest))
    is_known = chain.op("Greater", values, chain.number(_below(missing_below)))  # false for NaN, on every runtime
    codes = chain.op("Where", is_known, chain.op("Round", steps), chain.number(packing.missing_code))
    chain.op("Cast", codes, to=_DTYPES[packing.dtype][0])
    chain.nodes[-1].output[0] = returned.name
    graph.node.extend(chain.nodes)
    returned.type.tensor_type.elem_type = _DTYPES[packing.dtype][0]


def _below(missing_below: float | None) -> float:
    """The largest float32 that means missing; of the finite ones, the lowest if none does."""
    if missing_below is None:
        return float(np.finfo(np.float32).min)
    return float(np.nextafter(np.float32(missing_below), np.float32(-np.inf)))


def _rename(field: MutableSequence[str], old: str, new: str) -> None:
    for k, name in enumerate(field):
        if name == old:
            field[k] = new


def _check_float(graph: onnx.GraphProto) -> None:
    ports = [*graph.input, *graph.output]
    kinds = [TensorProto.DataType.Name(port.type.tensor_type.elem_type) for port in ports]
    if len(graph.input) != 1 or len(graph.output) != 1 or set(kinds) != {"FLOAT"}:
        found = ", ".join(f"{port.name} {kind}" for port, kind in zip(ports, kinds, strict=True))
        raise ModelError(
            f"graph {graph.name!r} has I/O {found}; only one FLOAT input and one FLOAT output can be packed"
        )
