"""Precision is a rewrite of the graph, ONNX to ONNX: what the gate tests is what TensorRT builds.

Order: `to_int8`, then `to_half` for what is left, then `pack_io` or `to_half_ports`. Each is optional.
"""

from engines.precision.emulate import emulate_half
from engines.precision.half import to_half
from engines.precision.int8 import choose_cases, to_int8
from engines.precision.layers import CONVERTER_VERSION, LayerCounts, describe
from engines.precision.pack import Packing, pack_io
from engines.precision.ports import to_half_ports
from engines.precision.record import Arithmetic, Conversion, Precision, record_conversion

__all__ = [
    "CONVERTER_VERSION",
    "Arithmetic",
    "Conversion",
    "LayerCounts",
    "Packing",
    "Precision",
    "choose_cases",
    "describe",
    "emulate_half",
    "pack_io",
    "record_conversion",
    "to_half",
    "to_half_ports",
    "to_int8",
]
