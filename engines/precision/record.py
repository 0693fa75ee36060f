"""What precision was asked for, and what a graph shows that was obtained."""

from dataclasses import dataclass
from typing import Literal, get_args

import onnx
from onnx import TensorProto

from engines.precision.layers import CONVERTER_VERSION, LayerCounts, describe

Arithmetic = Literal["float32", "half", "int8"]


@dataclass(frozen=True)
class Precision:
    """What heavy operators compute in, and whether I/O are integer codes; written `half` or `half+packed`.

    Raises:
        ValueError: an arithmetic that does not exist (found, expected).
    """

    arithmetic: Arithmetic = "float32"
    is_packed: bool = False

    def __post_init__(self) -> None:
        if self.arithmetic not in get_args(Arithmetic):
            raise ValueError(f"precision is {self.arithmetic!r}; expected one of {list(get_args(Arithmetic))}")

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """The precision that `str` writes.

        >>> Precision.parse("int8+packed")
        Precision(arithmetic='int8', is_packed=True)
        """
        arithmetic, plus, packed = text.partition("+")
        if plus and packed != "packed":
            raise ValueError(f"precision is {text!r}; only '+packed' may follow {arithmetic!r}")
        return cls(arithmetic, bool(plus))  # type: ignore[arg-type]  # checked when it is made

    def __str__(self) -> str:
        return self.arithmetic + "+packed" * self.is_packed


@dataclass(frozen=True)
class Conversion:
    """A precision asked for, what the graph has obtained, by which converter: part of an engine's identity."""

    asked: Precision
    obtained: Precision
    layers: LayerCounts
    converter_version: str = CONVERTER_VERSION

    @property
    def is_honoured(self) -> bool:
        """True if the graph has what was asked for; that says nothing yet of the engine built from it."""
        return self.asked == self.obtained


def record_conversion(asked: Precision, model: onnx.ModelProto) -> Conversion:
    """The record of a rewritten graph. One int8 operator makes it int8; otherwise one half operator makes it half."""
    layers = describe(model)
    arithmetic: Arithmetic = "int8" if layers.int8 else "half" if layers.half else "float32"
    kinds = {port.type.tensor_type.elem_type for port in (*model.graph.input, *model.graph.output)}
    return Conversion(asked, Precision(arithmetic, not kinds & {TensorProto.FLOAT, TensorProto.FLOAT16}), layers)
