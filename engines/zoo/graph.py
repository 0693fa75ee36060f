"""Writing ONNX graphs by hand: named operators in, a checked and byte-stable model out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
TO_THE_END = 2**31 - 1  # a stop beyond every axis


class Graph:
    """A graph under construction; every method returns the name of the value it adds.

    Names are numbered in the order of writing, so the same calls give the same bytes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The one output of a new node."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """The outputs of a new node that has several."""
        label = f"{kind.lower()}_{len(self._nodes)}"
        names = [label] if outputs == 1 else [f"{label}_{k}" for k in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=label, **attributes))
        return names

    def floats(self, values: ArrayLike) -> str:
        """A float32 constant; equal constants are stored once."""
        return self._constant(np.asarray(values, np.float32))

    def integers(self, values: ArrayLike) -> str:
        """An int64 constant; equal constants are stored once."""
        return self._constant(np.asarray(values, np.int64))

    def add(self, left: str, right: str) -> str:
        return self.op("Add", left, right)

    def sub(self, left: str, right: str) -> str:
        return self.op("Sub", left, right)

    def mul(self, left: str, right: str) -> str:
        return self.op("Mul", left, right)

    def div(self, left: str, right: str) -> str:
        return self.op("Div", left, right)

    def scale(self, value: str, factor: float) -> str:
        return self.mul(value, self.floats(factor))

    def concat(self, values: Sequence[str], axis: int = 1) -> str:
        return self.op("Concat", *values, axis=axis)

    def channels(self, value: str, start: int, stop: int) -> str:
        """Channels start to stop (exclusive) of an (n, channel, h, w) value."""
        return self.part(value, 1, start, stop)

    def part(self, value: str, axis: int, start: int, stop: int = TO_THE_END, step: int = 1) -> str:
        """What Python's [start:stop:step] gives along one axis."""
        numbers = (start, stop, axis) if step == 1 else (start, stop, axis, step)
        return self.op("Slice", value, *(self.integers([number]) for number in numbers))

    def pad(self, value: str, cells: tuple[int, int], fill: float) -> str:
        """An (n, channel, h, w) value with (y, x) `cells` of `fill` added on either side."""
        return self.op("Pad", value, self.integers([0, 0, *cells] * 2), self.floats(fill))

    def size(self, value: str, axis: int) -> str:
        """The length of one axis, an int64 scalar known only when the graph runs."""
        return self.op("Gather", self.op("Shape", value), self.integers(axis), axis=0)

    def model(self, channels: int, leads: int, output: str) -> onnx.ModelProto:
        """The finished model: input (n, channels, h, w) to (n, leads, h, w), float32, n, h and w dynamic.

        Raises:
            onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the graph is not valid ONNX.
        """
        self._nodes[-1].output[0] = output
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size, "h", "w"])
            for name, size in (("frames", channels), (output, leads))
        ]
        graph = helper.make_graph(self._nodes, self.name, ports[:1], ports[1:], self._initializers)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="squall")
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        return model

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]
